"""Which images of a fit stand out from the others, as a bad part among the good ones does.

A robust test of each image's leave-one-out score against those of all, with the false discovery rate held at 5 %. No
images, no disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import false_discovery_control, t

from backend.base.messages import Notice, Phrase
from backend.memory.left_out import LeftOut
from backend.service.results import FitResult

FALSE_DISCOVERY_RATE = 0.05
FEWEST = 5
SHOWN = 20
NAMED = 5

_NORMAL_QUARTILE = 0.6744897501960817  # of a standard normal distribution
_LEAST_SPREAD = 1e-3  # of logarithms of scores: a thousandth of the score


@dataclass(frozen=True)
class Suspect:
    """An image, by its place among those of the fit, and how it compares with them.

    Attributes:
        score: how far its farthest places are from the memory without its own rows, and without `n_companions` images.
        times: the score as a multiple of what is usual (the median of all images, left out in the same way).
        n_companions: how many other images were left out for it to stand out most; 0: it does so alone.
        companions: numbers of those that were nearest to most of its farthest places.
        p_value: how likely an image stands out as much by chance, with all that was tried on it accounted for.
        stands_out: whether it does, at a false discovery rate of 5 % among all images.
    """

    place: int
    score: float
    times: float
    n_companions: int
    companions: tuple[int, ...]
    p_value: float
    stands_out: bool


def suspects(found: LeftOut) -> list[Suspect]:
    """All images, the most suspect first. Of fewer than five none can be told apart, and the list is empty.

    Scores of good parts are skewed, so their logarithms are compared, and the spread is the larger of two robust ones:
    that of the upper quartile and the median absolute deviation. Their ratio to it has about Student's distribution
    with half as many degrees of freedom as there are images. An image is judged by the most telling of its scores,
    alone or without its companions too, and pays for each that was tried (Bonferroni); among all images, those stand
    out whom Benjamini and Hochberg (1995, Controlling the False Discovery Rate) let through.
    """
    n, tried = found.scores.shape
    if n < FEWEST:
        return []
    logs = np.log(np.maximum(found.scores, 1e-9))
    excess = (logs - np.median(logs, axis=0)) / _spread(logs)
    depth = excess.argmax(axis=1)
    everyone = np.arange(n)
    p_values = np.minimum(1.0, tried * t.sf(excess[everyone, depth], n / 2))
    stand_out = false_discovery_control(p_values) <= FALSE_DISCOVERY_RATE
    times = np.exp(logs - np.median(logs, axis=0))
    ranked = np.lexsort((-found.scores[:, 0], p_values))
    return [
        Suspect(
            place=int(place),
            score=float(found.scores[place, depth[place]]),
            times=float(times[place, depth[place]]),
            n_companions=int(depth[place]),
            companions=found.companions[place][depth[place]],
            p_value=float(p_values[place]),
            stands_out=bool(stand_out[place]),
        )
        for place in ranked
    ]


def suspects_of(result: FitResult) -> tuple[list[Suspect], list[str]]:
    """The images of a fit that stand out, at most twenty, and the names of all that it looked at."""
    if result.left_out is None:
        return [], []
    n = len(result.left_out.scores)
    names = [str(image["name"]) for image in result.metadata["images"][-n:]]
    return [one for one in suspects(result.left_out) if one.stands_out][:SHOWN], names


def why(suspect: Suspect) -> Phrase:
    """What sets it apart."""
    if suspect.n_companions == 0:
        return Phrase("suspect_alone", {"times": suspect.times})
    return Phrase("suspect_in_a_group", {"times": suspect.times, "n": suspect.n_companions})


def about_suspects(named: Sequence[Suspect], names: Sequence[str]) -> list[Notice]:
    """A notice that names the first suspects, if there are any."""
    first = ", ".join(names[one.place] for one in named[:NAMED]) + (", …" if len(named) > NAMED else "")
    return [Notice("suspects_found", {"names": first})] if named else []


def _spread(logs: NDArray[np.float64]) -> NDArray[np.float64]:
    """(m,) robust standard deviations of the columns of logs (n, m)."""
    middle = np.median(logs, axis=0)
    upper = (np.quantile(logs, 0.75, axis=0) - middle) / _NORMAL_QUARTILE
    deviation = np.median(np.abs(logs - middle), axis=0) / _NORMAL_QUARTILE
    return np.maximum(np.maximum(upper, deviation), _LEAST_SPREAD)

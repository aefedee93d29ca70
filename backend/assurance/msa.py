"""Measurement systems analysis: how well the score repeats, and how well people and the service agree.

Agreement is judged as in AIAG's manual (Measurement Systems Analysis, 4th edition, chapter III C: cross tabulation,
Cohen's kappa, effectiveness, rates of misses and false alarms), Fleiss' kappa (Fleiss 1971) beside it. Repeatability of
the score is the variance within parts of a one-way analysis of variance with random parts, balanced or not (Searle,
Casella and McCulloch 1992, chapter 3.6). Intervals are exact (Clopper and Pearson 1934; chi-squared). Pure: numbers in,
numbers out.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from backend.base.messages import Notice

Ratings = NDArray[np.int64]
Judgement = Literal["acceptable", "marginal", "unacceptable"]

CONFIDENCE = 0.95
FEW_PARTS = 50
"""Parts that AIAG asks of a study of attributes."""
KAPPA_GOOD, KAPPA_POOR = 0.75, 0.40
_JUDGEMENTS: tuple[Judgement, ...] = ("acceptable", "marginal", "unacceptable")


@dataclass(frozen=True)
class Share:
    """`k` of `n`, with the exact interval."""

    k: int
    n: int

    @property
    def value(self) -> float:
        """NaN of none."""
        return self.k / self.n if self.n else math.nan

    @property
    def interval(self) -> tuple[float, float]:
        """Two-sided, of CONFIDENCE."""
        if not self.n:
            return 0.0, 1.0
        found = stats.binomtest(self.k, self.n).proportion_ci(CONFIDENCE, method="exact")
        return float(found.low), float(found.high)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; without a value where there is none."""
        low, high = self.interval
        known = {"value": self.value} if self.n else {}
        return {"k": self.k, "n": self.n, **known, "low": low, "high": high}


@dataclass(frozen=True)
class Appraiser:
    """How one appraiser rated. The last four are None without a reference.

    Attributes:
        within: parts that all trials say the same of.
        kappa_within: Fleiss' kappa of the trials; None with one trial.
        effectiveness: parts of which all trials say what the reference says.
        misses: decisions that call a bad part good, of those on bad parts; `false_alarms` the other way round.
        kappa: Cohen's, with the reference.
    """

    name: str
    within: Share
    kappa_within: float | None
    effectiveness: Share | None = None
    misses: Share | None = None
    false_alarms: Share | None = None
    kappa: float | None = None

    @property
    def judgement(self) -> Judgement | None:
        """By AIAG's table, the worst of the three; None without a reference of both kinds."""
        if self.effectiveness is None or self.misses is None or self.false_alarms is None:
            return None
        if not (self.misses.n and self.false_alarms.n):
            return None
        own = (
            judged_effectiveness(self.effectiveness.value),
            judged_misses(self.misses.value),
            judged_false_alarms(self.false_alarms.value),
        )
        return max(own, key=_JUDGEMENTS.index)


@dataclass(frozen=True)
class Pair:
    """Two appraisers, and Cohen's kappa of them.

    Attributes:
        counts: [i][j] times the first said i where the second said j; 0 bad, 1 good.
    """

    names: tuple[str, str]
    counts: tuple[tuple[int, int], tuple[int, int]]
    kappa: float


@dataclass(frozen=True)
class Agreement:
    """A study of attributes.

    Attributes:
        all_agree: parts of which all trials of all appraisers say the same; `all_right`: and what the reference says.
        kappa: Fleiss' kappa of all ratings; None of one.
    """

    n_parts: int
    n_trials: int
    appraisers: list[Appraiser]
    pairs: list[Pair]
    all_agree: Share
    all_right: Share | None
    kappa: float | None


@dataclass(frozen=True)
class Repeatability:
    """A study of the score: standard deviations within and between parts.

    Attributes:
        n_parts, n_scores: parts with at least two pictures, and their scores.
        within, low, high: of the same part in fresh pictures, and its exact interval.
        between: of the parts themselves; 0 where repeats explain all differences.
        share: `within` of all variation, AIAG's %EV of TV, from 0 to 1.
        ndc: distinct categories, 1.41 · between / within.
        threshold: the one in force, if it is known.
    """

    n_parts: int
    n_scores: int
    within: float
    low: float
    high: float
    between: float
    threshold: float | None = None

    @property
    def share(self) -> float:
        """0 to 1."""
        return self.within / math.hypot(self.within, self.between)

    @property
    def ndc(self) -> int:
        """At least 1."""
        return max(1, int(math.sqrt(2) * self.between / self.within))

    @property
    def judgement(self) -> Judgement:
        """By AIAG's rule for gauges: below 10 % and 30 %."""
        return "acceptable" if self.share < 0.1 else "marginal" if self.share <= 0.3 else "unacceptable"

    @property
    def doubtful(self) -> float:
        """A part whose score is so near to the threshold may get the other verdict from a fresh picture."""
        return float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * self.within


@dataclass(frozen=True)
class Study:
    """What was found; either part may be missing."""

    agreement: Agreement | None = None
    repeatability: Repeatability | None = None
    notices: list[Notice] = field(default_factory=list)


def judged_effectiveness(value: float) -> Judgement:
    """By AIAG's table of criteria."""
    return "acceptable" if value >= 0.90 else "marginal" if value >= 0.80 else "unacceptable"


def judged_misses(value: float) -> Judgement:
    """By AIAG's table of criteria."""
    return "acceptable" if value <= 0.02 else "marginal" if value <= 0.05 else "unacceptable"


def judged_false_alarms(value: float) -> Judgement:
    """By AIAG's table of criteria."""
    return "acceptable" if value <= 0.05 else "marginal" if value <= 0.10 else "unacceptable"


def agreement(ratings: Mapping[str, Ratings], reference: Ratings | None) -> Agreement:
    """What ratings say.

    Args:
        ratings: (parts, trials) of each appraiser, all of one shape; 1 good, 0 bad.
        reference: (parts,), or None.
    """
    shapes = {rated.shape for rated in ratings.values()}
    if len(shapes) != 1:
        raise ValueError(f"ratings of {shapes}")
    n_parts, n_trials = shapes.pop()
    everything = np.concatenate(list(ratings.values()), axis=1)
    same = (everything == everything[:, :1]).all(axis=1)
    return Agreement(
        n_parts,
        n_trials,
        [_appraiser(name, rated, reference) for name, rated in ratings.items()],
        [_pair(one, other, ratings) for one, other in combinations(ratings, 2)],
        Share(int(same.sum()), n_parts),
        None if reference is None else Share(int((everything == reference[:, None]).all(axis=1).sum()), n_parts),
        fleiss_kappa(everything) if everything.shape[1] > 1 else None,
    )


def _appraiser(name: str, rated: Ratings, reference: Ratings | None) -> Appraiser:
    n_parts, n_trials = rated.shape
    within = Share(int((rated == rated[:, :1]).all(axis=1).sum()), n_parts)
    kappa_within = fleiss_kappa(rated) if n_trials > 1 else None
    if reference is None:
        return Appraiser(name, within, kappa_within)
    bad, good = rated[reference == 0], rated[reference == 1]
    return Appraiser(
        name,
        within,
        kappa_within,
        Share(int((rated == reference[:, None]).all(axis=1).sum()), n_parts),
        Share(int((bad == 1).sum()), bad.size),
        Share(int((good == 0).sum()), good.size),
        cohen_kappa(counted(rated, np.repeat(reference[:, None], n_trials, axis=1))),
    )


def _pair(one: str, other: str, ratings: Mapping[str, Ratings]) -> Pair:
    counts = counted(ratings[one], ratings[other])
    (a, b), (c, d) = counts.tolist()
    return Pair((one, other), ((a, b), (c, d)), cohen_kappa(counts))


def counted(one: Ratings, other: Ratings) -> NDArray[np.int64]:
    """(2, 2) how often the one says i where the other says j."""
    return np.array([[np.count_nonzero((one == i) & (other == j)) for j in (0, 1)] for i in (0, 1)])


def cohen_kappa(counts: NDArray[np.int64]) -> float:
    """Cohen 1960; 1 where both always say the same one thing."""
    n = counts.sum()
    observed = float(np.trace(counts)) / n
    expected = float(counts.sum(axis=0) @ counts.sum(axis=1)) / n**2
    return 1.0 if expected == 1.0 else (observed - expected) / (1 - expected)


def fleiss_kappa(ratings: Ratings) -> float:
    """Fleiss 1971 of ratings (parts, n), n ≥ 2; 1 where all are the same one thing."""
    n = ratings.shape[1]
    good = ratings.sum(axis=1)
    observed = float(((good * (good - 1) + (n - good) * (n - good - 1)) / (n * (n - 1))).mean())
    share = float(ratings.mean())
    expected = share**2 + (1 - share) ** 2
    return 1.0 if expected == 1.0 else (observed - expected) / (1 - expected)


def repeatability(scores: Sequence[Sequence[float]], threshold: float | None = None) -> Repeatability | None:
    """What scores of fresh pictures say, a list for each part; parts with one score are left out.

    None without two parts that have two scores each, and where all scores of each part are the same.
    """
    groups = [np.asarray(own, np.float64) for own in scores if len(own) > 1]
    if len(groups) < 2:
        return None
    sizes = np.array([len(own) for own in groups])
    total, parts = int(sizes.sum()), len(groups)
    free = total - parts
    squares = float(sum(((own - own.mean()) ** 2).sum() for own in groups))
    if squares <= 0:
        return None
    mean = float(np.concatenate(groups).mean())
    between = float(sum(len(own) * (own.mean() - mean) ** 2 for own in groups)) / (parts - 1)
    within = squares / free
    typical = (total - float((sizes**2).sum()) / total) / (parts - 1)
    low, high = (math.sqrt(squares / stats.chi2.ppf(p, free)) for p in ((1 + CONFIDENCE) / 2, (1 - CONFIDENCE) / 2))
    part = math.sqrt(max(0.0, (between - within) / typical))
    return Repeatability(parts, total, math.sqrt(within), low, high, part, threshold)

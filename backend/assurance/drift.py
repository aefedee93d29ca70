"""Whether what comes in still looks like what came first, and if not, what has changed: the charts of one model.

Each part moves exponentially weighted means of the numbers that `reference.Gauge` takes of it. Where one of them leaves
its limits the parts drift, and the cause is the one whose effect is most of what has changed.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.assurance.control import WEIGHT
from backend.assurance.likeness import BANDS_AT, CELLS, CELLS_AT, N_FEATURES, PLACED, PLACES, TINTS_AT, Float
from backend.assurance.reference import (
    ALL_AT,
    DIRT_AT,
    DISTANCES_A_SIDE,
    DISTANCES_AT,
    N_DISTANCES,
    N_NUMBERS,
    Gauge,
)

Cause = Literal["light", "colour", "focus", "dirt", "position", "turn", "parts"]
Verdict = Literal["learning", "steady", "drift"]

ENDED = 0.6
"""Share of its limits that all charts are back within when a drift is over."""
CALM = 0.35
"""Share of its limit that a chart is usually within: a drift began when its chart was so for the last time."""
EXPLAINED = 0.35
"""Share of what has changed that a cause explains at least."""
ODD = 3.0
"""How many times as far as usual a part may lie that is to tell the cause; farther ones count as if they lay there."""
LAID = 0.68
"""Cosine between what has changed and what another way to lay the parts would change, from which they lie so."""
LAID_SHARE = 0.25
"""Share of the parts, by weight, that lie so at least: less may be chance among a few."""
_VARIANCE = WEIGHT / (2 - WEIGHT)


@dataclass
class Chart:
    """The charts of one model after some parts.

    Attributes:
        numbers: (N_NUMBERS,) weighted means of standardised numbers.
        white: (N_FEATURES,) of whitened features.
        features, distances: of what was measured, for people.
        calm_us: (N_NUMBERS,) when each of `numbers` was last near 0, µs since 1970.
        seen: parts so far.
        since_us: when the drift began that is under way; 0 without one.
    """

    numbers: Float = field(default_factory=lambda: np.zeros(N_NUMBERS))
    white: Float = field(default_factory=lambda: np.zeros(N_FEATURES))
    features: Float = field(default_factory=lambda: np.zeros(N_FEATURES))
    distances: Float = field(default_factory=lambda: np.zeros(N_DISTANCES))
    calm_us: Float = field(default_factory=lambda: np.zeros(N_NUMBERS))
    seen: int = 0
    since_us: int = 0

    def add(self, gauge: Gauge, features: Float, distances: Float, time_us: int) -> None:
        """One more part."""
        white = gauge.whitening.of(features)
        numbers = gauge.numbers(white, distances)
        if self.seen == 0:
            self.features[:], self.distances[:] = gauge.whitening.centre, gauge.distances
            self.calm_us[:] = time_us
        length = float(np.linalg.norm(white)) / N_FEATURES**0.5
        shrunk = min(1.0, ODD / max(length, 1e-9))
        self.numbers += WEIGHT * (numbers - self.numbers)
        self.white += WEIGHT * (white * shrunk - self.white)
        self.features += WEIGHT * (features - self.features)
        self.distances += WEIGHT * (distances - self.distances)
        self.seen += 1
        beyond = self.beyond(gauge)
        self.calm_us[beyond < CALM] = time_us
        if not self.since_us and beyond.max() > 1:
            self.since_us = int(self.calm_us[beyond.argmax()])
        elif self.since_us and beyond.max() < ENDED:
            self.since_us = 0

    def beyond(self, gauge: Gauge) -> Float:
        """(N_NUMBERS,) how far each chart is, 1 at its limit."""
        return np.abs(self.numbers) / gauge.limits.reach

    def to_bytes(self) -> bytes:
        """All numbers one after the other."""
        return np.concatenate([np.ravel(getattr(self, one.name)) for one in fields(self)]).astype("<f8").tobytes()

    @classmethod
    def read(cls, data: bytes) -> Chart:
        """What `to_bytes` wrote. Raises ValueError."""
        numbers = np.frombuffer(data, "<f8").copy()
        sizes = (N_NUMBERS, N_FEATURES, N_FEATURES, N_DISTANCES, N_NUMBERS, 1, 1)
        if len(numbers) != sum(sizes):
            raise ValueError(f"{len(numbers)} numbers are no chart")
        means, white, features, distances, calm, seen, since = np.split(numbers, np.cumsum(sizes)[:-1])
        return cls(means, white, features, distances, calm, int(seen[0]), int(since[0]))


@dataclass(frozen=True)
class Finding:
    """What there is to say of a model's parts.

    Attributes:
        place: (x, y) in shares of the ROI's sides, to the right and down, where the change is in one place.
        since_us: µs since 1970.
        evidence: how the last parts look beside the first ones; see `evidence_of`.
        seen: parts that were compared; `learnt`, `wanted`: parts of those that are learnt from.
    """

    state: Verdict
    cause: Cause | None = None
    place: tuple[float, float] | None = None
    since_us: int = 0
    evidence: dict[str, float] = field(default_factory=dict)
    seen: int = 0
    learnt: int = 0
    wanted: int = 0


def find(chart: Chart, gauge: Gauge) -> Finding:
    """What the charts say, without the evidence."""
    if not chart.since_us:
        return Finding("steady", seen=chart.seen)
    cause, place = cause_of(chart, gauge)
    return Finding("drift", cause, place, chart.since_us, seen=chart.seen)


def cause_of(chart: Chart, gauge: Gauge) -> tuple[Cause, tuple[float, float] | None]:
    """The cause whose effect is most of what has changed, and where, if that is one place.

    What none explains is a change of the parts. So is a greater distance to the memory in pictures that look as ever.
    Parts that come turned by quarters of a circle, or mirrored, look like nothing that small turns and shifts explain,
    so that is looked at first.
    """
    beyond = chart.beyond(gauge)
    look, distance = beyond[: ALL_AT + 1].max(), beyond[DISTANCES_AT].max()
    if distance > 1 and look < 1 and look < distance:
        return "parts", _hottest(chart.numbers[DISTANCES_AT][1:])
    laid = laid_as(chart.features[CELLS_AT], gauge.whitening.centre[CELLS_AT])
    if laid is not None:
        return laid, None
    white = chart.white
    total = max(float(white @ white) - len(white) * _VARIANCE, 0.2 * float(white @ white))
    explained = {
        cause: float(((white @ span) ** 2).sum()) - span.shape[1] * _VARIANCE for cause, span in gauge.spans.items()
    }
    darker = white @ gauge.whitening.directions[:, DIRT_AT]
    explained["dirt"] = max(float(darker.max()), 0.0) ** 2 - _VARIANCE
    best = max(explained, key=lambda cause: explained[cause])
    if explained[best] < EXPLAINED * total:
        return "parts", _hottest(chart.numbers[DISTANCES_AT][1:])
    if best == "dirt":
        row, column = PLACES[int(darker.argmax())]
        return "dirt", (column, row)
    return best, None  # type: ignore[return-value]


def laid_as(cells: Float, first: Float) -> Cause | None:
    """`turn` where parts lie turned by a quarter, a half or three quarters of a circle, `parts` where mirrored.

    Args:
        cells, first: (CELLS²,) logarithms of brightness by cell, of the last parts and of the first ones.
    """
    picture = first.reshape(CELLS, CELLS)
    change = (cells - first).reshape(CELLS, CELLS)
    ways: list[tuple[Cause, Float]] = [("turn", np.rot90(picture, quarters)) for quarters in (1, 2, 3)]
    ways += [("parts", np.rot90(picture[::-1], quarters)) for quarters in range(4)]
    best, found = LAID, None
    for cause, laid in ways:
        wanted = laid - picture
        along, size = float((change * wanted).sum()), float((wanted**2).sum())
        cosine = along / max((size * float((change**2).sum())) ** 0.5, 1e-9)
        if cosine > best and along >= LAID_SHARE * size:
            best, found = cosine, cause
    return found


def _hottest(distances: Float) -> tuple[float, float] | None:
    """The centre of the cell whose distance has grown, if few have."""
    grown = np.clip(distances, 0, None) ** 2
    if grown.sum() <= 0 or np.sort(grown)[-3:].sum() < 0.6 * grown.sum():
        return None
    row, column = divmod(int(grown.argmax()), DISTANCES_A_SIDE)
    return (column + 0.5) / DISTANCES_A_SIDE, (row + 0.5) / DISTANCES_A_SIDE


def evidence_of(chart: Chart, gauge: Gauge) -> dict[str, float]:
    """How the last parts differ from the first ones.

    Shares in percent: brightness, contrast, red and blue beside green, sharpness (of details of a pixel), distance (the
    median token's), how far to the right and down the picture lies and how much larger it is; degrees: how far it is
    turned, clockwise.
    """
    now, first = chart.features, gauge.whitening.centre
    red, blue = np.split(now[TINTS_AT] - first[TINTS_AT], 2)
    cells, before = now[CELLS_AT], first[CELLS_AT]
    sharper = (now - first)[BANDS_AT][0]
    right, down, degrees, larger = (now - first)[:PLACED]
    found = {
        "brightness_pct": _percent((cells - before).mean()),
        "contrast_pct": _percent(np.log(np.exp(cells).std() / max(float(np.exp(before).std()), 1e-6))),
        "red_pct": _percent(red.mean()),
        "blue_pct": _percent(blue.mean()),
        "sharpness_pct": _percent(sharper / 2),
        "right_pct": 100 * right,
        "down_pct": 100 * down,
        "turn_deg": degrees,
        "size_pct": _percent(larger),
    }
    if gauge.knows_distances:
        found["distance_pct"] = _percent(chart.distances[0] - gauge.distances[0])
    return {
        **{name: round(float(value), 2) for name, value in found.items()},
        "charts": round(float(chart.beyond(gauge).max()), 2),
        "parts": chart.seen,
    }


def _percent(logarithm: float) -> float:
    return 100 * float(np.expm1(np.clip(logarithm, -10, 10)))


def distances_of(token_map: NDArray[np.floating[Any]]) -> Float:
    """(N_DISTANCES,) logarithms of the median token distance of a map (rows, columns), and of the means by place."""
    places = cv2.resize(
        np.asarray(token_map, np.float32), (DISTANCES_A_SIDE, DISTANCES_A_SIDE), interpolation=cv2.INTER_AREA
    )
    found = np.concatenate([[np.median(token_map)], places.ravel()])
    return np.log(found.astype(np.float64) + 1e-3)

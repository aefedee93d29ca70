"""How small a defect a model finds: defects are made on good parts, graded in size, and judged at its threshold.

What is stated is the sensitivity to these defects. Real ones are measured with real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product

import numpy as np
from numpy.typing import NDArray

from backend.assurance.defects import (
    GRADES,
    KINDS,
    ZONES,
    Grade,
    Kind,
    Zone,
    extent_of,
    make_defect,
    zones_of,
)
from backend.assurance.parts import GoodPart, PartScorer, Picture, Seen
from backend.assurance.pod import HitMiss
from backend.service.jobs import Job

FEWEST = 30
"""Defects below which no size is assured."""
ROUNDS = 3
POINTS = 24  # of a drawn curve

_LARGEST = 0.1  # of the part's area
_SMALLEST_TOKENS = 0.02  # of the area of a token's cell
_SMALLEST_PX = 3.0


@dataclass(frozen=True)
class Curve:
    """What was found of the defects of one kind, zone and grade. Areas are in mm², extents in mm (see `extent_of`).

    Attributes:
        n, n_found: defects that were made, and found.
        smallest, largest: areas that were tried.
        a50, a90: the areas that are most likely found half of the time, and nine times out of ten; None: no area that
            was tried is.
        a90_95: the area that is found nine times out of ten at least, with a confidence of 95 %; None: no area that was
            tried is, or too few defects were.
        areas, pod, lower_bound: the curve: probability of detection at these areas, and its 95 % lower bound.
    """

    kind: Kind
    zone: Zone
    grade: Grade
    n: int
    n_found: int
    smallest: float | None = None
    largest: float | None = None
    a50: float | None = None
    a90: float | None = None
    a90_95: float | None = None
    areas: tuple[float, ...] = ()
    pod: tuple[float, ...] = ()
    lower_bound: tuple[float, ...] = ()

    def extent(self, area: float | None) -> float | None:
        """The diameter, or of a scratch the length, of a defect of `area`."""
        return None if area is None else extent_of(self.kind, area)


@dataclass
class Cell:
    """The defects of one kind, zone and grade so far.

    Attributes:
        shares, areas: their sizes, as shares of the part's area and in mm².
        hits: whether each was found.
        groups: the number of the part that each was on.
    """

    kind: Kind
    zone: Zone
    grade: Grade
    shares: list[float] = field(default_factory=list)
    areas: list[float] = field(default_factory=list)
    hits: list[bool] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)

    def next_shares(self, n: int, smallest: float, rng: np.random.Generator) -> NDArray[np.float64]:
        """(n,) shares to try next, where the last ones left open whether they are found, evenly by logarithm."""
        low, high = smallest, _LARGEST
        if self.hits:
            so_far = HitMiss.of(self.shares, self.hits, self.groups)
            low = (so_far.size_found(0.1) or so_far.largest) / 1.5
            high = (so_far.size_found(0.98) or _LARGEST) * 1.5
        low, high = max(smallest, min(low, high / 4)), min(_LARGEST, max(high, 4 * low))
        even = (np.arange(n) + rng.random(n)) / n
        return rng.permutation(low * (high / low) ** even)

    def curve(self) -> Curve:
        """What was found of them."""
        n, n_found = len(self.hits), sum(self.hits)
        if n == 0:
            return Curve(self.kind, self.zone, self.grade, 0, 0)
        found = HitMiss.of(self.areas, self.hits, self.groups)
        areas = np.geomspace(found.smallest, found.largest, POINTS)
        return Curve(
            self.kind,
            self.zone,
            self.grade,
            n,
            n_found,
            smallest=found.smallest,
            largest=found.largest,
            a50=found.size_found(0.5),
            a90=found.size_found(),
            a90_95=found.size_assured() if n >= FEWEST else None,
            areas=tuple(areas.tolist()),
            pod=tuple(found.curve(areas).tolist()),
            lower_bound=tuple(found.lower_bound(areas).tolist()),
        )


@dataclass(frozen=True)
class Example:
    """A defect as it looks: of which kind, how large in mm², and the picture around it."""

    kind: Kind
    area: float
    picture: Picture


class Detection:
    """Makes defects on good parts and has them judged.

    Args:
        parts: good parts that the model passes as they are: a rejected one would count every defect as found.
        trials: defects of each kind, zone and grade. They are shared out among the parts, so that there is one on each
            where there are as many parts.
    """

    def __init__(
        self,
        scorer: PartScorer,
        parts: Sequence[GoodPart],
        *,
        trials: int = 60,
        seed: int = 0,
        kinds: Sequence[Kind] = KINDS,
    ) -> None:
        self.scorer, self.parts, self.trials = scorer, parts, trials
        self._rng = np.random.default_rng([seed, len(parts)])
        self.cells = [Cell(*names) for names in product(kinds, ZONES, GRADES)]
        self._orders = [self._rng.permutation(len(parts)) for _ in self.cells]

    def curves(self, job: Job) -> list[Curve]:
        """The curve of each kind, zone and grade. Raises Cancelled."""
        progress = job.stage("detection")
        done, total = 0, ROUNDS * len(self.parts)
        for n_round in range(ROUNDS):
            first, last = (self.trials * n // ROUNDS for n in (n_round, n_round + 1))
            plan = self._planned(first, last)
            donor: Picture | None = None
            for number, part in enumerate(self.parts):
                seen = self.scorer.see(part)
                self._try(seen, number, plan.get(number, []), donor, job)
                donor, done = seen.picture, done + 1
                progress(done, total)
        return [cell.curve() for cell in self.cells]

    def _planned(self, first: int, last: int) -> dict[int, list[tuple[Cell, float]]]:
        """The defects number `first` … `last` of every cell, with their shares, by the part that they are made on.

        Shares are drawn before it is known which part they are for: below what a part can show they are raised to that.
        """
        plan: dict[int, list[tuple[Cell, float]]] = {}
        for cell, order in zip(self.cells, self._orders, strict=True):
            shares = cell.next_shares(last - first, self._smallest(), self._rng)
            for n, share in zip(range(first, last), shares.tolist(), strict=True):
                plan.setdefault(int(order[n % len(order)]), []).append((cell, share))
        return plan

    def _smallest(self) -> float:
        rows, columns = self.scorer.model.stored.grid
        return _SMALLEST_TOKENS / (rows * columns)

    def _try(
        self, seen: Seen, number: int, wanted: Sequence[tuple[Cell, float]], donor: Picture | None, job: Job
    ) -> None:
        height, width = seen.picture.shape[:2]
        zones, whole = zones_of(seen.mask, height, width), height * width
        of_part = whole if seen.mask is None else int(seen.mask.sum())
        made: list[tuple[Cell, float]] = []

        def pictures() -> Iterator[Picture]:
            for cell, share in wanted:
                defect = make_defect(
                    seen.picture,
                    cell.kind,
                    area_px=max(_SMALLEST_PX, share * of_part),
                    strength=GRADES[cell.grade],
                    zone=zones[cell.zone] if zones[cell.zone].any() else zones["edge"],
                    donor=seen.picture if donor is None else donor,
                    rng=self._rng,
                )
                if defect is not None:
                    made.append((cell, defect.area_px))
                    yield defect.picture

        for n, score in enumerate(self.scorer.score(seen, pictures(), job)):
            cell, area_px = made[n]
            cell.shares.append(area_px / of_part)
            cell.areas.append(area_px * seen.part.mm_per_px**2)
            cell.hits.append(self.scorer.rejects(score))
            cell.groups.append(number)

    def examples(self, areas: Callable[[Kind], float]) -> list[Example]:
        """A clear defect of each kind, of the area (mm²) that `areas` gives, in the middle of a part, cut out."""
        seen, donor = self.scorer.see(self.parts[0]), self.scorer.see(self.parts[-1]).picture
        centre = zones_of(seen.mask, *seen.picture.shape[:2])["centre"]
        found = []
        for kind in dict.fromkeys(cell.kind for cell in self.cells):
            area = areas(kind)
            made = make_defect(
                seen.picture,
                kind,
                area_px=max(_SMALLEST_PX, area / seen.part.mm_per_px**2),
                strength=GRADES["clear"],
                zone=centre if centre.any() else np.ones(seen.picture.shape[:2], np.bool_),
                donor=donor,
                rng=self._rng,
            )
            if made is not None:
                found.append(Example(kind, made.area_px * seen.part.mm_per_px**2, _cut_out(seen.picture, made.picture)))
        return found


def _cut_out(before: Picture, after: Picture) -> Picture:
    """A square of `after` around what differs from `before`, three times as large as that and 48 px at least."""
    rows, columns = np.nonzero((before != after).any(axis=2))
    half = max(24, 3 * int(max(np.ptp(rows), np.ptp(columns))) // 2)
    y, x = int(rows.mean()), int(columns.mean())
    top, left = max(0, min(y - half, after.shape[0] - 2 * half)), max(0, min(x - half, after.shape[1] - 2 * half))
    return np.ascontiguousarray(after[top : top + 2 * half, left : left + 2 * half])

"""What small changes of light, focus, position and angle do to the rate of good parts that are rejected."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import cv2
import numpy as np

from backend.assurance.parts import GoodPart, PartScorer, Picture
from backend.calib import upper_bound
from backend.service.jobs import Job

CONFIDENCE = 0.95
FOCUS_SIDE = 256.0  # px of an ROI's side that blurs are stated for

What = Literal["none", "light", "focus", "shift", "turn"]


@dataclass(frozen=True)
class Change:
    """A change of the picture.

    `amount`: of the light, the share that it gains; of the focus, the blur's standard deviation in px of an ROI of 256
    px a side; of the position, the share of the ROI's side that it shifts by; of the angle, degrees.
    """

    what: What
    amount: float

    def of(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """The picture (H, W, 3) uint8 with the change; shifts and turns go either way, as `rng` has it."""
        return _CHANGES[self.what](picture, self.amount, rng)


CHANGES = (
    Change("none", 0.0),
    *(Change("light", amount) for amount in (-0.2, -0.1, 0.1, 0.2)),
    *(Change("focus", amount) for amount in (0.5, 1.0, 1.5, 2.0)),
    *(Change("shift", amount) for amount in (0.01, 0.02, 0.04)),
    *(Change("turn", amount) for amount in (1.0, 2.0, 5.0)),
)


@dataclass(frozen=True)
class Stability:
    """How many of `n` good parts were rejected under a change, and the rate that is not exceeded with 95 %."""

    change: Change
    n: int
    n_rejected: int

    @property
    def rate(self) -> float:
        """The share of the parts that was rejected."""
        return self.n_rejected / self.n

    @property
    def upper_bound(self) -> float:
        """The rate among all good parts is at most this, with a confidence of 95 %."""
        return upper_bound(self.n_rejected, self.n, CONFIDENCE)


def stability(
    scorer: PartScorer, parts: Sequence[GoodPart], job: Job, *, changes: Sequence[Change] = CHANGES, seed: int = 0
) -> list[Stability]:
    """What each change does to the verdicts on good parts. Raises Cancelled."""
    rng, progress = np.random.default_rng([seed, len(parts)]), job.stage("stability")
    rejected = np.zeros(len(changes), np.int64)
    for done, part in enumerate(parts, start=1):
        seen = scorer.see(part)
        changed = (change.of(seen.picture, rng) for change in changes)
        rejected += [scorer.rejects(score) for score in scorer.score(seen, changed, job)]
        progress(done, len(parts))
    return [Stability(change, len(parts), int(n)) for change, n in zip(changes, rejected, strict=True)]


def _lit(picture: Picture, amount: float, rng: np.random.Generator) -> Picture:
    return np.asarray(cv2.convertScaleAbs(picture, alpha=1.0 + amount), np.uint8)


def _blurred(picture: Picture, amount: float, rng: np.random.Generator) -> Picture:
    side = (picture.shape[0] * picture.shape[1]) ** 0.5
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), amount * side / FOCUS_SIDE), np.uint8)


def _moved(picture: Picture, amount: float, rng: np.random.Generator, *, turned: bool) -> Picture:
    height, width = picture.shape[:2]
    if turned:
        angle = amount * rng.choice([-1.0, 1.0])
        move = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    else:
        direction = rng.uniform(0, 2 * np.pi)
        away = amount * (height * width) ** 0.5
        move = np.array([[1, 0, away * np.cos(direction)], [0, 1, away * np.sin(direction)]])
    moved = cv2.warpAffine(picture, move, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(moved, np.uint8)


_CHANGES: dict[What, Callable[[Picture, float, np.random.Generator], Picture]] = {
    "none": lambda picture, *_: picture,
    "light": _lit,
    "focus": _blurred,
    "shift": partial(_moved, turned=False),
    "turn": partial(_moved, turned=True),
}

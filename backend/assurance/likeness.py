"""Pictures of one model compared with its first ones: where they lie, how they are lit, and in which way they differ.

A picture becomes a vector of features: its displacement, turn and size beside the mean picture, how sharp it is, and
the logarithms of brightness and colour by cell. Each cause moves this vector in a direction of its own, which is found
by applying the cause to the first pictures: a gain lifts all cells alike, a turn moves edges.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.service.appearance import SIDE, Appearance

Float = NDArray[np.float64]
Small = NDArray[np.float32]

CELLS, TINTS = 8, 4
PLACED = 4
N_FEATURES = PLACED + 2 + CELLS**2 + 2 * TINTS**2
BANDS_AT = slice(PLACED, PLACED + 2)
CELLS_AT = slice(PLACED + 2, PLACED + 2 + CELLS**2)
TINTS_AT = slice(PLACED + 2 + CELLS**2, N_FEATURES)
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_DARK = 4.0
DIRT_RADIUS = 0.1
PLACES_A_SIDE = 8
_STEPS = 3
_FARTHEST = np.array([SIDE / 2, SIDE / 2, 0.5, 0.5])
_UNITS = np.array([1 / SIDE, 1 / SIDE, 180 / np.pi, 1.0])


class Placing:
    """Finds where a picture lies beside a mean one, whatever its light and contrast.

    Phase correlation finds the displacement, and steps of the inverse compositional method (Baker and Matthews 2004)
    make it exact and find turn and size.

    Args:
        mean: (SIDE, SIDE) float32 grey.
    """

    def __init__(self, mean: Small) -> None:
        self.mean = _smooth(mean)
        dy, dx = np.gradient(self.mean.astype(np.float64))
        y, x = np.mgrid[:SIDE, :SIDE] - (SIDE - 1) / 2
        steepest = np.stack([dx, dy, x * dy - y * dx, x * dx + y * dy, self.mean, np.ones_like(dx)], -1)
        flat = (steepest * _window()[..., None]).reshape(-1, 6)
        damping = np.diag([1e-3] * PLACED + [1e-9, 1e-9]) * max((flat**2).sum(axis=0).max(), 1.0)
        solve = np.linalg.solve(flat.T @ flat + damping, flat.T)[:PLACED] * _window().ravel()
        self._solve = solve.astype(np.float32)
        self._taper = cv2.createHanningWindow((SIDE, SIDE), cv2.CV_32F)
        self._middle, self._spread = _middle_and_spread(self.mean)

    def place(self, grey: Small) -> Float:
        """(4,) how far to the right and down in shares of the side, turned by how many degrees, log of the size."""
        grey = _smooth(grey)
        # It multiplies what it is given by the window.
        (dx, dy), response = cv2.phaseCorrelate(self.mean.copy(), grey.copy(), self._taper)
        certain = response > 0.2 and max(abs(dx), abs(dy)) < SIDE / 4
        best = np.array([dx, dy, 0.0, 0.0]) if certain else np.zeros(PLACED)
        for _ in range(_STEPS):
            warped = cv2.warpAffine(
                grey,
                _matrix(*best.tolist()),
                (SIDE, SIDE),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REPLICATE,
            )
            middle, spread = _middle_and_spread(warped)
            alike = (warped - middle) * (self._spread / max(spread, 1e-3)) + self._middle
            # A picture is the mean one moved by `best`, so what is left is a move by minus the step.
            best -= np.clip(self._solve @ (alike - self.mean).ravel(), -SIDE / 8, SIDE / 8)
            best = np.clip(best, -_FARTHEST, _FARTHEST)
        return np.asarray(best * _UNITS)


def _matrix(dx: float, dy: float, radians: float, log_size: float) -> Float:
    """(2, 3): where a pixel of a picture is in one that was moved, turned about its middle and enlarged."""
    size, centre = math.exp(log_size), (SIDE - 1) / 2
    c, s = size * math.cos(radians), size * math.sin(radians)
    return np.array([[c, -s, centre * (1 - c + s) + dx], [s, c, centre * (1 - s - c) + dy]])


def _smooth(grey: Small) -> Small:
    return np.asarray(cv2.GaussianBlur(grey, (0, 0), 1.0), np.float32)


def _middle_and_spread(grey: NDArray[Any]) -> tuple[float, float]:
    middle, spread = cv2.meanStdDev(grey)
    return float(middle[0, 0]), float(spread[0, 0])


@cache
def _window() -> Float:
    """(SIDE, SIDE): the border counts less, where what comes in is not known."""
    line = np.minimum(1.0, np.minimum(np.arange(SIDE), np.arange(SIDE)[::-1]) / (SIDE / 8))
    return np.outer(line, line)


def grey_of(appearance: Appearance) -> Small:
    """(SIDE, SIDE) float32 of a picture."""
    return np.asarray(appearance.colour.astype(np.float32) @ _GREY)


def features_of(appearance: Appearance, placing: Placing) -> Float:
    """(N_FEATURES,) what is compared of a picture."""
    colour = appearance.colour.astype(np.float32)
    grey = colour @ _GREY
    cells = np.log(_means(grey[..., None], CELLS)[..., 0] + _DARK)
    tints = np.log(_means(colour, TINTS) + _DARK)
    bands = appearance.bands
    return np.concatenate(
        [
            placing.place(grey),
            [bands[0] - bands[2], bands[1] - bands[2]],
            cells.ravel(),
            (tints[..., 0] - tints[..., 1]).ravel(),
            (tints[..., 2] - tints[..., 1]).ravel(),
        ]
    ).astype(np.float64)


def _means(image: Small, n: int) -> Small:
    side = SIDE // n
    return np.asarray(image.reshape(n, side, n, side, -1).mean(axis=(1, 3)))


Change = Callable[[Appearance], Appearance]


def _lit(change: Callable[[Small], Small]) -> Change:
    def apply(one: Appearance) -> Appearance:
        changed = np.clip(np.rint(change(one.colour.astype(np.float32))), 0, 255)
        return Appearance(changed.astype(np.uint8), one.bands)

    return apply


def _gained(gain: float) -> Change:
    return _lit(lambda image: image * np.float32(gain))


def _tinted(red: float, blue: float) -> Change:
    """Red and blue gained, and all so that the picture stays as bright."""
    gains = np.array([red, 1.0, blue], np.float32)

    def apply(image: Small) -> Small:
        tinted = image * gains
        return np.asarray(tinted * ((image @ _GREY).mean() / max(float((tinted @ _GREY).mean()), 1.0)), np.float32)

    return _lit(apply)


def _bent(gamma: float) -> Change:
    return _lit(lambda image: np.asarray(255 * (image / 255) ** gamma, np.float32))


def _moved(dx: float = 0, dy: float = 0, degrees: float = 0, size: float = 0) -> Change:
    matrix = _matrix(dx * SIDE, dy * SIDE, math.radians(degrees), size)

    def apply(one: Appearance) -> Appearance:
        moved = cv2.warpAffine(
            one.colour, matrix, (SIDE, SIDE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
        )
        return Appearance(np.asarray(moved, np.uint8), one.bands)

    return apply


def fouled(place: tuple[float, float]) -> Change:
    """A smudge on the lens at `place`, (row, column) in shares of the sides: it takes a third of the light there."""
    y, x = np.mgrid[:SIDE, :SIDE] / (SIDE - 1) - np.array(place)[:, None, None]
    left = (1 - 0.35 * np.exp(-((x**2 + y**2) / DIRT_RADIUS**2))).astype(np.float32)[..., None]
    return _lit(lambda image: np.asarray(image * left, np.float32))


CHANGES: dict[str, tuple[Change, ...]] = {
    "light": (*(_gained(gain) for gain in (0.9, 1.1, 0.75, 1.25)), *(_bent(gamma) for gamma in (1.15, 0.87))),
    "colour": (_tinted(1.06, 1), _tinted(0.94, 1), _tinted(1, 1.06), _tinted(1, 0.94)),
    "position": tuple(
        _moved(*by) for by in ((0.03,), (-0.03,), (0, 0.03), (0, -0.03), (0, 0, 0, 0.04), (0, 0, 0, -0.04))
    ),
    "turn": tuple(_moved(degrees=degrees) for degrees in (4, -4, 10, -10)),
}
"""The causes that are tried out on the first pictures; what is nearer to one of them than to the others has it."""

PLACES = tuple(
    (row / PLACES_A_SIDE, column / PLACES_A_SIDE)
    for row in range(1, PLACES_A_SIDE)
    for column in range(1, PLACES_A_SIDE)
)

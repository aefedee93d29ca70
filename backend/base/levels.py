"""The level at which a region of some size lights up: exact, and without ordering the map."""

from __future__ import annotations

from bisect import bisect_left
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]

_OUTSIDE = np.float32(-np.inf)
_COARSE = 4096  # values; a smaller map is searched as it is
_SAMPLES = 256
_LABELS_16_BIT = 65_000  # regions that a label of 16 bits can tell apart


def connected_level(values: Float, pixels: int, mask: NDArray[np.bool_] | None = None) -> float:
    """The highest level at which `pixels` connected values are at or above it.

    Values are connected through any of their eight neighbours. The level is one of the values, or −inf where no region
    of the mask is that large.

    Levels that hold are found on a map of half the size first, whose values are the least of 2 × 2: a region there is
    one of four times as many values here. From that level up the search goes on in the largest region alone, by
    flooding it from its peak, until nothing else of the map is as large above the level found.

    Args:
        values: (h, w) float32, finite.
        pixels: how many values make a region, at least 1.
        mask: (h, w) bool of the values that count; all when None.
    """
    inside = values if mask is None else np.where(mask, values, _OUTSIDE)
    return float(_connected_level(np.ascontiguousarray(inside), pixels))


def largest_region(mask: NDArray[np.bool_]) -> int:
    """How many values the largest connected region of `mask` (h, w) has; 0 where it has none."""
    return int(_components(mask)[1].max())


def _connected_level(values: Float, pixels: int) -> np.float32:
    level: np.float32 = np.nextafter(_lower_bound(values, pixels), _OUTSIDE)
    while True:
        above = values > level
        labels, sizes = _components(above)
        largest = int(sizes.argmax())
        if sizes[largest] < pixels:
            return level
        region = _cut_out(values, labels == largest)
        if np.count_nonzero(sizes >= pixels) == 1:  # nothing beside it can hold the answer
            values = region
        level = _flooded_level(region, pixels)


def _lower_bound(values: Float, pixels: int) -> np.float32:
    if values.size <= _COARSE or min(values.shape) < 2:
        return _OUTSIDE
    least = cv2.erode(values, np.ones((2, 2), np.uint8), anchor=(0, 0))[:-1:2, :-1:2]
    return _connected_level(np.ascontiguousarray(least), -(-pixels // 4))


def _components(hot: NDArray[np.bool_]) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Labels (h, w) of the connected regions of `hot`, 0 outside, and the size of each; that of label 0 is 0."""
    height, width = hot.shape
    at_most = ((height + 1) // 2) * ((width + 1) // 2)
    kind = cv2.CV_16U if at_most < _LABELS_16_BIT else cv2.CV_32S
    _, labels = cv2.connectedComponents(hot.view(np.uint8), connectivity=8, ltype=kind)
    return labels, np.bincount(labels[hot], minlength=1)


def _cut_out(values: Float, region: NDArray[np.bool_]) -> Float:
    """The box around `region`, −inf outside of it."""
    x, y, w, h = cv2.boundingRect(region.view(np.uint8))
    box = slice(y, y + h), slice(x, x + w)
    return np.where(region[box], values[box], _OUTSIDE)


def _flooded_level(region: Float, pixels: int) -> np.float32:
    """The highest level at which `pixels` values are connected with the peak of `region`, which has as many."""
    peak = cv2.minMaxLoc(region)[3]

    def holds(level: np.float32) -> bool:
        hot = region >= level
        if np.count_nonzero(hot) < pixels:
            return False
        return int(cv2.floodFill(hot.view(np.uint8), None, peak, 2, flags=8)[0]) >= pixels

    level, left = _OUTSIDE, region[region > _OUTSIDE]
    while left.size:  # a sample of what is left says between which two of its values the level lies
        sample: Float = np.sort(left[:: max(1, left.size // _SAMPLES)])
        n_holding = bisect_left(sample, True, key=lambda value: not holds(value))
        if n_holding:
            level = sample[n_holding - 1]
            left = left[left > level]
        if n_holding < sample.size:
            left = left[left < sample[n_holding]]
    return level

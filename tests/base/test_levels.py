import math
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from backend.base.levels import connected_level


def slow_level(values: Any, pixels: int) -> float:
    """The largest of the values at which SciPy finds a region of that size, by trying."""
    ordered = np.unique(values)
    low, high = -1, len(ordered)
    while high - low > 1:
        middle = (low + high) // 2
        labels, _ = ndimage.label(values >= ordered[middle], np.ones((3, 3)))
        sizes = np.bincount(labels.ravel(), minlength=2)[1:]
        low, high = (middle, high) if sizes.max() >= pixels else (low, middle)
    return -math.inf if low < 0 else float(ordered[low])


@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 12), st.integers(1, 40)), elements=st.floats(0, 2, width=32)),
    st.integers(1, 60),
    st.integers(0, 2**31),
)
def test_the_connected_level_is_the_one_that_trying_finds(values: Any, pixels: int, seed: int) -> None:
    values += np.float32(0)
    mask = np.random.default_rng(seed).random(values.shape) < 0.7
    assert connected_level(values, pixels) == slow_level(values, pixels)
    inside = np.where(mask, values, np.float32(-1))
    level = slow_level(inside, pixels)
    assert connected_level(values, pixels, mask) == (level if level >= 0 else -math.inf)


@pytest.mark.parametrize("shape", [(448, 448), (131, 97), (1, 9000), (9000, 1), (2, 4097), (64, 65)])
@pytest.mark.parametrize("pixels", [1, 2, 40, 900, 8500])
@pytest.mark.parametrize("kind", ["noise", "smooth", "stairs"])
def test_the_connected_level_of_maps_of_any_size(shape: tuple[int, int], pixels: int, kind: str) -> None:
    rng = np.random.default_rng([*shape, pixels])
    values = rng.random(shape, np.float32)
    if kind != "noise":
        values = np.asarray(cv2.resize(values[::16, ::16], shape[::-1], interpolation=cv2.INTER_LINEAR), np.float32)
    if kind == "stairs":
        values = np.round(values, 1)
    assert connected_level(values, pixels) == slow_level(values, pixels)


def test_no_region_of_a_mask_that_is_too_small_has_a_level() -> None:
    values, mask = np.ones((20, 20), np.float32), np.zeros((20, 20), bool)
    mask[2:5, 2:5] = mask[10:13, 10:13] = True
    assert connected_level(values, 9, mask) == 1
    assert connected_level(values, 10, mask) == -math.inf

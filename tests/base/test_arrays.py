import math
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from backend.base.arrays import Ranked


def slow(values: Any, q: float) -> float:
    return float(np.percentile(values.astype(np.float64), q))


@settings(deadline=None, max_examples=200)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 40)), elements=st.floats(0, 2, width=32)),
    st.floats(0, 100),
    st.integers(0, 2**31),
)
def test_ranks_equal_numpys(values: Any, q: float, seed: int) -> None:
    values += np.float32(0)  # hypothesis draws -0.0
    mask = np.random.default_rng(seed).random(values.shape) < 0.6
    mask.flat[seed % mask.size] = True
    for ranked, inside in ((Ranked(values), values), (Ranked(values, mask), values[mask])):
        assert ranked.n == inside.size and ranked.max == inside.max() and ranked.min == inside.min()
        assert ranked.percentile(q) == pytest.approx(slow(inside, q), rel=1e-9, abs=1e-12)
        assert ranked.median == np.median(inside.astype(np.float64))
        top = max(1, inside.size // 7)
        assert ranked.top_mean(top) == pytest.approx(np.sort(inside, axis=None)[-top:].mean(dtype=np.float64))


@settings(deadline=None)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 40)), elements=st.floats(0, 4, width=32)),
    st.floats(1, 1000),
    st.integers(0, 2**31),
)
def test_power_means_lie_between_mean_and_maximum(values: Any, power: float, seed: int) -> None:
    values += np.float32(0)
    mask = np.random.default_rng(seed).random(values.shape) < 0.6
    mask.flat[seed % mask.size] = True
    for ranked, inside in ((Ranked(values), values), (Ranked(values, mask), values[mask])):
        found = ranked.power_mean(power)
        assert found == pytest.approx(slow_power_mean(inside, power), rel=1e-4, abs=1e-12)
        assert inside.mean(dtype=np.float64) * (1 - 1e-5) - 1e-12 <= found <= float(inside.max()) * (1 + 1e-5)


def slow_power_mean(values: Any, power: float) -> float:
    logs = [power * math.log(float(v)) for v in values.ravel() if v > 0]
    if not logs:
        return 0.0
    top = max(logs)
    return math.exp((top + math.log(sum(math.exp(x - top) for x in logs) / values.size)) / power)


@pytest.mark.parametrize("side", [448, 1600])
def test_percentiles_of_a_heatmap_are_exactly_those_of_sorting_it(rng: np.random.Generator, side: int) -> None:
    tokens = rng.gamma(3, 0.1, (32, 32)).astype(np.float32)
    heat = cv2.GaussianBlur(cv2.resize(tokens, (side, side)), (0, 0), 1.0)
    y, x = np.mgrid[:side, :side]
    mask = np.hypot(x - side / 2, y - side / 2) < 0.4 * side
    for ranked, inside in ((Ranked(heat), heat), (Ranked(heat, mask), heat[mask])):  # type: ignore[arg-type]
        for q in (1, 50, 95, 99, 99.9, 100):
            assert ranked.percentile(q) == pytest.approx(slow(inside, q), rel=1e-12)
        assert ranked.mean == pytest.approx(inside.mean(dtype=np.float64))

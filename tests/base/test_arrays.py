import gc
import io
import math
import sys
import threading
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from backend.base.arrays import Ranked, blocks, checked_rows, l2_normalize, reading_arrays, shaped_rows


def slow(values: Any, q: float) -> float:
    return float(np.percentile(values.astype(np.float64), q))


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


def test_rows_become_unit_vectors(rng: np.random.Generator) -> None:
    x = l2_normalize(100 * rng.normal(size=(50, 7)).astype(np.float32))
    assert x.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-6)


def test_a_row_of_zeros_stays_finite() -> None:
    assert not l2_normalize(np.zeros((2, 3), np.float32)).any()


@pytest.mark.parametrize(("stop", "size", "start"), [(10, 3, 0), (10, 5, 0), (10, 99, 0), (10, 3, 4), (0, 3, 0)])
def test_blocks_cover_everything_once_and_in_order(stop: int, size: int, start: int) -> None:
    found = list(blocks(stop, size, start))
    assert [n for block in found for n in range(block.start, block.stop)] == list(range(start, stop))
    assert all(block.stop - block.start <= size for block in found)


def test_rows_come_back_as_contiguous_float32_and_are_not_copied_without_need(rng: np.random.Generator) -> None:
    x = rng.normal(size=(3000, 4)).astype(np.float32)
    assert checked_rows(x, "rows") is x
    for other in (x.astype(np.float64), x[::2], np.asfortranarray(x)):
        found = checked_rows(other, "rows", 4)
        assert found.dtype == np.float32 and found.flags["C_CONTIGUOUS"]
        np.testing.assert_array_equal(found, other)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 1023, 1024, 2999])
def test_a_value_that_is_not_finite_is_found_wherever_it_is(value: float, at: int) -> None:
    x = np.zeros((3000, 2), np.float32)
    x[at, 1] = value
    with pytest.raises(ValueError, match="these rows hold NaN or infinite values"):
        checked_rows(x, "these rows")
    assert shaped_rows(x, "these rows") is x


@pytest.mark.parametrize("shape", [(0, 4), (4,), (2, 0), (1, 2, 4), (2, 5)])
def test_another_shape_is_named(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"these rows have shape \(.*where \(N, 4\) with N >= 1 is needed"):
        checked_rows(np.zeros(shape, np.float32), "these rows", 4)


class Dropped:
    """What runs while garbage is collected, so that threads change in the middle of a parse."""

    def __del__(self) -> None:
        sum(range(300))


@pytest.fixture
def busy_collector() -> Iterator[None]:
    thresholds, interval = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(50)
    sys.setswitchinterval(1e-5)
    yield
    gc.set_threshold(*thresholds)
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("busy_collector")
def test_several_threads_read_arrays_at_once() -> None:
    file, arrays = io.BytesIO(), dict[str, Any]({f"a{n}": np.zeros(3) for n in range(8)})
    np.savez(file, **arrays)
    failed: list[SystemError] = []

    def read() -> None:
        for _ in range(300):
            rubbish: Any = Dropped()
            rubbish.itself = rubbish
            try:
                with reading_arrays(), np.load(io.BytesIO(file.getvalue())) as npz:
                    assert len([npz[name] for name in npz.files]) == len(arrays)
            except SystemError as err:
                failed.append(err)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []

"""Rows in fewer digits: what is stored is what distances are measured to."""

from typing import Any, Literal

import faiss
import numpy as np
import pytest

from backend.memory.compact import CompactRows, compacted, in_float32, rows_dtype
from backend.patchcore import Array, PatchCoreMemory
from tests.memory.rows import clustered, nearest_by_hand

SHORT: tuple[Literal["float16", "int8"], ...] = ("float16", "int8")


@pytest.fixture(scope="module")
def rows() -> Array:
    """Unit rows that differ little beside what they share, as tokens do."""
    return clustered(np.random.default_rng(0), 400, 48)


@pytest.mark.parametrize("dtype", SHORT)
def test_each_number_is_within_half_a_step_of_what_it_was(rows: Array, dtype: Literal["float16", "int8"]) -> None:
    kept = CompactRows.of(rows, dtype)
    most = 2.0**-11 * np.abs(rows) + 4e-8 if dtype == "float16" else np.ptp(rows, axis=0) / 255 * 0.501 + 1e-7
    assert (np.abs(kept[:] - rows) <= most).all()
    assert kept.shape == rows.shape and kept.size == rows.size and len(kept) == len(rows)
    assert kept.nbytes <= rows.nbytes * (0.5 if dtype == "float16" else 0.28) and rows_dtype(kept) == dtype


@pytest.mark.parametrize("dtype", SHORT)
def test_rows_are_read_by_number_by_slice_and_by_list(rows: Array, dtype: Literal["float16", "int8"]) -> None:
    kept, all_rows = CompactRows.of(rows, dtype), in_float32(CompactRows.of(rows, dtype))
    assert (kept[7] == all_rows[7]).all() and (kept[3:9] == all_rows[3:9]).all()
    assert (kept[np.array([5, 2, 5])] == all_rows[[5, 2, 5]]).all() and all_rows.dtype == np.float32


def test_a_column_in_which_all_rows_are_equal_keeps_its_number() -> None:
    rows = np.array([[0.3, 1.0], [0.3, 2.0]], np.float32)
    assert (CompactRows.of(rows, "int8")[:] == rows).all()


def test_float32_stays_what_it_is(rows: Array) -> None:
    assert compacted(rows, "float32") is rows and in_float32(rows) is rows and rows_dtype(rows) == "float32"
    memory = PatchCoreMemory(rows)
    assert memory.kept_as("float32") is memory


@pytest.mark.parametrize("backend", ["faiss", "sklearn"])
@pytest.mark.parametrize("dtype", SHORT)
def test_distances_are_to_the_rows_as_they_are_stored(rows: Array, dtype: Any, backend: Any) -> None:
    ids = np.arange(400, dtype=np.int32) // 40
    memory = PatchCoreMemory(rows, backend=backend, image_ids=ids).kept_as(dtype)
    stored, q = memory.emb, clustered(np.random.default_rng(5), 60, 48)
    expected = PatchCoreMemory(stored, backend=backend, image_ids=ids)
    for k in (1, 3):
        assert memory.distances(q, k) == pytest.approx(nearest_by_hand(q, stored, k).mean(axis=1), abs=1e-6)
    assert (memory.distances(q, leave_out=3) == expected.distances(q, leave_out=3)).all()
    assert (memory.distances(q, density=9) == expected.distances(q, density=9)).all()
    assert memory.weight(q[0], 9) == pytest.approx(expected.weight(q[0], 9))
    memory.attach_index()
    assert memory.nbytes <= expected.nbytes * (0.52 if dtype == "float16" else 0.32)


@pytest.mark.parametrize("dtype", SHORT)
def test_the_index_of_other_programs_is_as_short_and_finds_the_same(rows: Array, dtype: Any) -> None:
    memory, whole = PatchCoreMemory(rows).kept_as(dtype), PatchCoreMemory(rows)
    index = faiss.deserialize_index(np.frombuffer(memory.index_bytes(), np.uint8))
    assert len(memory.index_bytes()) < len(whole.index_bytes()) * (0.55 if dtype == "float16" else 0.32)
    q = clustered(np.random.default_rng(6), 40, 48)
    squares, _ = index.search(q, 1)
    assert np.sqrt(squares[:, 0]) == pytest.approx(memory.distances(q), abs=0.01)


@pytest.mark.parametrize(
    "broken",
    [
        {"codes": np.zeros((3, 4), np.int16)},
        {"codes": np.zeros((3, 4), np.uint8)},
        {"codes": np.zeros((3, 4), np.uint8), "low": np.zeros(3, np.float32), "step": np.ones(4, np.float32)},
        {"codes": np.zeros((3, 4), np.uint8), "low": np.full(4, np.nan, np.float32), "step": np.ones(4, np.float32)},
        {"codes": np.full((3, 4), np.inf, np.float16)},
        {"codes": np.zeros((0, 4), np.float16)},
    ],
)
def test_arrays_that_are_no_rows_are_refused(broken: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="rows"):
        CompactRows(**broken)

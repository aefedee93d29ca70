"""A coreset in passes: what fits is chosen as at once, and of what does not the radius is known."""

import tracemalloc
from typing import Any

import numpy as np
import pytest

from backend.memory.chunked import Budget, BudgetTooSmall, kcenter_greedy_chunked
from backend.memory.coreset import kcenter_greedy
from backend.patchcore import Array, covering_radius
from tests.memory.rows import clustered, gaussian


def test_rows_that_fit_are_chosen_as_at_once() -> None:
    x = clustered(np.random.default_rng(0), 900, 24)
    coreset = kcenter_greedy_chunked(np.array_split(x, 7), 50, rng=np.random.default_rng(1))
    whole = kcenter_greedy(x, 50, rng=np.random.default_rng(1))
    np.testing.assert_array_equal(coreset.rows, x[whole.indices])
    assert coreset.radius == whole.radius


@pytest.mark.parametrize("keep", [4000, 250], ids=["one pass each", "kept rows reduced on the way"])
def test_every_row_is_within_the_reported_radius(keep: int) -> None:
    chunks = [clustered(np.random.default_rng(seed), 130, 24) for seed in range(40)]
    budget = (keep + 1000 + 60) * 24 * 4
    coreset = kcenter_greedy_chunked(chunks, 60, rate=0.1, buffer_rows=1000, budget=budget)
    actual = covering_radius(chunks, coreset.rows)
    whole = kcenter_greedy(np.concatenate(chunks), 60)
    assert coreset.n_seen == 5200
    assert len(coreset.rows) == 60
    assert whole.radius * 0.5 <= actual <= min(coreset.radius, whole.radius * 2)


def test_a_small_budget_does_with_a_small_buffer_and_a_smaller_one_says_how_much_is_needed() -> None:
    chunks = [gaussian(np.random.default_rng(seed), 2000, 64) for seed in range(30)]
    mb = 1 << 20
    with pytest.raises(BudgetTooSmall) as caught:
        kcenter_greedy_chunked(chunks, 2000, rate=0.07, budget=mb)
    assert 2 * mb < caught.value.needed <= 3 * mb
    tracemalloc.start()
    coreset = kcenter_greedy_chunked(iter(chunks), 2000, rate=0.07, budget=3 * mb)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(coreset.rows) == 2000
    assert peak < 12 * mb < sum(chunk.nbytes for chunk in chunks)


def test_the_radius_counts_rows_that_were_dropped_on_the_way() -> None:
    chunks = [np.full((2, 1), at, np.float32) for at in (0, 10, 4, 10, 0)]
    coreset = kcenter_greedy_chunked(chunks, 2, rate=0.5, buffer_rows=2, budget=(4 + 2 + 2) * 4)
    assert sorted(coreset.rows[:, 0]) == [0, 10]
    assert coreset.radius == covering_radius(chunks, coreset.rows) == 4


def test_rows_know_where_they_came_from() -> None:
    chunks = [gaussian(np.random.default_rng(seed), 50 + 17 * seed, 8) for seed in range(9)]
    coreset = kcenter_greedy_chunked(iter(chunks), 40, rate=0.2, buffer_rows=128)
    origin = [chunks[chunk][row] for chunk, row in zip(coreset.chunk, coreset.row, strict=True)]
    np.testing.assert_array_equal(coreset.rows, origin)
    assert len(set(zip(coreset.chunk.tolist(), coreset.row.tolist(), strict=True))) == 40


def test_growing_by_what_is_there_adds_nothing() -> None:
    x = clustered(np.random.default_rng(2), 600, 8)
    coreset = kcenter_greedy_chunked([x], 5, rate=0.5, buffer_rows=100, centres=x)
    assert coreset.rows.shape == (0, 8)


def test_progress_counts_chunks_and_then_rows() -> None:
    chunks = np.array_split(gaussian(np.random.default_rng(3), 400, 8), 4)
    seen: list[tuple[int, int]] = []
    kcenter_greedy_chunked(chunks, 10, progress=lambda done, total: seen.append((done, total)))
    assert seen[:4] == [(1, 0), (2, 0), (3, 0), (4, 0)]
    assert seen[-1] == (10, 10)


@pytest.mark.parametrize(
    ("chunks", "options", "said"),
    [
        ([], {}, "no embeddings"),
        ([np.ones((4, 2), np.float32)], {"n": 0}, "a coreset of 0 rows"),
        ([np.ones((4, 2), np.float32), np.ones((4, 3), np.float32)], {}, r"chunk 1 have shape \(4, 3\)"),
        ([np.full((4, 2), np.nan, np.float32)], {}, "chunk 0 hold NaN"),
        ([np.ones((90, 2), np.float32)], {"n": 50, "buffer_rows": 10, "budget": 800}, "800 bytes and needs 2400"),
    ],
)
def test_what_cannot_be_covered_is_refused(chunks: list[Array], options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kcenter_greedy_chunked(chunks, **{"n": 2, **options})


def test_a_budget_counts_bytes_of_float32() -> None:
    budget = Budget(megabytes=1, rate=0.1, limit=100, seed=0)
    assert budget.holds(2**18, 1) and not budget.holds(2**18 + 1, 1)


def test_a_budget_chooses_as_many_rows_as_its_rate_and_limit_say() -> None:
    x = clustered(np.random.default_rng(4), 1000, 24)
    for limit, n in ((25_600, 100), (30, 30)):
        found = Budget(megabytes=1, rate=0.1, limit=limit, seed=7).choose(iter(np.array_split(x, 5)), 1000)
        expected = kcenter_greedy(x, n, rng=np.random.default_rng(7))
        np.testing.assert_array_equal(found.rows, x[expected.indices])


def test_a_budget_that_is_too_small_for_the_coreset_is_said() -> None:
    chunks = [gaussian(np.random.default_rng(seed), 1000, 64) for seed in range(9)]
    with pytest.raises(BudgetTooSmall):
        Budget(megabytes=0.5, rate=0.2, limit=25_600, seed=0).choose(iter(chunks), 9000)

"""The coreset is the textbook's, row for row."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from backend.memory.coreset import coreset_of, coreset_size, kcenter_greedy
from backend.patchcore import Array, covering_radius, l2_normalize
from tests.memory.rows import clustered, distances_to, gaussian


def textbook(x: Array, n: int, first: int = 0, centres: Array | None = None) -> tuple[list[int], float]:
    """The plain loop: one pass over all rows for each centre."""
    nearest = np.full(len(x), np.inf)
    for centre in () if centres is None else centres:
        nearest = np.minimum(nearest, distances_to(x, centre))
    chosen: list[int] = []
    while len(chosen) < n and nearest.max() > 0:
        chosen.append(first if not chosen and centres is None else int(nearest.argmax()))
        nearest = np.minimum(nearest, distances_to(x, x[chosen[-1]]))
    return chosen, float(nearest.max())


def problem(seed: int) -> tuple[Array, int, int, Array | None, int]:
    rng = np.random.default_rng(seed)
    n_rows, dim = int(rng.integers(2, 3000)), int(rng.choice([1, 2, 8, 48, 192]))
    x = gaussian(rng, n_rows, dim) if seed % 2 else clustered(rng, n_rows, dim)
    if seed % 5 == 0:
        x = x[rng.integers(n_rows, size=n_rows)]
    centres = gaussian(rng, 7, dim) if seed % 7 == 0 else None
    n = n_rows + 3 if seed % 10 == 1 and n_rows < 600 else int(rng.integers(1, min(n_rows, 150) + 1))
    return x, n, int(rng.integers(n_rows)), centres, int(rng.choice([8, 64, 2048]))


@pytest.mark.parametrize("seed", range(50))
def test_the_selection_is_the_textbooks(seed: int) -> None:
    x, n, first, centres, pool = problem(seed)
    chosen, radius = textbook(x, n, first, centres)
    coreset = kcenter_greedy(x, n, first=first, centres=centres, pool=pool)
    assert coreset.indices.tolist() == chosen
    assert coreset.indices.dtype == np.int64
    assert coreset.radius == pytest.approx(radius, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("pool", [4, 2048])
def test_a_farthest_row_is_taken_where_many_tie(pool: int) -> None:
    rng = np.random.default_rng(1)
    x = rng.integers(0, 4, size=(700, 3)).astype(np.float32)
    chosen = kcenter_greedy(x, 64, pool=pool).indices
    assert len(chosen) == len(np.unique(x, axis=0))
    nearest = np.full(len(x), np.inf)
    for before, row in pairwise(chosen):
        nearest = np.minimum(nearest, distances_to(x, x[before]))
        assert nearest[row] == pytest.approx(nearest.max(), rel=1e-7)


def test_the_selection_among_real_patches_is_the_textbooks(cookie_patches: list[Array]) -> None:
    x = np.concatenate(cookie_patches[:2])
    assert kcenter_greedy(x, 90, pool=256).indices.tolist() == textbook(x, 90)[0]


@pytest.mark.parametrize("scale", [1e-3, 1e-5, 1e-6])
def test_differences_below_the_rounding_of_a_product_decide(scale: float) -> None:
    rng = np.random.default_rng(2)
    x = (l2_normalize(gaussian(rng, 1, 64)) + scale * gaussian(rng, 900, 64)).astype(np.float32)
    chosen, radius = textbook(x, 100)
    coreset = kcenter_greedy(x, 100, pool=128)
    assert coreset.indices.tolist() == chosen
    assert coreset.radius == pytest.approx(radius, rel=1e-6)


def test_the_selection_ends_when_every_row_is_a_centre() -> None:
    x = np.tile(gaussian(np.random.default_rng(3), 20, 16), (30, 1))
    coreset = kcenter_greedy(x, 300, pool=16)
    assert sorted(coreset.indices) == list(range(20))
    assert coreset.radius == 0


def test_rows_that_are_all_equal_need_one_centre() -> None:
    coreset = kcenter_greedy(np.ones((5000, 4), np.float32), 10)
    assert coreset.indices.tolist() == [0]
    assert coreset.radius == 0


def test_growing_continues_where_the_first_selection_ended() -> None:
    x = clustered(np.random.default_rng(4), 2000, 32)
    whole = kcenter_greedy(x, 90)
    start = kcenter_greedy(x, 30)
    more = kcenter_greedy(x, 60, centres=x[start.indices])
    assert [*start.indices, *more.indices] == whole.indices.tolist()
    assert more.radius == pytest.approx(whole.radius, rel=1e-6)


def test_growing_by_what_is_there_adds_nothing() -> None:
    x = clustered(np.random.default_rng(5), 200, 16)
    assert len(kcenter_greedy(x, 10, centres=x[::-1]).indices) == 0


def test_the_generator_draws_the_first_row() -> None:
    x = gaussian(np.random.default_rng(6), 1000, 8)
    drawn = [kcenter_greedy(x, 20, rng=np.random.default_rng(9)).indices for _ in range(2)]
    assert drawn[0].tolist() == drawn[1].tolist()
    assert drawn[0][0] == np.random.default_rng(9).integers(1000)
    assert kcenter_greedy(x, 1).indices.tolist() == [0]


def test_progress_ends_at_the_number_chosen_and_may_stop_the_selection() -> None:
    x = gaussian(np.random.default_rng(7), 500, 8)
    seen: list[tuple[int, int]] = []
    kcenter_greedy(x, 100, pool=32, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (100, 100)
    assert seen == sorted(set(seen))

    def stop(done: int, total: int) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError):
        kcenter_greedy(x, 100, pool=32, progress=stop)


@pytest.mark.parametrize(
    ("x", "options", "said"),
    [
        (np.empty((0, 4), np.float32), {}, r"embeddings have shape \(0, 4\)"),
        (np.ones(4, np.float32), {}, "shape"),
        (np.array([[1, np.nan]], np.float32), {}, "embeddings hold NaN"),
        (np.array([[1, np.inf]], np.float32), {}, "embeddings hold NaN or infinite"),
        (np.ones((3, 2), np.float32), {"n": 0}, "a coreset of 0 rows"),
        (np.ones((3, 2), np.float32), {"first": 3}, "number 3, and rows are numbered from 0 to 2"),
        (np.ones((3, 2), np.float32), {"first": -1}, "number -1"),
        (np.ones((3, 2), np.float32), {"centres": np.ones((2, 5), np.float32)}, "centres have shape"),
        (np.ones((3, 2), np.float32), {"centres": np.full((1, 2), np.nan, np.float32)}, "centres hold NaN"),
    ],
)
def test_what_has_no_distance_is_refused(x: Array, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        kcenter_greedy(x, **{"n": 2, **options})


@pytest.mark.parametrize(
    ("rows", "rate", "limit", "size"),
    [(34_992, 0.02, 25_600, 700), (10, 0.02, 25_600, 1), (5_000_000, 0.02, 25_600, 25_600), (7, 1.0, 9, 7)],
)
def test_the_size_of_a_coreset(rows: int, rate: float, limit: int, size: int) -> None:
    assert coreset_size(rows, rate, limit) == size


@pytest.mark.parametrize("rate", [0, -0.1, 1.5, float("nan")])
def test_a_rate_that_is_none_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="must be above 0 and at most 1"):
        coreset_size(100, rate, 100)


@pytest.mark.parametrize("rows", [300, 4000])
@pytest.mark.parametrize("pool", [64, 2048])
@pytest.mark.parametrize("given", [0, 20])
def test_rows_left_are_the_farthest_of_those_not_chosen(
    rng: np.random.Generator, rows: int, pool: int, given: int
) -> None:
    x = l2_normalize(rng.standard_normal((rows, 8)).astype(np.float32))
    x[5] = x[4]
    centres = x[:given] if given else None
    found = kcenter_greedy(x, 30, centres=centres, pool=pool, left=40)
    gaps = np.min([distances_to(x, c) for c in [*x[found.indices], *x[:given]]], axis=0)
    assert not set(found.left) & set(found.indices)
    assert (np.diff(gaps[found.left]) < 1e-6).all()
    np.testing.assert_allclose(gaps[found.left], np.sort(gaps)[::-1][:40], atol=1e-6)
    assert np.delete(gaps, found.left).max() <= found.beyond <= gaps[found.left[-1]] + 1e-3


def test_no_row_is_left_where_all_are_chosen_or_equal_one(rng: np.random.Generator) -> None:
    x = l2_normalize(rng.standard_normal((50, 8)).astype(np.float32))
    everything = kcenter_greedy(x, 50, left=10)
    assert len(everything.left) == 0 and everything.beyond == 0
    twice = kcenter_greedy(np.concatenate([x, x]), 50, left=10)
    assert len(twice.left) == 0 and twice.beyond < 0.01


def test_no_row_is_chosen_where_none_is_asked_for(rng: np.random.Generator) -> None:
    x = l2_normalize(rng.standard_normal((90, 8)).astype(np.float32))
    found = kcenter_greedy(x, 0, centres=x[:3], left=5)
    assert len(found.indices) == 0 and len(found.left) == 5
    assert found.radius == found.radius_before == pytest.approx(covering_radius([x], x[:3]), abs=1e-6)
    with pytest.raises(ValueError, match="a coreset of 0 rows"):
        kcenter_greedy(x, 0)


@pytest.mark.parametrize("given", [0, 4])
def test_a_memory_that_keeps_everything_keeps_it_in_order(rng: np.random.Generator, given: int) -> None:
    x, centres = gaussian(rng, 90, 8), gaussian(rng, given, 8) if given else None
    for n in (90, 99):
        found = coreset_of(x, n, centres=centres, left=5)
        np.testing.assert_array_equal(found.indices, np.arange(90))
        assert (found.radius, found.beyond, len(found.left)) == (0, 0, 0)
        before = np.inf if centres is None else covering_radius([x], centres)
        assert found.radius_before == pytest.approx(before, abs=1e-6)


def test_a_memory_that_keeps_some_keeps_the_greedys(rng: np.random.Generator) -> None:
    x = gaussian(rng, 90, 8)
    found, expected = (choose(x, 89, left=1, rng=np.random.default_rng(3)) for choose in (coreset_of, kcenter_greedy))
    np.testing.assert_array_equal(found.indices, expected.indices)
    np.testing.assert_array_equal(found.left, expected.left)
    assert (found.radius, found.beyond) == (expected.radius, expected.beyond)

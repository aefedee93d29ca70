"""The coreset is the textbook's, and a distance is the distance."""

import sys
import tracemalloc
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.base.errors import BackendUnavailable, InspectionError, InvalidValue
from backend.memory.spaces import Shortener
from backend.patchcore import (
    Array,
    PatchCoreMemory,
    coreset_size,
    covering_radius,
    kcenter_greedy,
    kcenter_greedy_chunked,
    l2_normalize,
)

BACKENDS = ("faiss", "sklearn")
Wide = NDArray[np.float64]


def distances_to(x: Array, centre: Array) -> Wide:
    lengths: Wide = np.linalg.norm(x.astype(np.float64) - centre.astype(np.float64), axis=1)
    return lengths


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
    with pytest.raises(InvalidValue):
        kcenter_greedy(x, 0)


def brute_force(q: Array, rows: Array, k: int = 1) -> Wide:
    lengths = np.sort([distances_to(rows, one) for one in q], axis=1)
    mean: Wide = lengths[:, :k].mean(axis=1)
    return mean


def gaussian(rng: np.random.Generator, n: int, dim: int) -> Array:
    return rng.normal(size=(n, dim)).astype(np.float32)


def clustered(rng: np.random.Generator, n: int, dim: int, spread: float = 0.3) -> Array:
    middles = rng.normal(size=(max(2, n // 40), dim))
    noise = spread * rng.normal(size=(n, dim)) * rng.gamma(2.0, size=(n, 1))
    return l2_normalize((middles[rng.integers(len(middles), size=n)] + noise).astype(np.float32))


def decaying(rng: np.random.Generator, n: int, dim: int) -> Array:
    """Unit rows of which a few directions hold most of the variance, as embeddings do."""
    return l2_normalize((rng.normal(size=(n, dim)) * 0.75 ** np.arange(dim)).astype(np.float32))


def problem(seed: int) -> tuple[Array, int, int, Array | None, int]:
    rng = np.random.default_rng(seed)
    n_rows, dim = int(rng.integers(2, 3000)), int(rng.choice([1, 2, 8, 48, 192]))
    x = gaussian(rng, n_rows, dim) if seed % 2 else clustered(rng, n_rows, dim)
    if seed % 5 == 0:
        x = x[rng.integers(n_rows, size=n_rows)]
    centres = gaussian(rng, 7, dim) if seed % 7 == 0 else None
    n = n_rows + 3 if seed % 10 == 1 and n_rows < 600 else int(rng.integers(1, min(n_rows, 150) + 1))
    return x, n, int(rng.integers(n_rows)), centres, int(rng.choice([8, 64, 2048]))


def patches(path: Path, side: int = 12) -> Array:
    import cv2

    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    assert image is not None
    h, w = (size // side for size in image.shape[:2])
    tiles = image[: h * side, : w * side].reshape(h, side, w, side, 3).swapaxes(1, 2).reshape(h * w, -1)
    return l2_normalize(tiles.astype(np.float32))


@pytest.fixture(scope="module")
def cookie_patches(shared_data: Path) -> list[Array]:
    return [patches(path) for path in sorted((shared_data / "cookies/train/good").iterdir())[:4]]


class TestNormalize:
    def test_rows_become_unit_vectors(self) -> None:
        x = l2_normalize(gaussian(np.random.default_rng(0), 50, 7) * 100)
        assert x.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(x, axis=1), 1, atol=1e-6)

    def test_a_row_of_zeros_stays_finite(self) -> None:
        assert not l2_normalize(np.zeros((2, 3), np.float32)).any()


class TestGreedy:
    @pytest.mark.parametrize("seed", range(50))
    def test_equals_the_textbook_loop(self, seed: int) -> None:
        x, n, first, centres, pool = problem(seed)
        chosen, radius = textbook(x, n, first, centres)
        coreset = kcenter_greedy(x, n, first=first, centres=centres, pool=pool)
        assert coreset.indices.tolist() == chosen
        assert coreset.indices.dtype == np.int64
        assert coreset.radius == pytest.approx(radius, rel=1e-6, abs=1e-9)

    @pytest.mark.parametrize("pool", [4, 2048])
    def test_takes_a_farthest_row_where_many_tie(self, pool: int) -> None:
        rng = np.random.default_rng(1)
        x = rng.integers(0, 4, size=(700, 3)).astype(np.float32)
        chosen = kcenter_greedy(x, 64, pool=pool).indices
        assert len(chosen) == len(np.unique(x, axis=0))
        nearest = np.full(len(x), np.inf)
        for before, row in pairwise(chosen):
            nearest = np.minimum(nearest, distances_to(x, x[before]))
            assert nearest[row] == pytest.approx(nearest.max(), rel=1e-7)

    def test_equals_the_textbook_loop_on_real_patches(self, cookie_patches: list[Array]) -> None:
        x = np.concatenate(cookie_patches[:2])
        assert kcenter_greedy(x, 90, pool=256).indices.tolist() == textbook(x, 90)[0]

    @pytest.mark.parametrize("scale", [1e-3, 1e-5, 1e-6])
    def test_sees_differences_below_the_rounding_of_a_dot_product(self, scale: float) -> None:
        rng = np.random.default_rng(2)
        x = (l2_normalize(gaussian(rng, 1, 64)) + scale * gaussian(rng, 900, 64)).astype(np.float32)
        chosen, radius = textbook(x, 100)
        coreset = kcenter_greedy(x, 100, pool=128)
        assert coreset.indices.tolist() == chosen
        assert coreset.radius == pytest.approx(radius, rel=1e-6)

    def test_stops_when_every_row_is_a_centre(self) -> None:
        x = np.tile(gaussian(np.random.default_rng(3), 20, 16), (30, 1))
        coreset = kcenter_greedy(x, 300, pool=16)
        assert sorted(coreset.indices) == list(range(20))
        assert coreset.radius == 0

    def test_rows_that_are_all_equal_need_one_centre(self) -> None:
        coreset = kcenter_greedy(np.ones((5000, 4), np.float32), 10)
        assert coreset.indices.tolist() == [0]
        assert coreset.radius == 0

    def test_growing_continues_where_the_first_selection_ended(self) -> None:
        x = clustered(np.random.default_rng(4), 2000, 32)
        whole = kcenter_greedy(x, 90)
        start = kcenter_greedy(x, 30)
        more = kcenter_greedy(x, 60, centres=x[start.indices])
        assert [*start.indices, *more.indices] == whole.indices.tolist()
        assert more.radius == pytest.approx(whole.radius, rel=1e-6)

    def test_growing_with_what_is_there_adds_nothing(self) -> None:
        x = clustered(np.random.default_rng(5), 200, 16)
        assert len(kcenter_greedy(x, 10, centres=x[::-1]).indices) == 0

    def test_the_generator_draws_the_first_row(self) -> None:
        x = gaussian(np.random.default_rng(6), 1000, 8)
        drawn = [kcenter_greedy(x, 20, rng=np.random.default_rng(9)).indices for _ in range(2)]
        assert drawn[0].tolist() == drawn[1].tolist()
        assert drawn[0][0] == np.random.default_rng(9).integers(1000)
        assert kcenter_greedy(x, 1).indices.tolist() == [0]

    def test_progress_ends_at_the_number_chosen_and_may_stop_it(self) -> None:
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
        ("x", "options"),
        [
            (np.empty((0, 4), np.float32), {}),
            (np.ones(4, np.float32), {}),
            (np.array([[1, np.nan]], np.float32), {}),
            (np.array([[1, np.inf]], np.float32), {}),
            (np.ones((3, 2), np.float32), {"n": 0}),
            (np.ones((3, 2), np.float32), {"first": 3}),
            (np.ones((3, 2), np.float32), {"first": -1}),
            (np.ones((3, 2), np.float32), {"centres": np.ones((2, 5), np.float32)}),
            (np.ones((3, 2), np.float32), {"centres": np.full((1, 2), np.nan, np.float32)}),
        ],
    )
    def test_refuses_what_has_no_distance(self, x: Array, options: dict[str, object]) -> None:
        with pytest.raises(InvalidValue):
            kcenter_greedy(x, **{"n": 2, **options})  # type: ignore[arg-type]

    @pytest.mark.parametrize(
        ("rows", "rate", "limit", "size"),
        [(34_992, 0.02, 25_600, 700), (10, 0.02, 25_600, 1), (5_000_000, 0.02, 25_600, 25_600), (7, 1.0, 9, 7)],
    )
    def test_size(self, rows: int, rate: float, limit: int, size: int) -> None:
        assert coreset_size(rows, rate, limit) == size

    @pytest.mark.parametrize("rate", [0, -0.1, 1.5, float("nan")])
    def test_refuses_a_rate_that_is_none(self, rate: float) -> None:
        with pytest.raises(InvalidValue):
            coreset_size(100, rate, 100)


class TestPasses:
    def test_rows_that_fit_are_chosen_as_at_once(self) -> None:
        x = clustered(np.random.default_rng(0), 900, 24)
        coreset = kcenter_greedy_chunked(np.array_split(x, 7), 50, rng=np.random.default_rng(1))
        whole = kcenter_greedy(x, 50, rng=np.random.default_rng(1))
        np.testing.assert_array_equal(coreset.rows, x[whole.indices])
        assert coreset.radius == whole.radius

    @pytest.mark.parametrize("keep", [4000, 250], ids=["one pass each", "kept rows reduced on the way"])
    def test_every_row_is_within_the_reported_radius(self, keep: int) -> None:
        chunks = [clustered(np.random.default_rng(seed), 130, 24) for seed in range(40)]
        budget = (keep + 1000 + 60) * 24 * 4
        coreset = kcenter_greedy_chunked(chunks, 60, rate=0.1, buffer_rows=1000, budget=budget)
        actual = covering_radius(chunks, coreset.rows)
        whole = kcenter_greedy(np.concatenate(chunks), 60)
        assert coreset.n_seen == 5200
        assert len(coreset.rows) == 60
        assert whole.radius * 0.5 <= actual <= min(coreset.radius, whole.radius * 2)

    def test_a_small_budget_does_with_a_small_buffer_and_a_smaller_one_says_how_much_is_needed(self) -> None:
        chunks = [gaussian(np.random.default_rng(seed), 2000, 64) for seed in range(30)]
        mb = 1 << 20
        with pytest.raises(InvalidValue, match=r"field=FIT_MEMORY_MB, value=1, expected=>= 3\b"):
            kcenter_greedy_chunked(chunks, 2000, rate=0.07, budget=mb)
        tracemalloc.start()
        coreset = kcenter_greedy_chunked(iter(chunks), 2000, rate=0.07, budget=3 * mb)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(coreset.rows) == 2000
        assert peak < 12 * mb < sum(chunk.nbytes for chunk in chunks)

    def test_the_radius_counts_rows_that_were_dropped_on_the_way(self) -> None:
        chunks = [np.full((2, 1), at, np.float32) for at in (0, 10, 4, 10, 0)]
        coreset = kcenter_greedy_chunked(chunks, 2, rate=0.5, buffer_rows=2, budget=(4 + 2 + 2) * 4)
        assert sorted(coreset.rows[:, 0]) == [0, 10]
        assert coreset.radius == covering_radius(chunks, coreset.rows) == 4

    def test_rows_know_where_they_came_from(self) -> None:
        chunks = [gaussian(np.random.default_rng(seed), 50 + 17 * seed, 8) for seed in range(9)]
        coreset = kcenter_greedy_chunked(iter(chunks), 40, rate=0.2, buffer_rows=128)
        origin = [chunks[chunk][row] for chunk, row in zip(coreset.chunk, coreset.row, strict=True)]
        np.testing.assert_array_equal(coreset.rows, origin)
        assert len(set(zip(coreset.chunk.tolist(), coreset.row.tolist(), strict=True))) == 40

    def test_growing_adds_nothing_that_is_there(self) -> None:
        x = clustered(np.random.default_rng(2), 600, 8)
        coreset = kcenter_greedy_chunked([x], 5, rate=0.5, buffer_rows=100, centres=x)
        assert coreset.rows.shape == (0, 8)

    def test_progress_counts_chunks_and_then_rows(self) -> None:
        chunks = np.array_split(gaussian(np.random.default_rng(3), 400, 8), 4)
        seen: list[tuple[int, int]] = []
        kcenter_greedy_chunked(chunks, 10, progress=lambda done, total: seen.append((done, total)))
        assert seen[:4] == [(1, 0), (2, 0), (3, 0), (4, 0)]
        assert seen[-1] == (10, 10)

    @pytest.mark.parametrize(
        ("chunks", "options"),
        [
            ([], {}),
            ([np.ones((4, 2), np.float32)], {"n": 0}),
            ([np.ones((4, 2), np.float32), np.ones((4, 3), np.float32)], {}),
            ([np.full((4, 2), np.nan, np.float32)], {}),
            ([np.ones((90, 2), np.float32)], {"n": 50, "buffer_rows": 10, "budget": 800}),
        ],
    )
    def test_refuses_what_cannot_be_covered(self, chunks: list[Array], options: dict[str, object]) -> None:
        with pytest.raises(InvalidValue):
            kcenter_greedy_chunked(chunks, **{"n": 2, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("backend", BACKENDS)
class TestDistances:
    @pytest.mark.parametrize("k", [1, 3, 9])
    def test_are_those_of_brute_force(self, backend: str, k: int) -> None:
        rng = np.random.default_rng(0)
        memory = PatchCoreMemory(clustered(rng, 400, 96), backend=backend)  # type: ignore[arg-type]
        q = clustered(rng, 300, 96)
        found = memory.distances(q, k)
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, brute_force(q, memory.emb, k), atol=1e-6)

    def test_of_an_identical_row_is_zero(self, backend: str) -> None:
        rows = clustered(np.random.default_rng(1), 500, 384)
        memory = PatchCoreMemory(rows, backend=backend)  # type: ignore[arg-type]
        assert not memory.distances(rows[::3]).any()

    @pytest.mark.parametrize("spread", [1e-3, 1e-4, 3e-5, 1e-5, 1e-6])
    def test_hold_where_rows_crowd_closer_than_rounding(self, backend: str, spread: float) -> None:
        rng = np.random.default_rng(2)
        crowd = l2_normalize(gaussian(rng, 1, 256)) + spread * gaussian(rng, 640, 256)
        memory = PatchCoreMemory(crowd[:600].astype(np.float32), backend=backend)  # type: ignore[arg-type]
        q = crowd[600:].astype(np.float32)
        np.testing.assert_allclose(memory.distances(q, 2), brute_force(q, memory.emb, 2), rtol=1e-4, atol=1e-9)

    def test_average_all_rows_when_k_asks_for_more(self, backend: str) -> None:
        rng = np.random.default_rng(3)
        memory = PatchCoreMemory(clustered(rng, 5, 16), backend=backend)  # type: ignore[arg-type]
        q = clustered(rng, 40, 16)
        np.testing.assert_allclose(memory.distances(q, 99), brute_force(q, memory.emb, 5), atol=1e-6)

    def test_leaving_an_image_out_is_a_memory_without_it(self, backend: str) -> None:
        rng = np.random.default_rng(4)
        rows, src = clustered(rng, 9000, 24), rng.integers(30, size=9000).astype(np.int32)
        memory = PatchCoreMemory(rows, backend=backend, src=src)  # type: ignore[arg-type]
        without = PatchCoreMemory(rows[src != 7], backend=backend)  # type: ignore[arg-type]
        for k in (1, 4):
            left_out = memory.distances(rows[src == 7], k, leave_out=7)
            np.testing.assert_array_equal(left_out, without.distances(rows[src == 7], k))
        np.testing.assert_array_equal(memory.distances(rows[:50], leave_out=99), memory.distances(rows[:50]))

    def test_of_a_large_memory_are_exact(self, monkeypatch: pytest.MonkeyPatch, backend: str) -> None:
        monkeypatch.setattr("backend.patchcore._SHORTEN_FROM", 1)
        rng = np.random.default_rng(5)
        rows = decaying(rng, 9000, 96)
        rows[4000:4700] = l2_normalize(rows[:1] + 1e-4 * gaussian(rng, 700, 96))
        memory = PatchCoreMemory(rows, backend=backend)  # type: ignore[arg-type]
        assert memory.nbytes > rows.nbytes, "the test is about the shortened search"
        q = np.concatenate([decaying(rng, 100, 96), rows[4000:4030], l2_normalize(rows[:1] + 0.05)])
        for k in (1, 3):
            np.testing.assert_allclose(memory.distances(q, k), brute_force(q, rows, k), atol=1e-6)

    def test_of_real_patches_are_exact(self, backend: str, cookie_patches: list[Array]) -> None:
        memory = PatchCoreMemory.build(np.concatenate(cookie_patches[:3]), 0.1, backend=backend)  # type: ignore[arg-type]
        q = cookie_patches[3][::5]
        np.testing.assert_allclose(memory.distances(q), brute_force(q, memory.emb), atol=1e-6)

    def test_working_memory_does_not_grow_with_the_rows(self, backend: str) -> None:
        rng = np.random.default_rng(6)
        q = gaussian(rng, 256, 64)
        peaks = []
        for n in (2_000, 40_000):
            memory = PatchCoreMemory(gaussian(rng, n, 64), backend=backend, src=np.arange(n, dtype=np.int32))  # type: ignore[arg-type]
            memory.distances(q, leave_out=0)
            tracemalloc.start()
            memory.distances(q)
            memory.distances(q, leave_out=0)
            memory.weight(q[0], 9)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        assert peaks[1] < peaks[0] + 3_000_000, "40,000 rows of 64 numbers are 10 MB"

    @pytest.mark.parametrize(
        ("q", "options"),
        [
            (np.ones((2, 5), np.float32), {}),
            (np.ones((0, 4), np.float32), {}),
            (np.full((2, 4), np.nan, np.float32), {}),
            (np.ones((2, 4), np.float32), {"k": 0}),
            (np.ones((2, 4), np.float32), {"leave_out": 1}),
        ],
    )
    def test_refuse_what_cannot_be_compared(self, backend: str, q: Array, options: dict[str, int]) -> None:
        memory = PatchCoreMemory(np.eye(4, dtype=np.float32), backend=backend)  # type: ignore[arg-type]
        with pytest.raises(InvalidValue):
            memory.distances(q, **options)


class TestShortenedVectors:
    def test_are_never_farther_apart_than_the_vectors(self) -> None:
        rng = np.random.default_rng(0)
        rows = decaying(rng, 3000, 128)
        shortener = Shortener.of(rows)
        assert shortener is not None
        step = rng.choice([0, 1e-6, 1e-3, 0.1], (1000, 1)).astype(np.float32)
        near = l2_normalize(rows[:1000] + step * gaussian(rng, 1000, 128))
        for a, b in ((rows[:1000], near), (rows[:1500], rows[1500:])):
            short = np.square(shortener(a).astype(np.float64) - shortener(b)).sum(axis=1)
            whole = np.square(a.astype(np.float64) - b).sum(axis=1)
            assert shortener(a).shape[1] <= 128 // 2 + 1
            assert (short <= whole + 1e-6 * np.sqrt(whole) + 1e-12).all()
        assert np.median(short / whole) > 0.8, "a bound that excludes little is of no use"

    def test_are_not_used_where_every_direction_matters(self) -> None:
        assert Shortener.of(l2_normalize(gaussian(np.random.default_rng(1), 3000, 64))) is None


class TestBackends:
    def test_agree(self) -> None:
        rng = np.random.default_rng(0)
        rows = clustered(rng, 1200, 768)
        q = np.concatenate([rows[:200], clustered(rng, 400, 768)])
        for k in (1, 5):
            faiss, sklearn = (PatchCoreMemory(rows, backend=name).distances(q, k) for name in ("faiss", "sklearn"))
            np.testing.assert_allclose(faiss, sklearn, atol=1e-6)

    def test_do_not_depend_on_the_number_of_threads(self, faiss_threads: None) -> None:
        import faiss

        rng = np.random.default_rng(1)
        memory = PatchCoreMemory(decaying(rng, 20_000, 128), backend="faiss")
        q = decaying(rng, 5_000, 128)
        found = []
        for threads in (1, 2, 5):
            faiss.omp_set_num_threads(threads)
            found.append(memory.distances(q, 2))
            assert faiss.omp_get_max_threads() == threads
        np.testing.assert_array_equal(found[0], found[1])
        np.testing.assert_array_equal(found[0], found[2])

    def test_auto_takes_faiss_and_without_it_sklearn(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = np.eye(3, dtype=np.float32)
        assert PatchCoreMemory(rows).backend == "faiss"
        monkeypatch.setitem(sys.modules, "faiss", None)
        memory = PatchCoreMemory(rows)
        assert memory.backend == "sklearn"
        assert memory.distances(rows).tolist() == [0, 0, 0]

    def test_faiss_that_is_not_installed_is_said_so(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = np.eye(3, dtype=np.float32)
        monkeypatch.setitem(sys.modules, "faiss", None)
        with pytest.raises(BackendUnavailable, match="faiss-cpu"):
            PatchCoreMemory(rows, backend="faiss")
        with pytest.raises(InspectionError, match="faiss-cpu"):
            PatchCoreMemory(rows, backend="sklearn").index_bytes()


@pytest.fixture
def faiss_threads() -> Iterator[None]:
    import faiss

    before = faiss.omp_get_max_threads()
    yield
    faiss.omp_set_num_threads(before)


class TestMemory:
    def test_is_built_from_a_coreset(self) -> None:
        x = clustered(np.random.default_rng(0), 1500, 32)
        src = np.repeat(np.arange(15, dtype=np.int32), 100)
        memory = PatchCoreMemory.build(x, 0.04, rng=np.random.default_rng(3), src=src)
        coreset = kcenter_greedy(x, 60, rng=np.random.default_rng(3))
        assert memory.indices is not None
        assert memory.src is not None
        np.testing.assert_array_equal(memory.emb, x[coreset.indices])
        np.testing.assert_array_equal(memory.indices, coreset.indices)
        np.testing.assert_array_equal(memory.src, src[coreset.indices])
        assert (len(memory), memory.dim, memory.n_embeddings) == (60, 32, 1500)
        assert memory.radius == coreset.radius == pytest.approx(memory.distances(x).max(), rel=1e-6)
        assert memory.nbytes == 60 * 32 * 4 + 60 * 4

    def test_is_capped(self) -> None:
        x = gaussian(np.random.default_rng(1), 300, 8)
        assert len(PatchCoreMemory.build(x, 0.5, limit=40)) == 40

    def test_a_memory_of_everything_is_everything_as_it_came(self, rng: np.random.Generator) -> None:
        x = l2_normalize(rng.standard_normal((60_000, 8)).astype(np.float32))
        memory = PatchCoreMemory.build(x, 1.0, limit=10**7, src=np.arange(60_000, dtype=np.int32), growing=True)
        np.testing.assert_array_equal(memory.emb, x)
        assert memory.radius == 0 and memory.reserve is not None and len(memory.reserve.emb) == 0

    def test_keeps_the_rows_it_is_given(self) -> None:
        rows = l2_normalize(gaussian(np.random.default_rng(2), 30, 8))
        memory = PatchCoreMemory(rows)
        assert memory.emb is rows
        assert memory.radius is None
        assert memory.indices is None
        assert memory.n_embeddings == 30

    def test_index_is_a_flat_faiss_index_of_the_rows(self) -> None:
        import faiss

        rows = l2_normalize(gaussian(np.random.default_rng(3), 50, 12))
        index = faiss.deserialize_index(np.frombuffer(PatchCoreMemory(rows).index_bytes(), np.uint8))
        assert (index.ntotal, index.d) == (50, 12)
        np.testing.assert_array_equal(index.reconstruct_n(0, 50), rows)

    @pytest.mark.parametrize(
        ("emb", "src"),
        [
            (np.empty((0, 4), np.float32), None),
            (np.full((2, 4), np.nan, np.float32), None),
            (np.ones((2, 4), np.float32), np.zeros(3, np.int32)),
        ],
    )
    def test_refuses_rows_that_are_none(self, emb: Array, src: NDArray[np.int32] | None) -> None:
        with pytest.raises(InvalidValue):
            PatchCoreMemory(emb, src=src)

    def test_an_image_that_is_the_only_one_cannot_be_left_out(self) -> None:
        memory = PatchCoreMemory(np.eye(3, dtype=np.float32), src=np.zeros(3, np.int32))
        with pytest.raises(InvalidValue):
            memory.distances(memory.emb, leave_out=0)

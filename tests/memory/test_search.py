"""A distance is the distance, whoever searches, and neighbours are the nearest rows."""

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.base.errors import BackendUnavailable
from backend.memory import products
from backend.memory.products import Bf16Rows
from backend.memory.search import Backend, ExactSearch, Neighbours, candidate_index, load_faiss, serialised_index
from backend.patchcore import Array, PatchCoreMemory, l2_normalize
from tests.memory.rows import clustered, gaussian, nearest_by_hand

PROJECT_ROOT = Path(__file__).resolve().parent.parent.parent
both = pytest.mark.parametrize("backend", ["faiss", "sklearn"])


class Liar:
    """An index that proposes the rows in their order and says of none how near it is."""

    nbytes = 10**6

    def __init__(self, rows: Array) -> None:
        self.asked: list[tuple[int, int]] = []

    def nearest(self, q: Array, m: int) -> Neighbours:
        self.asked.append((len(q), m))
        return np.zeros((len(q), m), np.float32), np.tile(np.arange(m), (len(q), 1))


@both
@pytest.mark.parametrize("k", [1, 2, 3, 9])
def test_neighbours_are_those_found_by_hand(rng: np.random.Generator, backend: Backend, k: int) -> None:
    rows, q = clustered(rng, 400, 96), clustered(rng, 300, 96)
    found, at = ExactSearch(rows, backend).neighbours(q, k)
    assert found.dtype == np.float32 and at.dtype == np.int64 and found.shape == at.shape == (300, k)
    np.testing.assert_allclose(found, nearest_by_hand(q, rows, k), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(q[:, None] - rows[at], axis=2), found, atol=1e-6)


@both
def test_an_identical_row_is_at_distance_zero(rng: np.random.Generator, backend: Backend) -> None:
    rows = clustered(rng, 500, 384)
    found, at = ExactSearch(rows, backend).neighbours(rows[::3])
    assert not found.any()
    np.testing.assert_array_equal(at[:, 0], np.arange(0, 500, 3))


@both
@pytest.mark.parametrize("length", [1.0, 100.0])
@pytest.mark.parametrize("spread", [1e-3, 1e-4, 3e-5, 1e-5, 1e-6])
def test_rows_that_crowd_closer_than_rounding_are_told_apart(
    rng: np.random.Generator, backend: Backend, spread: float, length: float
) -> None:
    crowd = (length * (l2_normalize(gaussian(rng, 1, 256)) + spread * gaussian(rng, 640, 256))).astype(np.float32)
    rows, q = crowd[:600], crowd[600:]
    found, _ = ExactSearch(rows, backend).neighbours(q, 2)
    np.testing.assert_allclose(found, nearest_by_hand(q, rows, 2), rtol=1e-4, atol=1e-9)


@both
@pytest.mark.parametrize("length", [0.01, 1.0, 100.0])
def test_what_a_library_proposes_is_bounded_from_below(
    rng: np.random.Generator, backend: Backend, length: float
) -> None:
    crowd = l2_normalize(gaussian(rng, 1, 64)) + 1e-3 * gaussian(rng, 500, 64)
    x = (length * crowd).astype(np.float32)
    q, rows = x[:40], x[40:]
    squares = ((q[:, None].astype(np.float64) - rows[None]) ** 2).sum(axis=2)
    for keep in (None, np.arange(0, 460, 2)):
        bounds, at = ExactSearch(rows, backend)._proposed(keep, q, 8)
        assert (np.diff(bounds, axis=1) >= 0).all()
        assert (bounds <= np.take_along_axis(squares, at, axis=1)).all()
        others = squares.copy()
        np.put_along_axis(others, at, np.inf, axis=1)
        known = others if keep is None else others[:, keep]
        assert (known.min(axis=1) >= bounds[:, -1]).all()
        assert (bounds[:, -1] > -1e-4 * length**2).all(), "a bound that excludes nothing is of no use"


@pytest.mark.parametrize("index", [None, Bf16Rows])
def test_a_crowd_in_a_large_memory_is_searched_until_no_row_is_in_doubt(rng: np.random.Generator, index: Any) -> None:
    rows = clustered(rng, 9000, 96)
    rows[4000:4700] = l2_normalize(rows[:1] + 1e-4 * gaussian(rng, 700, 96))
    q = np.concatenate([clustered(rng, 60, 96), rows[4000:4030], l2_normalize(rows[:1] + np.float32(0.05))])
    search = ExactSearch(rows)
    if index:
        search.attach_index(index)
    for k in (1, 3):
        np.testing.assert_allclose(search.neighbours(q, k)[0], nearest_by_hand(q, rows, k), atol=1e-6)


@both
@pytest.mark.parametrize("k", [5, 6, 99])
def test_more_neighbours_than_rows_are_all_rows(rng: np.random.Generator, backend: Backend, k: int) -> None:
    rows, q = clustered(rng, 5, 16), clustered(rng, 40, 16)
    found, at = ExactSearch(rows, backend).neighbours(q, k)
    np.testing.assert_allclose(found, nearest_by_hand(q, rows, 5), atol=1e-6)
    np.testing.assert_array_equal(np.sort(at, axis=1), np.tile(np.arange(5), (40, 1)))


@both
@pytest.mark.parametrize("k", [1, 4])
def test_searching_some_rows_is_a_search_of_these_alone(rng: np.random.Generator, backend: Backend, k: int) -> None:
    rows, q = clustered(rng, 9000, 24), clustered(rng, 300, 24)
    keep = np.flatnonzero(rng.integers(30, size=9000) != 7)
    distances, at = ExactSearch(rows, backend).neighbours(q, k, keep)
    expected, own = ExactSearch(rows[keep], backend).neighbours(q, k)
    np.testing.assert_array_equal(distances, expected)
    np.testing.assert_array_equal(at, keep[own])


@both
def test_few_rows_to_search_are_all_found(rng: np.random.Generator, backend: Backend) -> None:
    rows, q, keep = clustered(rng, 900, 24), clustered(rng, 20, 24), np.array([3, 5, 898])
    found, at = ExactSearch(rows, backend).neighbours(q, 7, keep)
    np.testing.assert_array_equal(np.sort(at, axis=1), np.tile(keep, (20, 1)))
    np.testing.assert_allclose(found, nearest_by_hand(q, rows[keep], 3), atol=1e-6)


@both
def test_neighbours_among_real_patches_are_exact(backend: Backend, cookie_patches: list[Array]) -> None:
    memory = PatchCoreMemory.build(np.concatenate(cookie_patches[:3]), 0.1, backend=backend)
    q = cookie_patches[3][::5]
    np.testing.assert_allclose(memory.distances(q), nearest_by_hand(q, memory.emb)[:, 0], atol=1e-6)


@both
def test_working_memory_does_not_grow_with_the_rows(rng: np.random.Generator, backend: Backend) -> None:
    q, peaks = gaussian(rng, 256, 64), []
    for n in (2_000, 40_000):
        search = ExactSearch(gaussian(rng, n, 64), backend)
        keep = np.arange(1, n)
        search.neighbours(q, 1, keep)
        tracemalloc.start()
        search.neighbours(q)
        search.neighbours(q, 1, keep)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] + 3_000_000, "40,000 rows of 64 numbers are 10 MB"


@both
@pytest.mark.parametrize(
    ("q", "k", "said"),
    [
        (np.ones((2, 5), np.float32), 1, r"the queries have shape \(2, 5\), where \(N, 4\)"),
        (np.ones((0, 4), np.float32), 1, "shape"),
        (np.ones(4, np.float32), 1, "shape"),
        (np.full((2, 4), np.nan, np.float32), 1, "the queries hold NaN or infinite values"),
        (np.full((2, 4), np.inf, np.float32), 1, "NaN or infinite"),
        (np.ones((2, 4), np.float32), 0, "0 neighbours are asked for"),
    ],
)
def test_what_cannot_be_compared_is_refused(backend: Backend, q: Array, k: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ExactSearch(np.eye(4, dtype=np.float32), backend).neighbours(q, k)


@pytest.mark.parametrize(
    ("rows", "said"),
    [(np.empty((0, 4)), "shape"), (np.ones(4), "shape"), (np.full((2, 4), np.nan), "the rows of a memory hold NaN")],
)
def test_rows_that_have_no_distance_are_refused(rows: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        ExactSearch(rows)


def test_the_libraries_agree(rng: np.random.Generator) -> None:
    rows = clustered(rng, 1200, 768)
    q = np.concatenate([rows[:200], clustered(rng, 400, 768)])
    for k in (1, 5):
        (faiss, ours), (sklearn, theirs) = (ExactSearch(rows, name).neighbours(q, k) for name in ("faiss", "sklearn"))
        np.testing.assert_array_equal(faiss, sklearn)
        tied = ours != theirs  # two rows at one distance may come in either order
        assert tied.sum() <= 3
        for distances, numbers in ((faiss, ours), (sklearn, theirs)):
            each = np.linalg.norm(q[:, None].astype(np.float64) - rows[numbers], axis=2)
            np.testing.assert_allclose(distances, each, atol=1e-6)


@pytest.fixture
def faiss_threads() -> Iterator[None]:
    faiss = load_faiss()
    before = faiss.omp_get_max_threads()
    yield
    faiss.omp_set_num_threads(before)


def test_distances_do_not_depend_on_the_number_of_threads(rng: np.random.Generator, faiss_threads: None) -> None:
    faiss = load_faiss()
    search, q, found = ExactSearch(clustered(rng, 20_000, 128), "faiss"), clustered(rng, 800, 128), []
    for threads in (1, 2, 5):
        faiss.omp_set_num_threads(threads)
        assert search._threads(len(q)) == threads
        found.append(search.neighbours(q, 2))
        assert faiss.omp_get_max_threads() == threads
    for distances, at in found[1:]:
        np.testing.assert_array_equal(distances, found[0][0])
        np.testing.assert_array_equal(at, found[0][1])


def test_little_work_and_scikit_learn_get_one_thread(rng: np.random.Generator, faiss_threads: None) -> None:
    load_faiss().omp_set_num_threads(8)
    rows = gaussian(rng, 1024, 256)
    assert [ExactSearch(rows, "faiss")._threads(n) for n in (1, 1024, 2047, 2048, 10**6)] == [1, 1, 1, 2, 8]
    assert ExactSearch(rows, "sklearn")._threads(10**6) == 1


def test_searches_at_the_same_time_do_not_disturb_each_other(rng: np.random.Generator) -> None:
    search, q = ExactSearch(clustered(rng, 3000, 64), "faiss"), clustered(rng, 300, 64)
    expected, _ = search.neighbours(q)
    with ThreadPoolExecutor(8) as pool:
        for found, _ in pool.map(lambda _: search.neighbours(q), range(24)):
            np.testing.assert_array_equal(found, expected)


SEARCH_AND_COUNT = """
import numpy as np
import psutil
from backend.memory.search import ExactSearch, load_faiss
rows = np.random.default_rng(0).random((4000, 64), np.float32)
assert load_faiss().omp_get_max_threads() == 4
search, before = ExactSearch(rows, "faiss"), psutil.Process().num_threads()
search.neighbours(rows[:900])
print(psutil.Process().num_threads() - before)
"""


def test_a_search_starts_no_threads_of_openmp() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "4"}
    command = [sys.executable, "-c", SEARCH_AND_COUNT]
    told = subprocess.run(
        command, check=False, cwd=PROJECT_ROOT, env=environment, capture_output=True, text=True, timeout=60
    )
    assert told.stdout.strip() == "0", told.stderr


@pytest.mark.parametrize("k", [1, 3])
def test_an_index_only_proposes(rng: np.random.Generator, k: int) -> None:
    rows, q = clustered(rng, 900, 48), clustered(rng, 70, 48)
    search = ExactSearch(rows)
    expected, nearest = search.neighbours(q, k)
    liar = Liar(rows)
    search.attach_index(lambda given: liar)
    found, at = search.neighbours(q, k)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(at, nearest)
    assert liar.asked == [(70, k + 31)]
    search.neighbours(q, k, np.arange(450))
    assert len(liar.asked) == 1, "an index knows all rows, and is no help with some of them"


def test_a_memory_no_larger_than_a_proposal_is_answered_by_the_index_alone(rng: np.random.Generator) -> None:
    rows, q = clustered(rng, 20, 8), clustered(rng, 7, 8)
    search, liar = ExactSearch(rows), Liar(rows)
    search.attach_index(lambda given: liar)
    np.testing.assert_allclose(search.neighbours(q, 2)[0], nearest_by_hand(q, rows, 2), atol=1e-6)
    assert liar.asked == [(7, 20)]


def test_an_index_is_made_once_and_counted(rng: np.random.Generator) -> None:
    rows, made = clustered(rng, 90, 8), []

    def make(given: Array) -> Liar:
        made.append(given)
        return Liar(given)

    search = ExactSearch(rows)
    assert search.nbytes == rows.nbytes
    search.attach_index(lambda given: None)
    assert search.nbytes == rows.nbytes
    search.attach_index(make)
    search.attach_index(make)
    assert len(made) == 1 and made[0] is rows
    assert search.nbytes == rows.nbytes + Liar.nbytes


def test_the_extractors_gpu_proposes_at_any_size_and_else_bfloat16_for_many_rows(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, many = gaussian(rng, 300, 32), gaussian(rng, 8192, 512)
    monkeypatch.setattr(products, "device", lambda: None)
    assert candidate_index(few) is None
    assert type(candidate_index(many)) is type(products.bf16_rows(many))
    monkeypatch.setattr(products, "device", lambda: "cpu")
    assert isinstance(candidate_index(few), products.DeviceRows)
    assert isinstance(candidate_index(many), products.DeviceRows)


def test_the_library_that_searches_is_the_one_of_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.eye(3, dtype=np.float32)
    searches = [ExactSearch(rows, name) for name in ("faiss", "sklearn")]
    monkeypatch.setitem(sys.modules, "sklearn.neighbors", None)
    assert not searches[0].neighbours(rows)[0].any()
    with pytest.raises(ImportError):
        searches[1].neighbours(rows)


def test_faiss_is_preferred_and_scikit_learn_does_without_it(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.eye(3, dtype=np.float32)
    assert ExactSearch(rows).backend == "faiss"
    monkeypatch.setitem(sys.modules, "faiss", None)
    search = ExactSearch(rows)
    assert search.backend == "sklearn"
    assert search.neighbours(rows)[0].tolist() == [[0], [0], [0]]


@pytest.mark.parametrize(("name", "package"), [("faiss", "faiss-cpu"), ("sklearn", "scikit-learn")])
def test_a_library_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, name: Backend, package: str) -> None:
    rows = np.eye(3, dtype=np.float32)
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(BackendUnavailable, match=package):
        ExactSearch(rows, name)
    if name == "faiss":
        with pytest.raises(BackendUnavailable, match=package):
            serialised_index(rows)


def test_a_serialised_index_is_one_of_faiss_with_the_rows(rng: np.random.Generator) -> None:
    rows = l2_normalize(gaussian(rng, 50, 12))
    index = load_faiss().deserialize_index(np.frombuffer(serialised_index(rows), np.uint8))
    assert (index.ntotal, index.d) == (50, 12)
    np.testing.assert_array_equal(index.reconstruct_n(0, 50), rows)


LOAD_AND_TELL = """
import os, sys
import numpy as np
from threadpoolctl import threadpool_info
np.ones((2, 2)) @ np.ones((2, 2))
from backend.memory import search
numpys = {i["architecture"] for i in threadpool_info() if i["prefix"] == "libscipy_openblas"}
search._CORE_TYPES = dict.fromkeys(numpys, sys.argv[1])
before = dict(os.environ)
assert search.load_faiss() is search.load_faiss() is sys.modules["faiss"]
assert dict(os.environ) == before
print([i["architecture"] for i in threadpool_info() if "faiss" in i["filepath"] and i["user_api"] == "blas"])
"""


@pytest.mark.parametrize(("by_owner", "expected"), [(None, "Haswell"), ("Zen", "Zen")])
def test_faiss_is_told_the_processor_unless_the_owner_has_told_it(by_owner: str | None, expected: str) -> None:
    flags = Path("/proc/cpuinfo")
    if not flags.is_file() or " avx2 " not in flags.read_text("utf-8"):
        pytest.skip("these kernels need AVX2")
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    environment |= {} if by_owner is None else {"OPENBLAS_CORETYPE": by_owner}
    told = subprocess.run(
        [sys.executable, "-c", LOAD_AND_TELL, "Haswell"],
        check=False,
        cwd=PROJECT_ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert told.returncode == 0, told.stderr
    assert expected in told.stdout


def test_every_processor_is_called_what_faiss_knows() -> None:
    from backend.memory import search

    assert set(search._CORE_TYPES.values()) == {"Haswell", "SkylakeX"}

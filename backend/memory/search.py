"""Exact nearest neighbours among rows.

FAISS, scikit-learn or an index in fewer digits only proposes neighbours, each with a lower bound of its distance that
allows for rounding. The distances themselves come from plain differences, and a query for which the bounds do not rule
out that another row is nearer is searched further. So the result does not depend on who proposes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_info

from backend.base.arrays import Float, available_cores, blocks, checked_rows, square_norms
from backend.base.errors import BackendUnavailable
from backend.memory.compact import CompactRows, Rows, in_float32
from backend.memory.products import DeviceRows, bf16_rows, device_rows

Backend = Literal["auto", "faiss", "sklearn"]
Neighbours = tuple[Float, NDArray[np.int64]]
Propose = Callable[[Float, int], Neighbours]

_EPS = float(np.finfo(np.float32).eps)
_BLOCK = 4096  # rows or queries dealt with at a time, so that working memory does not grow with their number
_RESULTS = 1 << 18  # proposals held at a time
_SPARE = 3  # rows proposed beyond k: the last must be certainly too far, to prove that the others are the nearest
_SPARE_OF_INDEX = 31  # the same for an index in fewer digits, whose bounds are looser
_THREAD_FROM = 1 << 28  # multiplications that are worth a thread of their own

_PACKAGES = {"faiss": "faiss-cpu", "sklearn": "scikit-learn"}
# The newest kernels that FAISS's OpenBLAS has for a processor, by what NumPy's newer OpenBLAS calls the processor.
_CORE_TYPES = {
    "Haswell": "Haswell",
    "SkylakeX": "SkylakeX",
    "Cooperlake": "SkylakeX",
    "SapphireRapids": "SkylakeX",
}


class CandidateIndex(Protocol):
    """Rows held in another form, which proposes near ones sooner than an exact search finds them.

    `nbytes`: bytes that it holds.
    """

    nbytes: int

    def nearest(self, q: Float, m: int) -> Neighbours:
        """Propose `m` rows for each query of `q` (T, D).

        Returns:
            (T, m) lower bounds of their squared distances, ascending, and (T, m) their numbers. No other row is nearer
            than a query's last bound.
        """


def candidate_index(rows: Float) -> CandidateIndex | None:
    """What proposes neighbours among `rows` (N, D) soonest here: the extractor's GPU, else products in bfloat16.

    None where an exact search takes no longer.
    """
    return device_rows(rows) or bf16_rows(rows)


class ExactSearch:
    """The nearest of `rows`, by Euclidean distance.

    Args:
        rows: (N, D) float32, finite, kept as given, not copied; or CompactRows, which are read in blocks.
        backend: the library that searches; auto: FAISS where it is installed, else scikit-learn.

    Raises:
        ValueError: `rows` is empty, not a table, or not finite.
        BackendUnavailable: the library is not installed.
    """

    def __init__(self, rows: Rows, backend: Backend = "auto") -> None:
        self.rows = rows if isinstance(rows, CompactRows) else checked_rows(rows, "the rows of a memory")
        self.backend = _installed(backend)
        self._longest = max(float(square_norms(self.rows[block]).max()) for block in blocks(len(self), _BLOCK))
        self._index: CandidateIndex | None = None

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def nbytes(self) -> int:
        """Bytes of the rows and of what proposes them."""
        return self.rows.nbytes + (self._index.nbytes if self._index else 0)

    @property
    def on_device(self) -> DeviceRows | None:
        """The rows on the extractor's device, if they are there."""
        return self._index if isinstance(self._index, DeviceRows) else None

    def attach_index(self, make: Callable[[Float], CandidateIndex | None] = candidate_index) -> None:
        """Let the index that `make` gives for the rows, if any, propose neighbours; distances stay what they are.

        CompactRows get none: it would take more bytes than they do.
        """
        if self._index is None and not isinstance(self.rows, CompactRows):
            self._index = make(self.rows)

    def neighbours(self, q: Float, k: int = 1, keep: NDArray[np.int64] | None = None) -> Neighbours:
        """The `k` rows nearest to each query.

        Args:
            q: (T, D) float32, finite.
            k: neighbours; all rows where there are fewer.
            keep: numbers of the rows that are searched, ascending; None: all.

        Returns:
            (T, k) float32 Euclidean distances, ascending, and (T, k) the numbers of the rows.

        Raises:
            ValueError: `q` is of another width, empty or not finite, or `k` < 1.
        """
        q = checked_rows(q, "the queries", self.rows.shape[1])
        if k < 1:
            raise ValueError(f"{k} neighbours are asked for: it must be at least one")
        search = partial(self._nearest, k=min(k, len(self if keep is None else keep)), keep=keep)
        threads = 1 if self._index and keep is None else self._threads(len(q))
        parts = np.array_split(q, max(threads, -(-len(q) // _BLOCK)))
        found = _pool().map(search, parts) if threads > 1 else map(search, parts)
        distances, rows = zip(*found, strict=True)
        return np.concatenate(distances), np.concatenate(rows)

    def _threads(self, n_queries: int) -> int:
        """Threads to search with: at most as many as OpenMP may use; one where the library has threads of its own."""
        if self.backend != "faiss":
            return 1
        work = n_queries * self.rows.size // _THREAD_FROM
        return max(1, min(work, int(load_faiss().omp_get_max_threads())))

    def _nearest(self, q: Float, k: int, keep: NDArray[np.int64] | None) -> Neighbours:
        """`neighbours` of one part of the queries."""
        best, at = np.empty((len(q), k), np.float32), np.empty((len(q), k), np.int64)
        left = np.arange(len(q))
        n_rows = len(self if keep is None else keep)
        for propose, m in self._attempts(k, keep):
            doubtful = []
            for block in blocks(len(left), max(1, _RESULTS // m)):
                t = left[block]
                best[t], at[t], doubt = self._measured(q[t], *propose(q[t], m), k, is_all=m == n_rows)
                doubtful.append(t[doubt])
            left = np.concatenate(doubtful)
            if len(left) == 0:
                break
        return best, at

    def _attempts(self, k: int, keep: NDArray[np.int64] | None) -> Iterator[tuple[Propose, int]]:
        """Who proposes, and how many rows: each time for the queries that the time before left in doubt."""
        n_rows = len(self if keep is None else keep)
        if self._index is not None and keep is None:
            yield self._index.nearest, min(k + _SPARE_OF_INDEX, n_rows)
        library = partial(self._proposed, keep)
        m = k + _SPARE
        while m < n_rows:
            yield library, m
            m *= 8
        yield library, n_rows

    def _measured(
        self, q: Float, bounds: Float, rows: NDArray[np.int64], k: int, *, is_all: bool
    ) -> tuple[Float, NDArray[np.int64], NDArray[np.bool_]]:
        """The k nearest of the proposed `rows` (T, m): distances, numbers, and whether another row may be nearer.

        Bounds ascend, so a query whose next bound is beyond its k-th distance is done. `is_all`: every row is proposed.
        """
        best, at = _sorted(np.stack([self._lengths(q, row) for row in rows.T[:k]], axis=1), rows[:, :k])
        for bound, row in zip(bounds.T[k:], rows.T[k:], strict=True):
            t = np.flatnonzero(bound < best[:, -1] ** 2)
            if len(t) == 0:
                break
            length = self._lengths(q[t], row[t])
            nearer = length < best[t, -1]
            t = t[nearer]
            best[t, -1], at[t, -1] = length[nearer], row[t]
            best[t], at[t] = _sorted(best[t], at[t])
        doubt: NDArray[np.bool_] = bounds[:, -1] < best[:, -1] ** 2
        return best, at, np.zeros_like(doubt) if is_all else doubt

    def _lengths(self, q: Float, rows: NDArray[np.int64]) -> Float:
        """(T,) distance of each query to the one row whose number is beside it."""
        lengths: Float = np.sqrt(square_norms(q - self.rows[rows]))
        return lengths

    def _proposed(self, keep: NDArray[np.int64] | None, q: Float, m: int) -> Neighbours:
        """As `CandidateIndex.nearest`, by the library.

        Rounding adds at most γ(D) · (|q| + |m|)² to a squared distance (Higham 2002, section 3.1).
        """
        search = _search_faiss if self.backend == "faiss" else _search_sklearn
        slack = 2 * _EPS * q.shape[1] * max(self._longest, float(square_norms(q).max()))
        if keep is None and not isinstance(self.rows, CompactRows):
            squares, rows = search(q, self.rows, m)
            return squares - slack, rows
        keep = np.arange(len(self)) if keep is None else keep
        squares, rows = np.empty((len(q), 0), np.float32), np.empty((len(q), 0), np.int64)
        for block in blocks(len(keep), _BLOCK):
            found, at = search(q, self.rows[keep[block]], min(m, block.stop - block.start))
            squares = np.concatenate([squares, found], axis=1)
            rows = np.concatenate([rows, keep[block][at]], axis=1)
            order = np.argsort(squares, axis=1, kind="stable")[:, :m]
            squares, rows = np.take_along_axis(squares, order, axis=1), np.take_along_axis(rows, order, axis=1)
        return squares - slack, rows


def _sorted(distances: Float, rows: NDArray[np.int64]) -> Neighbours:
    """(T, k) distances, ascending, and rows in the same order."""
    if distances.shape[1] == 1:
        return distances, rows.copy()
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(rows, order, axis=1)


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads that stay: to start new ones takes as long as a search of a small memory."""
    return ThreadPoolExecutor(available_cores(), thread_name_prefix="neighbours")


def _search_faiss(q: Float, rows: Float, m: int) -> Neighbours:
    """Squared distances and numbers of the `m` rows nearest to each of `q`, on this thread alone.

    OpenMP would wait for its slowest thread at every block, which on a busy machine takes several times as long as the
    search. Its number of threads belongs to the calling thread.
    """
    faiss = load_faiss()
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        squares, at = faiss.knn(q, rows, m)
    finally:
        faiss.omp_set_num_threads(threads)
    return squares, at


def _search_sklearn(q: Float, rows: Float, m: int) -> Neighbours:
    """As `_search_faiss`, with scikit-learn and its own threads."""
    from sklearn.neighbors import NearestNeighbors

    lengths, at = NearestNeighbors(algorithm="brute").fit(rows).kneighbors(q, m)
    return np.square(lengths, dtype=np.float32), at


def serialised_index(rows: Rows) -> bytes:
    """A serialised FAISS index of `rows` (N, D), whose distances are squares: what index.faiss holds.

    It is flat, or for CompactRows FAISS's own quantiser of as many bits.

    Raises:
        BackendUnavailable: FAISS is not installed.
    """
    _installed("faiss")
    faiss = load_faiss()
    index = faiss.IndexFlatL2(rows.shape[1])
    if isinstance(rows, CompactRows):
        kinds = {"float16": faiss.ScalarQuantizer.QT_fp16, "int8": faiss.ScalarQuantizer.QT_8bit}
        index = faiss.IndexScalarQuantizer(rows.shape[1], kinds[rows.dtype], faiss.METRIC_L2)
        index.train(in_float32(rows))
    index.add(in_float32(rows))
    return bytes(faiss.serialize_index(index))


def _installed(backend: Backend) -> Literal["faiss", "sklearn"]:
    """The library that `backend` stands for. Raises BackendUnavailable."""
    if backend == "auto":
        backend = "faiss" if find_spec("faiss") else "sklearn"
    if find_spec(backend) is None:
        raise BackendUnavailable(option="KNN_BACKEND", value=backend, package=_PACKAGES[backend])
    return backend


@cache
def load_faiss() -> Any:
    """The module, told when it is loaded which kernels the processor can run.

    FAISS's wheels bring an OpenBLAS of 2021, which takes processors that came later for much older ones and multiplies
    several times slower on them. NumPy's own OpenBLAS knows them. What the machine's owner has set stands.

    Raises:
        ImportError: FAISS is not installed.
    """
    numpys = [info.get("architecture") for info in threadpool_info() if info["prefix"] == "libscipy_openblas"]
    core_type = _CORE_TYPES.get(numpys[0] if numpys else "")
    told = core_type is not None and "OPENBLAS_CORETYPE" not in os.environ
    if told:
        os.environ["OPENBLAS_CORETYPE"] = str(core_type)
    try:
        import faiss
    finally:
        if told:
            os.environ.pop("OPENBLAS_CORETYPE", None)
    return faiss

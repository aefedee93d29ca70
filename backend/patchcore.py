"""PatchCore's memory: a coreset of good patches, and how far a patch is from the nearest of them.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (CVPR 2022), section 3. One unit of distance
everywhere: Euclidean between unit vectors, so 0 … 2, whichever library searches, until density weighs it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from importlib.util import find_spec
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from backend.base.arrays import available_cores, blocks, l2_normalize, square_norms
from backend.base.errors import BackendUnavailable, InvalidValue
from backend.memory.chunked import ChunkedCoreset, kcenter_greedy_chunked
from backend.memory.coreset import (
    BLOCK,
    Array,
    Coreset,
    Progress,
    checked,
    coreset_of,
    coreset_size,
    kcenter_greedy,
)
from backend.memory.density import Spacing
from backend.memory.kernels import faiss_alone, load_faiss
from backend.memory.spaces import ROWS, SearchSpace, Shortener, as_it_is

__all__ = [
    "Array",
    "ChunkedCoreset",
    "Coreset",
    "PatchCoreMemory",
    "Reserve",
    "coreset_size",
    "covering_radius",
    "kcenter_greedy",
    "kcenter_greedy_chunked",
    "l2_normalize",
]

Backend = Literal["auto", "faiss", "sklearn"]
Found = tuple[NDArray[np.float32], NDArray[np.int64]]

_SPARE = 3  # neighbours asked for beyond k: a proof needs one that is certainly too far
_SPARE_SHORT = 127  # the same among shortened vectors, which come closer together
_SPARE_ROUGH = 31  # and among rows of few digits
_SHORTEN_FROM = 1 << 24  # numbers in the rows; below, shortening costs more than it saves
_RESULTS = 1 << 18  # neighbours held at a time
_SPLIT = 1 << 28  # multiplications that are worth a thread of their own


class CandidateIndex(Protocol):
    """Rows in another form, in which near ones are found sooner.

    `alone`: a search keeps to the thread that asks, so that several may share one out.
    """

    nbytes: int
    alone: bool

    def nearest(self, q: Array, m: int) -> Found:
        """Lower bounds (T, m) of squared distances, ascending, and the rows they are of.

        No other row is nearer than the last bound says, but for what an approximate search misses.
        """
        ...


@dataclass(frozen=True)
class Reserve:
    """Rows that a memory left out and a growth may still take: those farthest from it, the farthest first.

    `emb` (R, D) float32, `src` (R,) int32 as a memory's.
    `beyond`: nothing ever seen that is neither remembered nor here is farther from the memory than this.
    """

    emb: Array
    src: NDArray[np.int32]
    beyond: float


class PatchCoreMemory:
    """The patches a part is compared with.

    Attributes:
        emb: (N, D) float32 unit rows; kept as given, not copied.
        src: (N,) int32, which image each row came from, or None.
        backend: "faiss" or "sklearn", the library that searches.
        dim: D.
        radius, n_embeddings, indices: how the coreset was made; None, N and None for rows that came as they are.
        reserve: as many of the rows left out as there are rows, for a memory that is to grow; or None.
    """

    radius: float | None = None
    reserve: Reserve | None = None
    indices: NDArray[np.int64] | None = None

    def __init__(self, emb: Array, *, backend: Backend = "auto", src: NDArray[np.int32] | None = None) -> None:
        self.emb = checked(emb, "emb")
        self.backend = _resolve(backend)
        self.src = None if src is None else np.asarray(src, dtype=np.int32)
        if self.src is not None and self.src.shape != (len(self.emb),):
            raise InvalidValue(field="src", value=f"shape {self.src.shape}", expected=f"({len(self.emb)},)")
        self.dim = self.emb.shape[1]
        self.n_embeddings = len(self.emb)
        self._plain = SearchSpace(self.emb, as_it_is)
        self._rough: CandidateIndex | None = None
        self._spacings: dict[int, Spacing] = {}
        shorten = Shortener.of(self.emb) if self.emb.size >= _SHORTEN_FROM else None
        self._short = None if shorten is None else SearchSpace(shorten(self.emb), shorten)

    @classmethod
    def build(
        cls,
        emb: Array,
        coreset_rate: float = 0.02,
        *,
        limit: int = 25_600,
        rng: np.random.Generator | None = None,
        backend: Backend = "auto",
        src: NDArray[np.int32] | None = None,
        growing: bool = False,
        progress: Progress | None = None,
    ) -> PatchCoreMemory:
        """The memory of a coreset of `emb` (N, D): as many rows by k-center greedy as `coreset_size` says, or all.

        `growing`: it has a reserve, which takes `src`.
        """
        n = coreset_size(len(emb), coreset_rate, limit)
        coreset = coreset_of(emb, n, left=n if growing else 0, rng=rng, progress=progress)
        rows = coreset.indices
        memory = cls(emb[rows], backend=backend, src=None if src is None else np.asarray(src)[rows])
        memory.radius, memory.indices, memory.n_embeddings = coreset.radius, rows, len(emb)
        if growing and src is not None:
            memory.reserve = Reserve(emb[coreset.left], np.asarray(src, np.int32)[coreset.left], coreset.beyond)
        return memory

    def attach_index(self, rough: Callable[[Array], CandidateIndex | None]) -> None:
        """Have neighbours proposed by what `rough` makes of the rows, if anything; distances are measured as ever."""
        if self._rough is None:
            self._rough = rough(self.emb)
            self._short = None if self._rough else self._short

    def __len__(self) -> int:
        return len(self.emb)

    @property
    def nbytes(self) -> int:
        """Bytes the memory holds in RAM."""
        short = 0 if self._short is None else self._short.rows.nbytes
        rough = 0 if self._rough is None else self._rough.nbytes
        return self.emb.nbytes + short + rough + (0 if self.src is None else self.src.nbytes)

    def distances(self, q: Array, k: int = 1, *, leave_out: int | None = None, density: int = 0) -> NDArray[np.float32]:
        """Mean Euclidean distance of each patch to its `k` nearest rows, as it is or by how densely these lie.

        The library only proposes neighbours, with lower bounds of their distances; the distances themselves are those
        of plain differences, and a patch for which the bounds do not exclude every other row is searched further.

        Args:
            q: (T, D) float32, unit rows.
            k: neighbours averaged; clamped to the rows there are.
            leave_out: rows whose `src` is this image are not neighbours.
            density: neighbours that tell how densely rows lie around the nearest one: the distance is divided by their
                spacing, as a multiple of what is typical of the memory. 0: it is not.

        Returns:
            (T,) float32, 0 … 2 between unit vectors; up to twice that with `density`.

        Raises:
            InvalidValue: another width, not finite, k < 1, `leave_out` without `src` or leaving no row.
        """
        near, rows = self.neighbours(q, k, leave_out=leave_out)
        mean: NDArray[np.float32] = near.mean(axis=1)
        return mean / self.spacing(rows[:, 0], density, leave_out) if density else mean

    def spacing(self, rows: NDArray[np.int64], n: int, leave_out: int | None = None) -> NDArray[np.float32]:
        """(T,) how far the rows with these numbers lie from `n` neighbours of other images, 1 being typical here."""
        keep = self._kept(leave_out)
        nearest = partial(self.neighbours, leave_out=leave_out)
        spacing = self._spacings.get(n) if keep is None else None
        if spacing is None:
            spacing = Spacing(self.emb, nearest, n, self.src, keep)
            if keep is None:
                self._spacings[n] = spacing
        return spacing(rows, self.emb, nearest)

    def neighbours(self, q: Array, k: int = 1, *, leave_out: int | None = None) -> Found:
        """(T, k) distances of each patch to its nearest rows, ascending, and the rows' numbers; else as `distances`."""
        q = checked(q, "q", self.dim)
        if k < 1:
            raise InvalidValue(field="PATCHCORE_KNN_K", value=k, expected=">= 1")
        keep = self._kept(leave_out)
        k = min(k, len(self) if keep is None else len(keep))
        alone = self._rough is None or self._rough.alone or keep is not None
        workers = self._workers(len(q)) if alone else 1
        parts = max(workers, -(-len(q) // ROWS))
        found = _in_threads(workers, lambda part: self._nearest(part, k, keep), np.array_split(q, parts))
        distances, rows = zip(*found, strict=True)
        return np.concatenate(distances), np.concatenate(rows)

    def _workers(self, n_queries: int) -> int:
        """Threads worth starting: no more than OpenMP would, none for little work or where the library has its own."""
        if self.backend != "faiss":
            return 1
        work = n_queries * (self._short or self._plain).rows.size // _SPLIT
        return max(1, min(work, int(load_faiss().omp_get_max_threads())))

    def weight(self, q: Array, neighbours: int) -> float:
        """How much the patch `q` (D,) counts as its image's score (Roth et al. 2022, section 3.3, eq. 7).

        1 − exp‖q − m*‖ / Σ exp‖q − m‖, with m* the row nearest to q and m the `neighbours` rows nearest to m*, itself
        among them: a patch whose nearest row is far from the other rows weighs more.
        """
        to_q = np.sqrt(self._squares(q))
        nearest = int(to_q.argmin())
        around = np.argsort(self._squares(self.emb[nearest]), kind="stable")[:neighbours]
        return float(1.0 - 1.0 / np.exp(to_q[around].astype(np.float64) - to_q[nearest]).sum())

    def _squares(self, q: Array) -> NDArray[np.float32]:
        """(N,) squared distances of every row to `q` (D,), without a copy of the rows."""
        return np.concatenate([square_norms(self.emb[rows] - q) for rows in blocks(len(self), BLOCK)])

    @property
    def kind(self) -> str:
        """In which way it measures, if not in the common one."""
        return ""

    @property
    def extras(self) -> dict[str, NDArray[Any]]:
        """What is stored beside the rows."""
        return {}

    def _kept(self, leave_out: int | None) -> NDArray[np.int64] | None:
        if leave_out is None:
            return None
        if self.src is None:
            raise InvalidValue(field="leave_out", value=leave_out, expected="a memory that knows its images")
        keep = np.flatnonzero(self.src != leave_out)
        if len(keep) == 0:
            raise InvalidValue(field="leave_out", value=leave_out, expected="an image that is not the only one")
        return None if len(keep) == len(self) else keep

    def _nearest(self, q: Array, k: int, keep: NDArray[np.int64] | None) -> Found:
        """(T, k) distances of each patch to its nearest rows, ascending, and their numbers."""
        best, at = np.empty((len(q), k), np.float32), np.empty((len(q), k), np.int64)
        left = np.arange(len(q))
        n_rows = len(self) if keep is None else len(keep)
        for propose, m in self._attempts(k, keep):
            doubtful = []
            for block in blocks(len(left), max(1, _RESULTS // m)):
                t = left[block]
                bounds, rows = propose(q[t], m)
                best[t], at[t], doubt = self._measure(q[t], bounds, rows, k, n_rows)
                doubtful.append(t[doubt])
            left = np.concatenate(doubtful)
            if len(left) == 0:
                break
        return best, at

    def _attempts(self, k: int, keep: NDArray[np.int64] | None) -> Iterator[tuple[Callable[[Array, int], Found], int]]:
        """Who proposes how many neighbours, each time for the patches that the last time left in doubt."""
        n_rows = len(self) if keep is None else len(keep)
        plain = partial(self._candidates, self._plain, keep)
        if self._rough is not None and keep is None:
            yield self._rough.nearest, min(k + _SPARE_ROUGH, n_rows)
        elif self._short is not None:
            yield partial(self._candidates, self._short, keep), min(k + _SPARE_SHORT, n_rows)
        m = k + _SPARE
        while m < n_rows:
            yield plain, m
            m *= 8
        yield plain, n_rows

    def _measure(
        self, q: Array, bounds: NDArray[np.float32], rows: NDArray[np.int64], k: int, n_rows: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.bool_]]:
        """The k nearest of candidate `rows` (T, m): distances, numbers, and whether others may be nearer still."""
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
        if rows.shape[1] == n_rows:
            return best, at, np.zeros(len(q), np.bool_)
        doubt: NDArray[np.bool_] = bounds[:, -1] < best[:, -1] ** 2
        return best, at, doubt

    def _lengths(self, q: Array, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        lengths: NDArray[np.float32] = np.sqrt(square_norms(q - self.emb[rows]))
        return lengths

    def _candidates(self, space: SearchSpace, keep: NDArray[np.int64] | None, q: Array, m: int) -> Found:
        """Lower bounds of squared distances, ascending, and numbers of the `m` rows nearest in `space`."""
        search = _search_faiss if self.backend == "faiss" else _search_sklearn
        short = space.view(q)
        slack = space.slack(short)
        if keep is None:
            squares, rows = search(short, space.rows, m)
            return squares - slack, rows
        squares, rows = np.empty((len(q), 0), np.float32), np.empty((len(q), 0), np.int64)
        for block in blocks(len(keep), ROWS):
            found, at = search(short, space.rows[keep[block]], min(m, block.stop - block.start))
            squares = np.concatenate([squares, found], axis=1)
            rows = np.concatenate([rows, keep[block][at]], axis=1)
            order = np.argsort(squares, axis=1, kind="stable")[:, :m]
            squares, rows = np.take_along_axis(squares, order, axis=1), np.take_along_axis(rows, order, axis=1)
        return squares - slack, rows

    def index_bytes(self) -> bytes:
        """A FAISS flat index of the rows, serialised: what index.faiss holds. Its distances are squares.

        Raises:
            BackendUnavailable: FAISS is not installed.
        """
        _require("faiss")
        faiss = load_faiss()
        index = faiss.IndexFlatL2(self.dim)
        index.add(self.emb)
        return bytes(faiss.serialize_index(index))


def _sorted(distances: NDArray[np.float32], rows: NDArray[np.int64]) -> Found:
    """(T, k) distances, ascending, and rows in the same order."""
    if distances.shape[1] == 1:
        return distances, rows.copy()
    order = np.argsort(distances, axis=1, kind="stable")
    return np.take_along_axis(distances, order, axis=1), np.take_along_axis(rows, order, axis=1)


def covering_radius(chunks: Iterable[Array], centres: Array) -> float:
    """The largest Euclidean distance of any row of `chunks` (N_i, D) to its nearest of `centres` (M, D)."""
    memory = PatchCoreMemory(centres)
    return max(float(memory.distances(chunk).max()) for chunk in chunks)


def _require(backend: str) -> None:
    if find_spec(backend) is None:
        package = {"faiss": "faiss-cpu", "sklearn": "scikit-learn"}[backend]
        raise BackendUnavailable(option="KNN_BACKEND", value=backend, package=package)


def _resolve(backend: Backend) -> Literal["faiss", "sklearn"]:
    if backend == "auto":
        backend = "faiss" if find_spec("faiss") else "sklearn"
    _require(backend)
    return backend


def _in_threads(n: int, task: Callable[[Array], Found], parts: list[Array]) -> list[Found]:
    """`task` of each of `parts`, in order, `n` at a time."""
    if n == 1:
        return [task(part) for part in parts]
    return list(_threads().map(task, parts))


@cache
def _threads() -> ThreadPoolExecutor:
    """Threads that stay: a new one costs a search of a small memory as much again."""
    return ThreadPoolExecutor(available_cores(), thread_name_prefix="neighbours")


def _search_faiss(q: Array, rows: Array, m: int) -> Found:
    """The `m` nearest `rows` of each of `q`, on this thread alone.

    OpenMP's team waits for its slowest member at every block of a search, which on a machine busy with other work
    costs several times the search; whole parts of the queries go to threads instead.
    """
    with faiss_alone() as faiss:
        squares, at = faiss.knn(q, rows, m)
    return squares, at


def _search_sklearn(q: Array, rows: Array, m: int) -> Found:
    from sklearn.neighbors import NearestNeighbors

    lengths, at = NearestNeighbors(algorithm="brute").fit(rows).kneighbors(q, m)
    return np.square(lengths, dtype=np.float32), at

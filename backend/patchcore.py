"""PatchCore's memory: a coreset of good patches, and how far a patch is from the nearest of them.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (CVPR 2022), section 3. One unit of distance
everywhere: Euclidean between unit vectors, so 0 … 2, whichever library searches.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from importlib.util import find_spec
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from backend.coreset import (
    BLOCK,
    Array,
    ChunkedCoreset,
    Coreset,
    Progress,
    blocks,
    checked,
    coreset_size,
    kcenter_greedy,
    kcenter_greedy_chunked,
    l2_normalize,
    square_norms,
)
from backend.errors import BackendUnavailable, InvalidValue

__all__ = [
    "Array",
    "ChunkedCoreset",
    "Coreset",
    "PatchCoreMemory",
    "coreset_size",
    "covering_radius",
    "kcenter_greedy",
    "kcenter_greedy_chunked",
    "l2_normalize",
]

Backend = Literal["auto", "faiss", "sklearn"]
Search = Callable[[Array, int], tuple[NDArray[np.float32], NDArray[np.int64]]]

_SPARE = 4  # neighbours asked for beyond k, so that rounding in the search can be proven harmless


def covering_radius(chunks: Iterable[Array], centres: Array) -> float:
    """The largest Euclidean distance of any row of `chunks` (N_i, D) to its nearest row of `centres` (M, D)."""
    memory = PatchCoreMemory(centres)
    return max(float(memory.distances(chunk).max()) for chunk in chunks)


class PatchCoreMemory:
    """The patches a part is compared with.

    Attributes:
        emb: (N, D) float32 unit rows; kept as given, not copied.
        src: (N,) int32, which image each row came from, or None.
        backend: "faiss" or "sklearn", the library that searches.
        dim: D.
        radius, n_embeddings, indices: how the coreset was made; None, N and None for rows that came as they are.
    """

    radius: float | None = None
    indices: NDArray[np.int64] | None = None

    def __init__(self, emb: Array, *, backend: Backend = "auto", src: NDArray[np.int32] | None = None) -> None:
        self.emb = checked(emb, "emb")
        self.backend = _resolve(backend)
        self.src = None if src is None else np.asarray(src, dtype=np.int32)
        if self.src is not None and self.src.shape != (len(self.emb),):
            raise InvalidValue(field="src", value=f"shape {self.src.shape}", expected=f"({len(self.emb)},)")
        self.dim = self.emb.shape[1]
        self.n_embeddings = len(self.emb)
        self._search = _searcher(self.backend, self.emb)
        self._largest = max(float(square_norms(self.emb[rows]).max()) for rows in blocks(len(self.emb), BLOCK))

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
        progress: Progress | None = None,
    ) -> PatchCoreMemory:
        """The memory of a coreset of `emb` (N, D): `coreset_size(N, coreset_rate, limit)` rows by k-center greedy."""
        coreset = kcenter_greedy(emb, coreset_size(len(emb), coreset_rate, limit), rng=rng, progress=progress)
        rows = coreset.indices
        memory = cls(emb[rows], backend=backend, src=None if src is None else np.asarray(src)[rows])
        memory.radius, memory.indices, memory.n_embeddings = coreset.radius, rows, len(emb)
        return memory

    def __len__(self) -> int:
        return len(self.emb)

    @property
    def nbytes(self) -> int:
        """Bytes the memory holds in RAM."""
        return self.emb.nbytes + (0 if self.src is None else self.src.nbytes)

    def distances(self, q: Array, k: int = 1, *, leave_out: int | None = None) -> NDArray[np.float32]:
        """Mean Euclidean distance of each patch to its `k` nearest rows.

        The library only proposes neighbours; the distances are those of plain differences, and where rounding could
        have hidden a nearer row the patch is searched again without that doubt.

        Args:
            q: (T, D) float32, unit rows.
            k: neighbours averaged; clamped to the rows there are.
            leave_out: rows whose `src` is this image are not neighbours.

        Returns:
            (T,) float32, 0 … 2 between unit vectors.

        Raises:
            InvalidValue: another width, not finite, k < 1, `leave_out` without `src` or leaving no row.
        """
        q = checked(q, "q", self.dim)
        if k < 1:
            raise InvalidValue(field="PATCHCORE_KNN_K", value=k, expected=">= 1")
        keep = self._kept(leave_out)
        k = min(k, len(self.emb) if keep is None else len(keep))
        nearest = np.empty(len(q), np.float32)
        for block in blocks(len(q), BLOCK):
            nearest[block] = self._nearest(q[block], k, keep)
        return nearest

    def _kept(self, leave_out: int | None) -> NDArray[np.int64] | None:
        if leave_out is None:
            return None
        if self.src is None:
            raise InvalidValue(field="leave_out", value=leave_out, expected="a memory that knows its rows' images")
        keep = np.flatnonzero(self.src != leave_out)
        if len(keep) == 0:
            raise InvalidValue(field="leave_out", value=leave_out, expected="an image that is not the only one")
        return None if len(keep) == len(self.src) else keep

    def _nearest(self, q: Array, k: int, keep: NDArray[np.int64] | None) -> NDArray[np.float32]:
        approx, rows = self._candidates(q, k + _SPARE, keep)
        exact = np.stack([_lengths(q - self.emb[column]) for column in rows.T], axis=1)
        exact.sort(axis=1)
        exact = exact[:, :k]
        if rows.shape[1] < (len(self.emb) if keep is None else len(keep)):
            slack = 2 * self.dim * float(np.finfo(np.float32).eps) * max(self._largest, float(square_norms(q).max()))
            doubtful = np.flatnonzero((exact[:, -1] > 0) & (exact[:, -1] ** 2 > approx[:, -1] - slack))
            for block in blocks(len(doubtful), 512):
                t = doubtful[block]
                exact[t] = self._rescan(q[t], exact[t], slack, keep)
        nearest: NDArray[np.float32] = exact.mean(axis=1)
        return nearest

    def _candidates(
        self, q: Array, m: int, keep: NDArray[np.int64] | None
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Squared distances as the library rounds them, and rows, of the `m` nearest (fewer if there are fewer)."""
        if keep is None:
            return self._search(q, m)
        near = np.empty((len(q), 0), np.float32)
        rows = np.empty((len(q), 0), np.int64)
        for block in blocks(len(keep), BLOCK):
            squares, found = _searcher(self.backend, self.emb[keep[block]])(q, m)
            near = np.concatenate([near, squares], axis=1)
            rows = np.concatenate([rows, keep[block][found]], axis=1)
            order = np.argsort(near, axis=1, kind="stable")[:, :m]
            near, rows = np.take_along_axis(near, order, axis=1), np.take_along_axis(rows, order, axis=1)
        return near, rows

    def _rescan(
        self, q: Array, known: NDArray[np.float32], slack: float, keep: NDArray[np.int64] | None
    ) -> NDArray[np.float32]:
        """The k least distances of each patch, given `known` (T, k) upper bounds and what rounding can do to a square."""
        best = np.full_like(known, np.inf)
        limit = known[:, -1:] ** 2 + slack
        for block in blocks(len(self.emb) if keep is None else len(keep), BLOCK):
            rows = self.emb[block] if keep is None else self.emb[keep[block]]
            squares = square_norms(q)[:, None] + square_norms(rows) - 2 * (q @ rows.T)
            t, r = np.nonzero(squares <= limit)
            lengths = [_lengths(q[t[pairs]] - rows[r[pairs]]) for pairs in blocks(len(t), BLOCK)]
            best = _least(best, t, np.concatenate([np.empty(0, np.float32), *lengths]))
        return best

    def index_bytes(self) -> bytes:
        """A FAISS flat index of the rows, serialised: what index.faiss holds. Its distances are squares.

        Raises:
            BackendUnavailable: FAISS is not installed.
        """
        _require("faiss")
        import faiss

        index = faiss.IndexFlatL2(self.dim)
        index.add(self.emb)
        return bytes(faiss.serialize_index(index))


def _lengths(x: Array) -> NDArray[np.float32]:
    lengths: NDArray[np.float32] = np.sqrt(square_norms(x))
    return lengths


def _least(best: NDArray[np.float32], t: NDArray[np.int64], lengths: NDArray[np.float32]) -> NDArray[np.float32]:
    """`best` (T, k), its rows ascending, after meeting `lengths` found for the rows `t` (ascending)."""
    k = best.shape[1]
    order = np.lexsort((lengths, t))
    rank = np.arange(len(t)) - np.searchsorted(t, t)
    few = rank < k
    found = np.full_like(best, np.inf)
    found[t[few], rank[few]] = lengths[order][few]
    return np.sort(np.concatenate([best, found], axis=1), axis=1)[:, :k]


def _require(backend: str) -> None:
    if find_spec(backend) is None:
        package = {"faiss": "faiss-cpu", "sklearn": "scikit-learn"}[backend]
        raise BackendUnavailable(option="KNN_BACKEND", value=backend, package=package)


def _resolve(backend: Backend) -> Literal["faiss", "sklearn"]:
    if backend == "auto":
        backend = "faiss" if find_spec("faiss") else "sklearn"
    _require(backend)
    return backend


def _searcher(backend: str, rows: Array) -> Search:
    """A function from (q, m) to the squared distances and positions of the `m` nearest of `rows`, nearest first."""
    if backend == "faiss":
        import faiss

        def search(q: Array, m: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
            squares, found = faiss.knn(q, rows, min(m, len(rows)))
            return squares, found

        return search
    from sklearn.neighbors import NearestNeighbors

    neighbours = NearestNeighbors(algorithm="brute").fit(rows)

    def search_brute(q: Array, m: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        lengths, found = neighbours.kneighbors(q, min(m, len(rows)))
        return np.square(lengths, dtype=np.float32), found

    return search_brute

"""Coresets by k-center greedy: the rows of an embedding that leave no other row far from all of them.

Exact, in float32 with float64 where it matters, as matrix products; and in passes for sets beyond the memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import InvalidValue

Array = NDArray[np.float32]
Progress = Callable[[int, int], None]

BLOCK = 4096  # rows a product covers: its result stays in cache, and working memory does not grow with N
_CENTRES = 512


def l2_normalize(x: Array, eps: float = 1e-12) -> Array:
    """Rows of `x` (N, D) divided by their Euclidean length; a row shorter than `eps` is divided by `eps`."""
    x = np.asarray(x, dtype=np.float32)
    norms = np.sqrt(np.einsum("nd,nd->n", x, x))
    unit: Array = x / np.maximum(norms, np.float32(eps))[:, None]
    return unit


def coreset_size(n_rows: int, rate: float, limit: int) -> int:
    """Rows to keep of `n_rows`: round(n_rows · rate), at least 1 and at most `limit` and `n_rows`."""
    if not 0 < rate <= 1:
        raise InvalidValue(field="CORESET_RATE", value=rate, expected="0 < rate <= 1")
    return min(max(1, round(n_rows * rate)), limit, n_rows)


@dataclass(frozen=True)
class Coreset:
    """What a farthest-first traversal chose.

    Attributes:
        indices: (n,) int64, rows in the order chosen.
        radius: covering radius, the largest distance of any row to its nearest centre (Euclidean).
        radius_before: the same with the centres given, before any row was added; infinite without.
    """

    indices: NDArray[np.int64]
    radius: float
    radius_before: float = np.inf


def kcenter_greedy(
    x: Array,
    n: int,
    *,
    first: int | None = None,
    centres: Array | None = None,
    rng: np.random.Generator | None = None,
    pool: int = 2048,
    progress: Progress | None = None,
) -> Coreset:
    """The `n` rows of `x` that farthest-first traversal chooses, index for index.

    Each step takes the row farthest from all centres so far, the lowest index among equals (Gonzalez 1985; as a coreset
    Sener & Savarese, ICLR 2018). Distances to the chosen set only shrink, so the steps among the `pool` farthest rows
    need no look at the others until the best inside falls to the best outside; all rows are then brought up to date
    with one matrix product.

    Args:
        x: (N, D) float32, finite.
        n: rows to add. Fewer come back when every row already equals a centre.
        first: the first row, in place of one drawn from `rng`; row 0 without either. Not used with `centres`.
        centres: (M, D) float32 rows chosen earlier (a memory that grows); selection continues from them.
        pool: rows the greedy works on between two updates of all.
        progress: called with (chosen so far, n).

    Raises:
        InvalidValue: `x` is empty or not finite, `n` < 1, `first` out of range, widths differ.
    """
    x = checked(x, "embeddings")
    if n < 1:
        raise InvalidValue(field="coreset", value=n, expected=">= 1")
    walk = _Traversal(x, n, pool, centres)
    before = walk.radius() if walk.n_old else np.inf
    if walk.n_old == 0:
        walk.start(_first_row(len(x), first, rng))
    while len(walk.rows) < walk.wanted and walk.advance():
        if progress is not None:
            progress(len(walk.rows), walk.wanted)
    return Coreset(np.array(walk.rows, dtype=np.int64), walk.radius(), before)


def _first_row(n_rows: int, first: int | None, rng: np.random.Generator | None) -> int:
    if first is None:
        return 0 if rng is None else int(rng.integers(n_rows))
    if not 0 <= first < n_rows:
        raise InvalidValue(field="first", value=first, expected=f"0 … {n_rows - 1}")
    return first


def checked(x: Array, field: str, dim: int | None = None) -> Array:
    x = np.ascontiguousarray(x, dtype=np.float32)
    if x.ndim != 2 or x.size == 0 or (dim is not None and x.shape[1] != dim):
        raise InvalidValue(field=field, value=f"shape {x.shape}", expected=f"(N, {dim or 'D'}), N >= 1")
    if not all(np.isfinite(x[rows]).all() for rows in blocks(len(x), BLOCK)):
        raise InvalidValue(field=field, value="NaN or infinity", expected="finite numbers")
    return x


def blocks(stop: int, size: int, start: int = 0) -> Iterator[slice]:
    return (slice(at, min(at + size, stop)) for at in range(start, stop, size))


def square_norms(x: NDArray[Any]) -> NDArray[Any]:
    squares: NDArray[Any] = np.einsum("nd,nd->n", x, x)
    return squares


class _Traversal:
    """Squared distances of all rows to the centres chosen so far, kept to within `tol` of the truth.

    They come from |x|² + |c|² − 2x·c, which loses digits to cancellation. Rows within `tol` of the farthest are
    therefore compared by their plain differences, and once the radius nears the rounding of float32 the whole state
    moves to float64.
    """

    def __init__(self, x: Array, n: int, pool: int, old: Array | None) -> None:
        self.x, self.pool = x, pool
        self.n_old = 0 if old is None else len(old)
        self.wanted = min(n, len(x))
        self.rows: list[int] = []
        self.centres = np.empty((self.n_old + self.wanted, x.shape[1]), np.float32)
        if old is not None and self.n_old:
            self.centres[: self.n_old] = checked(old, "centres", x.shape[1])
        self._restart(np.dtype(np.float32))

    def _restart(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        halves = [square_norms(self.x[rows].astype(dtype, copy=False)) / 2 for rows in blocks(len(self.x), BLOCK)]
        self.half = np.concatenate(halves)
        largest = max(float(self.half.max()), float(square_norms(self.centres[: self.n_old]).max(initial=0.0)) / 2)
        self.tol = 32 * float(np.finfo(dtype).eps) * largest
        self.gap = np.full(len(self.x), np.inf, dtype)
        self._cover(0)

    @property
    def n_centres(self) -> int:
        return self.n_old + len(self.rows)

    def add(self, row: int) -> None:
        self.centres[self.n_centres] = self.x[row]
        self.rows.append(row)

    def start(self, row: int) -> None:
        self.add(row)
        self._cover(0)

    def radius(self) -> float:
        return float(np.sqrt(self._farthest()[1]))

    def _cover(self, since: int) -> None:
        """Bring the squared distances of all rows up to date with the centres from number `since` on."""
        for block in blocks(self.n_centres, _CENTRES, since):
            c = self.centres[block].astype(self.dtype, copy=False)
            half_c = square_norms(c)[:, None] / 2
            for rows in blocks(len(self.x), BLOCK):
                nearness = c @ self.x[rows].astype(self.dtype, copy=False).T
                nearness -= half_c
                gap = np.maximum(2 * (self.half[rows] - nearness.max(axis=0)), 0)
                np.minimum(self.gap[rows], gap, out=self.gap[rows])
        self.gap[self.rows] = 0

    def _farthest(self) -> tuple[int, float]:
        """The row farthest from all centres, and its squared distance."""
        if self.dtype == np.float32 and float(self.gap.max()) < 256 * self.tol:
            self._restart(np.dtype(np.float64))
        return self._settle(self.gap, np.arange(len(self.gap)))

    def _settle(self, gap: NDArray[Any], rows: NDArray[np.int64]) -> tuple[int, float]:
        """Position and value of the largest of `gap` (squared distances of `rows`), exact where it is a close call."""
        top = int(gap.argmax())
        close = np.flatnonzero(gap >= gap[top] - 2 * self.tol)
        if len(close) > 1 or gap[top] < 256 * self.tol:
            for block in blocks(len(close), self.pool):
                gap[close[block]] = self._plain(self.x[rows[close[block]]])
            top = int(close[gap[close].argmax()])
        return top, float(gap[top])

    def _plain(self, x: Array) -> NDArray[np.float64]:
        """Squared distances of `x` (R, D) to their nearest centres, from differences in float64."""
        best = np.full(len(x), np.inf)
        y = x.astype(self.dtype, copy=False)
        for block in blocks(self.n_centres, BLOCK):
            c = self.centres[block].astype(self.dtype, copy=False)
            half_gaps = square_norms(c)[:, None] / 2 - c @ y.T
            near_c, near_x = np.nonzero(half_gaps <= half_gaps.min(axis=0) + self.tol)
            for pairs in blocks(len(near_c), BLOCK):
                delta = x[near_x[pairs]].astype(np.float64) - self.centres[block][near_c[pairs]]
                np.minimum.at(best, near_x[pairs], square_norms(delta))
        return best

    def advance(self) -> bool:
        """One round in the pool of the rows now farthest; False when no row is left that is not a centre."""
        best, gap = self._farthest()
        if gap == 0:
            return False
        before = self.n_centres
        self.gap[best] = np.inf  # in the pool, however many rows tie with it
        pool, outside = self._pool()
        self.gap[best] = gap
        self._greedy(pool, outside, int(np.searchsorted(pool, best)))
        self._cover(before)
        return True

    def _pool(self) -> tuple[NDArray[np.int64], float]:
        """The farthest rows, in order of index, and the largest squared distance among the others."""
        if len(self.gap) <= self.pool:
            return np.arange(len(self.gap)), -np.inf
        order = np.argpartition(self.gap, -self.pool - 1)
        return np.sort(order[-self.pool :]), float(self.gap[order[-self.pool - 1]])

    def _greedy(self, pool: NDArray[np.int64], outside: float, best: int) -> None:
        """Choose within `pool`, from position `best` on, while its farthest row is certainly farther than `outside`."""
        x, gap, half = self.x[pool].astype(self.dtype, copy=False), self.gap[pool], self.half[pool]
        while True:
            self.add(int(pool[best]))
            if len(self.rows) == self.wanted:
                return
            np.minimum(gap, np.maximum(2 * (half + half[best] - x @ x[best]), 0), out=gap)
            gap[best] = 0
            best, farthest = self._settle(gap, pool)
            if farthest == 0 or farthest - 2 * self.tol <= outside:
                return


@dataclass(frozen=True)
class ChunkedCoreset:
    """What a traversal in passes chose.

    Attributes:
        rows: (n, D) float32, the chosen rows.
        chunk, row: (n,) int64, the number of the chunk each came from and its row there.
        radius: upper bound of the covering radius; `covering_radius` over the same chunks gives it exactly.
        n_seen: rows that went by.
    """

    rows: Array
    chunk: NDArray[np.int64]
    row: NDArray[np.int64]
    radius: float
    n_seen: int


def kcenter_greedy_chunked(
    chunks: Iterable[Array],
    n: int,
    *,
    rate: float = 0.02,
    budget: int = 4096 << 20,
    buffer_rows: int = 65_536,
    centres: Array | None = None,
    rng: np.random.Generator | None = None,
    progress: Progress | None = None,
) -> ChunkedCoreset:
    """Farthest-first traversal in passes, for sets beyond the memory: over each bufferful, then over what these left.

    Every row is within some r₁ of one its own pass kept, and that within r₂ of a final one, so r₁ + r₂ bounds the
    covering radius (Guha et al., FOCS 2000; Malkomes et al., NeurIPS 2015). Rows that all fit in the buffer are
    chosen as `kcenter_greedy` would. A pass takes time in proportion to `rate · buffer_rows`.

    Args:
        chunks: (N_i, D) float32 arrays, one image's tokens each, say; iterated once, each may be dropped afterwards.
        n: rows to choose in the end.
        rate: part of each bufferful that is kept; n over the number of all rows at least, more for a better choice.
        budget: bytes for the buffer, the rows kept and the result; rows kept beyond it are reduced to `n` on the way.
        buffer_rows: rows gathered for one pass.
        centres: (M, D) rows chosen earlier; the last pass continues from them.
        rng: draws the first row; row 0 without it. Not used with `centres`.
        progress: called with (chunks seen, 0) while they go by, then with (chosen so far, n).

    Raises:
        InvalidValue: no chunk, rows that are not finite or of another width, n < 1, a budget too small for `n` rows.
    """
    if n < 1:
        raise InvalidValue(field="coreset", value=n, expected=">= 1")
    passes = _Passes(n, rate, buffer_rows, budget)
    for number, chunk in enumerate(chunks):
        passes.feed(chunk, number)
        if progress is not None:
            progress(number + 1, 0)
    return passes.finish(centres, rng, progress)


class _Bag:
    """Rows and where they came from, in a block of fixed capacity."""

    def __init__(self, capacity: int, dim: int) -> None:
        self.x = np.empty((capacity, dim), np.float32)
        self.origin = np.empty((capacity, 2), np.int64)
        self.n = 0

    @property
    def room(self) -> int:
        return len(self.x) - self.n

    def put(self, x: Array, origin: NDArray[np.int64]) -> None:
        self.x[self.n : self.n + len(x)] = x
        self.origin[self.n : self.n + len(x)] = origin
        self.n += len(x)

    def reduce(self, n: int) -> float:
        """Keep the `n` rows that the greedy chooses; their covering radius."""
        coreset = kcenter_greedy(self.x[: self.n], n)
        chosen, origin = self.x[coreset.indices], self.origin[coreset.indices]
        self.n = 0
        self.put(chosen, origin)
        return coreset.radius


class _Passes:
    """A traversal in passes: rows not yet looked at, rows kept from earlier passes, and how well these cover."""

    def __init__(self, n: int, rate: float, buffer_rows: int, budget: int) -> None:
        self.n, self.rate, self.buffer_rows, self.budget = n, rate, buffer_rows, budget
        self.radius = 0.0
        self.n_seen = 0
        self.fresh: _Bag | None = None
        self.kept: _Bag | None = None

    def _open(self, dim: int) -> _Bag:
        self.fresh = _Bag(self.buffer_rows, dim)
        return self.fresh

    def _shelf(self, dim: int) -> _Bag:
        rows = self.budget // (4 * dim) - self.buffer_rows - self.n
        if rows < 2 * self.n:
            raise InvalidValue(field="FIT_MEMORY_MB", value=self.budget >> 20, expected=f"room for {3 * self.n} rows")
        self.kept = _Bag(rows, dim)
        return self.kept

    def feed(self, chunk: Array, number: int) -> None:
        """Gather the rows of chunk `number`; a full buffer is reduced before more is put in."""
        fresh = self.fresh
        chunk = checked(chunk, f"chunk {number}", None if fresh is None else fresh.x.shape[1])
        fresh = fresh or self._open(chunk.shape[1])
        done = 0
        while done < len(chunk):
            if fresh.room == 0:
                self._reduce(fresh)
            rows = np.arange(done, min(done + fresh.room, len(chunk)))
            fresh.put(chunk[rows], np.stack([np.full_like(rows, number), rows], axis=1))
            done += len(rows)
        self.n_seen += len(chunk)

    def _reduce(self, fresh: _Bag) -> None:
        """Move a selection of the buffer to the rows kept."""
        kept = self.kept or self._shelf(fresh.x.shape[1])
        covered = fresh.reduce(max(1, round(self.rate * fresh.n)))
        if kept.room < fresh.n:
            self.radius += kept.reduce(self.n)
        kept.put(fresh.x[: fresh.n], fresh.origin[: fresh.n])
        fresh.n = 0
        self.radius = max(self.radius, covered)

    def finish(
        self, centres: Array | None, rng: np.random.Generator | None, progress: Progress | None
    ) -> ChunkedCoreset:
        """The last pass, over the rows kept, or over the buffer if it never filled."""
        if self.fresh is None:
            raise InvalidValue(field="embeddings", value="nothing", expected="at least one row")
        last = self.fresh
        if self.kept is not None:
            if last.n:
                self._reduce(last)
            last = self.kept
        coreset = kcenter_greedy(last.x[: last.n], self.n, centres=centres, rng=rng, progress=progress)
        chunk, row = last.origin[coreset.indices].T
        return ChunkedCoreset(last.x[coreset.indices], chunk, row, self.radius + coreset.radius, self.n_seen)

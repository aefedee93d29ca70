"""K-center greedy in passes, for embeddings that do not fit in memory."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.base.errors import InvalidValue
from backend.memory.coreset import Array, Progress, checked, coreset_size, kcenter_greedy


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


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The memory that embeddings may take, and the coreset that is made of them in passes where it does not do.

    Attributes:
        megabytes: of 2^20 bytes.
        rate, limit: see coreset_size.
        seed: draws the first row.
    """

    megabytes: float
    rate: float
    limit: int
    seed: int

    def holds(self, rows: int, dim: int) -> bool:
        """Whether (rows, dim) float32 embeddings fit."""
        return rows * dim * 4 <= self.megabytes * 2**20

    def choose(self, chunks: Iterator[Array], rows: int) -> ChunkedCoreset:
        """The coreset of about `rows` embeddings that come in chunks.

        A pass keeps twice as many as are left in the end.

        Raises:
            InvalidValue: see kcenter_greedy_chunked.
        """
        n = coreset_size(rows, self.rate, self.limit)
        rng = np.random.default_rng(self.seed)
        budget = int(self.megabytes * 2**20)
        return kcenter_greedy_chunked(chunks, n, rate=min(1.0, 2 * n / rows), budget=budget, rng=rng)


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
        buffer_rows: rows gathered for one pass, if that is no more than half of the budget.
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
        affordable = self.budget // (4 * dim)
        self.fresh = _Bag(min(self.buffer_rows, max(1, affordable // 2)), dim)
        return self.fresh

    def _shelf(self, fresh: _Bag) -> _Bag:
        row = 4 * fresh.x.shape[1]
        rows = self.budget // row - len(fresh.x) - self.n
        if rows < 2 * self.n:
            needed = -(-6 * self.n * row >> 20)
            raise InvalidValue(field="FIT_MEMORY_MB", value=self.budget >> 20, expected=f">= {needed}")
        self.kept = _Bag(rows, fresh.x.shape[1])
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
        kept = self.kept or self._shelf(fresh)
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

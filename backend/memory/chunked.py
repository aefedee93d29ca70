"""K-center greedy in passes, for embeddings that do not fit in memory."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.base.arrays import Float, checked_rows
from backend.memory.coreset import Progress, coreset_size, kcenter_greedy


class BudgetTooSmall(ValueError):
    """The memory allowed for a coreset in passes does not hold what they need. `needed`: bytes that would do."""

    def __init__(self, budget: int, needed: int) -> None:
        self.needed = needed
        super().__init__(f"a coreset in passes has {budget} bytes and needs {needed}")


@dataclass(frozen=True)
class ChunkedCoreset:
    """The rows that a traversal in passes chose.

    Attributes:
        rows: (n, D) float32, the chosen rows.
        chunk, row: (n,) int64, the number of the chunk that each came from, and its row there.
        radius: an upper bound of the covering radius; `patchcore.covering_radius` of the same chunks gives it exactly.
        n_seen: rows of all chunks.
    """

    rows: Float
    chunk: NDArray[np.int64]
    row: NDArray[np.int64]
    radius: float
    n_seen: int


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The memory that a fit may take for its embeddings, and the coreset that it makes of them.

    Attributes:
        megabytes: of 2^20 bytes, for all embeddings at once, or for what a coreset in passes holds.
        rate, limit: rows of the coreset, see `coreset_size`.
        seed: draws its first row.
        centres: (M, D) rows that a memory has already, which the coreset goes on from.
    """

    megabytes: float
    rate: float
    limit: int
    seed: int
    centres: Float | None = None

    def holds(self, n_rows: int, width: int) -> bool:
        """Whether (n_rows, width) float32 embeddings fit."""
        return n_rows * width * 4 <= self.megabytes * 2**20

    def choose(self, chunks: Iterable[Float], n_rows: int) -> ChunkedCoreset:
        """The coreset, in passes, of about `n_rows` embeddings that come in chunks (N_i, D).

        Each pass keeps twice as many rows as are wanted of it in the end, which covers nearly as well as one pass over
        all of them would.

        Raises:
            BudgetTooSmall: the memory does not hold the coreset and the rows that passes keep.
            ValueError: as `kcenter_greedy_chunked`.
        """
        n = coreset_size(n_rows, self.rate, self.limit)
        rng = np.random.default_rng(self.seed)
        budget = int(self.megabytes * 2**20)
        return kcenter_greedy_chunked(
            chunks, n, rate=min(1.0, 2 * n / n_rows), budget=budget, centres=self.centres, rng=rng
        )


def kcenter_greedy_chunked(
    chunks: Iterable[Float],
    n: int,
    *,
    rate: float = 0.02,
    budget: int = 4096 << 20,
    buffer_rows: int = 65_536,
    centres: Float | None = None,
    rng: np.random.Generator | None = None,
    progress: Progress | None = None,
) -> ChunkedCoreset:
    """Choose `n` rows by farthest-first traversals: one over each bufferful, and a last one over what these kept.

    Every row is within some r₁ of a row that its own pass kept, and that one within r₂ of a final one, so r₁ + r₂
    bounds the covering radius (Guha et al., FOCS 2000; Malkomes et al., NeurIPS 2015). Rows that all fit in the buffer
    are chosen as `kcenter_greedy` would choose them. The time of a pass grows with `rate · buffer_rows`.

    Args:
        chunks: (N_i, D) float32 arrays, for example the tokens of one image each. They are iterated once, and each
            may be dropped once the next is asked for.
        n: rows to choose.
        rate: share of each bufferful that is kept: at least n over the number of all rows, and more for a better
            choice.
        budget: bytes for the buffer, the rows kept and the result. Rows kept beyond it are reduced to `n` on the way.
        buffer_rows: rows of one pass; fewer where they would take more than half of the budget.
        centres: (M, D) rows chosen earlier, which the last pass starts from.
        rng: draws the first row; without it that is row 0. Unused with `centres`.
        progress: called with (chunks seen, 0) as they go by, then with (rows chosen so far, n).

    Raises:
        BudgetTooSmall: `budget` does not hold the buffer and three times `n` rows.
        ValueError: there is no chunk, rows are not finite or of different widths, or n < 1.
    """
    if n < 1:
        raise ValueError(f"a coreset of {n} rows is asked for: it has at least one")
    passes = _Passes(n, rate, buffer_rows, budget)
    for number, chunk in enumerate(chunks):
        passes.feed(chunk, number)
        if progress is not None:
            progress(number + 1, 0)
    return passes.finish(centres, rng, progress)


class _Bag:
    """Rows and where they came from, up to a fixed number of them."""

    def __init__(self, capacity: int, width: int) -> None:
        self.x = np.empty((capacity, width), np.float32)
        self.origin = np.empty((capacity, 2), np.int64)  # chunk and row
        self.n = 0

    @property
    def room(self) -> int:
        return len(self.x) - self.n

    def put(self, x: Float, origin: NDArray[np.int64]) -> None:
        self.x[self.n : self.n + len(x)] = x
        self.origin[self.n : self.n + len(x)] = origin
        self.n += len(x)

    def reduce(self, n: int) -> float:
        """Keep the `n` rows that the greedy chooses, and say how far the farthest of the others is from them."""
        coreset = kcenter_greedy(self.x[: self.n], n)
        chosen, origin = self.x[coreset.indices], self.origin[coreset.indices]
        self.n = 0
        self.put(chosen, origin)
        return coreset.radius


class _Passes:
    """The state of a traversal in passes: rows gathered for the next pass, and rows that earlier passes kept.

    `radius` bounds how far any row of an earlier pass is from the nearest one kept.
    """

    def __init__(self, n: int, rate: float, buffer_rows: int, budget: int) -> None:
        self.n, self.rate, self.buffer_rows, self.budget = n, rate, buffer_rows, budget
        self.radius = 0.0
        self.n_seen = 0
        self.fresh: _Bag | None = None
        self.kept: _Bag | None = None

    def feed(self, chunk: Float, number: int) -> None:
        """Gather the rows of chunk `number`; whenever the buffer is full, a pass reduces it first."""
        fresh = self.fresh
        chunk = checked_rows(chunk, f"the embeddings of chunk {number}", None if fresh is None else fresh.x.shape[1])
        fresh = fresh or self._buffer(chunk.shape[1])
        done = 0
        while done < len(chunk):
            if fresh.room == 0:
                self._reduce(fresh)
            rows = np.arange(done, min(done + fresh.room, len(chunk)))
            fresh.put(chunk[rows], np.stack([np.full_like(rows, number), rows], axis=1))
            done += len(rows)
        self.n_seen += len(chunk)

    def finish(
        self, centres: Float | None, rng: np.random.Generator | None, progress: Progress | None
    ) -> ChunkedCoreset:
        """The last pass, over the rows kept, or over the buffer if it was never full."""
        if self.fresh is None:
            raise ValueError("there are no embeddings to choose from")
        last = self.fresh
        if self.kept is not None:
            if last.n:
                self._reduce(last)
            last = self.kept
        coreset = kcenter_greedy(last.x[: last.n], self.n, centres=centres, rng=rng, progress=progress)
        chunk, row = last.origin[coreset.indices].T
        return ChunkedCoreset(last.x[coreset.indices], chunk, row, self.radius + coreset.radius, self.n_seen)

    def _reduce(self, fresh: _Bag) -> None:
        """Move the rows that a pass over the buffer chooses to the rows kept."""
        kept = self.kept or self._shelf(fresh)
        covered = fresh.reduce(max(1, round(self.rate * fresh.n)))
        if kept.room < fresh.n:
            self.radius += kept.reduce(self.n)
        kept.put(fresh.x[: fresh.n], fresh.origin[: fresh.n])
        fresh.n = 0
        self.radius = max(self.radius, covered)

    def _buffer(self, width: int) -> _Bag:
        affordable = self.budget // (4 * width)
        self.fresh = _Bag(min(self.buffer_rows, max(1, affordable // 2)), width)
        return self.fresh

    def _shelf(self, fresh: _Bag) -> _Bag:
        width = fresh.x.shape[1]
        rows = self.budget // (4 * width) - len(fresh.x) - self.n
        if rows < 2 * self.n:
            raise BudgetTooSmall(self.budget, 6 * self.n * 4 * width)
        self.kept = _Bag(rows, width)
        return self.kept

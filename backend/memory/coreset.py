"""Coresets by k-center greedy: few rows of an embedding such that no row is far from all of them.

The selection is exact. Distances come from matrix products in float32, and wherever rounding could decide between two
rows they are computed again from plain differences in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from threading import RLock
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from backend.base.arrays import Float, available_cores, blocks, checked_rows, shaped_rows, square_norms
from backend.memory.products import DeviceRows, device_rows

Progress = Callable[[int, int], None]
Each = Callable[[Callable[[slice], None], Iterable[slice]], Iterable[None]]

BLOCK = 1024  # rows of a product: its result stays in the cache, and working memory does not grow with N
_CENTRES = 512  # centres of a product
_AHEAD = 32  # farthest rows whose distances to the pool are computed together, although not all will be chosen
_NEAR = 0.05  # a refresh takes all rows whose squared distance seems within this share of the largest
_DEVICE_FROM = 16_384  # rows; copying fewer to a GPU takes longer than it saves
_DEVICE_BLOCK = 1 << 16  # rows of a product on the GPU
_BLAS = RLock()  # BLAS has one number of threads for the whole process, so one traversal at a time changes it


def coreset_size(n_rows: int, rate: float, limit: int) -> int:
    """Rows to keep of `n_rows`: round(n_rows · rate), at least 1 and at most `limit` and `n_rows`.

    Raises:
        ValueError: `rate` is not above 0 and at most 1.
    """
    if not 0 < rate <= 1:
        raise ValueError(f"the coreset rate is {rate}: it must be above 0 and at most 1")
    return min(max(1, round(n_rows * rate)), limit, n_rows)


@dataclass(frozen=True)
class Coreset:
    """The rows that a farthest-first traversal chose. Chosen and given rows are called centres.

    Attributes:
        indices: (n,) int64, numbers of the chosen rows, in the order of the choice.
        radius: the covering radius: the largest Euclidean distance of any row to its nearest centre.
        radius_before: the same before the first choice, with the given centres alone; infinite without any.
        left: (l,) int64, numbers of the rows not chosen that are farthest from all centres, the farthest first.
        beyond: no row that is neither chosen nor in `left` is farther than this from its nearest centre.
    """

    indices: NDArray[np.int64]
    radius: float
    radius_before: float
    left: NDArray[np.int64]
    beyond: float


def kcenter_greedy(
    x: Float,
    n: int,
    *,
    first: int | None = None,
    centres: Float | None = None,
    rng: np.random.Generator | None = None,
    pool: int | None = None,
    left: int = 0,
    progress: Progress | None = None,
) -> Coreset:
    """Choose `n` rows of `x` by farthest-first traversal, the very rows that the textbook's loop chooses.

    Each step takes the row farthest from all centres so far, and of several the one with the lowest number (Gonzalez
    1985; as a coreset Sener & Savarese, ICLR 2018). Distances to the nearest centre only shrink, which saves two kinds
    of work. The next steps are taken among the `pool` farthest rows, and the other rows are not looked at before the
    farthest inside is as near as the farthest outside. And the distance of a row that was not compared with the newest
    centres is an upper bound, so a row whose bound is below the farthest is not compared (lazy evaluation: Minoux
    1978).

    Args:
        x: (N, D) float32, finite.
        n: rows to choose; 0 only with `centres`. Fewer are chosen where every other row equals a centre.
        first: the number of the first row, in place of one drawn from `rng`; 0 without either. Unused with `centres`.
        centres: (M, D) float32, centres to start from, as the rows of a memory that grows.
        rng: draws the first row.
        pool: rows of the pool; None: 512 to 2,048, the more the larger N is.
        left: how many of the rows not chosen `Coreset.left` names at most.
        progress: called with (rows chosen so far, n); an exception that it raises ends the selection.

    Raises:
        ValueError: `x` is empty or not finite, `n` is too small, there is no row `first`, or widths differ.
    """
    x = shaped_rows(x, "embeddings")
    if n < (1 if centres is None else 0):
        raise ValueError(f"a coreset of {n} rows is asked for: it has at least one")
    with _own_threads() as each:
        walk = _Traversal(x, n, pool or min(max(len(x) // 256, 512), 2048), centres, each)
        before = walk.radius() if walk.n_centres else np.inf
        if walk.n_centres == 0:
            walk.add(_first_row(len(x), first, rng))
        while len(walk.rows) < walk.wanted and walk.advance():
            if progress is not None:
                progress(len(walk.rows), walk.wanted)
        return Coreset(np.array(walk.rows, dtype=np.int64), walk.radius(), before, *walk.left(left))


def coreset_of(
    x: Float,
    n: int,
    *,
    centres: Float | None = None,
    left: int = 0,
    rng: np.random.Generator | None = None,
    progress: Progress | None = None,
) -> Coreset:
    """The rows of `x` that a memory keeps: `n` by `kcenter_greedy`, or all in their order where `n` asks for all."""
    if n < len(x):
        return kcenter_greedy(x, n, centres=centres, left=left, rng=rng, progress=progress)
    before = np.inf if centres is None or n == 0 else kcenter_greedy(x, 0, centres=centres).radius
    return Coreset(np.arange(len(x), dtype=np.int64), 0.0, before, np.empty(0, np.int64), 0.0)


@contextmanager
def _own_threads() -> Iterator[Each]:
    """A `map` that works on as many threads as there are cores, while BLAS keeps to one each.

    BLAS by itself divides every product among its threads and waits for the slowest, which on a busy machine takes most
    of the time. Here each thread has blocks of rows of its own and waits for none.
    """
    with _BLAS:
        blas = ThreadpoolController().select(user_api="blas")
        threads = available_cores()
        with blas.limit(limits=1), ThreadPoolExecutor(threads) as pool:
            yield pool.map if threads > 1 else map


def _first_row(n_rows: int, first: int | None, rng: np.random.Generator | None) -> int:
    if first is None:
        return 0 if rng is None else int(rng.integers(n_rows))
    if not 0 <= first < n_rows:
        raise ValueError(f"the first row is number {first}, and rows are numbered from 0 to {n_rows - 1}")
    return first


class _Traversal:
    """The state of a traversal: `gap`, the squared distance of each row to the nearest of the first `seen` centres.

    Gaps come from |x|² + |c|² − 2x·c, which cancellation leaves within `tol` of the truth. So rows within `tol` of the
    farthest are compared by plain differences, and once the radius comes near the rounding of float32 everything is
    computed again in float64.
    """

    def __init__(self, x: Float, n: int, pool: int, old: Float | None, each: Each) -> None:
        self.x, self.pool, self.each = x, pool, each
        n_old = 0 if old is None else len(old)
        self.wanted = min(n, len(x))
        self.rows: list[int] = []
        self.n_centres = n_old
        self.centres = np.empty((n_old + self.wanted, x.shape[1]), np.float32)
        if old is not None and n_old:
            self.centres[:n_old] = checked_rows(old, "centres", x.shape[1])
        self._restart(np.dtype(np.float32))
        if not np.isfinite(self.half).all():
            checked_rows(x, "embeddings")  # finite numbers may pass, whose squares overflow

    def _restart(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        wanted = dtype == np.float32 and len(self.x) >= _DEVICE_FROM
        self.on_device: DeviceRows | None = device_rows(self.x) if wanted else None
        self.half = self._halves(self.x)
        self.half_c = np.empty(len(self.centres), dtype)
        self.half_c[: self.n_centres] = self._halves(self.centres[: self.n_centres])
        largest = max(float(self.half.max()), float(self.half_c[: self.n_centres].max(initial=0.0)))
        self.tol = 32 * float(np.finfo(dtype).eps) * largest
        self.gap = np.full(len(self.x), np.inf, dtype)
        self.gap[self.rows] = 0
        self.seen = np.zeros(len(self.x), np.int64)

    def _halves(self, x: Float) -> NDArray[Any]:
        halves = np.empty(len(x), self.dtype)

        def halve(rows: slice) -> None:
            halves[rows] = square_norms(x[rows].astype(self.dtype, copy=False)) / 2

        for _ in self.each(halve, blocks(len(x), BLOCK)):
            pass
        return halves

    def add(self, row: int) -> None:
        """Make `row` a centre."""
        self.centres[self.n_centres] = self.x[row]
        self.half_c[self.n_centres] = self.half[row]
        self.n_centres += 1
        self.rows.append(row)

    def radius(self) -> float:
        """The largest distance of any row to its nearest centre."""
        return float(np.sqrt(self._plain(self.x[[self._farthest()[0]]])[0]))

    def left(self, n: int) -> tuple[NDArray[np.int64], float]:
        """The `n` rows farthest from all centres, the farthest first, and a bound of how far the others are.

        Rows that equal a centre are not among them.
        """
        n = min(n, len(self.x) - len(self.rows))
        if n == 0:
            return np.empty(0, np.int64), 0.0 if len(self.rows) == len(self.x) else self.radius()
        rows, others = self._top(n)
        while (self.seen[rows] < self.n_centres).any():
            self._refresh(rows)
            rows, others = self._top(n)
        order = rows[np.argsort(-self.gap[rows], kind="stable")]
        return order[self.gap[order] > self.tol], float(np.sqrt(max(others, self.tol) + self.tol))

    def advance(self) -> bool:
        """Choose rows of one pool. False when every row equals a centre."""
        best, gap = self._farthest()
        if gap == 0:
            return False
        self.gap[best] = np.inf  # so that it is in the pool, however many rows are as far
        pool, outside = self._top(self.pool)
        pool.sort()
        self.gap[best] = gap
        self._refresh(pool)
        self._greedy(pool, outside, int(np.searchsorted(pool, best)))
        return True

    def _farthest(self) -> tuple[int, float]:
        """The number of the row farthest from all centres, the lowest of equals, and its squared distance."""
        self._surface()
        if self.dtype == np.float32 and float(self.gap.max()) < 256 * self.tol:
            self._restart(np.dtype(np.float64))
            self._surface()
        return self._settle(self.gap, np.arange(len(self.gap)))

    def _surface(self) -> None:
        """Bring gaps up to date, the largest first, until all that could be the largest are."""
        while True:
            farthest = self.gap.max()
            level = farthest - 2 * self.tol
            if not (self.seen[self.gap >= level] < self.n_centres).any():
                return
            near = np.flatnonzero(self.gap >= min(level, (1 - _NEAR) * farthest))
            self._refresh(near if len(near) >= self.pool else self._top(self.pool)[0])

    def _top(self, k: int) -> tuple[NDArray[np.int64], float]:
        """The numbers of the `k` rows with the largest gaps, and the largest gap among the others."""
        if len(self.gap) <= k:
            return np.arange(len(self.gap)), -np.inf
        order = np.argpartition(self.gap, -k - 1)
        return order[-k:], float(self.gap[order[-k - 1]])

    def _refresh(self, rows: NDArray[np.int64]) -> None:
        """Compare `rows` with the centres that they were not compared with yet."""
        rows = rows[self.seen[rows] < self.n_centres]
        rows = rows[np.argsort(self.seen[rows], kind="stable")]

        def refresh(block: slice) -> None:
            some = rows[block]
            nearness = self._nearness(some)
            gap = self.gap[some]
            for new in blocks(self.n_centres, _CENTRES, int(self.seen[some[0]])):
                np.minimum(gap, np.maximum(2 * (self.half[some] - nearness(new)), 0), out=gap)
            self.gap[some] = gap
            self.seen[some] = self.n_centres

        each, size = (self.each, BLOCK) if self.on_device is None else (map, _DEVICE_BLOCK)
        for _ in each(refresh, blocks(len(rows), size)):
            pass

    def _nearness(self, some: NDArray[np.int64]) -> Callable[[slice], NDArray[Any]]:
        """A function of a slice of the centres c: the largest c·x − |c|²/2 of each row x of `some`."""
        on_device = self.on_device
        if on_device is not None:
            return lambda new: on_device.nearness(some, self.centres[new], self.half_c[new])
        x = self.x[some].astype(self.dtype, copy=False)

        def nearness(new: slice) -> NDArray[Any]:
            products = x @ self.centres[new].astype(self.dtype, copy=False).T
            products -= self.half_c[new]
            nearest: NDArray[Any] = products.max(axis=1)
            return nearest

        return nearness

    def _greedy(self, pool: NDArray[np.int64], outside: float, best: int) -> None:
        """Choose rows of `pool`, first the one at position `best`, while the farthest is certainly beyond `outside`."""
        x, half, gap = self.x[pool].astype(self.dtype, copy=False), self.half[pool], self.gap[pool]
        ahead: dict[int, NDArray[Any]] = {}
        while True:
            self.add(int(pool[best]))
            if best not in ahead:
                likely = np.append(np.argpartition(gap, -min(_AHEAD, len(gap)))[-_AHEAD:], best)
                products = half + half[likely][:, None] - (x @ x[likely].T).T
                ahead = dict(zip(likely.tolist(), np.maximum(2 * products, 0), strict=True))
            np.minimum(gap, ahead[best], out=gap)
            gap[best] = 0
            if len(self.rows) == self.wanted:
                break
            best, farthest = self._settle(gap, pool)
            if farthest == 0 or farthest - 2 * self.tol <= outside:
                break
        self.gap[pool] = gap
        self.seen[pool] = self.n_centres

    def _settle(self, gap: NDArray[Any], rows: NDArray[np.int64]) -> tuple[int, float]:
        """Position and value of the largest of `gap`, the gaps of `rows`; in a close call from plain differences."""
        top = int(gap.argmax())
        close = np.flatnonzero(gap >= gap[top] - 2 * self.tol)
        if len(close) > 1 or gap[top] < 256 * self.tol:
            for block in blocks(len(close), self.pool):
                gap[close[block]] = self._plain(self.x[rows[close[block]]])
            top = int(close[gap[close].argmax()])
        return top, float(gap[top])

    def _plain(self, x: Float) -> NDArray[np.float64]:
        """Squared distances of `x` (R, D) to their nearest centres, from differences in float64."""
        best = np.full(len(x), np.inf)
        y = x.astype(self.dtype, copy=False)
        for block in blocks(self.n_centres, BLOCK):
            c = self.centres[block]
            half_gaps = self.half_c[block, None] - c.astype(self.dtype, copy=False) @ y.T
            near_c, near_x = np.nonzero(half_gaps <= half_gaps.min(axis=0) + self.tol)
            for pairs in blocks(len(near_c), BLOCK):
                delta = x[near_x[pairs]].astype(np.float64) - c[near_c[pairs]]
                np.minimum.at(best, near_x[pairs], square_norms(delta))
        return best

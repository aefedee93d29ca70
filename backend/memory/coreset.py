"""Coresets by k-center greedy: the rows of an embedding that leave no other row far from all of them.

Exact, in float32 with float64 where it matters, and a matrix product rather than a loop over distances.
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

from backend.base.arrays import available_cores, blocks, square_norms
from backend.base.errors import InvalidValue
from backend.memory.accelerator import DeviceRows, lend

Array = NDArray[np.float32]
Progress = Callable[[int, int], None]
Each = Callable[[Callable[[slice], None], Iterable[slice]], Iterable[None]]

BLOCK = 1024  # rows a product covers: its result stays in cache, and working memory does not grow with N
_CENTRES = 512  # centres a product covers
_AHEAD = 32  # of the farthest rows, how many meet the pool in one product although not all will be chosen
_NEAR = 0.05  # a refresh brings all rows up to date whose squared distance seems within this share of the largest
_LEND_FROM = 16_384  # rows that are worth the way to a GPU
_LENT_BLOCK = 1 << 16  # rows a product covers there
_BLAS = RLock()  # the number of its threads belongs to the whole process: one traversal at a time changes it


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
        left: (l,) int64, the rows not chosen that lie farthest from all centres, the farthest first.
        beyond: no row that is neither chosen nor in `left` is farther than this from its nearest centre.
    """

    indices: NDArray[np.int64]
    radius: float
    radius_before: float
    left: NDArray[np.int64]
    beyond: float


def kcenter_greedy(
    x: Array,
    n: int,
    *,
    first: int | None = None,
    centres: Array | None = None,
    rng: np.random.Generator | None = None,
    pool: int | None = None,
    left: int = 0,
    progress: Progress | None = None,
) -> Coreset:
    """The `n` rows of `x` that farthest-first traversal chooses, index for index.

    Each step takes the row farthest from all centres so far, the lowest index among equals (Gonzalez 1985; as a
    coreset Sener & Savarese, ICLR 2018). Distances to the chosen set only shrink. So the steps among the `pool`
    farthest rows need no look at the others until the best inside falls to the best outside, and a distance that is
    out of date still bounds the true one: rows that have fallen below the farthest never meet another centre
    (lazy evaluation: Minoux 1978).

    Args:
        x: (N, D) float32, finite.
        n: rows to add; 0 with `centres` alone. Fewer come back when every row already equals a centre.
        first: the first row, in place of one drawn from `rng`; row 0 without either. Not used with `centres`.
        centres: (M, D) float32 rows chosen earlier (a memory that grows); selection continues from them.
        rng: draws the first row.
        pool: rows the greedy works on between two looks at the others; 512 to 2,048 with N where it is not given.
        left: rows to name of those not chosen, at most.
        progress: called with (chosen so far, n); what it raises ends the selection.

    Raises:
        InvalidValue: `x` is empty or not finite, `n` < 1 without `centres`, `first` out of range, widths differ.
    """
    x = _shaped(x, "embeddings", None)
    if n < (1 if centres is None else 0):
        raise InvalidValue(field="coreset", value=n, expected=">= 1")
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
    x: Array,
    n: int,
    *,
    centres: Array | None = None,
    left: int = 0,
    rng: np.random.Generator | None = None,
    progress: Progress | None = None,
) -> Coreset:
    """What a memory keeps of `x`: `n` rows by `kcenter_greedy`, or all as they come, where it is to keep them all."""
    if n < len(x):
        return kcenter_greedy(x, n, centres=centres, left=left, rng=rng, progress=progress)
    before = np.inf if centres is None or n == 0 else kcenter_greedy(x, 0, centres=centres).radius
    return Coreset(np.arange(len(x), dtype=np.int64), 0.0, before, np.empty(0, np.int64), 0.0)


@contextmanager
def _own_threads() -> Iterator[Each]:
    """A `map` over as many threads as there are cores, while BLAS has one.

    BLAS shares out each product and waits for all its threads to finish; with other work on the machine most of the
    time is that wait. Blocks of rows wait for nobody.
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
        raise InvalidValue(field="first", value=first, expected=f"0 … {n_rows - 1}")
    return first


def checked(x: Array, field: str, dim: int | None = None) -> Array:
    """`x` as contiguous float32 (N, D), N ≥ 1, finite, of width `dim` if given; otherwise InvalidValue on `field`."""
    x = _shaped(x, field, dim)
    if not all(np.isfinite(x[rows]).all() for rows in blocks(len(x), BLOCK)):
        raise InvalidValue(field=field, value="NaN or infinity", expected="finite numbers")
    return x


def _shaped(x: Array, field: str, dim: int | None) -> Array:
    x = np.ascontiguousarray(x, dtype=np.float32)
    if x.ndim != 2 or x.size == 0 or (dim is not None and x.shape[1] != dim):
        raise InvalidValue(field=field, value=f"shape {x.shape}", expected=f"(N, {dim or 'D'}), N >= 1")
    return x


class _Traversal:
    """Squared distances of all rows to the centres, each up to date with the first `seen` of them.

    They come from |x|² + |c|² − 2x·c, within `tol` of the truth for the cancellation in it. Rows within `tol` of the
    farthest are therefore compared by their plain differences, and once the radius nears the rounding of float32 the
    whole state moves to float64.
    """

    def __init__(self, x: Array, n: int, pool: int, old: Array | None, each: Each) -> None:
        self.x, self.pool, self.each = x, pool, each
        n_old = 0 if old is None else len(old)
        self.wanted = min(n, len(x))
        self.rows: list[int] = []
        self.n_centres = n_old
        self.centres = np.empty((n_old + self.wanted, x.shape[1]), np.float32)
        if old is not None and n_old:
            self.centres[:n_old] = checked(old, "centres", x.shape[1])
        self._restart(np.dtype(np.float32))
        if not np.isfinite(self.half).all():
            checked(x, "embeddings")  # squares may also overflow

    def _restart(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.lent: DeviceRows | None = lend(self.x) if dtype == np.float32 and len(self.x) >= _LEND_FROM else None
        self.half = self._halves(self.x)
        self.half_c = np.empty(len(self.centres), dtype)
        self.half_c[: self.n_centres] = self._halves(self.centres[: self.n_centres])
        largest = max(float(self.half.max()), float(self.half_c[: self.n_centres].max(initial=0.0)))
        self.tol = 32 * float(np.finfo(dtype).eps) * largest
        self.gap = np.full(len(self.x), np.inf, dtype)
        self.gap[self.rows] = 0
        self.seen = np.zeros(len(self.x), np.int64)

    def _halves(self, x: Array) -> NDArray[Any]:
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
        """The `n` rows farthest from all centres, the farthest first, and how far the others may be from theirs.

        Fewer where the others equal a centre.
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
        """One round in the pool of the farthest rows; False when no row is left that is not a centre."""
        best, gap = self._farthest()
        if gap == 0:
            return False
        self.gap[best] = np.inf  # in the pool, however many rows tie with it
        pool, outside = self._top(self.pool)
        pool.sort()
        self.gap[best] = gap
        self._refresh(pool)
        self._greedy(pool, outside, int(np.searchsorted(pool, best)))
        return True

    def _farthest(self) -> tuple[int, float]:
        """The row farthest from all centres, the lowest of equals, and its squared distance."""
        self._surface()
        if self.dtype == np.float32 and float(self.gap.max()) < 256 * self.tol:
            self._restart(np.dtype(np.float64))
            self._surface()
        return self._settle(self.gap, np.arange(len(self.gap)))

    def _surface(self) -> None:
        """Bring rows up to date, the seemingly farthest first, until all that could be the farthest are."""
        while True:
            farthest = self.gap.max()
            level = farthest - 2 * self.tol
            if not (self.seen[self.gap >= level] < self.n_centres).any():
                return
            near = np.flatnonzero(self.gap >= min(level, (1 - _NEAR) * farthest))
            self._refresh(near if len(near) >= self.pool else self._top(self.pool)[0])

    def _top(self, k: int) -> tuple[NDArray[np.int64], float]:
        """The `k` rows with the largest gaps, and the largest gap among the others."""
        if len(self.gap) <= k:
            return np.arange(len(self.gap)), -np.inf
        order = np.argpartition(self.gap, -k - 1)
        return order[-k:], float(self.gap[order[-k - 1]])

    def _refresh(self, rows: NDArray[np.int64]) -> None:
        """Let `rows` meet the centres they have not seen."""
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

        each, size = (self.each, BLOCK) if self.lent is None else (map, _LENT_BLOCK)
        for _ in each(refresh, blocks(len(rows), size)):
            pass

    def _nearness(self, some: NDArray[np.int64]) -> Callable[[slice], NDArray[Any]]:
        """What gives the largest c·x − |c|²/2 of each row of `some` over a slice of the centres."""
        lent = self.lent
        if lent is not None:
            return lambda new: lent.nearness(some, self.centres[new], self.half_c[new])
        x = self.x[some].astype(self.dtype, copy=False)

        def nearness(new: slice) -> NDArray[Any]:
            products = x @ self.centres[new].astype(self.dtype, copy=False).T
            products -= self.half_c[new]
            nearest: NDArray[Any] = products.max(axis=1)
            return nearest

        return nearness

    def _greedy(self, pool: NDArray[np.int64], outside: float, best: int) -> None:
        """Choose in `pool`, from position `best` on, while its farthest is certainly beyond `outside`."""
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
        """Position and value of the largest of `gap`, the squared distances of `rows`; exact in a close call."""
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
            c = self.centres[block]
            half_gaps = self.half_c[block, None] - c.astype(self.dtype, copy=False) @ y.T
            near_c, near_x = np.nonzero(half_gaps <= half_gaps.min(axis=0) + self.tol)
            for pairs in blocks(len(near_c), BLOCK):
                delta = x[near_x[pairs]].astype(np.float64) - c[near_c[pairs]]
                np.minimum.at(best, near_x[pairs], square_norms(delta))
        return best

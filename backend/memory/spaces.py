"""Where neighbours are searched: a memory's rows as they are, or shortened, with bounds that rounding cannot break."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from backend.base.arrays import blocks, square_norms
from backend.memory.coreset import Array

ROWS = 4096  # rows dealt with at a time: working memory does not grow with their number
_EPS = float(np.finfo(np.float32).eps)


class SearchSpace:
    """Rows to search, and how a patch becomes comparable with them."""

    def __init__(self, rows: Array, view: Callable[[Array], Array]) -> None:
        self.rows, self.view = rows, view
        self.longest: float = max(float(square_norms(rows[block]).max()) for block in blocks(len(rows), ROWS))

    def slack(self, q: Array) -> float:
        """The most that rounding adds to a squared distance: γ(D) · (|q| + |m|)², Higham 2002, section 3.1."""
        return 2 * _EPS * int(q.shape[1]) * max(self.longest, float(square_norms(q).max()))


def as_it_is(x: Array) -> Array:
    """The view of a space that shortens nothing."""
    return x


class Shortener:
    """Maps vectors to fewer numbers whose Euclidean distances never exceed the vectors' own.

    The leading principal coordinates, and the length of all that is left as one more: |q−m|² ≥ |Vᵀ(q−m)|² + (|q⊥| −
    |m⊥|)² for orthonormal V, by the triangle inequality in the complement. Computed in float64, so that the result is
    off by no more than its own rounding to float32.
    """

    def __init__(self, mean: NDArray[np.float64], axes: NDArray[np.float64]) -> None:
        self.mean, self.axes = mean, axes

    @classmethod
    def of(cls, x: Array, explained: float = 0.93) -> Shortener | None:
        """One for vectors like `x` (N, D), or None if half the coordinates do not explain that much of the variance."""
        mean = x.mean(axis=0, dtype=np.float64)
        sample = x[:: -(-len(x) // ROWS)] - mean.astype(np.float32)
        variance, axes = np.linalg.eigh((sample.T @ sample).astype(np.float64))
        share = np.cumsum(variance[::-1]) / max(variance.sum(), 1e-30)
        width = 32 * (int(np.searchsorted(share, explained)) // 32 + 1)
        return cls(mean, axes[:, :-width:-1]) if width <= x.shape[1] // 2 else None

    def __call__(self, x: Array) -> Array:
        """(N, D) to (N, R)."""
        short = np.empty((len(x), self.axes.shape[1] + 1), np.float32)
        for rows in blocks(len(x), ROWS):
            centred = x[rows] - self.mean
            kept = centred @ self.axes
            short[rows, :-1] = kept
            short[rows, -1] = np.sqrt(np.maximum(square_norms(centred) - square_norms(kept), 0))
        return short

"""Rows to remember, and what is said of them one row at a time."""

import numpy as np
from numpy.typing import NDArray

from backend.patchcore import Array, l2_normalize

Wide = NDArray[np.float64]


def gaussian(rng: np.random.Generator, n: int, dim: int) -> Array:
    return rng.normal(size=(n, dim)).astype(np.float32)


def clustered(rng: np.random.Generator, n: int, dim: int, spread: float = 0.3) -> Array:
    """Unit rows about n / 40 middles, some close to them and some far."""
    middles = rng.normal(size=(max(2, n // 40), dim))
    noise = spread * rng.normal(size=(n, dim)) * rng.gamma(2.0, size=(n, 1))
    return l2_normalize((middles[rng.integers(len(middles), size=n)] + noise).astype(np.float32))


def two_clouds(rng: np.random.Generator, n: int = 320, dim: int = 24) -> Array:
    """Unit rows: `n` that lie close together, then `n` that vary four times as much."""
    middles = l2_normalize(rng.standard_normal((2, dim)).astype(np.float32))
    spread = np.repeat([[0.05], [0.2]], n, axis=0)
    noise = rng.standard_normal((2 * n, dim)).astype(np.float32)
    return l2_normalize((np.repeat(middles, n, axis=0) + spread * noise).astype(np.float32))


def distances_to(x: Array, centre: Array) -> Wide:
    lengths: Wide = np.linalg.norm(x.astype(np.float64) - centre.astype(np.float64), axis=1)
    return lengths


def nearest_by_hand(q: Array, rows: Array, k: int = 1) -> Wide:
    """(T, k) distances of each patch to its nearest rows, ascending."""
    return np.sort([distances_to(rows, one) for one in q], axis=1)[:, :k]

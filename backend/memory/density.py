"""How densely a memory's rows lie: what is far where good patches hardly vary, is near where they vary much.

A distance divided by the spacing of the rows around the nearest one is close to the local outlier factor (Breunig et
al., SIGMOD 2000), with one neighbour instead of many for the patch itself. SoftPatch (Jiang et al., NeurIPS 2022)
brought such factors to memory banks, to tell noise among good patches. Here a row's neighbours are those of other
images, where the memory knows them: how far one good part is from the others is what a further part is judged by.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float32]
Rows = NDArray[np.int64]
Nearest = Callable[[Float, int], tuple[Float, Rows]]

SAMPLE = 256
# Of so many rows one is a neighbour at most: a neighbourhood as large as the memory tells nothing of a place.
LOCAL = 64
# Fewer rows tell of no place how densely they lie.
LEAST = 192
# A row looks for neighbours of other images among so many nearest ones.
WINDOW = 256
# Rows that all but coincide would make the least difference an anomaly.
FLOOR = 0.5


class Spacing:
    """The mean distance of a row to its `n` nearest others, as a multiple of what is typical of the memory.

    Others are the rows of other images among the WINDOW nearest; those that lack to `n` count as far as the last row
    of the window, which they are beyond. In a memory of one image they are all rows but itself. Computed as rows are
    asked for and kept: parts are near the same rows again and again. It keeps neither rows nor search, so a memory that
    keeps it is no cycle.

    Args:
        emb: (N, D) float32 rows.
        nearest: distances (T, k), ascending, and numbers (T, k) of the k rows nearest to each of (T, D).
        n: neighbours averaged; one in LOCAL of the rows at most. Of fewer than LEAST rows all count alike.
        src: (N,) the image of each row, negative where several share it; None: every row has one of its own.
        rows: the numbers of the rows that `nearest` knows; all when None.
    """

    def __init__(
        self, emb: Float, nearest: Nearest, n: int, src: NDArray[np.int32] | None = None, rows: Rows | None = None
    ) -> None:
        rows = np.arange(len(emb)) if rows is None else rows
        self._n = min(n, len(rows) // LOCAL)
        self._src = None if src is None or _are_of_one_image(src[rows]) else src
        self._known = np.full(len(emb), np.nan, np.float32)
        self.typical = 0.0
        if len(rows) >= LEAST:
            self.typical = float(np.median(self._of(rows[:: -(-len(rows) // SAMPLE)], emb, nearest)))

    def __call__(self, rows: Rows, emb: Float, nearest: Nearest) -> Float:
        """(T,) float32 of the rows with these numbers; FLOOR at least, 1 where rows are few or most coincide."""
        if self.typical == 0:
            return np.ones(len(rows), np.float32)
        relative: Float = np.maximum(self._of(rows, emb, nearest) / np.float32(self.typical), np.float32(FLOOR))
        return relative

    def _of(self, rows: Rows, emb: Float, nearest: Nearest) -> Float:
        new = np.unique(rows[np.isnan(self._known[rows])])
        window = self._n if self._src is None else 4 * self._n
        while len(new):
            distances, at = nearest(emb[new], window + 1)
            others = at != new[:, None]
            strange = others & self._of_other_images(new, at)
            enough = (strange.sum(axis=1) >= self._n) | (window >= WINDOW) | (at.shape[1] <= window)
            self._known[new[enough]] = _mean_of_first(self._n, distances[enough], strange[enough])
            new, window = new[~enough], max(WINDOW, window)
        return self._known[rows]

    def _of_other_images(self, rows: Rows, at: Rows) -> NDArray[np.bool_]:
        if self._src is None:
            return np.ones(at.shape, np.bool_)
        images = self._src[at]
        strange: NDArray[np.bool_] = (images != self._src[rows][:, None]) | (images < 0)
        return strange


def _are_of_one_image(src: NDArray[np.int32]) -> bool:
    return len(src) == 0 or bool(src[0] >= 0 and (src == src[0]).all())


def _mean_of_first(n: int, distances: Float, counted: NDArray[np.bool_]) -> Float:
    """(T,) mean of the first `n` of each row of (T, k) ascending distances that count; the last for those that lack."""
    counted &= np.cumsum(counted, axis=1) <= n
    lacking = n - counted.sum(axis=1)
    mean: Float = (np.where(counted, distances, 0).sum(axis=1) + lacking * distances[:, -1]) / n
    return mean

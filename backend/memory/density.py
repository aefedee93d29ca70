"""How densely the rows of a memory lie: the same step off is small where good parts vary much, and large elsewhere.

A distance divided by the spacing of the rows around the nearest one is close to the local outlier factor (Breunig et
al., SIGMOD 2000), with one neighbour instead of several for the patch itself. SoftPatch (Jiang et al., NeurIPS 2022)
brought such factors to memory banks, to tell noise among good patches. Here the neighbours of a row are those of other
images, where the memory knows its images: a new part is judged by how far one good part is from the others.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from backend.base.arrays import Float
from backend.memory.search import ExactSearch

Rows = NDArray[np.int64]

SAMPLE = 256  # rows whose median spacing is the typical one
LOCAL = 64  # at most one of so many rows is a neighbour: a neighbourhood as large as the memory says nothing of a place
LEAST = 192  # fewer rows do not say of any place how densely they lie there
WINDOW = 256  # nearest rows among which a row's neighbours of other images are looked for
FLOOR = 0.5  # of what is typical; with less, any difference from rows that all but coincide would be an anomaly


class Spacing:
    """The mean distance from a row to its `n` nearest neighbours, as a multiple of what is typical of the memory.

    Neighbours are the rows of other images among the WINDOW nearest rows. If these are fewer than `n`, the missing ones
    count as far as the last row of the window, since they lie beyond it. In a memory of one image every other row is a
    neighbour. What was computed for a row is kept, because parts come near the same rows again and again.

    Args:
        search: the rows.
        n: neighbours that are averaged, at most one in LOCAL of the rows. Below LEAST rows all spacings are 1.
        image_ids: (N,) int32, the image of each row, negative where several images share it; None: each row is of an
            image of its own.
        keep: numbers of the rows that count; None: all.
    """

    def __init__(
        self, search: ExactSearch, n: int, image_ids: NDArray[np.int32] | None = None, keep: Rows | None = None
    ) -> None:
        rows = np.arange(len(search)) if keep is None else keep
        self._search, self._keep = search, keep
        self._n = min(n, len(rows) // LOCAL)
        self._image_ids = None if image_ids is None or _are_of_one_image(image_ids[rows]) else image_ids
        self._known = np.full(len(search), np.nan, np.float32)
        self.typical = 0.0
        if len(rows) >= LEAST:
            self.typical = float(np.median(self._of(rows[:: -(-len(rows) // SAMPLE)])))

    def __call__(self, rows: Rows) -> Float:
        """(T,) float32, at least FLOOR, of the rows with these numbers; 1 where rows are few or most coincide."""
        if self.typical == 0:
            return np.ones(len(rows), np.float32)
        relative: Float = np.maximum(self._of(rows) / np.float32(self.typical), np.float32(FLOOR))
        return relative

    def _of(self, rows: Rows) -> Float:
        new = np.unique(rows[np.isnan(self._known[rows])])
        window = self._n if self._image_ids is None else 4 * self._n
        while len(new):
            distances, at = self._search.neighbours(self._search.rows[new], window + 1, self._keep)
            counted = (at != new[:, None]) & self._of_other_images(new, at)
            enough = (counted.sum(axis=1) >= self._n) | (window >= WINDOW) | (at.shape[1] <= window)
            self._known[new[enough]] = _mean_of_first(self._n, distances[enough], counted[enough])
            new, window = new[~enough], max(WINDOW, window)
        return self._known[rows]

    def _of_other_images(self, rows: Rows, at: Rows) -> NDArray[np.bool_]:
        if self._image_ids is None:
            return np.ones(at.shape, np.bool_)
        images = self._image_ids[at]
        other: NDArray[np.bool_] = (images != self._image_ids[rows][:, None]) | (images < 0)
        return other


def _are_of_one_image(image_ids: NDArray[np.int32]) -> bool:
    return len(image_ids) == 0 or bool(image_ids[0] >= 0 and (image_ids == image_ids[0]).all())


def _mean_of_first(n: int, distances: Float, counted: NDArray[np.bool_]) -> Float:
    """Mean of the first `n` that count of each row of ascending distances (T, k), the last for those missing: (T,)."""
    counted &= np.cumsum(counted, axis=1) <= n
    lacking = n - counted.sum(axis=1)
    mean: Float = (np.where(counted, distances, 0).sum(axis=1) + lacking * distances[:, -1]) / n
    return mean

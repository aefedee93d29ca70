"""Where neighbours are searched: a memory's rows, with bounds that rounding cannot break."""

from __future__ import annotations

import numpy as np

from backend.base.arrays import blocks, square_norms
from backend.memory.coreset import Array

ROWS = 4096  # rows dealt with at a time: working memory does not grow with their number
_EPS = float(np.finfo(np.float32).eps)


class SearchSpace:
    """Rows to search."""

    def __init__(self, rows: Array) -> None:
        self.rows = rows
        self.longest: float = max(float(square_norms(rows[block]).max()) for block in blocks(len(rows), ROWS))

    def slack(self, q: Array) -> float:
        """The most that rounding adds to a squared distance: γ(D) · (|q| + |m|)², Higham 2002, section 3.1."""
        return 2 * _EPS * int(q.shape[1]) * max(self.longest, float(square_norms(q).max()))

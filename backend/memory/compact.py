"""Rows of a memory in half precision or in 8 bits: a half or a quarter of the RAM and of the disk.

Distances are measured to the rows as they are stored, so a memory gives the same scores wherever its file is read.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from backend.base.arrays import Float

RowsDtype = Literal["float32", "float16", "int8"]
_LEVELS = 255


class CompactRows:
    """Rows (N, D) that are kept in fewer digits and read as float32.

    Args:
        codes: (N, D) float16, or uint8 with `low` and `step`.
        low, step: (D,) float32; a column's number is low + step · code.

    Raises:
        ValueError: the arrays do not fit each other, or their numbers are not finite.
    """

    def __init__(self, codes: NDArray[np.generic], low: Float | None = None, step: Float | None = None) -> None:
        scales = (low, step)
        eight_bits = codes.dtype == np.uint8 and all(s is not None and s.shape == codes.shape[1:] for s in scales)
        halves = codes.dtype == np.float16 and scales == (None, None)
        if codes.ndim != 2 or 0 in codes.shape or not (eight_bits or halves):
            raise ValueError(f"{codes.dtype} {codes.shape} are no rows in half precision or in 8 bits")
        if not all(np.isfinite(part).all() for part in (codes, *scales) if part is not None):
            raise ValueError("the rows of a memory hold NaN or infinite values, and have no distances")
        self.codes = np.ascontiguousarray(codes)
        self.low, self.step = low, step

    @classmethod
    def of(cls, rows: Float, dtype: Literal["float16", "int8"]) -> CompactRows:
        """`rows` (N, D) float32, each number rounded to the nearest that `dtype` has.

        In 8 bits each column has 256 steps of its own, from its least number to its greatest (the uniform quantiser of
        FAISS's QT_8bit): a column in which rows differ little keeps these differences.
        """
        if dtype == "float16":
            return cls(rows.astype(np.float16))
        low = rows.min(axis=0)
        step = ((rows.max(axis=0) - low) / np.float32(_LEVELS)).astype(np.float32)
        codes = np.rint((rows - low) / np.where(step > 0, step, 1)).clip(0, _LEVELS)
        return cls(codes.astype(np.uint8), low, step)

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, which: int | slice | NDArray[np.int64]) -> Float:
        """The rows with these numbers as float32."""
        rows = self.codes[which].astype(np.float32)
        if self.low is not None and self.step is not None:
            rows *= self.step
            rows += self.low
        return rows

    @property
    def shape(self) -> tuple[int, int]:
        """N and D."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def size(self) -> int:
        """Numbers in all rows."""
        return self.codes.size

    @property
    def nbytes(self) -> int:
        """Bytes in RAM."""
        return self.codes.nbytes + sum(part.nbytes for part in (self.low, self.step) if part is not None)

    @property
    def dtype(self) -> RowsDtype:
        """MEMORY_DTYPE, as which the rows are kept."""
        return "float16" if self.low is None else "int8"


Rows = Float | CompactRows


def compacted(rows: Float, dtype: RowsDtype) -> Rows:
    """`rows` (N, D) float32 as MEMORY_DTYPE asks."""
    return rows if dtype == "float32" else CompactRows.of(rows, dtype)


def in_float32(rows: Rows) -> Float:
    """All rows (N, D) float32; a copy only where they are kept otherwise."""
    return rows[:] if isinstance(rows, CompactRows) else rows


def rows_dtype(rows: Rows) -> RowsDtype:
    """MEMORY_DTYPE, as which `rows` are kept."""
    return rows.dtype if isinstance(rows, CompactRows) else "float32"

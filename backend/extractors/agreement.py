"""Whether two runtimes, or two machines, give the same tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.extractors.protocol import Rows

MEAN_COSINE, LEAST_COSINE = 0.9999, 0.999


def alternating(dim: int) -> NDArray[np.float32]:
    """(dim,) +1, −1, +1, …: a direction that responses, none of them negative, have next to no part in."""
    return (1 - 2 * (np.arange(dim) % 2)).astype(np.float32)


@dataclass(frozen=True)
class Agreement:
    """How alike the unit rows of two runtimes are, as cosines of each token with its counterpart."""

    mean: float
    least: float

    @classmethod
    def of(cls, rows: Rows, reference: Rows) -> Agreement:
        """Compare (…, D) unit rows; what is not finite agrees with nothing.

        The offset that all ResNet tokens share is taken out: beside it any two would look alike.
        """
        rows, reference = _without_offset(rows), _without_offset(reference)
        cosines = np.nan_to_num(np.einsum("...d,...d->...", rows, reference), nan=-1.0)
        return cls(float(cosines.mean(dtype=np.float64)), float(cosines.min()))

    def __bool__(self) -> bool:
        return self.mean >= MEAN_COSINE and self.least >= LEAST_COSINE

    def __str__(self) -> str:
        return f"token cosine {self.mean:.6f} on average, {self.least:.6f} at least"


def _without_offset(rows: Rows) -> Rows:
    axis = alternating(rows.shape[-1]) / np.float32(rows.shape[-1] ** 0.5)
    left = rows - (rows @ axis)[..., None] * axis
    unit: Rows = left / np.maximum(np.linalg.norm(left, axis=-1, keepdims=True), 1e-12)
    return unit

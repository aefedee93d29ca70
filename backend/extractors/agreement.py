"""Whether two runtimes, or two machines, give the same tokens."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from backend.extractors.protocol import Rows

MEAN_COSINE, LEAST_COSINE = 0.9999, 0.999


@dataclass(frozen=True)
class Agreement:
    """How alike the unit rows of two runtimes are, as cosines of each token with its counterpart."""

    mean: float
    least: float

    @classmethod
    def of(cls, rows: Rows, reference: Rows, shared: Rows | None = None) -> Agreement:
        """Compare (…, D) unit rows; what is not finite agrees with nothing.

        Args:
            shared: (D,) unit, a direction that every token has a large part in by construction. It is taken out, since
                beside it any two tokens would look alike.
        """
        if shared is not None:
            rows, reference = _without(rows, shared), _without(reference, shared)
        cosines = np.nan_to_num(np.einsum("...d,...d->...", rows, reference), nan=-1.0)
        return cls(float(cosines.mean(dtype=np.float64)), float(cosines.min()))

    def __bool__(self) -> bool:
        return self.mean >= MEAN_COSINE and self.least >= LEAST_COSINE

    def __str__(self) -> str:
        return f"token cosine {self.mean:.6f} on average, {self.least:.6f} at least"


def _without(rows: Rows, axis: Rows) -> Rows:
    left = rows - (rows @ axis)[..., None] * axis
    unit: Rows = left / np.maximum(np.linalg.norm(left, axis=-1, keepdims=True), 1e-12)
    return unit

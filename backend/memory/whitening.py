"""The linear map after which Euclidean distances are Mahalanobis distances (PATCHCORE_DISTANCE=mahalanobis)."""

from __future__ import annotations

import numpy as np

from backend.base.arrays import Float

RIDGE = 0.1  # share of the mean variance; without it the directions in which good parts hardly vary rule the distance
SAMPLE = 50_000  # rows that the covariance is taken from


def whitening(emb: Float, *, ridge: float = RIDGE) -> Float:
    """The map W for which ‖(x − y)·W‖ is proportional to a Mahalanobis distance under the rows of `emb`.

    W is the inverse square root of Σ + ridge · mean(diag Σ) · I, times the factor that keeps the total variance of
    `emb`, so that distances stay of the size that they have between unit rows.

    Args:
        emb: (N, D) float32 embeddings of good parts.
        ridge: what is added to the variances, as a share of their mean.

    Returns:
        (D, D) float32, symmetric.
    """
    chosen = emb[:: -(-len(emb) // SAMPLE)].astype(np.float64)
    centred = chosen - chosen.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / max(1, len(chosen) - 1))
    values = np.maximum(values, 0)
    floor = max(ridge * float(values.mean()), 1e-12)
    scale = (values + floor) ** -0.5
    level = (float(values.sum()) / max(float((values * scale**2).sum()), 1e-12)) ** 0.5 or 1.0
    return np.asarray((vectors * (scale * level)) @ vectors.T, np.float32)

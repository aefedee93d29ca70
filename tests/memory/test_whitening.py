"""Euclidean distances after the map are Mahalanobis distances before it."""

import numpy as np
import pytest
from scipy.spatial.distance import mahalanobis

from backend.memory.whitening import whitening
from backend.patchcore import Array, l2_normalize


@pytest.fixture
def rows(rng: np.random.Generator) -> Array:
    mixed = rng.normal(size=(200, 6)) * (3, 1, 1, 0.3, 0.1, 0.1) + (4, 0, 2, 0, 1, 0)
    return l2_normalize(mixed.astype(np.float32))


@pytest.mark.parametrize("ridge", [0.1, 0.5])
def test_distances_are_mahalanobis_distances_times_one_factor(
    rows: Array, rng: np.random.Generator, ridge: float
) -> None:
    covariance = np.cov(rows.T.astype(np.float64))
    inverse = np.linalg.inv(covariance + ridge * np.trace(covariance) / 6 * np.eye(6))
    q = l2_normalize(rng.normal(size=(20, 6)).astype(np.float32))
    to_rows = np.linalg.norm((q[:, None] - rows[None, :9]) @ whitening(rows, ridge=ridge), axis=2)
    expected = np.array([[mahalanobis(one, row, inverse) for row in rows[:9]] for one in q])
    ratio = to_rows / expected
    assert ratio.max() / ratio.min() < 1.001


def test_the_map_keeps_how_much_good_parts_vary(rows: Array) -> None:
    assert (rows @ whitening(rows)).var(axis=0).sum() == pytest.approx(rows.var(axis=0).sum(), rel=1e-3)


def test_the_map_is_symmetric_float32(rows: Array) -> None:
    found = whitening(rows)
    assert found.dtype == np.float32 and found.shape == (6, 6)
    np.testing.assert_allclose(found, found.T, atol=1e-5)


def test_rows_that_are_all_alike_have_a_finite_map(rows: Array) -> None:
    for n in (1, 7):
        assert np.isfinite(whitening(np.repeat(rows[:1], n, axis=0))).all()

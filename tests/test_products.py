"""Searching with rows in bfloat16: bounds that hold, and distances that nobody can tell from the plain search's."""

from pathlib import Path

import numpy as np
import pytest

from backend import patchcore
from backend.cache import ModelCache
from backend.features_products import Bf16Rows
from backend.patchcore import Array, PatchCoreMemory, l2_normalize
from backend.storage import ModelKey, ModelStore


def clustered(rng: np.random.Generator, n: int, dim: int, spread: float) -> Array:
    middles = rng.standard_normal((20, dim))
    return l2_normalize((middles[rng.integers(20, size=n)] + spread * rng.standard_normal((n, dim))).astype(np.float32))


@pytest.mark.parametrize("spread", [1e-4, 0.02, 0.3, 2.0])
@pytest.mark.parametrize("length", [1.0, 3.0])
def test_no_row_is_nearer_than_its_bound(rng: np.random.Generator, spread: float, length: float) -> None:
    x = clustered(rng, 700, 96, spread) * np.float32(length)
    q, rows = x[:100], x[100:]
    bounds, found = Bf16Rows(rows).nearest(q, 8)
    squares = ((q[:, None].astype(np.float64) - rows[None]) ** 2).sum(axis=2)
    assert (bounds <= np.take_along_axis(squares, found, axis=1)).all()
    assert (np.diff(bounds, axis=1) >= 0).all()
    np.put_along_axis(squares, found, np.inf, axis=1)
    assert (squares.min(axis=1) >= bounds[:, -1]).all()


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("spread", [1e-3, 0.05, 1.0])
def test_distances_stay_what_they_are(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, spread: float, k: int
) -> None:
    monkeypatch.setattr(patchcore, "_SHORTEN_FROM", 500)
    x = clustered(rng, 900, 64, spread)
    q, rows = x[:200], x[200:]
    plain, quick = PatchCoreMemory(rows), PatchCoreMemory(rows)
    quick.quicken(Bf16Rows)
    expected = np.sort(np.linalg.norm(q[:, None].astype(np.float64) - rows[None], axis=2), axis=1)[:, :k].mean(axis=1)
    np.testing.assert_allclose(quick.distances(q, k), expected, atol=2e-6)
    np.testing.assert_allclose(quick.distances(q, k), plain.distances(q, k), atol=1e-7)
    assert quick.nbytes > rows.nbytes


def test_leaving_an_image_out_does_not_ask_the_rough_rows(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(patchcore, "_SHORTEN_FROM", 100)
    rows = clustered(rng, 400, 32, 0.1)
    src = np.repeat(np.arange(4, dtype=np.int32), 100)
    plain, quick = PatchCoreMemory(rows, src=src), PatchCoreMemory(rows, src=src)
    quick.quicken(Bf16Rows)
    np.testing.assert_array_equal(quick.distances(rows, leave_out=2), plain.distances(rows, leave_out=2))


def test_small_memories_are_left_as_they_are(rng: np.random.Generator) -> None:
    memory = PatchCoreMemory(clustered(rng, 300, 32, 0.1))
    before = memory.nbytes
    memory.quicken(Bf16Rows)
    assert memory.nbytes == before


def test_a_cached_model_is_searched_through_them(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(patchcore, "_SHORTEN_FROM", 100)
    store, key = ModelStore(tmp_path), ModelKey.of("role", "roi")
    rows, asked = clustered(rng, 300, 32, 0.1), []

    def rough(given: Array) -> Bf16Rows:
        asked.append(len(given))
        return Bf16Rows(given)

    store.save_memory(key, rows, (10, 10), np.full(300, -1, np.int32), {"model_version": "2026.1", "mm_per_px": 1.0})
    cache = ModelCache(store, cache_mb=100, knn_backend="auto", rough=rough)
    memory = cache.model(key).memory
    np.testing.assert_allclose(memory.distances(rows), 0, atol=1e-6)
    assert asked == [300]

"""Graphs of rows: true distances, seldom past the nearest, and only where they are asked for."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from backend.base.config import Settings
from backend.base.errors import BackendUnavailable
from backend.memory import accelerator, approximate
from backend.memory.accelerator import DeviceRows
from backend.memory.approximate import GraphRows
from backend.memory.kernels import load_faiss
from backend.patchcore import Array, PatchCoreMemory, l2_normalize
from backend.service.host import proposer


def clustered(rng: np.random.Generator, n: int) -> Array:
    middles = rng.standard_normal((40, 32))
    return l2_normalize((middles[rng.integers(40, size=n)] + 0.3 * rng.standard_normal((n, 32))).astype(np.float32))


def searched_by(rows: Array, half: bool, src: Any = None) -> PatchCoreMemory:
    memory = PatchCoreMemory(rows, src=src)
    memory.attach_index(lambda given: GraphRows(given, half=half))
    return memory


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("k", [1, 3])
def test_a_graph_finds_nearly_all_neighbours_and_no_distance_is_too_small(
    rng: np.random.Generator, half: bool, k: int
) -> None:
    x = clustered(rng, 3300)
    q, rows = x[:300], x[300:]
    exact, nearest = PatchCoreMemory(rows).neighbours(q, k)
    found, at = searched_by(rows, half).neighbours(q, k)
    assert (found >= exact - 1e-6).all()
    np.testing.assert_allclose(found, np.linalg.norm(q[:, None] - rows[at], axis=2), atol=1e-6)
    assert (at == nearest).mean() > 0.97


@pytest.mark.parametrize("half", [False, True])
def test_bounds_of_a_graph_hold_for_the_rows_it_names(rng: np.random.Generator, half: bool) -> None:
    x = clustered(rng, 1000)
    q, rows = x[:100], 5 * x[100:]
    bounds, at = GraphRows(rows, half=half).nearest(q, 8)
    squares = np.square(q[:, None].astype(np.float64) - rows[at]).sum(axis=2)
    assert (bounds <= squares).all() and (np.diff(bounds, axis=1) >= 0).all()
    np.testing.assert_allclose(bounds, squares, rtol=0.01)


def test_a_graph_is_the_same_each_time_it_is_made(rng: np.random.Generator) -> None:
    x = clustered(rng, 2100)
    twice = [GraphRows(x[100:]).nearest(x[:100], 16) for _ in range(2)]
    np.testing.assert_array_equal(twice[0][1], twice[1][1])


def test_a_patch_that_the_walk_loses_is_searched_in_full(rng: np.random.Generator) -> None:
    x = clustered(rng, 600)
    q, rows = x[:50], x[50:]
    graph = GraphRows(rows)
    found = graph._index.search

    def lost(q: Array, m: int) -> Any:
        squares, at = found(q, m)
        squares[::2, 3:], at[::2, 3:] = np.finfo(np.float32).max, -1  # as FAISS says that it came no further
        at[::2, :3] = at[::2, 2:3]
        return squares, at

    graph._index = SimpleNamespace(search=lost)
    memory = PatchCoreMemory(rows)
    memory.attach_index(lambda _: graph)
    np.testing.assert_array_equal(memory.distances(q), PatchCoreMemory(rows).distances(q))


def test_asking_for_more_rows_than_there_are_is_answered_exactly(rng: np.random.Generator) -> None:
    x = clustered(rng, 30)
    np.testing.assert_allclose(
        searched_by(x[10:], False).distances(x[:10], 20), PatchCoreMemory(x[10:]).distances(x[:10], 20)
    )


def test_leaving_an_image_out_does_not_ask_the_graph(rng: np.random.Generator) -> None:
    x, src = clustered(rng, 400), np.repeat(np.arange(4, dtype=np.int32), 100)
    exact = PatchCoreMemory(x, src=src).distances(x, leave_out=1)
    np.testing.assert_array_equal(searched_by(x, True, src).distances(x, leave_out=1), exact)


def test_float16_takes_less_memory(rng: np.random.Generator) -> None:
    rows = clustered(rng, 500)
    half, full = GraphRows(rows, half=True), GraphRows(rows)
    sizes = [load_faiss().serialize_index(graph._index).nbytes for graph in (half, full)]
    assert sizes[0] < sizes[1] - rows.nbytes / 3
    assert [graph.nbytes for graph in (half, full)] == pytest.approx(sizes, rel=0.3)


def test_graphs_are_for_large_memories_and_for_those_who_ask(
    rng: np.random.Generator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = clustered(rng, 200)
    monkeypatch.setattr(accelerator, "device", lambda: None)
    asked = proposer(Settings(models_dir=tmp_path, knn_index="hnsw"))
    assert asked(rows) is None
    monkeypatch.setattr(approximate, "GRAPH_FROM", 100)
    assert isinstance(asked(rows), GraphRows)
    assert proposer(Settings(models_dir=tmp_path, knn_index="hnsw", cache_mb=0.05))(rows) is None  # no room to keep it
    monkeypatch.setattr(accelerator, "device", lambda: "cpu")
    assert isinstance(asked(rows), DeviceRows)  # sooner still, and exact
    monkeypatch.setattr(accelerator, "device", lambda: None)
    assert proposer(Settings(models_dir=tmp_path))(rows) is None


def test_a_graph_without_faiss_is_refused_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(approximate, "find_spec", lambda name: None)
    with pytest.raises(BackendUnavailable, match="option=KNN_INDEX, value=hnsw, package=faiss-cpu"):
        proposer(Settings(models_dir=tmp_path, knn_index="hnsw"))

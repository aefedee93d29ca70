"""Rows in bfloat16 or on a device: bounds that hold, and distances that are those of the exact search."""

import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from backend.memory import products
from backend.memory.coreset import kcenter_greedy
from backend.memory.on_device import View, look
from backend.memory.products import Bf16Rows, DeviceRows, bf16_rows, device_rows
from backend.memory.search import ExactSearch
from backend.patchcore import Array, l2_normalize
from tests.memory.rows import nearest_by_hand


def clustered(rng: np.random.Generator, n: int, dim: int, spread: float) -> Array:
    middles = rng.standard_normal((20, dim))
    return l2_normalize((middles[rng.integers(20, size=n)] + spread * rng.standard_normal((n, dim))).astype(np.float32))


def on_the_cpu(rows: Array) -> DeviceRows:
    return DeviceRows(rows, "cpu")


def on_the_gpu(rows: Array) -> DeviceRows:
    return DeviceRows(rows, "cuda")


without_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
WAYS = [Bf16Rows, on_the_cpu, pytest.param(on_the_gpu, marks=[pytest.mark.gpu, without_gpu])]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("spread", [1e-4, 0.02, 0.3, 2.0])
@pytest.mark.parametrize("length", [1.0, 3.0])
def test_no_row_is_nearer_than_its_bound(rng: np.random.Generator, way: Any, spread: float, length: float) -> None:
    x = clustered(rng, 700, 96, spread) * np.float32(length)
    q, rows = x[:100], x[100:]
    bounds, found = way(rows).nearest(q, 8)
    squares = ((q[:, None].astype(np.float64) - rows[None]) ** 2).sum(axis=2)
    assert (bounds <= np.take_along_axis(squares, found, axis=1)).all()
    assert (np.diff(bounds, axis=1) >= 0).all()
    np.put_along_axis(squares, found, np.inf, axis=1)
    assert (squares.min(axis=1) >= bounds[:, -1]).all()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("spread", [1e-3, 0.05, 1.0])
def test_distances_stay_what_they_are(rng: np.random.Generator, way: Any, spread: float, k: int) -> None:
    x = clustered(rng, 900, 64, spread)
    q, rows = x[:200], x[200:]
    plain, quick = ExactSearch(rows), ExactSearch(rows)
    quick.attach_index(way)
    found, _ = quick.neighbours(q, k)
    np.testing.assert_allclose(found, nearest_by_hand(q, rows, k), atol=2e-6)
    np.testing.assert_array_equal(found, plain.neighbours(q, k)[0])
    assert quick.nbytes > plain.nbytes


DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, without_gpu])]


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("k", [1, 3, 900])
@pytest.mark.parametrize("spread", [0.05, 1.0])
def test_distances_on_a_device_are_those_of_the_exact_search(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, where: str, k: int, spread: float
) -> None:
    x = clustered(rng, 900, 64, spread)
    q, rows = x[:200], x[200:]
    monkeypatch.setattr(products, "_GPU_PRODUCTS", 1 << 16)  # so that queries come in several parts
    found = DeviceRows(rows, where).distances(torch.from_numpy(q).to(where), k)
    assert found is not None and not found[1]
    expected = ExactSearch(rows).neighbours(q, k)[0].mean(axis=1)
    np.testing.assert_allclose(found[0].cpu().numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("where", DEVICES)
def test_distances_on_a_device_are_in_doubt_where_bounds_do_not_rule_out_a_nearer_row(
    rng: np.random.Generator, where: str
) -> None:
    x = clustered(rng, 400, 64, 0.5)
    near = l2_normalize((x[:1] + 1e-5 * rng.standard_normal((40, 64))).astype(np.float32))
    q = torch.from_numpy(x[:50].copy()).to(where)
    for rows, doubtful in ((x[50:], False), (np.concatenate([x[50:], near]), True), (near[:20], False)):
        found = DeviceRows(rows, where).distances(q, 1)
        assert found is not None and bool(found[1]) is doubtful
    q[3, 7] = torch.inf
    found = DeviceRows(x[50:], where).distances(q, 1)
    assert found is not None and found[1]


def test_what_is_in_doubt_is_not_said(rng: np.random.Generator) -> None:
    x = clustered(rng, 464, 64, 0.5)
    tokens, view = torch.from_numpy(x[:64].copy()), View(grid=(8, 8), k=1, size=(40, 40), sigma=1.0)
    assert look(on_the_cpu(x[64:]), view, tokens) is not None
    assert look(on_the_cpu(np.repeat(x[:1], 40, axis=0)), view, tokens) is None
    tokens[3, 7] = torch.nan
    assert look(on_the_cpu(x[64:]), view, tokens) is None


@pytest.mark.parametrize("offset", [0.0, 1.0, 10.0])
def test_rows_in_bfloat16_leave_no_doubt_whatever_they_all_share(rng: np.random.Generator, offset: float) -> None:
    x = l2_normalize(clustered(rng, 2200, 64, 0.3) + np.float32(offset) / 8)
    q, rows = x[:200], x[200:]
    bounds, _ = Bf16Rows(rows).nearest(q, 32)
    nearest = ExactSearch(rows).neighbours(q)[0][:, 0] ** 2
    assert (bounds[:, 0] <= nearest).all() and np.mean(bounds[:, -1] > nearest) > 0.95


@pytest.mark.parametrize("scale", [1e-14, 1e-19, 1e-22])
def test_bounds_in_bfloat16_hold_for_rows_that_all_but_coincide(rng: np.random.Generator, scale: float) -> None:
    rows = np.zeros((500, 16), np.float32)
    rows[:, 0], rows[:, 1:] = 1, scale * rng.standard_normal((500, 15))
    q = rows[:40].copy()
    q[:, 1:] += scale / 10 * rng.standard_normal((40, 15)).astype(np.float32)
    bounds, found = Bf16Rows(rows).nearest(q, 8)
    squares = ((q[:, None].astype(np.float64) - rows[None]) ** 2).sum(axis=2)
    assert (bounds <= np.take_along_axis(squares, found, 1)).all()


def as_if_there_were_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "device", lambda: "cpu")


def test_a_gpu_that_is_too_small_for_the_rows_is_said(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> DeviceRows:
        raise torch.OutOfMemoryError("CUDA out of memory")

    as_if_there_were_a_gpu(monkeypatch)
    monkeypatch.setattr(products, "DeviceRows", full)
    assert device_rows(clustered(rng, 300, 32, 0.1)) is None
    assert "the CPU searches them" in caplog.text


def test_a_gpu_that_rounds_products_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    for rounds in (False, True):
        monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(allow_tf32=rounds))
        assert products.device() == (None if rounds else "cuda")


def test_a_gpu_with_too_little_left_for_the_extractor_is_not_asked(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(products, "device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (1 << 30, 8 << 30))
    assert device_rows(clustered(rng, 300, 32, 0.1)) is None
    assert "the CPU searches them" in caplog.text


def test_a_search_under_way_ends_with_the_rows_it_began_with(rng: np.random.Generator) -> None:
    x = clustered(rng, 400, 32, 0.1)
    rows, expected = on_the_cpu(x[100:]), on_the_cpu(x[100:]).nearest(x[:100], 4)

    def interrupted(held: Any) -> Any:
        rows._held = products._Held(held.rows.to("meta"), held.squares.to("meta"), None)
        return rows._nearest(held, x[:100], 4)

    np.testing.assert_array_equal(rows._tried(interrupted)[1], expected[1])


def test_a_gpu_that_fills_up_later_hands_its_rows_to_the_cpu(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    x = clustered(rng, 400, 32, 0.1)
    rows, real, calls = on_the_cpu(x[100:]), torch.topk, []

    def full_at_first(*given: Any, **options: Any) -> Any:
        calls.append(given)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(*given, **options)

    monkeypatch.setattr(torch, "topk", full_at_first)
    bounds, found = rows.nearest(x[:100], 4)
    assert len(calls) == 2 and "from here on the CPU" in caplog.text
    monkeypatch.undo()
    np.testing.assert_array_equal(found, on_the_cpu(x[100:]).nearest(x[:100], 4)[1])
    assert np.isfinite(bounds).all()


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("spread", [0.0, 0.02, 0.5])
def test_a_coreset_made_on_a_device_is_the_same_index_for_index(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, where: str, spread: float
) -> None:
    x = clustered(rng, 20_000, 48, spread)
    x[7000:7100] = x[:100]
    old = x[:5] if spread == 0.02 else None
    expected = kcenter_greedy(x, 400, centres=old)
    monkeypatch.setattr(products, "device", lambda: where)
    found = kcenter_greedy(x, 400, centres=old)
    np.testing.assert_array_equal(found.indices, expected.indices)
    assert found.radius == expected.radius and found.radius_before == expected.radius_before


def test_small_memories_are_left_as_they_are(rng: np.random.Generator) -> None:
    assert bf16_rows(clustered(rng, 300, 32, 0.1)) is None


IMPORTING = """
import threading
from backend.memory.products import device

thread = threading.Thread(target=__import__, args=("torch",))
thread.start()
asked = 0
while thread.is_alive():
    assert device() is None
    asked += 1
assert device() is None and asked > 100
"""


def test_a_torch_that_another_thread_is_importing_computes_nowhere() -> None:
    """The ResNet18 API may load torch while a service without it reads its memories."""
    done = subprocess.run([sys.executable, "-c", IMPORTING], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr

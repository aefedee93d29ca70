"""Figures of a machine with a GPU: python tests/benchmarks/bench_gpu.py [--json FILE].

Needs torch, timm, NumPy, OpenCV, Pillow and scikit-learn or FAISS, and none of the HTTP libraries. The weights
are drawn at random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from numpy.typing import NDArray

from backend.base.arrays import blocks, l2_normalize
from backend.extractors.agreement import Agreement
from backend.extractors.protocol import ExtractorOptions, Precision, prepare
from backend.extractors.weights import write_random_weights
from backend.features import build_extractor
from backend.memory import products
from backend.memory.coreset import kcenter_greedy
from backend.patchcore import PatchCoreMemory
from backend.tools.bench_stages import Bench, Spread, encoded, machine, pictures, timed, timed_by_stage

MODEL = "vit_small_patch14_dinov2.lvd142m"


SENT = ((448, "png"), (448, "jpg"), (1448, "png"), (1448, "jpg"), (2000, "jpg"))


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--json", type=Path)
    options.add_argument("--greedy-rows", type=int, nargs="*", default=[200_000, 1_000_000])
    options.add_argument("--repeats", type=int, default=30)
    given = options.parse_args()
    rng = np.random.default_rng(0)
    weights = write_random_weights(MODEL, Path(tempfile.mkdtemp()) / "weights.safetensors", rng)
    figures: dict[str, Any] = {}

    def note(name: str, value: Any) -> None:
        figures[name] = value
        print(f"{name}: {json.dumps(value, ensure_ascii=False)}", flush=True)
        if given.json:
            given.json.write_text(json.dumps(figures, indent=1, ensure_ascii=False), "utf-8")

    reference = None
    shown = [prepare(image, (32, 32), 14) for image in pictures(2, 448, np.random.default_rng(1))]
    precisions: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
    for precision in precisions:
        extractor = build_extractor(ExtractorOptions(weights=str(weights), runtime="torch", precision=precision))
        bench = Bench.of(extractor, rng)
        rows = extractor.extract(shown)
        reference = rows if reference is None else reference
        note(f"{precision} agrees with fp32", str(Agreement.of(rows, reference)))
        note(f"{precision} forward, ms", asdict(bench.forward(448, given.repeats)))
        note(f"{precision} images per second at batch 32", 32_000 / bench.forward(448, 10, batch=32).p50)
    note("machine", machine(extractor))
    for side, form in SENT:
        stages = bench.stages(side, given.repeats, form)
        note(f"fp16 inspection of {side}² {form}, ms", {name: spread.p50 for name, spread in stages.items()})
    for side, form in SENT:
        if form == "jpg":
            note(
                f"{side}² JPEG whose pixels stay on the device, ms", on_device_ms(extractor, bench, side, given.repeats)
            )
    note("neighbours of 1024 patches, ms", {rows: neighbours_ms(rows, given.repeats) for rows in (700, 25_600)})
    note("fit of 200 images, s", fit_seconds(extractor, rng))
    for n_rows in given.greedy_rows:
        note(f"greedy of {n_rows:,} x 768 -> {n_rows // 100:,}, s", greedy_seconds(n_rows, rng))


def on_device_ms(extractor: Any, bench: Bench, side: int, repeats: int) -> dict[str, float]:
    """Milliseconds by step of an inspection that leaves the device once, without the PNG and outlines of regions."""
    from tests.benchmarks.on_device import OnDevice

    inspected, data = OnDevice(extractor, bench.memory.emb), encoded(pictures(1, side, bench.rng)[0], "jpg")
    spent = timed_by_stage(lambda mark: inspected(data, mark), repeats)
    return {step: Spread.of(own).p50 for step, own in spent.items()}


def clustered(n_rows: int, rng: np.random.Generator) -> NDArray[np.float32]:
    """(n_rows, 768) unit rows around 500 middles."""
    middles = rng.standard_normal((500, 768), np.float32)
    rows = rng.standard_normal((n_rows, 768), np.float32)
    rows *= 0.5
    for block in blocks(n_rows, 4096):
        rows[block] += middles[rng.integers(0, 500, block.stop - block.start)]
    return l2_normalize(rows)


def neighbours_ms(n_rows: int, repeats: int) -> dict[str, float]:
    """Milliseconds of a search on the GPU and on the CPU."""
    rows = clustered(n_rows + 1024, np.random.default_rng(2))
    q, memory = rows[:1024], PatchCoreMemory(rows[1024:])
    on_cpu = Spread.of(timed(lambda: memory.distances(q), max(3, repeats // 5))).p50
    slow = memory.distances(q)
    memory.attach_index()
    on_gpu = Spread.of(timed(lambda: memory.distances(q), repeats)).p50
    return {"GPU": on_gpu, "CPU": on_cpu, "largest difference": float(np.abs(memory.distances(q) - slow).max())}


def fit_seconds(extractor: Any, rng: np.random.Generator) -> dict[str, float]:
    """Seconds by stage of a fit of 200 images of 448² at the default coreset rate."""
    shown = [prepare(image, (32, 32), 14) for image in pictures(200, 448, rng)]
    extractor.extract(shown[:32])
    started = perf_counter()
    emb = np.concatenate([r for at in range(0, 200, 32) for r in extractor.extract(shown[at : at + 32])])
    extracted = perf_counter()
    PatchCoreMemory.build(emb, 0.02)
    return {"extract": round(extracted - started, 2), "coreset": round(perf_counter() - extracted, 2)}


def greedy_seconds(n_rows: int, rng: np.random.Generator) -> dict[str, float]:
    """Seconds of the exact greedy that keeps 1 % of clustered unit rows of 768 numbers; on the CPU too if few."""
    rows = clustered(n_rows, rng)
    started = perf_counter()
    chosen = kcenter_greedy(rows, n_rows // 100).indices
    found = {"GPU": perf_counter() - started}
    if n_rows <= 200_000:
        with patch.object(products, "device", lambda: None):
            started = perf_counter()
            slow = kcenter_greedy(rows, n_rows // 100).indices
            found["CPU"] = perf_counter() - started
        found["same indices"] = float((slow == chosen).mean())
    return found


if __name__ == "__main__":
    main()

"""Figures of a machine with a GPU: python tests/benchmarks/bench_gpu.py [--json FILE].

Needs torch, timm, NumPy, OpenCV, Pillow and scikit-learn or FAISS, and none of the HTTP libraries. The weights
are drawn at random: speed does not depend on them.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np

from backend.bench_stages import Bench, machine, pictures
from backend.coreset import kcenter_greedy, l2_normalize
from backend.features import build_extractor, prepare
from backend.features_torch import Agreement
from backend.features_weights import write_random_weights
from backend.patchcore import PatchCoreMemory

MODEL = "vit_small_patch14_dinov2.lvd142m"


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--json", type=Path)
    options.add_argument("--greedy-rows", type=int, default=1_000_000)
    given = options.parse_args()
    rng = np.random.default_rng(0)
    weights = write_random_weights(MODEL, Path(tempfile.mkdtemp()) / "weights.safetensors", rng)
    figures: dict[str, Any] = {"latency": {}, "throughput": {}}
    reference = None
    for precision in ("fp32", "bf16", "fp16"):
        extractor = build_extractor(MODEL, weights=str(weights), runtime="torch", precision=precision)
        bench = Bench.of(extractor, rng)
        figures.setdefault("machine", machine(extractor))
        figures["latency"][precision] = {
            f"{side}² {form}": {name: spread.p50 for name, spread in bench.stages(side, 50, form).items()}
            for side, form in ((448, "png"), (1448, "png"), (1448, "jpg"), (2000, "png"), (2000, "jpg"))
        }
        batch = bench.forward(448, 20, batch=32)
        figures["throughput"][precision] = round(32_000 / batch.p50, 1)
        rows = extractor.extract([prepare(image, (32, 32), 14) for image in pictures(2, 448, np.random.default_rng(1))])
        reference = rows if reference is None else reference
        figures.setdefault("agreement with fp32", {})[precision] = str(Agreement.of(rows, reference))
        print(
            precision,
            json.dumps(figures["latency"][precision], ensure_ascii=False),
            figures["throughput"][precision],
            flush=True,
        )
    figures["fit of 200 images, s"] = fit_seconds(extractor, rng)
    figures["greedy"] = greedy_seconds(given.greedy_rows, rng)
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    print(text)
    if given.json:
        given.json.write_text(text, "utf-8")


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
    """Seconds of the exact greedy on the CPU: clustered unit rows of 768 numbers, 1 % of them."""
    centres = rng.standard_normal((500, 768), np.float32)
    rows = centres[rng.integers(0, 500, n_rows)] + 0.5 * rng.standard_normal((n_rows, 768), np.float32)
    started = perf_counter()
    chosen = kcenter_greedy(l2_normalize(rows), n_rows // 100)
    return {"rows": n_rows, "chosen": len(chosen.indices), "seconds": round(perf_counter() - started, 1)}


if __name__ == "__main__":
    main()

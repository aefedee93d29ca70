"""All figures of a machine with a GPU: python tests/benchmarks/bench_gpu.py [--json FILE].

The extractor, the service without HTTP and over it, neighbours and greedy; at the end what is asked of a GPU beside
what was measured. The weights are drawn at random: speed does not depend on them. Without a GPU the same code runs on
the CPU, with less to do:

    DEVICE=cpu python tests/benchmarks/bench_gpu.py --precisions fp32 --batch 2 --repeats 2 --fit-images 4 --workers 1
        --clients 2 --seconds 2 --fits 4 --neighbours 700 --greedy-rows 20000
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import numpy as np
from numpy.typing import NDArray

from backend.api.answers import Answer, infer_fields
from backend.base.arrays import blocks, l2_normalize
from backend.base.config import Settings, load_settings
from backend.base.keys import ModelKey
from backend.extractors.agreement import Agreement
from backend.extractors.protocol import Extractor, ExtractorOptions, prepare
from backend.extractors.weights import write_random_weights
from backend.features import build_extractor
from backend.memory import products
from backend.memory.coreset import kcenter_greedy
from backend.patchcore import PatchCoreMemory
from backend.service.fitting import Fitter
from backend.service.images import ImageFile
from backend.service.inspection import Inspector
from backend.tools.bench_stages import Bench, Spread, encoded, machine, pictures, timed
from tests.benchmarks.bench_workers import Note, add_options, over_http

SENT = ((448, "png"), (448, "jpg"), (1448, "png"), (1448, "jpg"), (2000, "jpg"))
SIDES = [448, 1448, 2000]
IN_ONE_GO, OVER_HTTP, PER_SECOND = {448: 6.0}, {448: 9.0, 1448: 20.0, 2000: 30.0}, 500.0
FIT_TIMES = 1.5
KEY = ModelKey.of("Bench", "Disc")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--json", type=Path)
    options.add_argument("--greedy-rows", type=int, nargs="*", default=[200_000, 1_000_000])
    options.add_argument("--neighbours", type=int, nargs="*", default=[700, 25_600])
    options.add_argument("--fit-images", type=int, default=200)
    options.add_argument("--precisions", nargs="+", default=["fp32", "bf16", "fp16"])
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--repeats", type=int, default=30)
    add_options(options)
    options.set_defaults(workers=[1, 2, 4, 8])
    given = options.parse_args()
    given.sides = SIDES
    figures: dict[str, Any] = {}

    def note(name: str, value: Any) -> None:
        figures[name] = value
        print(f"{name}: {json.dumps(value, ensure_ascii=False)}", flush=True)
        if given.json:
            given.json.write_text(json.dumps(figures, indent=1, ensure_ascii=False), "utf-8")

    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
        rng, settings = np.random.default_rng(0), load_settings()
        weights = write_random_weights(settings.model_name, Path(scratch) / "weights.safetensors", rng)
        without = extractor_figures(weights, settings, given, note)
        alone = in_one_go(Path(scratch) / "alone", weights, given.repeats, note)
        waited, most, fits = over_http(Path(scratch), weights, given, note)
    note("neighbours of 1024 patches, ms", {rows: neighbours_ms(rows, given.repeats) for rows in given.neighbours})
    for n_rows in given.greedy_rows:
        note(f"greedy of {n_rows:,} x 768 -> {n_rows // 100:,}, s", greedy_seconds(n_rows, rng))
    for side, limit in IN_ONE_GO.items():
        note(f"asked: {side}² JPEG in one go, ms", {"at most": limit, "measured": alone[side]})
    for side, limit in OVER_HTTP.items():
        note(f"asked: {side}² JPEG over HTTP, ms", {"at most": limit, "measured": waited[side]})
    note("asked: answers per second at 448²", {"at least": PER_SECOND, "measured": most})
    if given.fit_images in fits:
        times = round(fits[given.fit_images] / without, 2)
        note(
            f"asked: fit of {given.fit_images} over HTTP, times that without", {"at most": FIT_TIMES, "measured": times}
        )


def extractor_figures(weights: Path, settings: Settings, given: argparse.Namespace, note: Note) -> float:
    """Note the forward pass in each precision; of the last one inspections by stage, and a fit. Gives its seconds."""
    reference, rng = None, np.random.default_rng(0)
    own = replace(ExtractorOptions.of(settings), weights=str(weights), runtime="torch")
    for precision in given.precisions:
        extractor = build_extractor(replace(own, precision=precision))
        bench, grid = Bench.of(extractor, rng), extractor.grid(448, 448)
        shown = [prepare(image, grid, extractor.patch) for image in pictures(2, 448, np.random.default_rng(1))]
        rows = extractor.extract(shown)
        reference = rows if reference is None else reference
        note(f"{precision} agrees with fp32", str(Agreement.of(rows, reference)))
        note(f"{precision} forward, ms", asdict(bench.forward(448, given.repeats)))
        pace = 1000 * given.batch / bench.forward(448, min(10, given.repeats), batch=given.batch).p50
        note(f"{precision} images per second at batch {given.batch}", pace)
    note("machine", machine(extractor))
    for side, form in SENT:
        stages = bench.stages(side, given.repeats, form)
        note(f"{precision} {side}² {form} by stage, ms", {name: spread.p50 for name, spread in stages.items()})
    spent = fit_seconds(extractor, given.fit_images, rng)
    note(f"fit of {given.fit_images} images without HTTP, s", spent)
    return sum(spent.values())


def in_one_go(folder: Path, weights: Path, repeats: int, note: Note) -> dict[int, float]:
    """Milliseconds of an inspection by side of a JPEG, from the file to the answer's bytes, without HTTP or records."""
    rng, found = np.random.default_rng(0), {}
    folders = {"models_dir": folder / "models", "datasets_dir": folder / "datasets"}
    inspector = Inspector(load_settings(**folders, results_db=None, weights=str(weights)))
    inspector.start()
    try:
        files = [jpeg_file(image) for image in pictures(34, 448, rng)]
        Fitter(inspector).fit(KEY, files, mm_per_px=0.1)
        inspector.calibrate(KEY, ok_scores=[0.9, 1.0, 1.1], mm_per_px=0.1)
        for side in SIDES:
            file = jpeg_file(pictures(1, side, rng)[0])
            stages: list[dict[str, float]] = []

            def inspected(file: ImageFile = file, stages: list[dict[str, float]] = stages) -> None:
                result = inspector.infer(KEY, file, mm_per_px=0.1)
                Answer(infer_fields(result, "en"))
                seen = result.inspection.heat.seen is not None
                stages.append({**result.timings_ms, "made on the device": seen})

            spent = Spread.of(timed(inspected, repeats))
            middle = {name: round(float(np.median([one[name] for one in stages])), 2) for name in stages[0]}
            note(f"{side}² JPEG in one go, ms", {"p50": spent.p50, "p95": spent.p95, **middle})
            found[side] = spent.p50
    finally:
        inspector.close()
    return found


def jpeg_file(image: NDArray[np.uint8]) -> ImageFile:
    data = encoded(image, "jpg")
    return ImageFile("part.jpg", lambda: data)


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


def fit_seconds(extractor: Extractor, n: int, rng: np.random.Generator) -> dict[str, float]:
    """Seconds by stage of a fit of `n` images of 448² at the default coreset rate."""
    shown = [prepare(image, extractor.grid(448, 448), extractor.patch) for image in pictures(n, 448, rng)]
    extractor.extract(shown[:32])
    started = perf_counter()
    emb = np.concatenate([r for at in range(0, n, 32) for r in extractor.extract(shown[at : at + 32])])
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

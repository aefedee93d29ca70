"""What the largest DINOv2 takes, with random weights: parameters, memory, time, and a fit and an inspection with it.

    python -m experiments.giant --input-size 112

Weights are drawn and written by a process of its own (11 GB of RAM, 4.5 GB of disk), so that the memory that is
reported is the service's. What random weights find means nothing. Operations are those of one forward pass, counted by
torch without computing it.
"""

from __future__ import annotations

import multiprocessing
import resource
import tempfile
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import psutil
import timm
import torch
import typer
from torch.utils.flop_counter import FlopCounterMode

from backend.base.config import load_settings
from backend.base.images import encode_png
from backend.base.keys import ModelKey
from backend.extractors.weights import write_random_weights
from backend.service.fitting import Fitter
from backend.service.host import extractor_for
from backend.service.images import ImageFile
from backend.service.inspection import Inspector
from experiments.accuracy import line

app = typer.Typer(add_completion=False)

GIANT = "vit_giant_patch14_dinov2.lvd142m"
SMALL = "vit_small_patch14_dinov2.lvd142m"
KEY = ModelKey.of("giant", "random")
IMAGES = 5


@app.command()
def measure(
    model: str = GIANT, input_size: int = 112, runtime: str = "torch", precision: str = "fp32", flops_at: int = 448
) -> None:
    """Load, fit and inspect, each with its seconds and its memory."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.safetensors"
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            pool.apply(write_random_weights, (model, path, np.random.default_rng(0)))
        line(["what", "figure"])
        line(["---"] * 2)
        line(["weights on disk, GB", f"{path.stat().st_size / 1e9:.2f}"])
        _run(path, model, input_size, runtime, precision)
    ours, theirs = flops(model, flops_at), flops(SMALL, flops_at)
    line([f"operations of a forward pass at {flops_at}², TFLOP", f"{ours / 1e12:.2f}"])
    line([f"of those of {SMALL}", f"{ours / theirs:.0f} times"])


def _run(path: Path, model: str, input_size: int, runtime: str, precision: str) -> None:
    before = _resident()
    settings = load_settings(
        model_name=model,
        weights=str(path),
        input_size=input_size,
        runtime=runtime,
        precision=precision,
        models_dir=path.parent / "models",
        coreset_rate=0.1,
    )
    start = perf_counter()
    extractor: Any = extractor_for(settings)
    line(["seconds to load", f"{perf_counter() - start:.0f}"])
    network = extractor.model
    line(["parameters, millions", f"{sum(p.numel() for p in network.parameters()) / 1e6:.0f}"])
    line(["blocks that tokens are of", f"{extractor.blocks} of {len(network.blocks)}, {extractor.dim} columns"])
    line(["MLP of a block", type(network.blocks[0].mlp).__name__])
    line(["GB of RAM for the network", f"{_resident() - before:.1f}"])
    rng = np.random.default_rng(1)
    pngs = [encode_png(rng.integers(0, 255, (128, 128, 3), np.uint8)) for _ in range(IMAGES + 1)]
    pictures = [ImageFile(f"{n}.png", partial(bytes, png)) for n, png in enumerate(pngs)]
    inspector = Inspector(settings, extractor)
    inspector.start()
    start = perf_counter()
    fitted = Fitter(inspector).fit(KEY, pictures[:IMAGES], mm_per_px=1.0)
    line([f"seconds of a fit on {IMAGES} images", f"{perf_counter() - start:.1f}"])
    line(["rows of the memory", f"{fitted.coreset_size}"])
    start = perf_counter()
    found = inspector.infer(KEY, pictures[-1], mm_per_px=1.0, heatmap="none")
    line([f"seconds of an inspection at {input_size}²", f"{perf_counter() - start:.1f}"])
    line(["token grid, score", f"{found.token_shape}, {found.inspection.score:.3f}"])
    line(["GB of RAM at most", f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.1f}"])
    inspector.close()


def flops(model: str, side: int) -> float:
    """Operations of one forward pass of an image of side² pixels (a multiple of the patch), none of them computed."""
    with torch.device("meta"):
        network: Any = timm.create_model(model, pretrained=False, num_classes=0, img_size=side)
        with FlopCounterMode(display=False) as counter:
            network.forward_features(torch.empty(1, 3, side, side))
    return float(counter.get_total_flops())


def _resident() -> float:
    """GB of RAM that this process holds."""
    return float(psutil.Process().memory_info().rss / 2**30)


if __name__ == "__main__":
    app()

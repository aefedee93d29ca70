"""Beside anomalib, in one run: its KCenterGreedy on the same rows, and its PatchCore on images of the same size.

Run python tests/benchmarks/bench_anomalib.py from an environment that has this project's packages and anomalib
(pip install anomalib; not in the service's own environment, whose versions it may move). Networks are ResNet18 with
random weights: speed does not depend on them. anomalib projects rows to fewer dimensions before its greedy; ours keeps
them all.
"""

import argparse
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from backend.base.arrays import few_threads_each
from backend.extractors.protocol import ExtractorOptions, Runtime, prepare
from backend.extractors.weights import write_random_weights
from backend.features import build_extractor
from backend.infer import Criteria, Roi, RoiSize, inspect
from backend.patchcore import PatchCoreMemory, kcenter_greedy
from backend.tools.bench_stages import pictures
from tests.benchmarks.bench_greedy import embeddings, seconds


def compare_greedy(rows: int, dim: int, centres: int, repeats: int) -> None:
    import torch
    from anomalib.models.components import KCenterGreedy

    x = embeddings(rows, dim)
    ratio = (centres + 0.5) / rows
    KCenterGreedy(embedding=torch.from_numpy(x[:1000]), sampling_ratio=0.01).select_coreset_idxs()
    sampler = KCenterGreedy(embedding=torch.from_numpy(x), sampling_ratio=ratio)
    theirs = seconds(sampler.select_coreset_idxs, 3)
    ours = seconds(lambda: kcenter_greedy(x, sampler.coreset_size), repeats)
    print(f"greedy {rows:,} x {dim} -> {sampler.coreset_size}: {ours:.3f} s, anomalib {theirs:.2f} s, ", end="")
    print(f"{theirs / ours:.0f} times faster")


def compare_patchcore(side: int, n: int, rate: float, repeats: int) -> None:
    rng = np.random.default_rng(0)
    images = pictures(n, side, rng)
    fitted, inspected = theirs_of(images, rate, repeats)
    few_threads_each()  # as the service has it, once anomalib has been timed with all threads
    print(f"PatchCore ResNet18 {side}², {n} images, coreset {rate:.0%}, without HTTP:")
    print(f"  anomalib: fit {fitted:.2f} s, inspection {1000 * inspected:.1f} ms")
    runtimes: tuple[Runtime, ...] = ("torch", "auto")
    with tempfile.TemporaryDirectory() as folder:
        weights = write_random_weights("resnet18", Path(folder) / "resnet18.safetensors", rng)
        for runtime in runtimes:
            own_fit, own = ours_of(images, rate, repeats, str(weights), runtime)
            print(f"  ours ({runtime}): fit {own_fit:.2f} s, inspection {1000 * own:.1f} ms: ", end="")
            print(f"{fitted / own_fit:.1f} and {inspected / own:.1f} times faster")


def theirs_of(images: list[Any], rate: float, repeats: int) -> tuple[float, float]:
    """Seconds of anomalib's fit, batches of 32 as it makes them, and of one inspection."""
    import torch
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    model = PatchcoreModel(layers=("layer2", "layer3"), backbone="resnet18", pre_trained=False)
    shown = torch.stack([torch.from_numpy(image).permute(2, 0, 1).float() / 255 for image in images])
    with torch.inference_mode():
        model.eval().feature_extractor(shown[:1])
        model.train()
        model.feature_extractor.eval()
        start = perf_counter()
        for batch in torch.split(shown, 32):
            model(batch)
        model.subsample_embedding(rate)
        fitted = perf_counter() - start
        model.eval()
        return fitted, seconds(lambda: model(shown[:1]), repeats)


def ours_of(images: list[Any], rate: float, repeats: int, weights: str, runtime: Runtime) -> tuple[float, float]:
    """Seconds of our fit and of one inspection."""
    side = images[0].shape[0]
    options = ExtractorOptions(model_name="resnet18", weights=weights, input_size=side, runtime=runtime)
    extractor = build_extractor(options)
    grid = extractor.grid(side, side)
    extractor.extract([prepare(images[0], grid, extractor.patch)])

    def fit() -> PatchCoreMemory:
        rows = [extractor.extract([prepare(image, grid, extractor.patch)])[0] for image in images]
        return PatchCoreMemory.build(np.concatenate(rows), rate)

    def inspect_one() -> None:
        tokens = extractor.extract([prepare(images[0], grid, extractor.patch)])[0]
        inspect(tokens, memory, Roi(RoiSize(side, side), grid), Criteria())

    start = perf_counter()
    memory = fit()
    fitted = perf_counter() - start
    return fitted, seconds(inspect_one, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=34_992)
    parser.add_argument("--centres", type=int, default=700)
    parser.add_argument("--dims", type=int, nargs="*", default=[384, 768])
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--images", type=int, default=34)
    parser.add_argument("--rate", type=float, default=0.01)
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    if find_spec("anomalib") is None:
        sys.exit("anomalib is not installed here, so nothing was compared; see the top of this file")
    for dim in given.dims:
        compare_greedy(given.rows, dim, given.centres, 5)
    compare_patchcore(given.side, given.images, given.rate, given.repeats)


if __name__ == "__main__":
    main()

"""How far scores and AUROC move between runtimes: python tests/benchmarks/bench_runtimes.py SET… --model NAME=WEIGHTS.

Each set (MVTec AD's layout or the station's) is fitted and inspected with torch in fp32 on the CPU. Its memory then
also judges what the runtime and the device that this machine takes by itself saw; and so does their own fit.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from backend.base.images import decode_image
from backend.evaluation.sets import InspectionSet, read_set
from backend.extractors.protocol import Extractor, ExtractorOptions, prepare
from backend.features import build_extractor
from backend.infer import Criteria, Roi, RoiSize, inspect
from backend.patchcore import Array, PatchCoreMemory


def tokens_of(extractor: Extractor, paths: list[Path]) -> list[tuple[Array, Roi]]:
    """Tokens of each image, and the ROI that they are of."""
    found = []
    for path in paths:
        image = decode_image(path.read_bytes(), name=path.name)
        height, width = image.shape[:2]
        grid = extractor.grid(height, width)
        rows = extractor.extract([prepare(image, grid, extractor.patch)])[0]
        found.append((rows, Roi(RoiSize(height, width), grid)))
    return found


def compare(one: InspectionSet, extractors: list[Extractor], rate: float) -> None:
    train = [image.path for image in one.train]
    test = [image.path for image in one.test]
    labels = [image.defective for image in one.test]
    memories, scores = [], []
    seen = []
    for extractor in extractors:
        emb = np.concatenate([rows for rows, _ in tokens_of(extractor, train)])
        memories.append(PatchCoreMemory.build(emb, rate))
        seen.append(tokens_of(extractor, test))
    for memory, views in ((memories[0], seen[0]), (memories[0], seen[1]), (memories[1], seen[1])):
        scores.append(np.array([inspect(rows, memory, roi, Criteria()).score for rows, roi in views]))
    moved = np.abs(scores[1] / scores[0] - 1)
    aurocs = [roc_auc_score(labels, of) for of in scores]
    print(
        f"{one.name} {extractors[0].name}, torch fp32 beside {extractors[1].runtime} on {extractors[1].device}: ",
        end="",
    )
    print(f"scores move by {100 * np.median(moved):.3f} % (median), {100 * moved.max():.3f} % (most); ", end="")
    print(f"AUROC {aurocs[0]:.4f}, {aurocs[1] - aurocs[0]:+.4f} with the same memory, ", end="")
    print(f"{aurocs[2] - aurocs[0]:+.4f} with its own")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sets", type=Path, nargs="+")
    parser.add_argument("--model", action="append", required=True, help="NAME=WEIGHTS")
    parser.add_argument("--input-size", type=int, default=448)
    parser.add_argument("--rate", type=float, default=0.02)
    given = parser.parse_args()
    for model in given.model:
        name, _, weights = model.partition("=")
        options = ExtractorOptions(model_name=name, weights=weights, input_size=given.input_size)
        extractors = [
            build_extractor(replace(options, runtime="torch", precision="fp32", device="cpu")),
            build_extractor(options),
        ]
        for folder in given.sets:
            compare(read_set(folder), extractors, given.rate)


if __name__ == "__main__":
    main()

"""PART_ALONE: a ViT that leaves out what lies outside a model's shape before its first block.

    python -m experiments.masked_tokens --model vit_tiny_patch16_224=WEIGHTS \
        --sets COOKIES --circle 288,384,285 --sets PILLS --circle 112,112,88

The same circle, in pixels of the sent images, holds for fits and inspections of a set. Tokens whose cells touch it
stay, with the embeddings of their own positions; attention and MLPs run over these alone. Beside it: the network that
sees the whole ROI, of whose tokens a fit and an inspection with this shape keep the same ones. The image AUROC is the
mean over coresets of several seeds; times are medians of a bare forward with OpenVINO in fp32, both in turn.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from backend.base.config import Settings
from backend.base.images import decode_image
from backend.evaluation.runner import Evaluator, RememberingExtractor
from backend.evaluation.sets import InspectionSet, LabelledImage, read_set
from backend.extractors.openvino_runtime import OpenVinoFeatures
from backend.extractors.protocol import Extractor, ExtractorOptions
from backend.features import DinoV2Features
from backend.infer import Roi, RoiSize, working_mask
from backend.roi_mask import Shape
from experiments.accuracy import Model, Sets, line
from experiments.eight_bits import SEEDS, prepared
from experiments.embedded import settings_of
from experiments.turns import forward, in_turn

app = typer.Typer(add_completion=False)

ROUNDS = 100
SHOWN = 8
WHOLE, PART = "the whole ROI", "the part alone"


def circle_of(text: str) -> Shape:
    """`288,384,285` as a circle about (288, 384). Raises typer.BadParameter for what is none."""
    try:
        cx, cy, r = (float(number) for number in text.split(","))
    except ValueError as err:
        raise typer.BadParameter(f"{text!r}: write a circle as CX,CY,R in pixels") from err
    return Shape("circle", {"cx": cx, "cy": cy, "r": r})


def shaped(given: InspectionSet, shape: Shape) -> InspectionSet:
    """The set with this shape at every image."""

    def at(image: LabelledImage) -> LabelledImage:
        return replace(image, shape=shape)

    return replace(given, train=tuple(map(at, given.train)), test=tuple(map(at, given.test)))


def mean_auroc(given: InspectionSet, settings: Settings, extractor: Extractor) -> float:
    """Image AUROC of a set, the mean over SEEDS; the extractor runs once."""
    with tempfile.TemporaryDirectory() as folder:
        once = RememberingExtractor(extractor, Path(folder))
        aurocs = []
        for seed in SEEDS:
            with Evaluator(settings.model_copy(update={"seed": seed}), once) as evaluator:
                aurocs.append(evaluator.run(given).figures.image.auroc)
    return float(np.mean(aurocs))


@app.command()
def compare(
    sets: Sets,
    circle: Annotated[list[str], typer.Option(help="CX,CY,R in pixels, one for each of the sets.")],
    model: Model,
    input_size: int = 448,
) -> None:
    """A table: image AUROC, the share of tokens that the network runs over, and the time of a forward."""
    if len(circle) != len(sets):
        raise typer.BadParameter(f"there are {len(sets)} sets and {len(circle)} circles: give each set one")
    settings = settings_of(model, input_size)
    options = replace(ExtractorOptions.of(settings), device="cpu", precision="fp32", runtime="torch")
    extractor = OpenVinoFeatures(DinoV2Features(options), "fp32")
    line(["set", "the network sees", "image AUROC", "tokens", "forward, ms", "of the whole", "of its processor time"])
    line(["---"] * 7)
    for folder, shape in zip(sets, map(circle_of, circle), strict=True):
        given = shaped(read_set(folder), shape)
        pictures = prepared(given.test[:SHOWN], extractor)
        size = RoiSize(*decode_image(given.train[0].path.read_bytes()).shape[:2])
        inside = Roi(size, extractor.grid(size.height, size.width), working_mask(shape, size)).inside
        assert inside is not None
        took = in_turn({WHOLE: forward(extractor, pictures), PART: forward(extractor, pictures, inside)}, ROUNDS)
        for name in took:
            ratios = took[name].ms / took[WHOLE].ms, took[name].cpu_ms / took[WHOLE].cpu_ms
            auroc = mean_auroc(given, settings.model_copy(update={"part_alone": name == PART}), extractor)
            share = inside.mean() if name == PART else 1.0
            figures = f"{auroc:.4f}", f"{share:.0%}", f"{took[name].ms:.1f}", *(f"{ratio:.2f}" for ratio in ratios)
            line([given.name, name, *figures])


if __name__ == "__main__":
    app()

"""A ViT that sees the part alone: what lies outside a model's shape is left out before the first block.

    python -m experiments.masked_tokens --model vit_tiny_patch16_224=WEIGHTS \
        --sets COOKIES --circle 288,384,285 --sets PILLS --circle 112,112,88

The same circle, in pixels of the sent images, holds for fits and inspections of a set. Tokens whose cells touch it
stay, with the embeddings of their own positions; attention and MLPs run over these alone. Beside it: the network that
sees the whole ROI, of whose tokens a fit and an inspection with this shape keep the same ones. The image AUROC is the
mean over coresets of several seeds; times are medians of a bare forward in fp32, both in turn.
"""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from torch import nn

from backend.base.config import Settings
from backend.base.images import decode_image
from backend.evaluation.runner import Evaluator, RememberingExtractor
from backend.evaluation.sets import InspectionSet, LabelledImage, read_set
from backend.extractors.openvino_runtime import OpenVinoFeatures
from backend.extractors.protocol import Extractor, ExtractorOptions
from backend.extractors.tokens import TokenNetwork, ViTTokens
from backend.features import DinoV2Features
from backend.roi_mask import Shape, build_mask, token_mask
from experiments.accuracy import Model, Sets, line
from experiments.eight_bits import SEEDS, prepared
from experiments.embedded import settings_of
from experiments.turns import forward, in_turn

app = typer.Typer(add_completion=False)

ROUNDS = 100
SHOWN = 8
WHOLE, PART = "the whole ROI", "the part alone"


class Chosen(nn.Module):
    """Some of the tokens: what a ViT does with them in place of dropping some at random."""

    numbers: torch.Tensor

    def __init__(self, numbers: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("numbers", numbers)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """(B, T, D) -> (B, those of `numbers`, D)."""
        return tokens.index_select(1, self.numbers)


class PartTokens(ViTTokens):
    """ViTTokens of a network that runs over some of its tokens; in place of the others there are zeros.

    Args:
        model: timm's ViT, which loses its other tokens for good.
        inside: (T,) bool, the tokens that stay.
    """

    def __init__(self, model: nn.Module, blocks: tuple[int, ...], inside: NDArray[np.bool_]) -> None:
        super().__init__(model, blocks)
        prefix = int(self.model.num_prefix_tokens)
        stay = np.concatenate([np.arange(prefix), prefix + np.flatnonzero(inside)])
        self.model.patch_drop = Chosen(torch.from_numpy(stay))
        # Those that ran, and behind them a row of zeros, in the order of the grid.
        place = np.where(inside, np.cumsum(inside) - 1, np.count_nonzero(inside))
        self.on_grid = Chosen(torch.from_numpy(place))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised -> (B, T, D)."""
        found = super().forward(batch)
        placed: torch.Tensor = self.on_grid(torch.cat((found, torch.zeros_like(found[:, :1])), dim=1))
        return placed


class PartFeatures(DinoV2Features):
    """A ViT that runs over the tokens whose cells touch a mask (h, w) bool of the ROI."""

    def __init__(self, options: ExtractorOptions, mask: NDArray[np.bool_]) -> None:
        self.mask = mask
        super().__init__(options)

    def network(self, height: int, width: int) -> nn.Module:
        """See NetworkFeatures."""
        cfg = self.model.pretrained_cfg
        inside = token_mask(self.mask, (height // self.patch, width // self.patch))
        tokens = PartTokens(self._resized(height, width), self.blocks, inside.ravel())
        return TokenNetwork(tokens, cfg["mean"], cfg["std"])


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
    line(["set", "the network sees", "image AUROC", "tokens", "forward, ms", "of the whole", "of its processor time"])
    line(["---"] * 7)
    for folder, shape in zip(sets, map(circle_of, circle), strict=True):
        given = shaped(read_set(folder), shape)
        height, width = decode_image(given.train[0].path.read_bytes()).shape[:2]
        mask = build_mask(shape, height, width)
        assert mask is not None
        networks = {WHOLE: DinoV2Features(options), PART: PartFeatures(options, mask)}
        pictures = prepared(given.test[:SHOWN], networks[WHOLE])
        ways = {name: OpenVinoFeatures(network, "fp32") for name, network in networks.items()}
        took = in_turn({name: forward(way, pictures) for name, way in ways.items()}, ROUNDS)
        inside = token_mask(mask, networks[WHOLE].grid(height, width))
        for name, way in ways.items():
            share = 1.0 if name == WHOLE else float(inside.mean())
            ratios = took[name].ms / took[WHOLE].ms, took[name].cpu_ms / took[WHOLE].cpu_ms
            auroc = mean_auroc(given, settings, way)
            figures = f"{auroc:.4f}", f"{share:.0%}", f"{took[name].ms:.1f}", *(f"{ratio:.2f}" for ratio in ratios)
            line([given.name, name, *figures])


if __name__ == "__main__":
    app()

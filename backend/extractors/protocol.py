"""What an extractor is, the options that one is built with, and how an ROI becomes the image that it sees."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.base.config import Settings
from backend.base.decoding import Needed
from backend.base.errors import PartNotAlone
from backend.base.images import resize, resize_means
from backend.base.options import filled, option
from backend.extractors.weights import WEIGHTS_DIR

RGB = NDArray[np.uint8]
Rows = NDArray[np.float32]
Mask = NDArray[np.bool_]
Grid = tuple[int, int]
PART_ALONE = "/part"
Look = Callable[[Any], Any]
"""Told an image's rows (T, D) as a tensor on the device that made them: what it says of them, or None."""
Device = Literal["auto", "cpu", "cuda"]
Edge = Literal["area", "smaller"]
Aspect = Literal["keep", "square"]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Runtime = Literal["auto", "torch", "openvino"]


@dataclass(frozen=True, kw_only=True)
class ExtractorOptions:
    """Everything that decides which extractor is built. A field names the setting that fills it.

    Attributes:
        model_name: any timm ViT, one of timm's ResNets, or `texture`.
        weights: a .safetensors/.pth file, or a folder that has one; `auto`: `weights_dir`, then timm's hub; `hub`;
            or an exported extractor, see exported_file.
        weights_dir: the folder that `auto` looks into first; None: no folder.
        input_size: an ROI is resized to about input_size² pixels; see token_grid.
        input_edge: whether `input_size` is the root of the ROI's area or its smaller edge.
        input_aspect: whether an ROI keeps its proportions or is brought to input_size², whatever they are.
        device: `auto` is CUDA where torch sees it; `cuda` without it warns and takes the CPU.
        runtime: who runs the network; `auto` takes OpenVINO on a CPU when it is installed and agrees with torch.
        precision: arithmetic of the network; `auto` takes the fastest that agrees with fp32.
        threads: cores to use; None: all.
        blocks: of a ViT, whose tokens are joined, negative ones counted from the last; (): see DinoV2Features.
        offset: of a ResNet; see ResNetTokens.
        patch_size: side, in tokens, of the neighbourhoods that are averaged; None: 3 for ResNets, else 1.
        stride: every n-th neighbourhood of every n-th row is kept.
        tiles: tiles per side that an ROI is seen in.
        tile_overlap: share of a tile that its neighbour sees too, 0 to 0.9.
    """

    model_name: str = option("vit_small_patch14_dinov2.lvd142m", "model_name")
    weights: str = option("auto", "weights")
    weights_dir: Path | None = WEIGHTS_DIR
    input_size: int = option(448, "input_size")
    input_edge: Edge = option("area", "input_edge")
    input_aspect: Aspect = option("keep", "input_aspect")
    device: Device = option("auto", "device")
    runtime: Runtime = option("auto", "runtime")
    precision: Precision = option("auto", "precision")
    threads: int | None = option(None, "threads")
    blocks: tuple[int, ...] = option((), "blocks")
    offset: float = option(0.8, "resnet_offset")
    patch_size: int | None = option(None, "patchcore_patch_size")
    stride: int = option(1, "patchcore_stride")
    tiles: int = option(1, "tiles")
    tile_overlap: float = option(0.25, "tile_overlap")

    @classmethod
    def of(cls, settings: Settings) -> ExtractorOptions:
        """As `settings` have it."""
        return cls(**{**filled(cls, settings), "blocks": tuple(int(block) for block in settings.blocks)})


class Extractor(Protocol):
    """What turns prepared images into unit embeddings, one for each cell of the token grid.

    A class that derives from it inherits `grid` and the values given here.

    Attributes:
        name: the model's name, as MODEL_NAME.
        dim: columns of an embedding.
        patch: side in pixels of a token's cell; an image must have sides that are multiples of it.
        input_size: see ExtractorOptions.
        input_edge: see ExtractorOptions.
        input_aspect: see ExtractorOptions.
        runtime: who computes: `torch`, `openvino` or `numpy`.
        streams: images that are worth handing over at once on a CPU.
        reach: side, in cells of the token grid, of the neighbourhood that a token is averaged over. What covers less
            of the ROI is smeared over as much, and an anomaly map cannot show it smaller.
        leaves_out: whether it has `extract_part`.
        fingerprint: changes whenever embeddings would: memories of different fingerprints do not compare.
    """

    name: str
    dim: int
    patch: int
    input_size: int
    input_edge: Edge = "area"
    input_aspect: Aspect = "keep"
    runtime: str
    streams: int = 1
    reach: float = 1.0
    leaves_out: bool = False
    fingerprint: str

    @property
    def device(self) -> str:
        """`cpu` or `cuda`. It may change from `cuda` to `cpu` when the GPU's memory does not hold one image."""
        ...

    def grid(self, height: int, width: int) -> Grid:
        """Token rows and columns of an ROI of (height, width) px."""
        if self.input_aspect == "square":
            height = width = max(height, width)
        return token_grid(height, width, input_size=self.input_size, patch=self.patch, edge=self.input_edge)

    def prepare(self, image: NDArray[np.uint8], grid: Grid, size: tuple[int, int] | None = None) -> RGB:
        """What the extractor sees of an ROI: see the function `prepare`. It may be called beside `extract`."""
        return prepare(image, grid, self.patch, size)

    def extract(self, images: Sequence[RGB]) -> Rows:
        """Embeddings of equally large (H, W, 3) uint8 RGB images: (B, T, dim) float32 with unit rows, row-major."""
        ...

    def extract_part(self, images: Sequence[RGB], inside: Mask) -> Rows:
        """As `extract`, of the tokens alone that are `inside` (rows, columns) bool; the others' rows are zeros.

        The others are left out before the network's first block, so that no embedding knows what lies there.

        Raises:
            PartNotAlone: the extractor does not leave tokens out.
        """
        raise PartNotAlone(model=self.name)

    def fingerprint_of(self, *, part_alone: bool) -> str:
        """The fingerprint of embeddings that `extract_part` gives, or `extract`."""
        return self.fingerprint + PART_ALONE if part_alone else self.fingerprint

    def made(self, fingerprint: str | None) -> bool:
        """Whether embeddings of this fingerprint, if any, compare with those that the extractor gives."""
        ways = {self.fingerprint_of(part_alone=part_alone) for part_alone in {False, self.leaves_out}}
        return fingerprint is None or fingerprint in ways

    def look(self, images: Sequence[RGB], looks: Sequence[Look | None]) -> list[Any]:
        """As `extract`, where an image may have a look at its embeddings on the device that makes them.

        Returns:
            For each image what its look said, or the embeddings (T, dim) where that was nothing, or where no device
            holds them.
        """
        return list(self.extract(images))

    def leave_to_host(self) -> None:
        """From here on `look` has nothing to say, and ROIs are resized by the host."""
        return


def token_grid(height: int, width: int, *, input_size: int, patch: int, edge: Edge = "area") -> Grid:
    """Token rows and columns of an ROI of (height, width) px, which keep its aspect.

    With `area` there are at most (input_size / patch)² tokens. Each side is within one token of what aspect and budget
    ask for, unless that is less than one: 448×448 gives 32×32 with patch 14, and an ROI twice as wide as high 22×45.
    With `smaller` the smaller side has input_size / patch tokens, and the other as many as the aspect asks for.
    """
    if edge == "smaller":
        scale = input_size / (min(height, width) * patch)
        return max(1, round(height * scale)), max(1, round(width * scale))
    side, aspect = input_size / patch, (width / height) ** 0.5
    exact = side / aspect, side * aspect
    rows, cols = (max(1, round(n)) for n in exact)
    while rows * cols > round(side) ** 2 and max(rows, cols) > 1:  # the side that rounding raised more gives way
        if rows == 1 or (cols > 1 and cols - exact[1] >= rows - exact[0]):
            cols -= 1
        else:
            rows -= 1
    return rows, cols


def on_grid(chosen: Rows, inside: Mask) -> Rows:
    """(B, T, D) of the rows (B, K, D) that belong `inside` (rows, columns) bool, K of them True; zeros elsewhere."""
    rows = np.zeros((len(chosen), inside.size, chosen.shape[-1]), np.float32)
    rows[:, inside.ravel()] = chosen
    return rows


def prepare(image: NDArray[np.uint8], grid: Grid, patch: int, size: tuple[int, int] | None = None) -> RGB:
    """A (H, W, 3) uint8 BGR ROI as contiguous RGB of exactly grid × patch pixels. No padding, no crop.

    `size`: height and width of the file where it was decoded to fewer pixels (see decode).
    """
    height, width = grid[0] * patch, grid[1] * patch
    if size is None or size == image.shape[:2]:
        resized = resize(image, height, width)
    else:
        resized = resize_means(image, size, height, width)
    return np.asarray(cv2.cvtColor(resized, cv2.COLOR_BGR2RGB), np.uint8)


def needed_by(extractor: Extractor, expected: Grid | None) -> Needed:
    """The pixels of an ROI that the extractor sees, on the ROI's own token grid and on `expected`."""

    def needed(height: int, width: int) -> tuple[int, int]:
        own = extractor.grid(height, width)
        rows, cols = map(max, own, expected or own)
        return extractor.patch * rows, extractor.patch * cols

    return needed

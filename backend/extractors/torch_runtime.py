"""Running an extractor's network with torch: autocast, CUDA graphs, and smaller batches where memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from backend.features import RGB, Extractor, Precision

Rows = NDArray[np.float32]

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
MEAN_COSINE, LEAST_COSINE = 0.9999, 0.999
_SIZES = 16
_GRAPHS = 8
_WARM_UPS = 3


class TokenNetwork(nn.Module):
    """From (B, H, W, 3) uint8 RGB to (B, T, D) float32 unit rows: what a runtime takes as a whole.

    Args:
        body: from a normalised (B, 3, H, W) batch to (B, T, D) tokens.
        mean, std: of the channels, 0–1, as the weights were trained with.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, body: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.body = body
        self.register_buffer("scale", torch.tensor([1 / (255 * s) for s in std]).view(1, 3, 1, 1))
        self.register_buffer("shift", torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(1, 3, 1, 1))

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) uint8 -> (B, T, D) float32."""
        batch = torch.addcmul(self.shift, pixels.permute(0, 3, 1, 2).float(), self.scale)
        return functional.normalize(self.body(batch).float(), dim=-1)


class ViTTokens(nn.Module):
    """The patch tokens of some blocks of a timm ViT, each through the final norm, concatenated."""

    def __init__(self, model: Any, blocks: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.blocks = list(blocks)

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised -> (B, T, D)."""
        taken = self.model.forward_intermediates(
            batch, indices=self.blocks, norm=True, stop_early=True, intermediates_only=True, output_fmt="NLC"
        )
        return torch.cat(taken, dim=-1)


class ResNetTokens(nn.Module):
    """layer2 joined with layer3 (bilinear to layer2's grid) of a timm ResNet, and shifted by an offset.

    Each level is averaged over neighbourhoods on its own grid, before it is resized (Roth et al. 2022, section 3.1,
    eq. 2). What lies beyond the border counts as 0, as in the authors' code: a patch at the border weighs less.

    Args:
        around: side of the neighbourhoods (odd, in tokens of each level) and their stride on layer2's grid.
        offset: what is added to the channels, up and down by turns, before their tokens are normalised. L2
            normalisation would lose how strongly a patch responds; beside a vector that no patch has of its own, unit
            rows keep it, and their distances come near those of the responses themselves.
    """

    offset: torch.Tensor

    def __init__(self, model: Any, *, dim: int, around: tuple[int, int] = (1, 1), offset: float = 0.0) -> None:
        super().__init__()
        self.model = model
        self.size, self.stride = around
        self.register_buffer("offset", offset * alternating(dim))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """(B, 3, H, W) normalised -> (B, H/8/stride · W/8/stride, D)."""
        model = self.model
        stem = model.maxpool(model.act1(model.bn1(model.conv1(batch))))
        layer2 = model.layer2(model.layer1(stem))
        layer3 = self._around(model.layer3(layer2), 1)
        layer2 = self._around(layer2, self.stride)
        layer3 = functional.interpolate(layer3, layer2.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat((layer2, layer3), dim=1).flatten(2).transpose(1, 2) + self.offset

    def _around(self, level: torch.Tensor, stride: int) -> torch.Tensor:
        if self.size == stride == 1:
            return level
        return functional.avg_pool2d(level, self.size, stride, self.size // 2)


def alternating(dim: int) -> torch.Tensor:
    """(dim,) +1, −1, +1, …: a direction that responses, none of them negative, have next to no part in."""
    return 1.0 - 2.0 * (torch.arange(dim) % 2)


class TorchExtractor(Extractor, Protocol):
    """An extractor whose network another runtime can take over."""

    def network(self, height: int, width: int) -> nn.Module:
        """The TokenNetwork for images of (height, width) px. It shares the extractor's weights."""
        ...


def check_image(height: int, width: int) -> RGB:
    """(height, width, 3) uint8 to compare runtimes with, always the same: colours, grain, and a flat black corner."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 8, 8)))
    smooth = functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    grain = rng.normal(0, 12, (height, width, 3))
    image = np.clip(smooth[0].permute(1, 2, 0).numpy() + grain, 0, 255).astype(np.uint8)
    image[: height // 2, : width // 2] = 0
    return image


@dataclass(frozen=True)
class Agreement:
    """How alike the unit rows of two runtimes are, as cosines of each token with its counterpart."""

    mean: float
    least: float

    @classmethod
    def of(cls, rows: Rows, reference: Rows) -> Agreement:
        """Compare (…, D) unit rows; what is not finite agrees with nothing.

        The offset that all ResNet tokens share is taken out: beside it any two would look alike.
        """
        rows, reference = _without_offset(rows), _without_offset(reference)
        cosines = np.nan_to_num(np.einsum("...d,...d->...", rows, reference), nan=-1.0)
        return cls(float(cosines.mean(dtype=np.float64)), float(cosines.min()))

    def __bool__(self) -> bool:
        return self.mean >= MEAN_COSINE and self.least >= LEAST_COSINE

    def __str__(self) -> str:
        return f"token cosine {self.mean:.6f} on average, {self.least:.6f} at least"


def _without_offset(rows: Rows) -> Rows:
    axis = alternating(rows.shape[-1]).numpy() / rows.shape[-1] ** 0.5
    left = rows - (rows @ axis)[..., None] * axis
    unit: Rows = left / np.maximum(np.linalg.norm(left, axis=-1, keepdims=True), 1e-12)
    return unit


class TorchRunner:
    """Runs networks on one device in one precision. Not for several threads at once: the queue has one.

    On CUDA each (batch, height, width) is captured once as a graph and replayed; pixels and rows travel through pinned
    memory. When the device's memory runs out a batch is halved, and one image goes to the CPU for good, with a warning.

    Args:
        model: holds the weights that `network` shares; moved to the device here.
        network: the TokenNetwork for (height, width).
        precision: `auto` is fp32 on a CPU, and fp16 on CUDA while it agrees with fp32 there.
    """

    def __init__(
        self,
        model: nn.Module,
        network: Callable[[int, int], nn.Module],
        *,
        device: str,
        precision: Precision = "auto",
        check_size: tuple[int, int],
    ) -> None:
        self.model = model
        self.build = network
        self._move(device)
        self.precision: str = "fp32" if precision == "auto" else precision
        if precision == "auto" and self.device == "cuda":
            self.precision = self._halved(check_size)

    def __call__(self, images: Sequence[RGB]) -> Rows:
        """(B, T, D) float32 unit rows of equally large (H, W, 3) uint8 images."""
        try:
            return self._rows(images)
        except torch.OutOfMemoryError:
            self._graph.cache_clear()
            torch.cuda.empty_cache()
        if len(images) > 1:
            half = len(images) // 2
            logger.warning("the GPU's memory is too small for %d images at once: trying %d", len(images), half)
            return np.concatenate([self(images[:half]), self(images[half:])])
        logger.warning("the GPU's memory is too small for one image: from here on the CPU does the work")
        self.precision = "fp32"
        self._move("cpu")
        return self._rows(images)

    def _move(self, device: str) -> None:
        self.device = device
        self.model.to(device)
        self._network = lru_cache(_SIZES)(lambda height, width: self.build(height, width).eval().to(device))
        self._graph = lru_cache(_GRAPHS)(lambda batch, height, width: _Graph(self, batch, height, width))

    def _halved(self, size: tuple[int, int]) -> str:
        images = [check_image(*size)]
        reference = self._eager(images)
        self.precision = "fp16"
        agreement = Agreement.of(self._eager(images), reference)
        if agreement:
            return "fp16"
        logger.warning("fp16 and fp32 differ on this GPU (%s): running in fp32", agreement)
        return "fp32"

    def _rows(self, images: Sequence[RGB]) -> Rows:
        if self.device != "cuda":
            return self._eager(images)
        batch = 1 << (len(images) - 1).bit_length()
        rows: Rows = self._graph(batch, *images[0].shape[:2])(images)
        return rows

    def _eager(self, images: Sequence[RGB]) -> Rows:
        pixels = torch.from_numpy(np.stack(images)).to(self.device)
        rows: Rows = self.forward(pixels).cpu().numpy()
        return rows

    @torch.inference_mode()
    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) uint8 on the device -> (B, T, D) float32 on the device."""
        network = self._network(*pixels.shape[1:3])
        low = self.precision != "fp32"
        with torch.autocast(self.device, DTYPES[self.precision] if low else None, enabled=low, cache_enabled=False):
            rows: torch.Tensor = network(pixels)
            return rows


class _Graph:
    """One batch size and image size, captured: a replay costs one launch instead of hundreds."""

    def __init__(self, runner: TorchRunner, batch: int, height: int, width: int) -> None:
        self._pinned = torch.zeros((batch, height, width, 3), dtype=torch.uint8, pin_memory=True)
        self._pixels = self._pinned.to(runner.device)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                runner.forward(self._pixels)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._rows = runner.forward(self._pixels)

    def __call__(self, images: Sequence[RGB]) -> Rows:
        n = len(images)
        np.stack(images, out=self._pinned.numpy()[:n])
        self._pixels.copy_(self._pinned, non_blocking=True)
        self._graph.replay()
        rows: Any = torch.empty((n, *self._rows.shape[1:]), dtype=torch.float32, pin_memory=True)
        rows.copy_(self._rows[:n], non_blocking=True)
        torch.cuda.current_stream().synchronize()
        array: Rows = rows.numpy()
        return array

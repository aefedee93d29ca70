"""From pixels to embeddings: the Extractor protocol, DINOv2 (any timm ViT) and the choice of an extractor."""

from __future__ import annotations

import copy
import importlib
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.base.errors import DeviceOutOfMemory, WeightsUnavailable
from backend.base.images import resize
from backend.extractors.weights import find_weights, fingerprint, load_weights, read_state, unknown_model

if TYPE_CHECKING:
    import torch
    from torch import nn

    from backend.extractors.torch_runtime import TorchExtractor

__all__ = [
    "RGB",
    "DinoV2Features",
    "Extractor",
    "Grid",
    "build_extractor",
    "find_weights",
    "fingerprint",
    "load_weights",
    "normaliser",
    "pick_device",
    "prepare",
    "read_state",
    "token_grid",
]

logger = logging.getLogger(__name__)

RGB = NDArray[np.uint8]
Grid = tuple[int, int]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Runtime = Literal["auto", "torch", "openvino"]


class Extractor(Protocol):
    """What turns prepared images into unit embeddings, one per cell of the token grid.

    `patch` is the side in pixels of a token's cell; an image must have sides that are multiples of it.
    `fingerprint` changes whenever embeddings would: memories of different fingerprints do not compare.
    """

    name: str
    dim: int
    patch: int
    input_size: int
    runtime: str
    fingerprint: str

    @property
    def device(self) -> str:
        """`cpu` or `cuda`; what the extractor runs on may change when memory runs out."""
        ...

    def extract(self, images: Sequence[RGB]) -> NDArray[np.float32]:
        """Embeddings of equally large (H, W, 3) uint8 RGB images: (B, T, dim) float32 with unit rows, row-major."""
        ...


def token_grid(height: int, width: int, *, input_size: int, patch: int) -> Grid:
    """Token rows and columns for an ROI of (height, width) px: its aspect, and at most (input_size / patch)² tokens.

    Each side is within one token of what aspect and budget ask for, unless that is less than one. 448×448 gives 32×32
    with patch 14, and an ROI twice as wide as high 22×45.
    """
    side, aspect = input_size / patch, (width / height) ** 0.5
    exact = side / aspect, side * aspect
    rows, cols = (max(1, round(n)) for n in exact)
    while rows * cols > round(side) ** 2 and max(rows, cols) > 1:  # the side that rounding raised more gives way
        if rows == 1 or (cols > 1 and cols - exact[1] >= rows - exact[0]):
            cols -= 1
        else:
            rows -= 1
    return rows, cols


def grid_of(extractor: Extractor, height: int, width: int) -> Grid:
    """The token grid of an ROI of (height, width) px for `extractor`."""
    if getattr(extractor, "smaller_edge", False):
        scale = extractor.input_size / (min(height, width) * extractor.patch)
        return round(height * scale), round(width * scale)
    return token_grid(height, width, input_size=extractor.input_size, patch=extractor.patch)


def widths_of(extractor: Extractor) -> tuple[int, ...]:
    """Columns of each of the blocks or levels that the extractor's tokens join."""
    return tuple(getattr(extractor, "widths", (extractor.dim,)))


def reach_of(extractor: Extractor) -> float:
    """Side, in cells of the token grid, of what one token sees by design: the neighbourhood it is averaged over, or 1.

    What covers less of the ROI than that is smeared over as much: the anomaly map cannot show it smaller.
    """
    return float(getattr(extractor, "reach", 1.0))


def prepare(image: NDArray[np.uint8], grid: Grid, patch: int) -> RGB:
    """A (H, W, 3) uint8 BGR ROI as contiguous RGB of exactly grid × patch pixels. No padding, no crop."""
    return np.asarray(cv2.cvtColor(resize(image, grid[0] * patch, grid[1] * patch), cv2.COLOR_BGR2RGB), np.uint8)


def build_extractor(  # noqa: PLR0913 - a keyword for each setting
    model_name: str,
    *,
    weights: str = "auto",
    input_size: int = 448,
    device: str = "auto",
    blocks: Sequence[int] = (),
    runtime: Runtime = "torch",
    precision: Precision = "auto",
    threads: int | None = None,
    weights_dir: Path | None = None,
    around: tuple[int | None, int] = (1, 1),
    offset: float = 0.0,
    tiles: tuple[int, float] = (1, 0.0),
    smaller_edge: bool = False,
) -> Extractor:
    """The extractor called `model_name`: any timm ViT, `resnet18`, or `texture`.

    Args:
        weights: a .safetensors/.pth file or a folder that has one; `auto`: `weights_dir`, then timm's hub name.
        runtime: who runs the network; `auto` takes OpenVINO on a CPU when it is installed and agrees with torch.
        precision: arithmetic of the network; `auto` takes the fastest that agrees with fp32.
        around: side and stride of the neighbourhoods that tokens are averaged over; None: 3 for ResNets, else 1.
        offset: of ResNets; see ResNetTokens.
        tiles: tiles per side that an ROI is seen in, and the share of each that its neighbour sees too.
        smaller_edge: `input_size` is the ROI's smaller edge, and not the root of its area.

    Raises:
        WeightsUnavailable: the weights cannot be found, read or fitted to the model.
        BackendUnavailable: `runtime` is openvino, and it is not installed.
    """
    from backend.extractors.neighbourhood import Neighbourhood, SmallerEdge, Tiled

    side, stride = around
    of_resnet = (3 if side is None else side, stride), offset
    extractor = _backbone(
        model_name,
        weights,
        input_size=input_size,
        device=device,
        blocks=blocks,
        runtime=runtime,
        precision=precision,
        threads=threads,
        weights_dir=weights_dir,
        of_resnet=of_resnet,
    )
    if tiles[0] > 1:
        extractor = Tiled(extractor, *tiles)
    if not is_resnet(model_name) and (side or 1, stride) != (1, 1):
        extractor = Neighbourhood(extractor, side or 1, stride)
    return SmallerEdge(extractor) if smaller_edge else extractor


def is_resnet(model_name: str) -> bool:
    """Whether `model_name` is one of timm's ResNets, whose layer2 and layer3 are used."""
    return model_name.startswith(("resnet", "wide_resnet"))


def _backbone(  # noqa: PLR0913
    model_name: str,
    weights: str,
    *,
    input_size: int,
    device: str,
    blocks: Sequence[int],
    runtime: Runtime,
    precision: Precision,
    threads: int | None,
    weights_dir: Path | None,
    of_resnet: tuple[tuple[int, int], float],
) -> Extractor:
    if model_name == "texture":
        from backend.extractors.texture import TextureFeatures

        return TextureFeatures(input_size)
    if threads:
        importlib.import_module("torch").set_num_threads(threads)
    reference: TorchExtractor
    if is_resnet(model_name):
        from backend.extractors.resnet import ResNetFeatures

        reference = ResNetFeatures(
            model_name,
            weights,
            input_size=input_size,
            device=device,
            precision=precision,
            around=of_resnet[0],
            offset=of_resnet[1],
            weights_dir=weights_dir,
        )
    else:
        reference = DinoV2Features(
            model_name,
            weights,
            input_size=input_size,
            device=device,
            blocks=blocks,
            precision=precision,
            weights_dir=weights_dir,
        )
    if runtime == "torch" or reference.device != "cpu":
        return reference
    from backend.extractors.openvino_runtime import with_openvino

    return with_openvino(reference, precision, threads=threads, insist=runtime == "openvino")


class DinoV2Features:
    """Patch tokens of a frozen ViT (Oquab et al. 2023, DINOv2), of two blocks, each through the final norm.

    The tokens of blocks 9 and 11 (of 12; the last and the one three quarters in for other depths) are concatenated and
    L2-normalised. Any grid works: timm resamples the position embeddings, once per grid.

    Raises:
        WeightsUnavailable: as build_extractor.
    """

    runtime = "torch"

    def __init__(
        self,
        model_name: str = "vit_small_patch14_dinov2.lvd142m",
        weights: str = "auto",
        *,
        input_size: int = 448,
        device: str = "auto",
        blocks: Sequence[int] = (),
        precision: Precision = "auto",
        weights_dir: Path | None = None,
    ) -> None:
        import timm

        from backend.extractors.torch_runtime import TorchRunner

        if not timm.is_model(model_name):
            raise WeightsUnavailable(model=model_name, reason=unknown_model())
        source = find_weights(model_name, weights, weights_dir)
        model: Any = timm.create_model(model_name, pretrained=False, num_classes=0)
        load_weights(model, source, model_name)
        self.name = model_name
        self.model = model.eval().requires_grad_(False)
        self.patch = int(model.patch_embed.patch_size[0])
        self.input_size = input_size
        depth = len(model.blocks)
        self.blocks = tuple(block % depth for block in blocks) or (depth - 3, depth - 1)
        self.widths = (int(model.embed_dim),) * len(self.blocks)
        self.dim = sum(self.widths)
        self.fingerprint = fingerprint(model, f"{model_name}|{self.blocks}|norm|cat|l2")
        side = round(input_size / self.patch) * self.patch
        self.run = TorchRunner(
            model, self.network, device=pick_device(device), precision=precision, check_size=(side, side)
        )

    @property
    def device(self) -> str:
        """`cpu` or `cuda`."""
        return self.run.device

    def network(self, height: int, width: int) -> nn.Module:
        """See TorchExtractor."""
        from backend.extractors.torch_runtime import TokenNetwork, ViTTokens

        cfg = self.model.pretrained_cfg
        shared = {id(t): t for t in (*self.model.parameters(), *self.model.buffers())}
        fixed = copy.deepcopy(self.model, shared)
        fixed.set_input_size((height, width))
        return TokenNetwork(ViTTokens(fixed, self.blocks), cfg["mean"], cfg["std"])

    def extract(self, images: Sequence[RGB]) -> NDArray[np.float32]:
        """See Extractor."""
        with device_memory():
            return self.run(images)


@contextmanager
def device_memory() -> Iterator[None]:
    """Turns torch's out of memory into DeviceOutOfMemory, which the queue knows what to do about."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as err:
        raise DeviceOutOfMemory(retry_after=5) from err


def pick_device(device: str) -> str:
    """`cuda` or `cpu` for a DEVICE setting."""
    import torch

    if device == "cuda" and not torch.cuda.is_available():
        logger.warning("DEVICE=cuda, but torch sees no CUDA device: running on the CPU")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def gpu_name() -> str | None:
    """Name of the CUDA device that torch sees, if any."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


def cpu_features() -> str:
    """The vector instructions that torch uses here, such as AVX512."""
    import torch

    return str(torch.backends.cpu.get_cpu_capability())


def normaliser(mean: Sequence[float], std: Sequence[float], device: str) -> Callable[[Sequence[RGB]], torch.Tensor]:
    """A function from equally large uint8 RGB images to a normalised (B, 3, H, W) float32 tensor on `device`."""
    import torch

    scale = torch.tensor([1 / (255 * s) for s in std], device=device).view(1, 3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device).view(1, 3, 1, 1)

    def normalise(images: Sequence[RGB]) -> torch.Tensor:
        batch = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2)
        return torch.addcmul(shift, batch.float(), scale)

    return normalise

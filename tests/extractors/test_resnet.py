from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch.nn import functional

from backend.base.errors import WeightsUnavailable
from backend.extractors.protocol import ExtractorOptions, prepare
from backend.extractors.resnet import DOCUMENTED, EMBEDDING_VERSIONS, RECOMMENDED, GreyResNet, ResNetFeatures
from tests.parts import part

Map = NDArray[np.float32]
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
STORED = "31d5e0ac19f4c8c2"
STORED_GREY = ("1b88bdb7e5cc690f", "8f9b08bfe8c8da9b", "f1475a8455096981")
PLAIN = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


@pytest.fixture(scope="module")
def model() -> Any:
    torch.manual_seed(3)
    model: Any = timm.create_model("resnet18.tv_in1k", pretrained=False).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    return model


@pytest.fixture(scope="module")
def weights(model: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("w") / "resnet18.safetensors"
    save_file(model.state_dict(), path)
    return str(path)


def own(weights: str, **given: Any) -> ResNetFeatures:
    return ResNetFeatures(ExtractorOptions(model_name="resnet18", weights=weights, device="cpu", **given))


def levels(model: Any, pixels: NDArray[np.uint8], normalised: Any = IMAGENET) -> tuple[Map, Map]:
    """(C, H, W) layer2 and layer3 of one image, as hooks see them in timm's own forward pass."""
    taken: dict[str, Map] = {}
    hooks = [
        getattr(model, name).register_forward_hook(lambda _, __, out, n=name: taken.update({n: out[0].numpy()}))
        for name in ("layer2", "layer3")
    ]
    mean, std = (np.array(values, np.float32) for values in normalised)
    with torch.no_grad():
        model(torch.from_numpy(((pixels / np.float32(255) - mean) / std).transpose(2, 0, 1)[None].copy()))
    for hook in hooks:
        hook.remove()
    return taken["layer2"], taken["layer3"]


def resized(level: Map, shape: tuple[int, ...]) -> Map:
    given = torch.from_numpy(level)[None]
    return np.asarray(functional.interpolate(given, shape, mode="bilinear", align_corners=False)[0].numpy())


def unit(rows: Map) -> Map:
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def averaged(level: Map, side: int, *, outside: bool) -> Map:
    """Means over windows; what lies outside the image counts as zeros, or does not count."""
    out, h = np.zeros_like(level), side // 2
    for y in range(level.shape[1]):
        for x in range(level.shape[2]):
            window = level[:, max(0, y - h) : y + h + 1, max(0, x - h) : x + h + 1]
            out[:, y, x] = window.sum(axis=(1, 2)) / (side**2 if outside else window[0].size)
    return out


@pytest.mark.parametrize("grid", [(12, 12), (7, 19)])
def test_tokens_are_layer2_and_layer3_of_the_network(model: Any, weights: str, grid: tuple[int, int]) -> None:
    extractor = own(weights, patch_size=1, offset=0.0)
    assert (extractor.patch, extractor.dim) == (8, 384)
    image = prepare(part(5), grid, 8)
    layer2, layer3 = levels(model, image)
    assert layer2.shape[1:] == grid
    expected = unit(np.concatenate([layer2, resized(layer3, grid)]).reshape(384, -1).T)
    tokens = extractor.extract([image])
    assert tokens.dtype == np.float32 and np.abs(tokens[0] - expected).max() < 1e-5


@pytest.mark.parametrize(("size", "side"), [(None, 3), (5, 5)])
def test_levels_are_averaged_before_they_are_joined_and_shifted(
    model: Any, weights: str, rng: np.random.Generator, size: int | None, side: int
) -> None:
    extractor = own(weights, patch_size=size, stride=2, offset=0.7)
    pixels = rng.integers(0, 255, (64, 96, 3), dtype=np.uint8)
    layer2, layer3 = (averaged(level, side, outside=True) for level in levels(model, pixels))
    layer2 = layer2[:, ::2, ::2]
    joined = np.concatenate([layer2, resized(layer3, layer2.shape[1:])]).reshape(384, -1).T
    expected = unit(joined + np.where(np.arange(384) % 2, np.float32(-0.7), np.float32(0.7)))
    assert extractor.patch == 16
    np.testing.assert_allclose(extractor.extract([pixels])[0], expected, atol=1e-5)


@pytest.mark.parametrize("version", EMBEDDING_VERSIONS)
@pytest.mark.parametrize("stride", [1, 3])
def test_a_grey_embedding_is_what_its_version_says(
    model: Any, weights: str, rng: np.random.Generator, version: str, stride: int
) -> None:
    options = ExtractorOptions(weights=weights, input_size=60, stride=stride, device="cpu")
    extractor = GreyResNet(options, version)
    grey = np.repeat(rng.integers(0, 255, (60, 60, 1), dtype=np.uint8), 3, axis=2)
    layer2, layer3 = levels(model, grey, PLAIN if version == DOCUMENTED else IMAGENET)
    if version == RECOMMENDED:
        layer2, layer3 = averaged(layer2, 5, outside=False), averaged(layer3, 3, outside=False)
    layer3 = resized(layer3, layer2.shape[1:])
    if version == RECOMMENDED:
        layer2, layer3 = (level / np.linalg.norm(level, axis=0) for level in (layer2, layer3))
    joined = np.concatenate([layer2, layer3])[:, ::stride, ::stride]
    tokens = extractor.extract([grey])
    assert extractor.grid(500, 20) == joined.shape[1:] == ((8, 8) if stride == 1 else (3, 3))
    np.testing.assert_allclose(tokens[0], unit(joined.reshape(384, -1).T), atol=1e-5)


def test_fingerprints_tell_what_changes_embeddings(weights: str) -> None:
    options = ExtractorOptions(weights=weights, device="cpu")
    made = [own(weights), own(weights, patch_size=5), own(weights, offset=1.6)]
    made_grey = [GreyResNet(options, version) for version in EMBEDDING_VERSIONS]
    assert len({extractor.fingerprint for extractor in (*made, *made_grey)}) == 6
    assert own(weights, patch_size=3).fingerprint == own(weights, input_size=256).fingerprint


def test_the_fingerprints_of_stored_memories_and_banks_hold(shared_data: Path) -> None:
    """Stored memories hang on these: whoever changes how tokens are taken, changes them on purpose."""
    options = ExtractorOptions(weights=str(shared_data / "weights" / "resnet18_layers1-3.safetensors"), device="cpu")
    assert own(options.weights).fingerprint == STORED
    assert tuple(GreyResNet(options, version).fingerprint for version in EMBEDDING_VERSIONS) == STORED_GREY


def test_weights_need_not_hold_the_unused_layers(tmp_path: Path, model: Any, weights: str) -> None:
    state = {k: v for k, v in model.state_dict().items() if not k.startswith(("layer4", "fc"))}
    save_file(state, tmp_path / "trunk.safetensors")
    assert own(str(tmp_path / "trunk.safetensors")).fingerprint == own(weights).fingerprint


@pytest.mark.parametrize("lost", ["layer3.0.conv1.weight", "bn1.running_mean"])
def test_weights_that_lack_a_used_tensor_are_refused(tmp_path: Path, model: Any, lost: str) -> None:
    state = model.state_dict()
    save_file({k: v for k, v in state.items() if k != lost}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsUnavailable, match=r"tensors_missing\(.*n=1\)"):
        own(str(tmp_path / "w.safetensors"))
    save_file({**state, lost: torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsUnavailable, match="weights_misfit"):
        own(str(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("data", [b"", b"garbage" * 50, b"PK\x03\x04" + bytes(60)])
def test_a_file_that_holds_no_weights_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "junk.pth").write_bytes(data)
    with pytest.raises(WeightsUnavailable, match="junk"):
        own(str(tmp_path / "junk.pth"))


def test_an_unknown_resnet_is_named() -> None:
    with pytest.raises(WeightsUnavailable, match="resnet_unheard_of"):
        ResNetFeatures(ExtractorOptions(model_name="resnet_unheard_of"))

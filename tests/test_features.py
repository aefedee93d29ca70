from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from timm.models import register_model
from timm.models.vision_transformer import vit_giant_patch14_dinov2
from torch.nn import functional

from backend.api.catalogue import sentence
from backend.base.config import Settings
from backend.base.errors import InvalidSettings, WeightsUnavailable
from backend.extractors.neighbourhood import Neighbourhood, Tiled
from backend.extractors.protocol import ExtractorOptions, prepare
from backend.extractors.resnet import ResNetFeatures
from backend.extractors.texture import TextureFeatures
from backend.features import DinoV2Features, build_extractor, check_options
from backend.service.host import ExtractorHost
from tests.parts import part

NAME = "vit_small_patch14_dinov2.lvd142m"


@pytest.fixture(scope="module")
def vit() -> Any:
    """The real architecture with seeded weights, livelier than timm's initial ones."""
    torch.manual_seed(7)
    model: Any = timm.create_model(NAME, pretrained=False, num_classes=0, dynamic_img_size=True).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    return model


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, vit: Any) -> str:
    path = tmp_path_factory.mktemp("weights") / "timm.safetensors"
    save_file(vit.state_dict(), path)
    return str(path)


@pytest.fixture(scope="module")
def extractor(weights: str) -> DinoV2Features:
    return DinoV2Features(model_name=NAME, weights=weights, input_size=448, device="cpu")


def reference(model: Any, image: NDArray[np.uint8], blocks: list[int]) -> NDArray[np.float32]:
    """The tokens as timm gives them for pixels normalised as torchvision would: to 0–1, minus mean, over deviation."""
    cfg = model.pretrained_cfg
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    x = (x - torch.tensor(cfg["mean"]).view(1, 3, 1, 1)) / torch.tensor(cfg["std"]).view(1, 3, 1, 1)
    with torch.no_grad():
        _, maps = model.forward_intermediates(x, indices=blocks, norm=True)
    joined = torch.cat(maps, dim=1).flatten(2).transpose(1, 2)
    return np.asarray(functional.normalize(joined, dim=-1).numpy())


@pytest.mark.parametrize("grid", [(32, 32), (22, 45), (8, 8), (5, 13), (37, 37)])
def test_tokens_are_timms_own(vit: Any, extractor: DinoV2Features, grid: tuple[int, int]) -> None:
    image = prepare(part(1, height=90, width=120), grid, 14)
    tokens = extractor.extract([image])
    assert tokens.shape == (1, grid[0] * grid[1], 768) and tokens.dtype == np.float32
    assert np.abs(tokens - reference(vit, image, [9, 11])).max() < 1e-5
    assert np.allclose(np.linalg.norm(tokens, axis=2), 1, atol=1e-5)


@register_model
def small_swiglu_dinov2(pretrained: bool = False, **kwargs: Any) -> Any:
    """The layout of timm's DINOv2 giant, whose blocks have a SwiGLU, as deep as a test can wait for."""
    return vit_giant_patch14_dinov2(pretrained, depth=8, embed_dim=48, num_heads=3, **kwargs)


def test_a_network_of_the_giants_layout_and_another_depth(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model: Any = timm.create_model("small_swiglu_dinov2", num_classes=0, dynamic_img_size=True).eval()
    assert "Glu" in type(model.blocks[0].mlp).__name__
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    own = DinoV2Features(model_name="small_swiglu_dinov2", weights=str(tmp_path / "w.safetensors"), device="cpu")
    image = prepare(part(1), (5, 6), 14)
    assert own.blocks == (6, 7) and own.dim == 96
    assert np.abs(own.extract([image]) - reference(model, image, [6, 7])).max() < 1e-5


def test_a_batch_gives_what_its_images_give_alone(extractor: DinoV2Features) -> None:
    images = [prepare(part(seed), (6, 7), 14) for seed in range(3)]
    together = extractor.extract(images)
    alone = np.concatenate([extractor.extract([image]) for image in images])
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(together[0] - together[1]).max() > 1e-3


def test_blocks_may_be_chosen(vit: Any, weights: str, extractor: DinoV2Features) -> None:
    own = DinoV2Features(weights=weights, device="cpu", blocks=(2, 5, -5))
    image = prepare(part(3), (5, 5), 14)
    assert own.dim == 3 * 384
    assert np.abs(own.extract([image]) - reference(vit, image, [2, 5, 7])).max() < 1e-5
    assert own.fingerprint != extractor.fingerprint


def test_an_option_that_there_is_not_is_an_error() -> None:
    with pytest.raises(TypeError, match="blokcs"):
        DinoV2Features(blokcs=(1,))


def test_options_and_keywords_say_the_same(weights: str, extractor: DinoV2Features) -> None:
    options = ExtractorOptions(weights=weights, device="cuda", input_size=448)
    own = DinoV2Features(options, device="cpu")
    image = prepare(part(2), (4, 4), 14)
    assert own.fingerprint == extractor.fingerprint and own.input_size == 448
    assert (own.extract([image]) == extractor.extract([image])).all()


@pytest.mark.parametrize("name", ["no_such_model", "resnet_unheard_of"])
def test_an_unknown_model_is_named(name: str) -> None:
    with pytest.raises(WeightsUnavailable, match=name):
        build_extractor(ExtractorOptions(model_name=name))


def test_a_trained_vit_of_another_patch_size(shared_data: Path) -> None:
    path = shared_data / "weights" / "vit_tiny_patch16_224.safetensors"
    own = DinoV2Features(model_name="vit_tiny_patch16_224", weights=str(path), device="cpu")
    model: Any = timm.create_model("vit_tiny_patch16_224", pretrained=False, dynamic_img_size=True)
    model.load_state_dict({**model.state_dict(), **load_file(path)})
    image = prepare(part(1), (10, 14), 16)
    assert own.patch == 16 and own.dim == 384
    assert np.abs(own.extract([image]) - reference(model.eval(), image, [9, 11])).max() < 1e-5


def test_options_choose_what_is_built_and_what_is_around_it(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet18", pretrained=False).state_dict(), tmp_path / "resnet18.safetensors")
    options = ExtractorOptions(
        model_name="texture", weights=str(tmp_path), input_size=112, input_edge="smaller", device="cpu", runtime="torch"
    )
    assert isinstance(build_extractor(options), TextureFeatures)
    around = build_extractor(replace(options, patch_size=3, stride=2, tiles=2, tile_overlap=0.5))
    assert isinstance(around, Neighbourhood) and (around.size, around.stride) == (3, 2)
    assert isinstance(around.inner, Tiled) and (around.inner.tiles, around.inner.overlap) == (2, 0.5)
    assert around.grid(100, 200) == (6, 12)
    resnet = build_extractor(replace(options, model_name="resnet18", patch_size=5, stride=2))
    assert isinstance(resnet, ResNetFeatures) and (resnet.window, resnet.stride) == (5, 2)
    assert resnet.grid(100, 200) == (7, 14)


def test_threads_are_set_when_asked(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet18", pretrained=False).state_dict(), tmp_path / "w.safetensors")
    before = torch.get_num_threads()
    try:
        build_extractor(ExtractorOptions(model_name="resnet18", weights=str(tmp_path), runtime="torch", threads=1))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("blocks", [("12",), ("-13",), ("9", "99")])
def test_a_block_that_the_network_does_not_have_is_refused_by_name_at_the_start(
    tmp_path: Path, blocks: tuple[str, ...]
) -> None:
    host = ExtractorHost(Settings(blocks=blocks, models_dir=tmp_path))
    with pytest.raises(InvalidSettings) as caught:
        host.start()
    assert "BLOCKS" in sentence(caught.value, "en") and blocks[-1] in sentence(caught.value, "es")
    check_options(ExtractorOptions(blocks=(11, -12)))

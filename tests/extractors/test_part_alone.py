"""Tokens that a network leaves out: those that stay are embedded as if the others had never been."""

from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.layers.pos_embed import resample_abs_pos_embed
from torch.nn import functional

from backend.base.errors import PartNotAlone
from backend.evaluation.runner import RememberingExtractor
from backend.extractors.export import export_bytes
from backend.extractors.neighbourhood import Neighbourhood, Tiled, unit_rows, windows_summed
from backend.extractors.openvino_runtime import OpenVinoFeatures
from backend.extractors.protocol import Extractor, ExtractorOptions, prepare
from backend.extractors.weights import write_random_weights
from backend.features import DinoV2Features, build_extractor, torch_network
from tests.parts import part

NAME = "vit_tiny_patch16_224"
BLOCKS = (0, 1)  # later ones are not run, and converting a network takes time with each of its blocks
GRID = (6, 5)
openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is not installed (pip install .[openvino])"
)


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> ExtractorOptions:
    path = write_random_weights(NAME, tmp_path_factory.mktemp("tiny") / "w.safetensors", np.random.default_rng(0))
    return ExtractorOptions(
        model_name=NAME,
        weights=str(path),
        input_size=96,
        device="cpu",
        precision="fp32",
        runtime="torch",
        blocks=BLOCKS,
    )


@pytest.fixture(scope="module")
def vit(options: ExtractorOptions) -> DinoV2Features:
    return DinoV2Features(options)


@pytest.fixture(scope="module")
def compiled(vit: DinoV2Features) -> OpenVinoFeatures:
    return OpenVinoFeatures(vit, "fp32")


@pytest.fixture(scope="module", params=["torch", pytest.param("openvino", marks=openvino)])
def network(vit: DinoV2Features, request: pytest.FixtureRequest) -> Extractor:
    found: Extractor = vit if request.param == "torch" else request.getfixturevalue("compiled")
    return found


def pictures(*grid: int, patch: int = 16) -> list[Any]:
    return [prepare(part(seed), (grid[0], grid[1]), patch) for seed in range(3)]


def insides() -> list[Any]:
    """Parts of different sizes on GRID."""
    square, ring = np.zeros(GRID, bool), np.ones(GRID, bool)
    square[1:4, 2:4], ring[2:5, 1:4] = True, False
    return [square, ring, np.ones(GRID, bool)]


def dropped(vit: DinoV2Features, images: Sequence[Any], inside: Any) -> Any:
    """(B, K, D): the tokens inside, in torch alone, of a sequence that never had the others."""
    model, cfg = vit.model, vit.model.pretrained_cfg
    fixed: Any = timm.create_model(NAME, pretrained=False, num_classes=0, img_size=images[0].shape[:2])
    state = model.state_dict()
    state["pos_embed"] = resample_abs_pos_embed(
        state["pos_embed"], [images[0].shape[0] // 16, images[0].shape[1] // 16], num_prefix_tokens=1
    )
    fixed.load_state_dict(state)
    fixed.eval()
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    batch = (pixels - torch.tensor(cfg["mean"]).view(1, 3, 1, 1)) / torch.tensor(cfg["std"]).view(1, 3, 1, 1)
    with torch.inference_mode():
        tokens = fixed._pos_embed(fixed.patch_embed(batch))
        tokens = tokens[:, np.concatenate([[True], inside.ravel()])]
        taken = []
        for block in fixed.blocks[:2]:
            tokens = block(tokens)
            taken.append(fixed.norm(tokens)[:, 1:])
        return functional.normalize(torch.cat(taken, dim=-1), dim=-1).numpy()


@pytest.mark.parametrize("number", range(3))
def test_the_tokens_that_stay_are_those_of_a_sequence_without_the_others(
    vit: DinoV2Features, network: Extractor, number: int
) -> None:
    images, inside = pictures(*GRID), insides()[number]
    rows = network.extract_part(images, inside)
    assert rows.shape == (3, 30, 384) and rows.dtype == np.float32
    assert not rows[:, ~inside.ravel()].any()
    assert np.abs(rows[:, inside.ravel()] - dropped(vit, images, inside)).max() < 1e-5
    alone = np.concatenate([network.extract_part([image], inside) for image in images])
    assert np.abs(rows - alone).max() < 1e-5


def test_a_part_that_is_all_of_the_image_is_seen_as_the_image(network: Extractor) -> None:
    images = pictures(*GRID)
    assert np.abs(network.extract_part(images, np.ones(GRID, bool)) - network.extract(images)).max() < 1e-5


def test_the_whole_image_is_seen_again_after_a_part(network: Extractor) -> None:
    images = pictures(*GRID)
    before = network.extract(images)
    network.extract_part(images, insides()[0])
    assert np.array_equal(network.extract(images), before)


def test_what_is_beside_the_part_touches_nothing(network: Extractor) -> None:
    (image, *_), inside = pictures(*GRID), insides()[0]
    other = np.where(np.kron(inside, np.ones((16, 16), bool))[..., None], image, 255 - image)
    assert np.array_equal(network.extract_part([image], inside), network.extract_part([other], inside))
    whole, of_other = network.extract([image])[0], network.extract([other])[0]
    assert np.abs(whole - of_other)[inside.ravel()].max() > 1e-3


@openvino
def test_parts_of_all_sizes_share_one_compiled_network(compiled: OpenVinoFeatures) -> None:
    compiled.extract_part(pictures(*GRID)[:1], insides()[0])
    before = compiled._alone.cache_info()
    for inside in insides():
        compiled.extract_part(pictures(*GRID)[:1], inside)
    assert compiled._alone.cache_info().misses == before.misses


def test_runtimes_agree_and_share_memories(vit: DinoV2Features) -> None:
    assert vit.leaves_out and vit.fingerprint_of(part_alone=False) == vit.fingerprint
    alone = vit.fingerprint_of(part_alone=True)
    assert alone != vit.fingerprint and vit.made(alone) and vit.made(vit.fingerprint) and vit.made(None)
    assert not vit.made("another") and not vit.made("another/part")
    if find_spec("openvino"):
        assert OpenVinoFeatures(vit, "fp32").fingerprint_of(part_alone=True) == alone


@openvino
@pytest.mark.parametrize("name", [NAME, "vit_small_patch14_reg4_dinov2.lvd142m"])
def test_an_exported_network_leaves_out_what_torchs_does(name: str, tmp_path: Path) -> None:
    weights = write_random_weights(name, tmp_path / "w.safetensors", np.random.default_rng(0))
    options = ExtractorOptions(model_name=name, weights=str(weights), input_size=96, precision="fp32", blocks=BLOCKS)
    reference, exported = torch_network(options), tmp_path / "vit.bdix"
    exported.write_bytes(export_bytes(reference).data)
    own = build_extractor(replace(options, weights=str(exported)))
    images = pictures(*GRID, patch=own.patch)
    assert own.leaves_out and own.fingerprint == reference.fingerprint
    for inside in insides():
        assert np.abs(own.extract_part(images, inside) - reference.extract_part(images, inside)).max() < 1e-5
    assert np.abs(own.extract(images) - reference.extract(images)).max() < 1e-5


def test_an_extractor_that_leaves_nothing_out_says_so(options: ExtractorOptions, tmp_path: Path) -> None:
    resnet = write_random_weights("resnet18", tmp_path / "resnet.safetensors", np.random.default_rng(0))
    others = [
        replace(options, model_name="texture"),
        replace(options, model_name="resnet18", weights=str(resnet)),
        replace(options, model_name="texture", tiles=2),
    ]
    for other in map(build_extractor, others):
        assert not other.leaves_out
        assert not other.made(other.fingerprint_of(part_alone=True))
        with pytest.raises(PartNotAlone, match=other.name):
            other.extract_part(pictures(2, 2, patch=other.patch), np.eye(2, dtype=bool))


def test_a_vit_that_tells_positions_otherwise_leaves_nothing_out_and_runs_as_before(tmp_path: Path) -> None:
    name = "vit_small_patch16_dinov3.lvd1689m"  # it turns queries and keys by their positions
    path = write_random_weights(name, tmp_path / "w.safetensors", np.random.default_rng(0))
    own = DinoV2Features(model_name=name, weights=str(path), input_size=96, device="cpu", blocks=BLOCKS)
    images = pictures(*GRID)
    rows = own.extract(images)
    assert rows.shape == (3, 30, own.dim) and np.allclose(np.linalg.norm(rows, axis=-1), 1, atol=1e-5)
    assert not own.leaves_out
    with pytest.raises(PartNotAlone, match=name):
        own.extract_part(images, insides()[0])


@pytest.mark.parametrize("stride", [1, 2])
def test_a_neighbourhood_knows_the_tokens_of_the_part_alone(vit: DinoV2Features, stride: int) -> None:
    own, inside = Neighbourhood(vit, 3, stride), np.zeros((3, 3), bool)
    inside[1:, :2] = True
    image = prepare(part(1), (3, 3), own.patch)
    finer = np.kron(inside, np.ones((stride, stride), bool))
    rows = own.extract_part([image], finer[::stride, ::stride])[0]
    kept = vit.extract_part([image], finer).reshape(1, 3 * stride, 3 * stride, -1)
    around = unit_rows(windows_summed(windows_summed(kept, 3, axis=1), 3, axis=2))[0]
    start = stride // 2
    wanted = around[start::stride, start::stride][inside]
    assert own.leaves_out and np.allclose(rows[inside.ravel()], wanted, atol=1e-6)
    assert not rows[~inside.ravel()].any()


def test_tiles_see_their_share_of_the_part(vit: DinoV2Features) -> None:
    own, inside = Tiled(vit, 2, 0.0), np.zeros((8, 8), bool)
    inside[1:4, 1:4] = inside[2:6, 6] = True
    (image,) = [prepare(part(1), (8, 8), 16)]
    rows = own.extract_part([image], inside)[0].reshape(8, 8, -1)
    for down in (slice(0, 4), slice(4, 8)):
        for across in (slice(0, 4), slice(4, 8)):
            here = inside[down, across]
            tile = image[down.start * 16 : down.stop * 16, across.start * 16 : across.stop * 16]
            wanted = vit.extract_part([tile], here)[0].reshape(4, 4, -1) if here.any() else np.zeros((4, 4, own.dim))
            assert np.allclose(rows[down, across], wanted, atol=1e-6)
    other = np.where(np.kron(inside, np.ones((16, 16), bool))[..., None], image, 0).astype(np.uint8)
    assert np.array_equal(own.extract_part([other], inside), own.extract_part([image], inside))


def test_tokens_that_are_remembered_are_those_of_their_part(vit: DinoV2Features, tmp_path: Path) -> None:
    own, (image, *_) = RememberingExtractor(vit, tmp_path), pictures(*GRID)
    for _ in range(2):
        for inside in insides():
            assert np.array_equal(own.extract_part([image], inside), vit.extract_part([image], inside))
        assert np.array_equal(own.extract([image]), vit.extract([image]))

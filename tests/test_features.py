import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch.nn import functional

from backend.api.catalogue import sentence
from backend.base.errors import DeviceOutOfMemory, WeightsUnavailable
from backend.extractors.resnet import ResNetFeatures
from backend.features import DinoV2Features, build_extractor, find_weights, pick_device, prepare, read_state, token_grid
from tests.parts import part

NAME = "vit_small_patch14_dinov2.lvd142m"
State = dict[str, torch.Tensor]


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
def timm_state(vit: Any) -> State:
    return {name: tensor.clone() for name, tensor in vit.state_dict().items()}


@pytest.fixture(scope="module")
def meta_state(timm_state: State) -> State:
    """The same weights under the names of Meta's dinov2_vits14_pretrain.pth, which also holds a mask token."""
    state = {"mask_token": torch.zeros(1, timm_state["cls_token"].shape[-1]), **timm_state}
    assert state["pos_embed"].shape == (1, 1370, 384)
    return state


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, timm_state: State, meta_state: State) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("weights")
    files: dict[str, Any] = {
        "timm.safetensors": timm_state,
        "timm.pth": timm_state,
        "dinov2_vits14_pretrain.pth": meta_state,
        "teacher.pth": {"teacher": meta_state},
        "state_dict.pth": {"state_dict": timm_state},
    }
    for name, state in files.items():
        path = folder / name
        save_file(state, path) if path.suffix == ".safetensors" else torch.save(state, path)
    return {name: folder / name for name in files}


@pytest.fixture(scope="module")
def extractor(weights: dict[str, Path]) -> DinoV2Features:
    return DinoV2Features(NAME, str(weights["dinov2_vits14_pretrain.pth"]), device="cpu")


def normalised(image: NDArray[np.uint8], cfg: dict[str, Any]) -> torch.Tensor:
    """As torchvision would: to [0, 1], minus mean, over standard deviation."""
    x = torch.from_numpy(image.copy()).permute(2, 0, 1)[None].float() / 255
    return (x - torch.tensor(cfg["mean"]).view(1, 3, 1, 1)) / torch.tensor(cfg["std"]).view(1, 3, 1, 1)


def reference(model: Any, image: NDArray[np.uint8], blocks: list[int]) -> NDArray[np.float32]:
    with torch.no_grad():
        _, maps = model.forward_intermediates(normalised(image, model.pretrained_cfg), indices=blocks, norm=True)
    joined = torch.cat(maps, dim=1).flatten(2).transpose(1, 2)
    return np.asarray(functional.normalize(joined, dim=-1).numpy())


@pytest.mark.parametrize("grid", [(32, 32), (22, 45), (8, 8), (5, 13), (37, 37)])
def test_tokens_are_timms_own(vit: Any, extractor: DinoV2Features, grid: tuple[int, int]) -> None:
    image = prepare(part(1, height=90, width=120), grid, 14)
    tokens = extractor.extract([image])
    assert tokens.shape == (1, grid[0] * grid[1], 768) and tokens.dtype == np.float32
    assert np.abs(tokens - reference(vit, image, [9, 11])).max() < 1e-5
    assert np.allclose(np.linalg.norm(tokens, axis=2), 1, atol=1e-5)


def test_a_batch_gives_what_its_images_give_alone(extractor: DinoV2Features) -> None:
    images = [prepare(part(seed), (6, 7), 14) for seed in range(3)]
    together = extractor.extract(images)
    alone = np.concatenate([extractor.extract([image]) for image in images])
    assert np.abs(together - alone).max() < 1e-5
    assert np.abs(together[0] - together[1]).max() > 1e-3


@pytest.mark.parametrize("name", ["timm.safetensors", "timm.pth", "teacher.pth", "state_dict.pth"])
def test_every_layout_of_the_same_weights_is_the_same_extractor(
    weights: dict[str, Path], extractor: DinoV2Features, name: str
) -> None:
    other = DinoV2Features(NAME, str(weights[name]), device="cpu")
    assert other.fingerprint == extractor.fingerprint
    image = prepare(part(2), (4, 4), 14)
    assert (other.extract([image]) == extractor.extract([image])).all()


def test_the_fingerprint_tells_weights_and_blocks_apart(
    tmp_path: Path, timm_state: State, weights: dict[str, Path], extractor: DinoV2Features
) -> None:
    timm_state = {**timm_state, "norm.bias": timm_state["norm.bias"] + 1e-3}
    save_file(timm_state, tmp_path / "w.safetensors")
    others = [
        DinoV2Features(NAME, str(tmp_path / "w.safetensors"), device="cpu"),
        DinoV2Features(NAME, str(weights["timm.pth"]), device="cpu", blocks=(5, 11)),
    ]
    assert len({extractor.fingerprint, *(other.fingerprint for other in others)}) == 3


def test_blocks_may_be_chosen(vit: Any, weights: dict[str, Path]) -> None:
    own = DinoV2Features(NAME, str(weights["timm.pth"]), device="cpu", blocks=(2, 5, 7))
    image = prepare(part(3), (5, 5), 14)
    assert own.dim == 3 * 384
    assert np.abs(own.extract([image]) - reference(vit, image, [2, 5, 7])).max() < 1e-5


def test_a_folder_or_the_weights_folder_will_do(tmp_path: Path, meta_state: State) -> None:
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    torch.save(meta_state, path)
    assert find_weights(NAME, str(tmp_path), None) == path
    assert find_weights(NAME, "auto", tmp_path) == path
    path.rename(tmp_path / "anything.pth")
    assert find_weights(NAME, str(tmp_path), None) == tmp_path / "anything.pth"


class Trap:
    """What a hostile .pth holds."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("write", [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o, protocol=2))])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path: Path, write: Callable[[Any, Path], Any]) -> None:
    write({"cls_token": Trap(tmp_path / "sprung")}, tmp_path / "evil.pth")
    with pytest.raises(WeightsUnavailable, match=r"evil\.pth"):
        DinoV2Features(NAME, str(tmp_path / "evil.pth"), device="cpu")
    assert not (tmp_path / "sprung").exists()


WRONG: dict[str, Callable[[State], Any]] = {
    "nothing": lambda _: {},
    "a list": lambda state: list(state.values()),
    "one tensor": lambda state: state["cls_token"],
    "missing tensors": lambda state: dict(list(state.items())[:20]),
    "extra tensors": lambda state: {**state, "blocks.12.norm1.weight": torch.zeros(384)},
    "another width": lambda state: {k: v[..., : v.shape[-1] // 2] for k, v in state.items()},
    "numbers": lambda state: dict.fromkeys(state, 1.0),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_weights_are_unavailable_weights(tmp_path: Path, timm_state: State, kind: str) -> None:
    torch.save(WRONG[kind](timm_state), tmp_path / "wrong.pth")
    with pytest.raises(WeightsUnavailable, match=r"wrong\.pth") as caught:
        DinoV2Features(NAME, str(tmp_path / "wrong.pth"), device="cpu")
    assert len(sentence(caught.value, "es")) < 700


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".pt"])
@pytest.mark.parametrize(
    "data", [b"", b"garbage" * 50, b"PK\x03\x04" + bytes(60), b"\x80\x02}q\x00.", bytes(range(256))]
)
def test_files_that_hold_no_weights_are_unavailable_weights(tmp_path: Path, ending: str, data: bytes) -> None:
    path = tmp_path / f"junk{ending}"
    path.write_bytes(data)
    for name in (NAME, "resnet18"):
        with pytest.raises(WeightsUnavailable, match="junk"):
            build_extractor(name, weights=str(path))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_corrupted_checkpoint_is_read_or_refused_and_nothing_else(tmp_path: Path, rng: np.random.Generator) -> None:
    path = tmp_path / "w.pth"
    torch.save({"a": torch.zeros(3, 4), "b.c": torch.ones(2)}, path, _use_new_zipfile_serialization=False)
    sound = np.frombuffer(path.read_bytes(), np.uint8)
    refused = 0
    for _ in range(200):
        data = sound.copy()
        data[rng.integers(0, len(data), 3)] = rng.integers(0, 256, 3)
        path.write_bytes(data.tobytes())
        try:
            read_state(path, "model")
        except WeightsUnavailable:
            refused += 1
    assert refused > 100


def test_weights_that_are_nowhere_say_where_to_put_them(tmp_path: Path) -> None:
    for weights in ("auto", "hub", str(tmp_path / "absent.pth"), str(tmp_path)):
        with pytest.raises(WeightsUnavailable) as caught:
            build_extractor("vit_base_patch14_dinov2.lvd142m", weights=weights, weights_dir=tmp_path)
        assert "WEIGHTS" in sentence(caught.value, "es") and "WEIGHTS" in sentence(caught.value, "en")


@pytest.mark.parametrize("name", ["no_such_model", "resnet_unheard_of"])
def test_an_unknown_model_is_named(name: str) -> None:
    with pytest.raises(WeightsUnavailable, match=name):
        build_extractor(name, weights="auto")


def test_the_hub_is_asked_only_when_it_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsUnavailable, match="hub_out_of_reach"):
        build_extractor(NAME, weights="hub")


def test_weights_in_the_hubs_cache_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file: str(tmp_path / repo / file))
    assert find_weights(NAME, "hub", None) == tmp_path / "timm" / NAME / "model.safetensors"
    assert find_weights("resnet18.tv_in1k", "hub", None) == tmp_path / "timm" / "resnet18.tv_in1k" / "model.safetensors"


def test_a_trained_vit_of_another_patch_size(shared_data: Path) -> None:
    path = shared_data / "weights" / "vit_tiny_patch16_224.safetensors"
    own = build_extractor("vit_tiny_patch16_224", weights=str(path), device="cpu")
    model: Any = timm.create_model("vit_tiny_patch16_224", pretrained=False, dynamic_img_size=True)
    model.load_state_dict({**model.state_dict(), **torch_load(path)})
    image = prepare(part(1), (10, 14), 16)
    assert own.patch == 16 and own.dim == 384
    assert np.abs(own.extract([image]) - reference(model.eval(), image, [9, 11])).max() < 1e-5


def torch_load(path: Path) -> State:
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize("grid", [(12, 12), (7, 19)])
def test_resnet_tokens_are_layer2_and_layer3_of_the_network(tmp_path: Path, grid: tuple[int, int]) -> None:
    torch.manual_seed(3)
    model: Any = timm.create_model("resnet18.tv_in1k", pretrained=False).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 2)
    save_file(model.state_dict(), tmp_path / "resnet18.safetensors")
    own = build_extractor("resnet18", weights=str(tmp_path), device="cpu")
    assert isinstance(own, ResNetFeatures) and own.patch == 8 and own.dim == 384

    image = prepare(part(5), grid, 8)
    taken: dict[str, torch.Tensor] = {}
    for name in ("layer2", "layer3"):
        getattr(model, name).register_forward_hook(lambda _, __, out, name=name: taken.update({name: out}))
    with torch.no_grad():
        model(normalised(image, {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}))
    layer2, layer3 = taken["layer2"], taken["layer3"]
    assert layer2.shape[-2:] == grid
    layer3 = functional.interpolate(layer3, size=grid, mode="bilinear", align_corners=False)
    joined = torch.cat([layer2, layer3], dim=1)[0].permute(1, 2, 0).reshape(-1, 384).numpy()
    expected = joined / np.linalg.norm(joined, axis=1, keepdims=True)
    tokens = own.extract([image])
    assert tokens.dtype == np.float32 and np.abs(tokens[0] - expected).max() < 1e-5


def test_resnet_weights_need_not_hold_the_unused_layers(tmp_path: Path) -> None:
    model = timm.create_model("resnet18.tv_in1k", pretrained=False)
    state = {k: v for k, v in model.state_dict().items() if not k.startswith(("layer4", "fc"))}
    save_file(state, tmp_path / "trunk.safetensors")
    whole, trunk = tmp_path / "whole.safetensors", tmp_path / "trunk.safetensors"
    save_file(model.state_dict(), whole)
    prints = {build_extractor("resnet18", weights=str(path), device="cpu").fingerprint for path in (whole, trunk)}
    assert len(prints) == 1


@pytest.mark.parametrize("lost", ["layer3.0.conv1.weight", "bn1.running_mean"])
def test_resnet_weights_that_lack_a_used_tensor_are_refused(tmp_path: Path, lost: str) -> None:
    state = timm.create_model("resnet18.tv_in1k", pretrained=False).state_dict()
    save_file({k: v for k, v in state.items() if k != lost}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsUnavailable, match=r"tensors_missing\(.*n=1\)"):
        build_extractor("resnet18", weights=str(tmp_path / "w.safetensors"))
    save_file({**state, lost: torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(WeightsUnavailable, match="weights_misfit"):
        build_extractor("resnet18", weights=str(tmp_path / "w.safetensors"))


def test_a_missing_gpu_is_replaced_by_the_cpu(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("cuda") == pick_device("auto") == pick_device("cpu") == "cpu"
    assert "DEVICE=cuda" in caplog.text


def test_threads_are_set_when_asked(tmp_path: Path) -> None:
    save_file(timm.create_model("resnet18", pretrained=False).state_dict(), tmp_path / "w.safetensors")
    before = torch.get_num_threads()
    try:
        build_extractor("resnet18", weights=str(tmp_path / "w.safetensors"), threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((448, 448), (32, 32)),
        ((225, 225), (32, 32)),
        ((28, 28), (32, 32)),
        ((448, 896), (22, 45)),
        ((576, 768), (27, 36)),
    ],
)
def test_the_documented_grids(size: tuple[int, int], grid: tuple[int, int]) -> None:
    rows, cols = token_grid(*size, input_size=448, patch=14)
    assert abs(rows - grid[0]) <= 1 and abs(cols - grid[1]) <= 1
    if size[0] == size[1]:
        assert (rows, cols) == grid


SIDE = st.integers(28, 9000)
PATCH = st.sampled_from([(448, 14), (448, 8), (224, 16), (112, 14)])


@given(SIDE, SIDE, PATCH)
def test_a_grid_fits_the_budget_and_the_aspect(height: int, width: int, patch: tuple[int, int]) -> None:
    budget = round(patch[0] / patch[1]) ** 2
    rows, cols = token_grid(height, width, input_size=patch[0], patch=patch[1])
    assert rows >= 1 and cols >= 1 and rows * cols <= budget
    side, aspect = patch[0] / patch[1], (width / height) ** 0.5
    for tokens, exact in ((rows, side / aspect), (cols, side * aspect)):
        assert abs(tokens - max(1.0, exact)) < 1 or min(rows, cols) == 1


@given(st.integers(100, 4000), st.floats(1, 4), st.integers(-1, 1), st.integers(-1, 1))
def test_one_pixel_more_or_less_moves_a_grid_by_one_token_at_most(height: int, aspect: float, dy: int, dx: int) -> None:
    width = round(height * aspect)
    here = token_grid(height, width, input_size=448, patch=14)
    there = token_grid(height + dy, width + dx, input_size=448, patch=14)
    assert max(abs(here[0] - there[0]), abs(here[1] - there[1])) <= 1


def test_prepare_neither_pads_nor_crops_and_turns_bgr_into_rgb() -> None:
    image = part(1, height=61, width=97)
    ready = prepare(image, (4, 7), 14)
    assert ready.shape == (56, 98, 3) and ready.flags.c_contiguous
    assert ready.mean(axis=(0, 1)) == pytest.approx(image.mean(axis=(0, 1))[::-1], abs=1.5)
    same = part(2, height=56, width=98)
    assert (prepare(same, (4, 7), 14) == same[:, :, ::-1]).all()


@pytest.mark.parametrize("kind", [DinoV2Features, ResNetFeatures])
def test_torch_out_of_memory_is_told_in_a_way_that_the_lane_understands(kind: type[Any]) -> None:
    def run(_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    extractor = object.__new__(kind)
    extractor.run = run
    with pytest.raises(DeviceOutOfMemory):
        extractor.extract([part()])

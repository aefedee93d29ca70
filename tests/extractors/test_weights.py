import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from backend.api.catalogue import sentence
from backend.base.errors import WeightsUnavailable
from backend.extractors.weights import find_weights, fingerprint, load_weights, read_state, write_random_weights

NAME = "vit_small_patch14_dinov2.lvd142m"
State = dict[str, torch.Tensor]


def small_vit() -> Any:
    """The first block of the real architecture."""
    return timm.create_model(NAME, pretrained=False, num_classes=0, depth=1)


@pytest.fixture(scope="module")
def state() -> State:
    return {name: tensor.clone() for name, tensor in small_vit().state_dict().items()}


@pytest.fixture(scope="module")
def meta_state(state: State) -> State:
    """The same weights under the names of Meta's dinov2_vits14_pretrain.pth, which also holds a mask token."""
    assert state["pos_embed"].shape == (1, 1370, 384)
    return {"mask_token": torch.zeros(1, state["cls_token"].shape[-1]), **state}


@pytest.mark.parametrize("kind", ["timm.safetensors", "timm.pth", "meta.pth", "teacher.pth", "state_dict.pth"])
def test_every_layout_of_the_same_weights_loads(tmp_path: Path, state: State, meta_state: State, kind: str) -> None:
    layouts: dict[str, Any] = {
        "meta": meta_state,
        "teacher": {"teacher": meta_state},
        "state_dict": {"state_dict": state},
    }
    path = tmp_path / kind
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(layouts.get(path.stem, state), path)
    model = small_vit()
    load_weights(model, path, NAME)
    assert all((tensor == state[name]).all() for name, tensor in model.state_dict().items())


def test_the_fingerprint_tells_weights_and_ways_apart(state: State) -> None:
    model = small_vit()
    model.load_state_dict(state)
    same = fingerprint(model, "one way")
    assert same == fingerprint(model, "one way") != fingerprint(model, "another way")
    with torch.no_grad():
        model.norm.bias.add_(1e-3)
    assert fingerprint(model, "one way") != same


def test_a_folder_or_the_weights_folder_will_do(tmp_path: Path) -> None:
    path = tmp_path / "dinov2_vits14_pretrain.pth"
    path.touch()
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
        read_state(tmp_path / "evil.pth", NAME)
    assert not (tmp_path / "sprung").exists()


WRONG: dict[str, Callable[[State], Any]] = {
    "nothing": lambda _: {},
    "a list": lambda state: list(state.values()),
    "one tensor": lambda state: state["cls_token"],
    "missing tensors": lambda state: dict(list(state.items())[:10]),
    "extra tensors": lambda state: {**state, "blocks.12.norm1.weight": torch.zeros(384)},
    "another width": lambda state: {k: v[..., : v.shape[-1] // 2] for k, v in state.items()},
    "numbers": lambda state: dict.fromkeys(state, 1.0),
}


@pytest.mark.parametrize("kind", WRONG)
def test_wrong_weights_are_unavailable_weights(tmp_path: Path, state: State, kind: str) -> None:
    torch.save(WRONG[kind](state), tmp_path / "wrong.pth")
    with pytest.raises(WeightsUnavailable, match=r"wrong\.pth") as caught:
        load_weights(small_vit(), tmp_path / "wrong.pth", NAME)
    assert len(sentence(caught.value, "es")) < 700


@pytest.mark.parametrize("ending", [".pth", ".safetensors", ".pt"])
@pytest.mark.parametrize(
    "data", [b"", b"garbage" * 50, b"PK\x03\x04" + bytes(60), b"\x80\x02}q\x00.", bytes(range(256))]
)
def test_files_that_hold_no_weights_are_unavailable_weights(tmp_path: Path, ending: str, data: bytes) -> None:
    path = tmp_path / f"junk{ending}"
    path.write_bytes(data)
    with pytest.raises(WeightsUnavailable, match="junk"):
        load_weights(small_vit(), path, NAME)


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
            find_weights("vit_base_patch14_dinov2.lvd142m", weights, tmp_path)
        assert "WEIGHTS" in sentence(caught.value, "es") and "WEIGHTS" in sentence(caught.value, "en")


def test_the_hub_is_asked_only_when_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(WeightsUnavailable, match="hub_out_of_reach"):
        find_weights(NAME, "hub", None)


def test_weights_in_the_hubs_cache_are_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file: str(tmp_path / repo / file))
    assert find_weights(NAME, "hub", None) == tmp_path / "timm" / NAME / "model.safetensors"
    assert find_weights("resnet18.tv_in1k", "hub", None) == tmp_path / "timm" / "resnet18.tv_in1k" / "model.safetensors"


def test_random_weights_are_the_same_for_the_same_seed_and_fit_the_model(tmp_path: Path) -> None:
    paths = [
        write_random_weights("vit_tiny_patch16_224", tmp_path / f"{n}.safetensors", np.random.default_rng(0))
        for n in range(2)
    ]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    load_weights(timm.create_model("vit_tiny_patch16_224", pretrained=False, num_classes=0), paths[0], "vit_tiny")

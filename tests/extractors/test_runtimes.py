"""Torch and OpenVINO run the same networks; what they give is compared, and so is what they do when something fails."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch

from backend.base.errors import BackendUnavailable
from backend.extractors import openvino_runtime as features_openvino
from backend.extractors import torch_runtime as features_torch
from backend.extractors.openvino_runtime import OpenVinoFeatures, with_openvino
from backend.extractors.torch_runtime import Agreement, TorchRunner, check_image
from backend.extractors.weights import write_random_weights
from backend.features import DinoV2Features, Precision, Runtime, build_extractor, prepare
from tests.parts import part

NAME = "vit_small_patch14_dinov2.lvd142m"
BLOCKS = (0, 1)  # later ones are not run, and converting a network takes time with each of its blocks
openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is not installed (pip install .[openvino])"
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_weights(NAME, tmp_path_factory.mktemp("w") / "w.safetensors", np.random.default_rng(0))


@pytest.fixture(scope="module")
def reference(weights: Path) -> DinoV2Features:
    return DinoV2Features(NAME, str(weights), input_size=112, device="cpu", blocks=BLOCKS)


def pictures(*grid: int) -> list[Any]:
    return [prepare(part(seed), (grid[0], grid[1]), 14) for seed in range(3)]


def test_random_weights_are_the_same_for_the_same_seed_and_alive(tmp_path: Path, weights: Path) -> None:
    again = write_random_weights(NAME, tmp_path / "w.safetensors", np.random.default_rng(0))
    assert again.read_bytes() == weights.read_bytes()
    one, other = DinoV2Features(NAME, str(weights), device="cpu").extract(pictures(4, 4)[:2])
    assert np.abs(one - other).max() > 1e-3


@openvino
def test_openvino_gives_torchs_tokens_on_any_grid(reference: DinoV2Features) -> None:
    own = OpenVinoFeatures(reference, "fp32")
    for grid in ((8, 8), (5, 11)):
        images = pictures(*grid)
        rows = own.extract(images)
        assert rows.shape == (3, grid[0] * grid[1], 768) and rows.dtype == np.float32
        assert np.abs(rows - reference.extract(images)).max() < 1e-4
        assert np.abs(rows - np.concatenate([own.extract([image]) for image in images])).max() < 1e-5
        assert np.allclose(np.linalg.norm(rows, axis=2), 1, atol=1e-5)


@openvino
def test_openvino_in_bf16_agrees_within_what_is_asked(reference: DinoV2Features) -> None:
    if "bf16" not in features_openvino._candidates("auto"):
        pytest.skip("this processor does not compute in bf16")
    rows = OpenVinoFeatures(reference, "bf16").extract(pictures(8, 8))
    assert np.allclose(np.linalg.norm(rows, axis=2), 1, atol=1e-5)
    assert Agreement.of(rows, reference.extract(pictures(8, 8)))


@openvino
def test_a_memory_does_not_ask_who_ran_the_network(weights: Path) -> None:
    ways: list[tuple[Runtime, Precision]] = [("torch", "fp32"), ("torch", "bf16"), ("auto", "auto")]
    made = [
        build_extractor(
            NAME, weights=str(weights), input_size=56, device="cpu", blocks=BLOCKS, runtime=runtime, precision=precision
        )
        for runtime, precision in ways
    ]
    assert len({extractor.fingerprint for extractor in made}) == 1
    assert [extractor.runtime for extractor in made] == ["torch", "torch", "openvino"]
    assert len({(e.name, e.dim, e.patch, e.input_size, e.device) for e in made}) == 1


@openvino
def test_resnet_goes_through_the_same_door(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    torch.manual_seed(1)
    save_file(timm.create_model("resnet18.tv_in1k", pretrained=False).state_dict(), tmp_path / "resnet18.safetensors")
    torch_one, other = (
        build_extractor(
            "resnet18", weights=str(tmp_path), input_size=112, device="cpu", runtime=runtime, precision="fp32"
        )
        for runtime in ("torch", "openvino")
    )
    images = [prepare(part(4), (14, 9), 8)]
    assert other.runtime == "openvino"
    assert np.abs(torch_one.extract(images) - other.extract(images)).max() < 1e-4


@openvino
def test_a_precision_that_disagrees_is_not_used(
    reference: DinoV2Features, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(features_torch, "MEAN_COSINE", 0.9999999)
    monkeypatch.setattr(features_torch, "LEAST_COSINE", 0.9999999)
    monkeypatch.setattr(features_openvino, "_candidates", lambda _: ["bf16", "fp32"])
    assert with_openvino(reference, "auto").runtime in {"openvino", "torch"}
    assert "bf16 does not agree" in caplog.text
    monkeypatch.setattr(features_torch, "MEAN_COSINE", 1.1)
    assert with_openvino(reference, "auto") is reference
    assert "fp32 does not agree" in caplog.text


def test_without_openvino_torch_does_it_unless_insisted(
    reference: DinoV2Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features_openvino, "find_spec", lambda _: None)
    assert with_openvino(reference, "auto") is reference
    with pytest.raises(BackendUnavailable, match="openvino"):
        with_openvino(reference, "auto", insist=True)


def test_agreement_needs_the_average_and_every_single_token() -> None:
    rows = np.zeros((1, 1000, 4), np.float32)
    rows[..., :2] = 0.5**0.5
    assert Agreement.of(rows, rows)
    one_wrong = rows.copy()
    one_wrong[0, 7] = (0.8, 0.6, 0, 0)
    assert not Agreement.of(one_wrong, rows)
    not_finite = rows.copy()
    not_finite[0, 0] = np.nan
    assert not Agreement.of(not_finite, rows)


def test_the_check_image_is_always_the_same_and_has_a_flat_corner() -> None:
    image = check_image(56, 84)
    assert image.shape == (56, 84, 3) and (image == check_image(56, 84)).all()
    assert image[:28, :42].max() == 0 and image[28:].std() > 20


class Greedy(torch.nn.Module):
    """A network that needs more memory than there is for more than `most` images at once."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most = most
        self.batches: list[int] = []

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if len(pixels) > self.most:
            self.most += self.most == 0
            raise torch.OutOfMemoryError("CUDA out of memory")
        self.batches.append(len(pixels))
        return pixels.float().mean(dim=(1, 2))[:, None]


def test_a_batch_that_does_not_fit_is_halved_and_said(caplog: pytest.LogCaptureFixture) -> None:
    network = Greedy(most=2)
    run = TorchRunner(network, lambda *_: network, device="cpu", check_size=(8, 8))
    images = [np.full((8, 8, 3), n, np.uint8) for n in range(7)]
    assert run(images)[:, 0, 0].tolist() == list(range(7))
    assert max(network.batches) == 2 and "7 images at once: trying 3" in caplog.text


def test_an_image_that_does_not_fit_goes_to_the_cpu_for_good(caplog: pytest.LogCaptureFixture) -> None:
    network = Greedy(most=0)
    run = TorchRunner(network, lambda *_: network, device="cpu", check_size=(8, 8))
    assert run([np.full((8, 8, 3), 9, np.uint8)])[0, 0, 0] == 9
    assert run.device == "cpu" and "the CPU does the work" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "auto"])
def test_graphs_on_a_gpu_give_the_cpus_tokens(weights: Path, reference: DinoV2Features, precision: Any) -> None:
    own = DinoV2Features(NAME, str(weights), input_size=112, device="cuda", precision=precision, blocks=BLOCKS)
    for n in (1, 2, 3):
        images = pictures(8, 8)[:n]
        first, second = own.extract(images), own.extract(images)
        assert (first == second).all() and Agreement.of(first, reference.extract(images))

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backend.base.errors import DeviceOutOfMemory
from backend.extractors.agreement import Agreement
from backend.extractors.protocol import prepare
from backend.extractors.resnet import ResNetFeatures
from backend.extractors.torch_runtime import TorchRunner, check_image, pick_device
from backend.extractors.weights import write_random_weights
from backend.features import DinoV2Features
from tests.parts import part

NAME = "vit_small_patch14_dinov2.lvd142m"
BLOCKS = (0, 1)


def pictures(*grid: int) -> list[Any]:
    return [prepare(part(seed), (grid[0], grid[1]), 14) for seed in range(3)]


def test_a_missing_gpu_is_replaced_by_the_cpu(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("cuda") == pick_device("auto") == pick_device("cpu") == "cpu"
    assert "DEVICE=cuda" in caplog.text


@pytest.mark.parametrize("kind", [DinoV2Features, ResNetFeatures])
def test_torch_out_of_memory_is_told_in_a_way_that_the_queue_understands(kind: type[Any]) -> None:
    def run(_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    extractor = object.__new__(kind)
    extractor.run = run
    with pytest.raises(DeviceOutOfMemory):
        extractor.extract([part()])


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
def test_graphs_on_a_gpu_give_the_cpus_tokens(tmp_path: Path, precision: Any) -> None:
    weights = str(write_random_weights(NAME, tmp_path / "w.safetensors", np.random.default_rng(0)))
    reference = DinoV2Features(weights=weights, input_size=112, device="cpu", blocks=BLOCKS)
    own = DinoV2Features(weights=weights, input_size=112, device="cuda", precision=precision, blocks=BLOCKS)
    for n in (1, 2, 3):
        images = pictures(8, 8)[:n]
        first, second = own.extract(images), own.extract(images)
        assert (first == second).all() and Agreement.of(first, reference.extract(images))

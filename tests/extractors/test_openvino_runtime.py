import functools
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file

from backend.base.errors import BackendUnavailable
from backend.extractors import agreement, openvino_runtime
from backend.extractors.agreement import Agreement
from backend.extractors.openvino_runtime import OpenVinoFeatures, with_openvino
from backend.extractors.protocol import ExtractorOptions, Precision, Runtime, prepare
from backend.extractors.weights import write_random_weights
from backend.features import DinoV2Features, build_extractor
from tests.parts import part

NAME = "vit_small_patch14_dinov2.lvd142m"
RUNTIMES: tuple[Runtime, Runtime] = ("torch", "openvino")
BLOCKS = (0, 1)  # later ones are not run, and converting a network takes time with each of its blocks
openvino = pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is not installed (pip install .[openvino])"
)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_weights(NAME, tmp_path_factory.mktemp("w") / "w.safetensors", np.random.default_rng(0))


@pytest.fixture(scope="module")
def reference(weights: Path) -> DinoV2Features:
    return DinoV2Features(weights=str(weights), input_size=112, device="cpu", blocks=BLOCKS)


@pytest.fixture(scope="module", autouse=True)
def converted_once() -> Iterator[None]:
    """Each network is converted once for each size, whichever test asks: it is what takes these tests their time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(openvino_runtime, "_converted", functools.cache(openvino_runtime._converted))
        yield


def pictures(*grid: int) -> list[Any]:
    return [prepare(part(seed), (grid[0], grid[1]), 14) for seed in range(3)]


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
    if "bf16" not in openvino_runtime._candidates("auto"):
        pytest.skip("this processor does not compute in bf16")
    rows = OpenVinoFeatures(reference, "bf16").extract(pictures(8, 8))
    assert np.allclose(np.linalg.norm(rows, axis=2), 1, atol=1e-5)
    assert Agreement.of(rows, reference.extract(pictures(8, 8)))


@openvino
def test_a_memory_does_not_ask_who_ran_the_network(weights: Path) -> None:
    ways: list[tuple[Runtime, Precision]] = [("torch", "fp32"), ("torch", "bf16"), ("auto", "auto")]
    options = ExtractorOptions(weights=str(weights), input_size=56, device="cpu", blocks=BLOCKS)
    made = [build_extractor(replace(options, runtime=runtime, precision=precision)) for runtime, precision in ways]
    assert len({extractor.fingerprint for extractor in made}) == 1
    assert [extractor.runtime for extractor in made] == ["torch", "torch", "openvino"]
    assert len({(e.name, e.dim, e.patch, e.input_size, e.device) for e in made}) == 1


@pytest.mark.slow
@openvino
def test_resnet_goes_through_the_same_door(tmp_path: Path) -> None:
    torch.manual_seed(1)
    save_file(timm.create_model("resnet18.tv_in1k", pretrained=False).state_dict(), tmp_path / "resnet18.safetensors")
    options = ExtractorOptions(
        model_name="resnet18", weights=str(tmp_path), input_size=112, device="cpu", precision="fp32"
    )
    torch_one, other = (build_extractor(replace(options, runtime=runtime)) for runtime in RUNTIMES)
    images = [prepare(part(4), (14, 9), 8)]
    assert other.runtime == "openvino"
    assert np.abs(torch_one.extract(images) - other.extract(images)).max() < 1e-4


@openvino
def test_a_precision_that_disagrees_is_not_used(
    reference: DinoV2Features, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(agreement, "MEAN_COSINE", 1.1)
    monkeypatch.setattr(openvino_runtime, "_candidates", lambda _: ["bf16", "fp32"])
    assert with_openvino(reference, ExtractorOptions()) is reference
    assert "bf16 does not agree" in caplog.text and "fp32 does not agree" in caplog.text


@openvino
def test_a_precision_that_openvino_cannot_compute_in_is_passed_over(
    reference: DinoV2Features, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(openvino_runtime, "_candidates", lambda _: ["bf16", "fp32"])
    made = openvino_runtime.OpenVinoFeatures

    def without_bf16(network: DinoV2Features, precision: str, **more: Any) -> OpenVinoFeatures:
        if precision == "bf16":
            raise RuntimeError("Supported primitive descriptors list is empty")
        return made(network, "fp32", **more)

    monkeypatch.setattr(openvino_runtime, "OpenVinoFeatures", without_bf16)
    assert with_openvino(reference, ExtractorOptions()).runtime == "openvino"
    assert "OpenVINO in bf16 cannot run" in caplog.text


def test_without_openvino_torch_does_it_unless_insisted(
    reference: DinoV2Features, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(openvino_runtime, "find_spec", lambda _: None)
    assert with_openvino(reference, ExtractorOptions()) is reference
    with pytest.raises(BackendUnavailable, match="openvino"):
        with_openvino(reference, ExtractorOptions(runtime="openvino"))

"""An extractor as one file: it gives torch's tokens without torch, or it is refused in words."""

import json
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.api.catalogue import sentence
from backend.base.bundle import npy_bytes, read_bundle, write_bundle
from backend.base.errors import ExportDisagrees, InspectionError, NotExported, WeightsUnavailable
from backend.extractors import agreement, openvino_runtime
from backend.extractors.export import export_bytes, onnx_bytes
from backend.extractors.network import NetworkFeatures
from backend.extractors.protocol import Extractor, ExtractorOptions, Precision, prepare
from backend.extractors.weights import write_random_weights
from backend.features import build_extractor, export_extractor, torch_network
from tests.extractors.station import scored
from tests.parts import encoded, part

pytestmark = pytest.mark.skipif(
    find_spec("openvino") is None, reason="OpenVINO is not installed (pip install .[openvino])"
)
needs_onnx = pytest.mark.skipif(
    find_spec("onnxruntime") is None, reason="onnxruntime is not installed (pip install .[onnx])"
)
VIT = "vit_tiny_patch16_224"
BLOCKS = (0, 1)  # later ones are not run, and converting a network takes time with each of its blocks


def options(folder: Path, name: str, **own: Any) -> ExtractorOptions:
    weights = write_random_weights(name, folder / f"{name}.safetensors", np.random.default_rng(0))
    return ExtractorOptions(model_name=name, weights=str(weights), input_size=112, device="cpu", **own)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def resnet(folder: Path) -> NetworkFeatures:
    return torch_network(options(folder, "resnet18"))


@pytest.fixture(scope="module")
def vit(folder: Path) -> NetworkFeatures:
    return torch_network(options(folder, VIT, blocks=BLOCKS))


@pytest.fixture(scope="module")
def resnet_file(folder: Path, resnet: NetworkFeatures) -> Path:
    path = folder / "resnet.bdix"
    path.write_bytes(export_bytes(resnet).data)
    return path


@pytest.fixture(scope="module")
def vit_file(folder: Path, vit: NetworkFeatures) -> Path:
    path = folder / "vit.bdix"
    path.write_bytes(export_bytes(vit).data)
    return path


def running(path: Path, **own: Any) -> Extractor:
    return build_extractor(ExtractorOptions(weights=str(path), input_size=112, precision="fp32", **own))


@pytest.mark.parametrize("name", [pytest.param("resnet", marks=pytest.mark.slow), "vit"])
def test_an_exported_extractor_gives_torchs_tokens_on_any_grid(name: str, request: pytest.FixtureRequest) -> None:
    reference: NetworkFeatures = request.getfixturevalue(name)
    own = running(request.getfixturevalue(f"{name}_file"))
    assert (own.name, own.fingerprint, own.dim, own.patch, own.reach) == (
        reference.name, reference.fingerprint, reference.dim, reference.patch, reference.reach,
    )  # fmt: skip
    assert (own.runtime, own.device, own.grid(200, 100)) == ("openvino", "cpu", reference.grid(200, 100))
    for rows, cols in ((7, 7), (5, 17)):
        images = [prepare(part(seed), (rows, cols), own.patch) for seed in range(2)]
        assert np.abs(own.extract(images) - reference.extract(images)).max() < 1e-4


def test_an_exported_lite_computes_in_fp32_too_unless_told_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(openvino_runtime.CAPABILITIES, "bf16", "FP32")  # as on a processor that computes in bf16
    for cosine in ("MEAN_COSINE", "LEAST_COSINE"):
        monkeypatch.setattr(agreement, cosine, 0.9)
    path = tmp_path / "lite.bdix"
    path.write_bytes(export_extractor(ExtractorOptions(model_name="lite", input_size=112)))
    ways: list[tuple[Precision, Precision]] = [("auto", "fp32"), ("bf16", "bf16")]
    for asked, taken in ways:
        found = build_extractor(ExtractorOptions(weights=str(path), input_size=112, precision=asked))
        assert isinstance(found, openvino_runtime.OpenVinoFeatures) and found.precision == taken


WITHOUT_TORCH = """
import json, sys
from importlib.machinery import PathFinder
from pathlib import Path

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        hidden = name.split(".")[0] in {"torch", "torchvision", "timm", "safetensors", "huggingface_hub"}
        return None if hidden else super().find_spec(name, path, target)

sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
from tests.extractors.station import scored
print(json.dumps(scored(Path(sys.argv[1]), weights=sys.argv[2], model_name=sys.argv[3])))
"""


@pytest.mark.slow
def test_a_service_without_torch_learns_and_scores_as_with_torch(resnet_file: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", WITHOUT_TORCH, str(tmp_path / "station"), str(resnet_file), "resnet18"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert found.returncode == 0, found.stderr[-2000:]
    name, fingerprint, score = json.loads(found.stdout.splitlines()[-1])
    full = scored(
        tmp_path / "full", weights=str(resnet_file.with_name("resnet18.safetensors")), model_name="resnet18",
        runtime="torch", precision="fp32",
    )  # fmt: skip
    assert (name, fingerprint) == full[:2]
    assert score == pytest.approx(full[2], abs=1e-3)


def refusal(error: type[InspectionError], **own: Any) -> str:
    with pytest.raises(error) as caught:
        build_extractor(ExtractorOptions(**own))
    assert "?" not in sentence(caught.value, "es")
    return sentence(caught.value, "en")


def changed(source: Path, target: Path, **parts: bytes) -> Path:
    bundle = read_bundle(source.read_bytes(), "bdix", source.name)
    about = {name: value for name, value in bundle.about.items() if name not in {"kind", "format"}}
    named = {name.replace("_", "."): data for name, data in parts.items()}
    with target.open("wb+") as file:
        write_bundle(file, "bdix", about, {**bundle.parts, **named})
    return target


def test_a_file_that_cannot_be_run_is_refused_with_the_reason(vit_file: Path, tmp_path: Path) -> None:
    data = bytearray(vit_file.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "damaged.bdix").write_bytes(data)
    assert "damaged" in refusal(WeightsUnavailable, weights=str(tmp_path / "damaged.bdix"))
    assert "none.bdix" in refusal(WeightsUnavailable, weights=str(tmp_path / "none.bdix"))
    assert "RUNTIME" in refusal(WeightsUnavailable, weights=str(vit_file), runtime="torch")
    assert "BLOCKS" in refusal(WeightsUnavailable, weights=str(vit_file), blocks=(3,))
    assert "MODEL_NAME" in refusal(WeightsUnavailable, weights=str(vit_file), model_name="resnet18")
    broken = changed(vit_file, tmp_path / "broken.bdix", network_xml=b"<net/>")
    assert "network.xml" in refusal(WeightsUnavailable, weights=str(broken))


def test_an_extractor_that_gives_other_tokens_than_where_it_was_made_is_not_run(vit_file: Path, tmp_path: Path) -> None:
    picture = read_bundle(vit_file.read_bytes(), "bdix", "").array("picture.npy")
    other = changed(vit_file, tmp_path / "other.bdix", picture_npy=npy_bytes(255 - picture))
    assert "export it again" in refusal(ExportDisagrees, weights=str(other))


def test_texture_and_what_was_exported_already_have_no_network_to_export(vit_file: Path) -> None:
    for own in (ExtractorOptions(model_name="texture"), ExtractorOptions(weights=str(vit_file))):
        with pytest.raises(NotExported):
            export_extractor(own)


def script() -> str:
    """The program in DATA_FORMATS.md."""
    text = (Path(__file__).parents[2] / "docs" / "DATA_FORMATS.md").read_text("utf-8")
    found = re.search(r"<!-- script: onnx tokens -->\n```python\n(.*?)```", text, re.DOTALL)
    assert found is not None
    return found[1]


@pytest.mark.slow
@needs_onnx
def test_the_documented_program_gets_the_services_tokens_from_onnx_alone(vit: NetworkFeatures, tmp_path: Path) -> None:
    assert len(script().splitlines()) <= 40 and "backend" not in script()
    (tmp_path / "tokens.py").write_text(script(), "utf-8")
    (tmp_path / "vit.onnx").write_bytes(onnx_bytes(vit, (7, 7)).data)
    for size in (96, 112, 200):
        (tmp_path / "part.png").write_bytes(encoded(part(5, height=size, width=size)))
        command = [sys.executable, "-I", "tokens.py", "vit.onnx", "part.png", "tokens.npy"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0 and "7 × 7 tokens" in done.stdout, done.stderr
        image = prepare(part(5, height=size, width=size), (7, 7), vit.patch)
        assert np.abs(np.load(tmp_path / "tokens.npy") - vit.extract([image])[0]).max() < 1e-3


@pytest.mark.slow
@needs_onnx
def test_onnx_gives_torchs_tokens_and_says_what_it_is(vit: NetworkFeatures) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(onnx_bytes(vit, (7, 5)).data, providers=["CPUExecutionProvider"])
    image = prepare(part(3), (7, 5), vit.patch)
    assert np.abs(session.run(None, {"pixels": image[None]})[0] - vit.extract([image])).max() < 1e-4
    said = session.get_modelmeta().custom_metadata_map
    assert (said["grid"], said["patch"], said["fingerprint"]) == ("[7, 5]", "16", f'"{vit.fingerprint}"')

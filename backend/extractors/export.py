"""Writing an extractor as one file that runs without torch: a .bdix for this service, or ONNX for other runtimes."""

from __future__ import annotations

import io
import json
import tempfile
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from backend.base.bundle import npy_bytes, read_bundle, write_bundle
from backend.base.errors import ExportDisagrees, NotExported
from backend.base.messages import Phrase
from backend.extractors.exported import EXPORT_GAP, ExportedNetwork, largest_gap
from backend.extractors.network import NetworkFeatures
from backend.extractors.openvino_runtime import OpenVinoFeatures
from backend.extractors.protocol import RGB, ExtractorOptions

if TYPE_CHECKING:
    from torch import nn

PICTURE_GRID = (12, 16)  # not square, so that rows and columns cannot be mistaken for each other
_TRACED_GRID = (10, 14)  # another than the picture's: what a trace fixes by mistake shows in the picture's tokens
_ONNX_OPSET = 17


class Exported(NamedTuple):
    """The bytes of a file, and the largest difference between torch's tokens and those of what is in it."""

    data: bytes
    gap: float


def export_bytes(network: NetworkFeatures) -> Exported:
    """A .bdix, whose network has given torch's tokens of a reference picture with OpenVINO.

    Args:
        network: run by torch on the CPU in fp32.

    Raises:
        NotExported: its network fixes the size of its images, or OpenVINO is not installed.
        ExportDisagrees: OpenVINO gives other tokens.
    """
    _require(network.name, "openvino")
    patch = network.patch
    module, position = network.network_of_any_size(*(side * patch for side in _TRACED_GRID))
    xml, weights = _openvino(module.eval(), [side * patch for side in _TRACED_GRID], network, position is not None)
    picture = _picture(network)
    tokens = network.extract([picture])
    about: dict[str, Any] = {
        "model_name": network.name,
        "fingerprint": network.fingerprint,
        "patch": patch,
        "dim": network.dim,
        "reach": float(network.reach),
        "mean": [float(one) for one in network.model.pretrained_cfg["mean"]],
        "std": [float(one) for one in network.model.pretrained_cfg["std"]],
        "way": network.way,
    }
    parts = {
        "network.xml": xml,
        "network.bin": weights,
        "picture.npy": npy_bytes(picture),
        "tokens.npy": npy_bytes(tokens),
    }
    if network.shared is not None:
        parts["shared.npy"] = npy_bytes(network.shared.astype("float32"))
    if position is not None:
        about["position"] = {"prefix": position.prefix, "grid": list(position.grid)}
        parts["position.npy"] = npy_bytes(position.table)
    file = io.BytesIO()
    write_bundle(file, "bdix", about, parts)
    written = ExportedNetwork.of(read_bundle(file.getvalue(), "bdix", network.name), ExtractorOptions())
    gap = largest_gap(OpenVinoFeatures(written, "fp32").extract([picture]), tokens)
    if not gap <= EXPORT_GAP:
        raise ExportDisagrees(name=network.name, gap=gap)
    return Exported(file.getvalue(), gap)


def onnx_bytes(network: NetworkFeatures, grid: tuple[int, int]) -> Exported:
    """An ONNX model for images of one size, which has given torch's tokens with onnxruntime.

    It takes `pixels` (1, H, W, 3) uint8 RGB and gives `tokens` (1, T, D) float32 unit rows. Its metadata say the
    model's name, the patch, the token grid and the fingerprint.

    Args:
        network: run by torch on the CPU in fp32.
        grid: token rows and columns of the images.

    Raises:
        NotExported: onnx and onnxruntime are not installed.
        ExportDisagrees: onnxruntime gives other tokens.
    """
    _require(network.name, "onnx", "onnxruntime")
    import onnx
    import onnxruntime
    import torch

    height, width = (side * network.patch for side in grid)
    picture = _picture(network, grid)
    with tempfile.TemporaryDirectory(prefix="bdi-export-") as folder, torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing fixes the image's size, which is what is wanted here
        torch.onnx.export(
            network.network(height, width).eval(),
            (torch.from_numpy(picture[None]),),
            Path(folder) / "network.onnx",
            input_names=["pixels"],
            output_names=["tokens"],
            opset_version=_ONNX_OPSET,
            dynamo=False,
        )
        model = onnx.load_model(Path(folder) / "network.onnx")
    about = {"model_name": network.name, "patch": network.patch, "grid": list(grid), "fingerprint": network.fingerprint}
    onnx.helper.set_model_props(model, {name: json.dumps(value) for name, value in about.items()})
    data = model.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    gap = largest_gap(session.run(None, {"pixels": picture[None]})[0], network.extract([picture]))
    if not gap <= EXPORT_GAP:
        raise ExportDisagrees(name=network.name, gap=gap)
    return Exported(data, gap)


def _require(model: str, *packages: str) -> None:
    if any(find_spec(package) is None for package in packages):
        raise NotExported(model=model, reason=Phrase("no_export_packages", {"packages": " + ".join(packages)}))


def _openvino(module: nn.Module, size: list[int], network: NetworkFeatures, placed: bool) -> tuple[bytes, bytes]:
    """The module as OpenVINO's two files, for images of any size."""
    import openvino
    import torch

    example: tuple[torch.Tensor, ...] = (torch.zeros((1, *size, 3), dtype=torch.uint8),)
    shapes: list[openvino.PartialShape] = [openvino.PartialShape([1, -1, -1, 3])]
    if placed:
        _, position = network.network_of_any_size(size[0], size[1])
        assert position is not None
        table = position.resampled(size[0] // network.patch, size[1] // network.patch)
        example = (*example, torch.from_numpy(table))
        shapes.append(openvino.PartialShape([1, -1, table.shape[2]]))
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer warns of checks of the image's size, which hold for any other too
        traced = torch.jit.trace(module, example, check_trace=False)  # type: ignore[no-untyped-call]
        model = openvino.convert_model(traced, example_input=example, input=shapes)
    with tempfile.TemporaryDirectory(prefix="bdi-export-") as folder:
        xml = Path(folder) / "network.xml"
        openvino.save_model(model, xml, compress_to_fp16=False)
        return xml.read_bytes(), xml.with_suffix(".bin").read_bytes()


def _picture(network: NetworkFeatures, grid: tuple[int, int] = PICTURE_GRID) -> RGB:
    from backend.extractors.torch_runtime import check_image

    return check_image(grid[0] * network.patch, grid[1] * network.patch)

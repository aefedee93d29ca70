"""Running an extractor's network with OpenVINO: converted from the torch module, one compiled model per image size."""

from __future__ import annotations

import logging
import warnings
from collections import OrderedDict
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import BackendUnavailable

if TYPE_CHECKING:
    from backend.features import RGB, Extractor, Precision
    from backend.features_torch import TorchExtractor

logger = logging.getLogger(__name__)

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
CAPABILITIES = {"bf16": "BF16", "fp16": "FP16"}
_COMPILED = 8


class OpenVinoFeatures:
    """An extractor that has OpenVINO run another one's network, on the CPU. Memories of the two are the same.

    Not for several threads at once: the lane has one.

    Args:
        reference: whose network it is.
        precision: `fp32`, `bf16` or `fp16`.
        threads: of one forward pass; OpenVINO's choice (all cores) when None.
    """

    runtime = "openvino"
    device = "cpu"

    def __init__(self, reference: TorchExtractor, precision: str, *, threads: int | None = None) -> None:
        import openvino

        self.reference = reference
        self.precision = precision
        self.name, self.dim, self.patch = reference.name, reference.dim, reference.patch
        self.widths: tuple[int, ...] = getattr(reference, "widths", (reference.dim,))
        self.input_size, self.fingerprint = reference.input_size, reference.fingerprint
        self._core = openvino.Core()
        self._config = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": HINTS[precision],
            **({"INFERENCE_NUM_THREADS": threads} if threads else {}),
        }
        self._requests: OrderedDict[tuple[int, int], Any] = OrderedDict()

    def extract(self, images: Sequence[RGB]) -> NDArray[np.float32]:
        """See features.Extractor. Images go through one by one: a batch would take as long and wait for the last."""
        import openvino

        height, width = images[0].shape[:2]
        request = self._request(height, width)
        rows = np.empty((len(images), height // self.patch * (width // self.patch), self.dim), np.float32)
        for number, image in enumerate(images):
            request.set_input_tensor(openvino.Tensor(np.ascontiguousarray(image)[None], shared_memory=True))
            request.set_output_tensor(openvino.Tensor(rows[number : number + 1], shared_memory=True))
            request.infer()
        return rows

    def _request(self, height: int, width: int) -> Any:
        size = height, width
        if size not in self._requests:
            compiled = self._core.compile_model(_converted(self.reference, height, width), "CPU", self._config)
            self._requests[size] = compiled.create_infer_request()
        self._requests.move_to_end(size)
        if len(self._requests) > _COMPILED:
            self._requests.popitem(last=False)
        return self._requests[size]


def _converted(reference: TorchExtractor, height: int, width: int) -> Any:
    """The reference's network for one image of (height, width) px as an OpenVINO model: uint8 in, unit rows out."""
    import openvino
    import torch

    pixels = torch.zeros((1, height, width, 3), dtype=torch.uint8)
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing fixes the image's size, which is what is wanted here
        network = reference.network(height, width).eval()
        traced = torch.jit.trace(network, pixels, check_trace=False)  # type: ignore[no-untyped-call]
        return openvino.convert_model(traced, example_input=pixels, input=[tuple(pixels.shape)])


def with_openvino(
    reference: TorchExtractor, precision: Precision, *, threads: int | None = None, insist: bool = False
) -> Extractor:
    """`reference` run by OpenVINO, in the fastest precision asked for in which both agree; else `reference` itself.

    They agree when the tokens of a picture made for it have a cosine of 0.9999 on average with the reference's, and
    none of less than 0.999.

    Raises:
        BackendUnavailable: `insist`, and OpenVINO is not installed.
    """
    if find_spec("openvino") is None:
        if insist:
            raise BackendUnavailable(option="RUNTIME", value="openvino", package="openvino")
        return reference
    from backend.features_torch import Agreement, check_image

    side = round(reference.input_size / reference.patch) * reference.patch
    image = check_image(side, side)
    wanted = reference.extract([image])
    for candidate in _candidates(precision):
        extractor = OpenVinoFeatures(reference, candidate, threads=threads)
        agreement = Agreement.of(extractor.extract([image]), wanted)
        if agreement:
            logger.info("OpenVINO in %s agrees with torch: %s", candidate, agreement)
            return extractor
        logger.warning("OpenVINO in %s does not agree with torch: %s", candidate, agreement)
    return reference


def _candidates(precision: Precision) -> list[str]:
    """Precisions to try, in order: the one asked for, or bf16 where the processor computes in it; fp32 last."""
    import openvino

    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    first = "bf16" if precision == "auto" else precision
    return ["fp32"] if CAPABILITIES.get(first) not in able else [first, "fp32"]

"""Running an extractor's network with OpenVINO: converted from the torch module, one compiled model per image size."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from backend.base.arrays import available_cores
from backend.base.errors import BackendUnavailable, ExportDisagrees
from backend.extractors.agreement import Agreement
from backend.extractors.exported import EXPORT_GAP, ExportedNetwork, largest_gap
from backend.extractors.lite import NAME as LITE
from backend.extractors.lite import lite_precision
from backend.extractors.protocol import RGB, Extractor, ExtractorOptions, Mask, Precision, Rows, on_grid

if TYPE_CHECKING:
    from backend.extractors.network import NetworkFeatures

logger = logging.getLogger(__name__)

HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
CAPABILITIES = {"bf16": "BF16", "fp16": "FP16"}
MOST_STREAMS = 4
_SIZES = 8


def openvino_installed() -> bool:
    """Whether OpenVINO is there."""
    return find_spec("openvino") is not None


class OpenVinoFeatures(Extractor):
    """Runs the network of another extractor with OpenVINO on the CPU. Both have one fingerprint and share memories.

    One thread at a time may call it, as the inference queue does. `streams` images at once take less time than one
    after another, since no core waits for another; a single image is done soonest when all cores work on it.

    Args:
        reference: the extractor whose network is run.
        precision: `fp32`, `bf16` or `fp16`.
        threads: cores to use; None: all.
    """

    runtime = "openvino"
    device = "cpu"

    def __init__(
        self,
        reference: NetworkFeatures | ExportedNetwork,
        precision: str,
        *,
        threads: int | None = None,
    ) -> None:
        import openvino

        self.precision = precision
        self.name, self.fingerprint, self.reach = reference.name, reference.fingerprint, reference.reach
        self.dim, self.patch = reference.dim, reference.patch
        self.input_size, self.input_edge = reference.input_size, reference.input_edge
        self.input_aspect = reference.input_aspect
        self.leaves_out = reference.leaves_out
        cores = threads or available_cores()
        self.streams = min(cores, MOST_STREAMS)
        self._core = openvino.Core()
        self._config = {"INFERENCE_PRECISION_HINT": HINTS[precision], "INFERENCE_NUM_THREADS": cores}
        self._models = lru_cache(_SIZES)(lambda *size, **how: model_of(reference, *size, **how))
        self._alone = lru_cache(_SIZES)(self._requests)
        self._together = lru_cache(_SIZES)(self._requests)

    def extract(self, images: Sequence[RGB]) -> Rows:
        """See Extractor. One image has all cores; of several, each has a stream of its own."""
        height, width = images[0].shape[:2]
        return self._rows(images, height // self.patch * (width // self.patch))

    def extract_part(self, images: Sequence[RGB], inside: Mask) -> Rows:
        """See Extractor. One model serves every choice of tokens of a grid."""
        if not self.leaves_out:
            return super().extract_part(images, inside)
        numbers = np.flatnonzero(inside)
        return on_grid(self._rows(images, len(numbers), numbers), inside)

    def _rows(self, images: Sequence[RGB], n_tokens: int, *chosen: NDArray[np.int64]) -> Rows:
        size, part = images[0].shape[:2], bool(chosen)
        alone = len(images) == 1 or self.streams == 1
        requests = self._alone(*size, 1, part=part) if alone else self._together(*size, self.streams, part=part)
        rows = np.empty((len(images), n_tokens, self.dim), np.float32)
        for number, image in enumerate(images):
            request = requests[number % len(requests)]
            request.wait()
            request.set_input_tensor(0, self._tensor(np.ascontiguousarray(image)[None]))
            for numbers in chosen:
                request.set_input_tensor(1, self._tensor(numbers))
            request.set_output_tensor(self._tensor(rows[number : number + 1]))
            request.start_async()
        for request in requests:
            request.wait()
        return rows

    def _requests(self, height: int, width: int, streams: int, *, part: bool) -> list[Any]:
        hint = {"PERFORMANCE_HINT": "LATENCY"} if streams == 1 else {"NUM_STREAMS": streams}
        compiled = self._core.compile_model(self._models(height, width, part=part), "CPU", {**self._config, **hint})
        return [compiled.create_infer_request() for _ in range(streams)]

    @staticmethod
    def _tensor(array: NDArray[Any]) -> Any:
        import openvino

        return openvino.Tensor(array, shared_memory=True)


def model_of(reference: NetworkFeatures | ExportedNetwork, height: int, width: int, *, part: bool = False) -> Any:
    """The network as an OpenVINO model for one (height, width) px image: uint8 in, unit rows out.

    `part`: its second input has the numbers of the tokens that it runs over, as many as there may be.
    """
    if isinstance(reference, ExportedNetwork):
        return reference.model(height, width, part=part)
    return _converted(reference, height, width, part=part)


def _converted(reference: NetworkFeatures, height: int, width: int, *, part: bool) -> Any:
    import openvino
    import torch

    pixels = torch.zeros((1, height, width, 3), dtype=torch.uint8)
    example = (pixels, torch.arange(2)) if part else (pixels,)
    shapes = [tuple(pixels.shape), (-1,)][: len(example)]
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing fixes the image's size, which is what is wanted here
        network = reference.network(height, width).eval()
        traced = torch.jit.trace(network, example, check_trace=False)  # type: ignore[no-untyped-call]
        return openvino.convert_model(traced, example_input=example, input=shapes)


def with_openvino(reference: NetworkFeatures, options: ExtractorOptions) -> Extractor:
    """`reference` run by OpenVINO, in the fastest allowed precision that agrees with torch; `reference` if none does.

    They agree when the tokens of check_image have a cosine of 0.9999 on average with torch's, and none of less than
    0.999.

    Args:
        reference: the same network, run by torch.
        options: `threads` and `runtime` are read.

    Raises:
        BackendUnavailable: OpenVINO is not installed, and `runtime` is `openvino`.
    """
    if not openvino_installed():
        if options.runtime == "openvino":
            raise BackendUnavailable(option="RUNTIME", value="openvino", package="openvino")
        return reference
    from backend.extractors.torch_runtime import check_image

    side = round(reference.input_size / reference.patch) * reference.patch
    image = check_image(side, side)
    wanted = reference.extract([image])
    candidates = _candidates(reference.precision)
    return _first_agreeing(reference, candidates, image, wanted, options.threads) or reference


def _first_agreeing(
    network: NetworkFeatures | ExportedNetwork, candidates: Sequence[str], image: RGB, wanted: Rows, threads: int | None
) -> OpenVinoFeatures | None:
    """`network` in the first of these precisions whose tokens of `image` agree with `wanted`; None if none does."""
    for candidate in candidates:
        try:
            extractor = OpenVinoFeatures(network, candidate, threads=threads)
            tokens = extractor.extract([image])
        except RuntimeError as err:  # OpenVINO has no kernel for it on this processor
            logger.warning("OpenVINO in %s cannot run %s: %s", candidate, network.name, err)
            continue
        agreement = Agreement.of(tokens, wanted, network.shared)
        if agreement:
            logger.info("%s with OpenVINO in %s agrees: %s", network.name, candidate, agreement)
            return extractor
        logger.warning("%s with OpenVINO in %s does not agree: %s", network.name, candidate, agreement)
    return None


def run_exported(network: ExportedNetwork, options: ExtractorOptions) -> Extractor:
    """An exported network, once it gave the tokens of its reference picture here; in the fastest precision allowed.

    fp32 gives them to EXPORT_GAP in every number, or nothing is run. Another precision must agree with fp32 as with
    torch in `with_openvino`.

    Args:
        network: as it was read from its file.
        options: `precision` and `threads` are read.

    Raises:
        ExportDisagrees: fp32 gives other tokens here than where the network was exported.
    """
    exact = OpenVinoFeatures(network, "fp32", threads=options.threads)
    gap = largest_gap(exact.extract([network.picture]), network.tokens)
    if not gap <= EXPORT_GAP:
        raise ExportDisagrees(name=network.name, gap=gap)
    candidates = _candidates(lite_precision(options.precision) if network.name == LITE else options.precision)[:-1]
    return _first_agreeing(network, candidates, network.picture, network.tokens, options.threads) or exact


def _candidates(precision: Precision) -> list[str]:
    """Precisions to try, in order: the one asked for, or bf16 where the processor computes in it; fp32 last."""
    import openvino

    able = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    first = "bf16" if precision == "auto" else precision
    return ["fp32"] if CAPABILITIES.get(first) not in able else [first, "fp32"]

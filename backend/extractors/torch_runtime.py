"""Running an extractor's network with torch: autocast, CUDA graphs, and smaller batches where memory runs out."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from backend.base.errors import DeviceOutOfMemory
from backend.extractors.agreement import Agreement
from backend.extractors.protocol import RGB, Look, Precision, Rows

logger = logging.getLogger(__name__)

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_SIZES = 16
_GRAPHS = 8
_WARM_UPS = 3


def pick_device(device: str) -> str:
    """`cuda` or `cpu` for a DEVICE setting; a warning says when `cuda` is asked for and not there."""
    if device == "cuda" and not torch.cuda.is_available():
        logger.warning("DEVICE=cuda, but torch sees no CUDA device: running on the CPU")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def gpu_name() -> str | None:
    """Name of the CUDA device that torch sees, if any."""
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else None


@contextmanager
def device_memory() -> Iterator[None]:
    """Turns torch's out of memory into DeviceOutOfMemory, which the queue in front of the extractor answers."""
    try:
        yield
    except torch.OutOfMemoryError as err:
        raise DeviceOutOfMemory(retry_after=5) from err


def check_image(height: int, width: int) -> RGB:
    """(height, width, 3) uint8 to compare runtimes with, always the same: colours, grain, and a flat black corner."""
    rng = np.random.default_rng(0)
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 8, 8)))
    smooth = functional.interpolate(coarse, (height, width), mode="bilinear", align_corners=False)
    grain = rng.normal(0, 12, (height, width, 3))
    image = np.clip(smooth[0].permute(1, 2, 0).numpy() + grain, 0, 255).astype(np.uint8)
    image[: height // 2, : width // 2] = 0
    return image


class TorchRunner:
    """Runs networks on one device in one precision. One thread at a time may call it, as the inference queue does.

    On CUDA each (batch, height, width) is captured once as a graph and replayed; pixels and rows travel through pinned
    memory. When the GPU's memory does not hold a batch, its halves are run one after the other. When it does not hold
    one image, the CPU does the work from then on. A warning tells of both.

    Args:
        model: holds the weights that `network` shares; moved to the device here.
        network: the TokenNetwork for (height, width).
        precision: `auto` is fp32 on a CPU, and fp16 on CUDA while it agrees with fp32 there.
        check_size: height and width of the picture that this is checked with.
        shared: see Agreement.of.
    """

    def __init__(
        self,
        model: nn.Module,
        network: Callable[[int, int], nn.Module],
        *,
        device: str,
        precision: Precision = "auto",
        check_size: tuple[int, int],
        shared: Rows | None = None,
    ) -> None:
        self.model = model
        self.shared = shared
        self.build = network
        self._move(device)
        self.precision: str = "fp32" if precision == "auto" else precision
        if precision == "auto" and self.device == "cuda":
            self.precision = self._halved(check_size)

    def __call__(self, images: Sequence[RGB]) -> Rows:
        """(B, T, D) float32 unit rows of equally large (H, W, 3) uint8 images."""
        parts = [_home(rows) for rows in self._parts(images)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def look(self, images: Sequence[RGB], looks: Sequence[Look | None]) -> list[Any]:
        """What each look says of its image's rows (T, D) on the device, or the rows where it has nothing to say.

        When the GPU's memory does not hold what a look takes, it has nothing to say, and a warning tells of it.
        """
        found: list[Any] = []
        for rows in self._parts(images):
            found += [_said(own, look) for own, look in zip(rows, looks[len(found) :], strict=False)]
        return found

    def _parts(self, images: Sequence[RGB]) -> Iterator[torch.Tensor]:
        """(n, T, D) rows on the device, of as many of the images at once as it can; the next ones overwrite them."""
        rows = self._within_memory(images)
        if rows is not None:
            yield rows
        elif len(images) > 1:
            half = len(images) // 2
            logger.warning("the GPU's memory is too small for %d images at once: trying %d", len(images), half)
            yield from self._parts(images[:half])
            yield from self._parts(images[half:])
        else:
            logger.warning("the GPU's memory is too small for one image: from here on the CPU does the work")
            self.precision = "fp32"
            self._move("cpu")
            yield self._rows(images)

    def _within_memory(self, images: Sequence[RGB]) -> torch.Tensor | None:
        """Rows on the device; None, with what can be freed freed, where its memory does not hold the batch."""
        try:
            return self._rows(images)
        except torch.OutOfMemoryError:
            self._graph.cache_clear()
            torch.cuda.empty_cache()
            return None

    def _move(self, device: str) -> None:
        self.device = device
        self.model.to(device)
        self._network = lru_cache(_SIZES)(lambda height, width: self.build(height, width).eval().to(device))
        self._graph = lru_cache(_GRAPHS)(lambda batch, height, width: _Graph(self, batch, height, width))

    def _halved(self, size: tuple[int, int]) -> str:
        images = [check_image(*size)]
        reference = _home(self._eager(images))
        self.precision = "fp16"
        agreement = Agreement.of(_home(self._eager(images)), reference, self.shared)
        if agreement:
            return "fp16"
        logger.warning("fp16 and fp32 differ on this GPU (%s): running in fp32", agreement)
        return "fp32"

    def _rows(self, images: Sequence[RGB]) -> torch.Tensor:
        if self.device != "cuda":
            return self._eager(images)
        batch = 1 << (len(images) - 1).bit_length()
        rows: torch.Tensor = self._graph(batch, *images[0].shape[:2])(images)
        return rows

    def _eager(self, images: Sequence[RGB], *chosen: NDArray[np.int64]) -> torch.Tensor:
        return self.forward(*(torch.from_numpy(array).to(self.device) for array in (np.stack(images), *chosen)))

    def part(self, images: Sequence[RGB], numbers: NDArray[np.int64]) -> Rows:
        """(B, K, D) float32 unit rows of the K tokens with these numbers alone; no graph, as each part has its own K.

        Raises:
            torch.OutOfMemoryError: the GPU's memory does not hold it, though no graph takes any of it.
        """
        try:
            return _home(self._eager(images, numbers))
        except torch.OutOfMemoryError:
            self._graph.cache_clear()
            torch.cuda.empty_cache()
        return _home(self._eager(images, numbers))

    @torch.inference_mode()
    def forward(self, pixels: torch.Tensor, *chosen: torch.Tensor) -> torch.Tensor:
        """(B, H, W, 3) uint8 on the device -> (B, T, D) float32 on the device; `chosen`: see TokenNetwork."""
        network = self._network(*pixels.shape[1:3])
        low = self.precision != "fp32"
        in_low = torch.autocast(self.device, DTYPES[self.precision] if low else None, enabled=low, cache_enabled=False)
        with in_low, _whole_float32():
            rows: torch.Tensor = network(pixels, *chosen)
            return rows


def _whole_float32() -> AbstractContextManager[None]:
    """Keeps cuDNN from rounding the numbers of fp32 convolutions to TF32, which moves rows by some ten-thousandths."""
    cudnn = torch.backends.cudnn
    kept = {"enabled": cudnn.enabled, "benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    return cudnn.flags(**kept, allow_tf32=False)


class _Graph:
    """One batch size and image size, captured: a replay costs one launch instead of hundreds."""

    def __init__(self, runner: TorchRunner, batch: int, height: int, width: int) -> None:
        self._pinned = torch.zeros((batch, height, width, 3), dtype=torch.uint8, pin_memory=True)
        self._pixels = self._pinned.to(runner.device)
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(_WARM_UPS):
                runner.forward(self._pixels)
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._rows = runner.forward(self._pixels)

    def __call__(self, images: Sequence[RGB]) -> torch.Tensor:
        """(n, T, D) rows on the device, which the next call overwrites.

        Whoever calls again has waited for the device, as whoever brings the rows home does: the pinned pixels of the
        call before are on it then.
        """
        n = len(images)
        np.stack(images, out=self._pinned.numpy()[:n])
        self._pixels.copy_(self._pinned, non_blocking=True)
        self._graph.replay()
        return self._rows[:n]


def _home(rows: torch.Tensor) -> Rows:
    """Rows in the host's memory, by way of pinned memory."""
    if rows.device.type == "cuda":
        there, rows = rows, torch.empty(rows.shape, dtype=rows.dtype, pin_memory=True)
        rows.copy_(there, non_blocking=True)
        torch.cuda.current_stream().synchronize()
    array: Rows = rows.numpy()
    return array


def _said(rows: torch.Tensor, look: Look | None) -> Any:
    """What `look` says of one image's rows on the device, or the rows at home where it says nothing."""
    found = None if look is None else _within_memory(rows, look)
    return _home(rows) if found is None else found


def _within_memory(rows: torch.Tensor, look: Look) -> Any:
    try:
        return look(rows)
    except torch.OutOfMemoryError:
        logger.warning("the GPU's memory is too small for an anomaly map: the CPU makes it")
        torch.cuda.empty_cache()
        return None

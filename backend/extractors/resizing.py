"""What an extractor sees of an ROI, made on a torch device: the same pixels, to the last bit, that OpenCV makes.

OpenCV adds up the parts of the pixels that each new one covers in float32, along rows first and in order, and rounds
half to even. The device does the same in the same order. What OpenCV does otherwise, it is left to do.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from backend.base.images import mean_correction
from backend.extractors.protocol import RGB

logger = logging.getLogger(__name__)

LONGEST = 4096  # px of a side; the parts of a longer one are not tabulated
_EXACT = float(np.finfo(np.float64).eps)
_LEAST = 1e-3
Taps = tuple[torch.Tensor, torch.Tensor]


class DeviceResizer:
    """Brings ROIs to the size that an extractor sees, one at a time, on a stream of its own.

    Args:
        device: as torch names it.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._lock = threading.Lock()
        self._stream = torch.cuda.Stream() if device == "cuda" else None  # type: ignore[no-untyped-call]
        self._taps = lru_cache(64)(self._tabulated)

    def __call__(self, image: NDArray[np.uint8], size: tuple[int, int], height: int, width: int) -> RGB | None:
        """`image` (H, W, 3) uint8 BGR as (height, width, 3) RGB; None where OpenCV is to do it.

        `size`: height and width of the file that the image is of. Where it has fewer pixels they are means, and what
        `base.images.resize_means` gives is given here; else what `base.images.resize` gives.
        """
        own = image.shape[0], image.shape[1]
        n = round(size[0] / own[0])
        factors = (height / own[0], width / own[1]) if size == own else (n * height / size[0], n * width / size[1])
        if own == (height, width) or max(factors) > 1 or max(own) > LONGEST:
            return None
        scales = [1 / factor for factor in factors]
        whole = all(abs(scale - round(scale)) < _EXACT for scale in scales)
        times = round(scales[0]), round(scales[1])
        if whole and own != (times[0] * height, times[1] * width):
            return None
        there = torch.cuda.stream(self._stream) if self._stream else nullcontext()
        try:
            with self._lock, there, torch.inference_mode():
                pixels = torch.from_numpy(np.ascontiguousarray(image)).to(self.device)
                if size != own:
                    pixels = _corrected(pixels, mean_correction(n))
                seen = _sums(pixels, times) if whole else self._averaged(pixels, factors, fitted=size == own)
                return np.asarray(seen.clamp(0, 255).to(torch.uint8).flip(2).cpu().numpy(), np.uint8)
        except torch.OutOfMemoryError:
            logger.warning("the GPU's memory is too small to resize an image: the CPU does it")
            return None

    def _averaged(self, pixels: torch.Tensor, factors: tuple[float, float], *, fitted: bool) -> torch.Tensor:
        """(height, width, 3) float32: the rounded means of the areas that the new pixels cover."""
        across = self._taps(pixels.shape[1], factors[1], fitted)
        down = self._taps(pixels.shape[0], factors[0], fitted)
        rows = _added(across, lambda at, share: pixels[:, at].float() * share[:, None])
        return _added(down, lambda at, share: rows[at] * share[:, None, None]).round_()

    def _tabulated(self, n: int, factor: float, fitted: bool) -> Taps:
        """(K, size) int64 and float32: which of a line of `n` pixels each new one covers, and how much of it they are.

        `fitted`: the new line is as long as the old one, by that factor; else what is left over is no part of it.
        """
        at, shares = area_taps(n, factor, fitted=fitted)
        return torch.from_numpy(at).to(self.device), torch.from_numpy(shares).to(self.device)


def area_taps(n: int, factor: float, *, fitted: bool) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """(K, size) which of a line of `n` pixels each new one covers, in order, and how much of it they are.

    They are those of cv2.resize with INTER_AREA, to the last bit: it takes no part below a thousandth of a pixel. A tap
    that is none is pixel 0 with the share 0. `factor` at most 1; `fitted`: see DeviceResizer._tabulated.
    """
    size = round(n * factor)
    scale = 1.0 / (size / n if fitted else factor)
    begin = np.arange(size) * scale
    end = begin + scale
    covered = np.minimum(scale, n - begin)
    last = np.minimum(np.floor(end).astype(np.int64), n - 1)
    whole = np.minimum(np.ceil(begin).astype(np.int64), last)  # the first pixel that is covered from its left edge on
    before = whole - begin > _LEAST
    at = whole - before + np.arange(int((last - whole).max()) + 2)[:, None]
    shares = np.where((at >= whole) & (at < last), 1.0 / covered, 0.0)
    shares = np.where(at < whole, (whole - begin) / covered, shares)
    rest = np.minimum(np.minimum(end - last, 1.0), covered) / covered
    shares = np.where((at == last) & (end - last > _LEAST), rest, shares).astype(np.float32)
    k = int((shares > 0).sum(axis=0).max())
    return np.where(shares > 0, at, 0)[:k], shares[:k]


def _added(taps: Taps, part: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """The parts of all taps, added up in order."""
    first, *others = (part(at, share) for at, share in zip(*taps, strict=True))
    for other in others:
        first.add_(other)
    return first


def _sums(pixels: torch.Tensor, times: tuple[int, int]) -> torch.Tensor:
    """Rounded means of whole blocks, whose sums are exact; of 2 × 2 pixels halves are rounded up, as OpenCV does."""
    height, width = pixels.shape[0] // times[0], pixels.shape[1] // times[1]
    blocks = pixels.float().reshape(height, times[0], width, times[1], 3).sum(dim=(1, 3))
    means = blocks * float(np.float32(1) / np.float32(times[0] * times[1]))
    return (means + 0.5).floor_() if times == (2, 2) else means.round_()


def _corrected(means: torch.Tensor, kernel: tuple[float, float]) -> torch.Tensor:
    """Means (h, w, 3) uint8 with their second differences taken off, as uint8; see base.images.resize_means."""
    beside, own = kernel
    padded = functional.pad(means.permute(2, 0, 1).float()[None], (1, 1, 1, 1), mode="replicate")[0]
    along = padded[:, :, 1:-1] * own + (padded[:, :, :-2] + padded[:, :, 2:]) * beside
    both = along[:, 1:-1] * own + (along[:, :-2] + along[:, 2:]) * beside
    return both.round_().clamp_(0, 255).to(torch.uint8).permute(1, 2, 0)

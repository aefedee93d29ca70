"""One inspection whose pixels stay on one torch device from the JPEG to the heatmap: what bench_gpu.py times.

The service's way and this one differ by rounding alone, which a test shows on the CPU. Regions are outlined and the PNG
is written on the CPU, from what comes back.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.io import ImageReadMode, decode_jpeg

from backend.extractors.network import NetworkFeatures
from backend.infer import RoiSize, enlarging

Float = NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """What comes back from the device.

    Attributes:
        token_map: (rows, columns) float32 distances.
        heatmap: (h, w) uint8 at working resolution; 0 and 255 stand for the 1st and the 99th percentile.
        score: the 99th percentile.
    """

    token_map: Float
    heatmap: NDArray[np.uint8]
    score: float


class OnDevice:
    """Inspects JPEGs where `extractor` computes.

    Args:
        extractor: one that torch runs.
        rows: (N, D) float32, the memory's.
        blur_sigma: see infer.Scoring.
    """

    def __init__(self, extractor: NetworkFeatures, rows: Float, blur_sigma: float = 1.0) -> None:
        self.extractor, self.blur_sigma = extractor, blur_sigma
        self.device = torch.device(extractor.device)
        self.rows = torch.from_numpy(rows).to(self.device)
        self._matrix = lru_cache(64)(self._new_matrix)

    def _new_matrix(self, kind: str, n: int, size: int) -> torch.Tensor:
        """(size, n) float32: what brings a line of `n` to `size`, as OpenCV does."""
        line = _averaging(n, size) if kind == "area" else enlarging(n, size, self.blur_sigma)
        return torch.from_numpy(line.copy()).to(self.device)

    @torch.inference_mode()
    def __call__(self, jpeg: bytes, mark: Callable[[str], None] = lambda _: None) -> Seen:
        """Inspect a JPEG. `mark`: told of each step once the device has been waited for."""

        def done(step: str) -> None:
            if self.device.type == "cuda":
                torch.cuda.synchronize()
            mark(step)

        pixels = self.decoded(jpeg)
        done("decode")
        height, width = pixels.shape[1:]
        grid = self.extractor.grid(height, width)
        seen = self.resized(pixels, grid[0] * self.extractor.patch, grid[1] * self.extractor.patch)
        done("resize")
        tokens = self.extractor.run.forward(seen[None])[0]
        done("forward")
        nearest = torch.cdist(tokens, self.rows, compute_mode="donot_use_mm_for_euclid_dist").amin(1).reshape(grid)
        done("neighbours")
        high, wide = RoiSize(height, width).working
        down, across = self._matrix("map", grid[0], high), self._matrix("map", grid[1], wide)
        heat = down @ nearest @ across.T
        ascending = heat.flatten().sort().values
        low, top = _percentile(ascending, 0.01), _percentile(ascending, 0.99)
        grey = ((heat - low) * (255 / (top - low))).clamp(0, 255).round().to(torch.uint8)
        found = Seen(nearest.cpu().numpy(), grey.cpu().numpy(), float(top))
        done("map")
        return found

    def decoded(self, jpeg: bytes) -> torch.Tensor:
        """(3, H, W) uint8 RGB on the device; nvJPEG decodes there."""
        data = torch.frombuffer(bytearray(jpeg), dtype=torch.uint8)
        with warnings.catch_warnings():  # torchvision will leave this to torchcodec
            warnings.simplefilter("ignore", DeprecationWarning)
            pixels = decode_jpeg(data, mode=ImageReadMode.RGB, device=self.device)
        assert isinstance(pixels, torch.Tensor)
        return pixels

    def resized(self, pixels: torch.Tensor, height: int, width: int) -> torch.Tensor:
        """(height, width, 3) uint8 of (3, H, W) uint8, each pixel the mean of the area that it covers."""
        if tuple(pixels.shape[1:]) == (height, width):
            return pixels.permute(1, 2, 0).contiguous()
        down, across = self._matrix("area", pixels.shape[1], height), self._matrix("area", pixels.shape[2], width)
        averaged = torch.einsum("hy,cyx,wx->hwc", down, pixels.float(), across)
        return averaged.round().clamp(0, 255).to(torch.uint8)


def _averaging(n: int, size: int) -> Float:
    """(size, n) float32: the mean of the part of a line of `n` pixels that each of `size` covers."""
    return np.asarray(cv2.resize(np.eye(n, dtype=np.float32), (n, size), interpolation=cv2.INTER_AREA), np.float32)


def _percentile(ascending: torch.Tensor, q: float) -> torch.Tensor:
    """The value at the share `q` of values in order, between two of them as numpy.percentile."""
    at = (len(ascending) - 1) * q
    low = int(at)
    high = min(low + 1, len(ascending) - 1)
    return torch.lerp(ascending[low], ascending[high], at - low)

"""How the picture of a part looks, in few numbers, so that many of them can be compared."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 64
BANDS = 3


@dataclass(frozen=True)
class Appearance:
    """What is kept of an image to compare it with others of the same model.

    Attributes:
        colour: (SIDE, SIDE, 3) uint8 RGB, the image made small; its pixels are means.
        bands: (BANDS,) float32, the natural logarithm of the energy of details of one, two and four pixels.
    """

    colour: NDArray[np.uint8]
    bands: NDArray[np.float32]


def appearance_of(pixels: NDArray[np.uint8]) -> Appearance:
    """The appearance of an image (H, W, 3) uint8 RGB as an extractor sees it; below a millisecond at 448×448."""
    colour = cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    bands = []
    for _ in range(BANDS):
        details = cv2.Laplacian(grey, cv2.CV_16S, ksize=1)
        bands.append(cv2.norm(details, cv2.NORM_L2) ** 2 / details.size)
        if min(grey.shape) >= 4:
            grey = cv2.resize(grey, (grey.shape[1] // 2, grey.shape[0] // 2), interpolation=cv2.INTER_AREA)
    return Appearance(np.asarray(colour, np.uint8), np.log(np.array(bands) + 0.05).astype(np.float32))

"""How a map of tokens becomes one of pixels: by two small products."""

from __future__ import annotations

from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray


@lru_cache(64)
def enlarging(n: int, size: int, sigma: float) -> NDArray[np.float32]:
    """(size, n) float32: a product with it brings a line of n tokens to `size` pixels, bilinearly, and blurs it.

    `sigma` is in pixels. Enlarging and blurring are linear and act on rows and columns apart, so two small products do
    both for a whole map.
    """
    line = cv2.resize(np.eye(n, dtype=np.float32), (n, size), interpolation=cv2.INTER_LINEAR)
    if sigma > 0:
        # The kernel of OpenCV's own blur of float images, which reaches four deviations to each side.
        kernel = cv2.getGaussianKernel(round(8 * sigma + 1) | 1, sigma, cv2.CV_32F)
        line = cv2.sepFilter2D(line, -1, np.ones(1, np.float32), kernel)
    line.flags.writeable = False  # all callers share it
    return line  # type: ignore[return-value]

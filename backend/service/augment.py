"""Augmented views of good parts: slightly turned, slightly differently lit."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How far a view may differ from its image. All zero: there are no views.

    `rotation_deg`: turned about the centre by up to ± this; what comes in at the corners mirrors the border.
    `jitter`: brightness, contrast and the gain of each colour channel change by up to ± this share.
    """

    rotation_deg: float = 0.0
    jitter: float = 0.0

    def __bool__(self) -> bool:
        return self.rotation_deg > 0 or self.jitter > 0

    def view(self, image: Image, rng: np.random.Generator) -> Image:
        """One view of `image` (H, W, 3) uint8, BGR, of the same size; the same for the same state of `rng`."""
        angle = rng.uniform(-self.rotation_deg, self.rotation_deg)
        brightness, contrast = rng.uniform(-self.jitter, self.jitter, 2)
        gains = 1.0 + rng.uniform(-self.jitter, self.jitter, 3) / 2
        turned = _turned(image, angle) if self.rotation_deg > 0 else image
        if self.jitter == 0:
            return turned
        mean = turned.mean(axis=(0, 1))
        lit = ((turned - mean) * (1 + contrast) + mean) * (1 + brightness) * gains
        return np.asarray(np.clip(np.rint(lit), 0, 255), np.uint8)


def _turned(image: Image, angle: float) -> Image:
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    turned = cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(turned, np.uint8)

"""Changes of light, focus and position, in steps: what a model that never saw them has to stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

BGR = NDArray[np.uint8]
Kind = Literal["gain", "gamma", "colour", "blur", "shift", "turn"]


@dataclass(frozen=True)
class Perturbation:
    """One step of one kind of change.

    Attributes:
        kind, amount: gain: the factor of all channels. gamma: the exponent of intensities from 0 to 1. colour: the
            share by which red rises and blue falls, or the other way round. blur: a Gaussian's σ, and shift: a move to
            the right and downwards, both in per cent of the smaller side. turn: degrees about the centre.
    """

    kind: Kind
    amount: float

    def __str__(self) -> str:
        return f"{self.kind} {self.amount:{'+' if self.kind in {'colour', 'turn'} else ''}g}{_UNITS.get(self.kind, '')}"

    def __call__(self, image: BGR) -> BGR:
        """`image` (H, W, 3) uint8 BGR under this change, of the same size; what comes in mirrors the border."""
        if self.kind in {"blur", "shift", "turn"}:
            return self._moved(image)
        levels = np.arange(256) / 255.0
        channels = np.ones(3)
        if self.kind == "gamma":
            levels = levels**self.amount
        elif self.kind == "gain":
            channels *= self.amount
        else:
            channels += (-self.amount, 0.0, self.amount)
        table = np.clip(np.rint(255.0 * np.outer(levels, channels)), 0, 255).astype(np.uint8)
        return np.asarray(cv2.LUT(image, table[None]), np.uint8)

    def _moved(self, image: BGR) -> BGR:
        height, width = image.shape[:2]
        pixels = self.amount / 100 * min(height, width)
        if self.kind == "blur":
            return np.asarray(cv2.GaussianBlur(image, (0, 0), pixels), np.uint8)
        if self.kind == "shift":
            moved = np.array([[1.0, 0.0, pixels], [0.0, 1.0, pixels]])
        else:
            moved = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), self.amount, 1.0)
        found = cv2.warpAffine(image, moved, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
        return np.asarray(found, np.uint8)


_UNITS = {"blur": " %", "shift": " %", "turn": "°"}
_STEPS: dict[Kind, tuple[float, ...]] = {
    "gain": (0.7, 0.85, 0.95, 1.05, 1.15, 1.3),
    "gamma": (0.7, 0.85, 1.15, 1.3),
    "colour": (-0.1, -0.03, 0.03, 0.1),
    "blur": (0.2, 0.5, 1.0),
    "shift": (0.5, 1.0, 2.0, 4.0),
    "turn": (0.5, 1.0, 2.0, 5.0),
}
PERTURBATIONS = tuple(Perturbation(kind, amount) for kind, amounts in _STEPS.items() for amount in amounts)

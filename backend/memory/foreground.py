"""Which tokens are the part and which its background, told by the good tokens' first principal component.

After AnomalyDINO (Damm et al. 2025, section 3.2), with one component for all good images instead of one for each: what
a part looks like is learnt once, and a defect cannot move the boundary.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]
SAMPLE = 50_000


@dataclass(frozen=True)
class Foreground:
    """A token x is of the part when x · axis > cut. `axis`: (D,) float32."""

    axis: Array
    cut: float

    @classmethod
    def learnt(cls, emb: Array, grid: tuple[int, int]) -> Foreground:
        """From all tokens (n · rows · cols, D) of good images, in order.

        The cut is Otsu's on the first component; the part is the side of it that the ROI's border has less of.
        """
        step = -(-len(emb) // SAMPLE)
        chosen = emb[::step].astype(np.float64)
        centred = chosen - chosen.mean(axis=0)
        axis = np.linalg.eigh(centred.T @ centred)[1][:, -1].astype(np.float32)
        along = emb @ axis
        low, high = float(along.min()), float(along.max())
        levels = np.clip((along - low) * (255.0 / max(high - low, 1e-12)), 0, 255).astype(np.uint8)
        level, _ = cv2.threshold(levels, 0, 255, cv2.THRESH_BINARY + cv2.THRESH_OTSU)
        cut = float(np.float32(low + (level + 0.5) * (high - low) / 255.0))
        above = (along > cut).reshape(-1, *grid)
        border = np.ones(grid, bool)
        border[1:-1, 1:-1] = False
        at_border, inside = float(above[:, border].mean()), float(above[:, ~border].mean() if not border.all() else 1.0)
        return cls(axis, cut) if at_border <= inside else cls(-axis, -cut)

    def of(self, tokens: Array) -> NDArray[np.bool_]:
        """(N,) bool: which tokens (N, D) are of the part."""
        found: NDArray[np.bool_] = tokens @ self.axis > self.cut
        return found

    def of_image(self, tokens: Array, grid: tuple[int, int]) -> NDArray[np.bool_]:
        """(rows · cols,) bool of an image's tokens, holes closed and a token wider: a defect at the edge still counts.

        All of them when none would be left.
        """
        found = self.of(tokens).reshape(grid).astype(np.uint8)
        kernel = np.ones((3, 3), np.uint8)
        found = cv2.dilate(cv2.morphologyEx(found, cv2.MORPH_CLOSE, kernel), kernel).astype(np.uint8)
        part: NDArray[np.bool_] = found.ravel().astype(bool)
        return part if part.any() else np.ones_like(part)

    def as_array(self) -> Array:
        """(D + 1,) float32: axis, then cut."""
        return np.append(self.axis, np.float32(self.cut)).astype(np.float32)

    @classmethod
    def from_array(cls, array: Array) -> Foreground:
        """What `as_array` gave."""
        return cls(np.asarray(array[:-1], np.float32), float(array[-1]))

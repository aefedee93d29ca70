"""Which tokens show the part and which its background, told by the first principal component of good tokens.

After AnomalyDINO (Damm et al., WACV 2025, section 3.2), which takes a component for each image. Here one is learnt from
all good images of a fit, so that a defect in an inspected image cannot move the boundary.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.base.arrays import Float

SAMPLE = 50_000  # tokens that the component is taken from


@dataclass(frozen=True)
class Foreground:
    """The rule that a token x belongs to the part when x · axis > cut.

    Attributes:
        axis: (D,) float32.
        cut: along the axis.
        grid: token rows and columns of an image.
    """

    axis: Float
    cut: float
    grid: tuple[int, int]

    @classmethod
    def learnt(cls, emb: Float, grid: tuple[int, int]) -> Foreground:
        """The rule for good images on this token grid, from all their tokens.

        The cut is Otsu's on the first principal component. The part is the side of it that is rarer at the border of
        the ROI than inside.

        Args:
            emb: (n · rows · columns, D) float32, image after image, each in rows from the top.
            grid: token rows and columns of each image.
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
        return cls(axis, cut, grid) if at_border <= inside else cls(-axis, -cut, grid)

    def of(self, tokens: Float) -> NDArray[np.bool_]:
        """Which of the tokens (N, D) belong to the part: (N,) bool.

        As many tokens as the grid has are an image. Its part has no holes and is a token wider all round, so that a
        defect at the edge counts; where no token would be left, all of them are the part. Other tokens are judged one
        by one.
        """
        found: NDArray[np.bool_] = tokens @ self.axis > self.cut
        if len(tokens) != self.grid[0] * self.grid[1]:
            return found
        kernel = np.ones((3, 3), np.uint8)
        image = cv2.morphologyEx(found.reshape(self.grid).astype(np.uint8), cv2.MORPH_CLOSE, kernel)
        part: NDArray[np.bool_] = cv2.dilate(image, kernel).astype(np.uint8).ravel().astype(bool)
        return part if part.any() else np.ones_like(part)

    def of_images(self, tokens: Float) -> NDArray[np.bool_]:
        """`of` for the tokens (n · rows · columns, D) of several images, in order."""
        images = np.split(tokens, len(tokens) // (self.grid[0] * self.grid[1]))
        return np.concatenate([self.of(image) for image in images])

    def as_array(self) -> Float:
        """The axis, then the cut: (D + 1,) float32, as memory.npz holds them."""
        return np.append(self.axis, np.float32(self.cut)).astype(np.float32)

    @classmethod
    def from_array(cls, array: Float, grid: tuple[int, int]) -> Foreground:
        """The rule that gave this array, on its token grid."""
        return cls(np.asarray(array[:-1], np.float32), float(array[-1]), grid)

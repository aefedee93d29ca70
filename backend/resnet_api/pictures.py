"""What the ResNet18 web API shows: ROI, polygons and the three pictures of a prediction. Arrays in, arrays out."""

from __future__ import annotations

import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.base.images import encode_png

Grey = NDArray[np.uint8]
BGR = NDArray[np.uint8]
Heat = NDArray[np.float32]
Mask = NDArray[np.bool_]
Polygon = list[list[int]]

CYAN = (255, 255, 0)
WHITE = (255, 255, 255)
EPSILON = 2.0
ADAPTIVE_PERCENTILE = 98.0
KERNEL = np.ones((3, 3), np.uint8)
_PICTURE = re.compile(r"-[0-9a-f]{16}_[a-z]+\.png$")


def roi_mask(size: int, border_pct: float, picture: Grey | None = None) -> Mask | None:
    """The (size, size) bool mask of where the score counts; None for everywhere.

    Args:
        size: side of the resized image in pixels.
        border_pct: share of each edge left out, in percent.
        picture: (H, W) uint8 mask of any size, over 127 where it counts.

    A mask that would leave nothing is ignored.
    """
    if border_pct <= 0 and picture is None:
        return None
    margin = round(size * border_pct / 100)
    mask = np.zeros((size, size), np.bool_)
    mask[margin : size - margin, margin : size - margin] = True
    if picture is not None:
        mask &= cv2.resize(picture, (size, size), interpolation=cv2.INTER_NEAREST) > 127
    return mask if mask.any() else None


def normalised(heat: Heat) -> Heat:
    """`heat` stretched to 0–1 between its own minimum and maximum."""
    low, high = float(heat.min()), float(heat.max())
    return (heat - np.float32(low)) / np.float32(high - low + 1e-8)


def relative_threshold(heat: Heat, threshold: float) -> float | None:
    """`threshold` on the scale of `normalised`; None when all of the map is above it, so that it outlines nothing."""
    low, high = float(heat.min()), float(heat.max())
    value = (threshold - low) / (high - low + 1e-8)
    return value if value > 0 else None


def binarise(heat_norm: Heat, threshold: float | None, roi: Mask | None) -> Mask:
    """Where a normalised map is at or above `threshold` inside the ROI, opened and closed with a 3×3 square.

    Without a threshold it is the 98th percentile of the values above 0.
    """
    if threshold is None:
        positive = heat_norm[heat_norm > 0]
        threshold = float(np.percentile(positive, ADAPTIVE_PERCENTILE)) if positive.size else 1.0
    hot = heat_norm >= threshold
    if roi is not None:
        hot &= roi
    opened = cv2.morphologyEx(hot.astype(np.uint8), cv2.MORPH_OPEN, KERNEL)
    return cv2.morphologyEx(opened, cv2.MORPH_CLOSE, KERNEL).astype(np.bool_)


def polygons(mask: Mask, area_min: float) -> list[Polygon]:
    """Outlines of the areas of `mask` of at least `area_min` px, simplified by up to 2 px, largest first.

    Returns:
        Polygons of [x, y] pixels of the mask, x to the right and y down.
    """
    contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    large = sorted((c for c in contours if cv2.contourArea(c) >= area_min), key=cv2.contourArea, reverse=True)
    return [cv2.approxPolyDP(contour, EPSILON, True).reshape(-1, 2).astype(int).tolist() for contour in large]


def pictures(grey: Grey, heat_norm: Heat, mask: Mask, outlines: list[Polygon], roi: Mask | None) -> dict[str, BGR]:
    """`overlay`, `heat` and `mask` of a prediction, each as large as `grey` (H, W) uint8.

    The overlay is the picture under the JET heat, with the polygons in white and the ROI's edge in cyan.
    """
    heat = cv2.applyColorMap((np.clip(heat_norm, 0, 1) * 255).astype(np.uint8), cv2.COLORMAP_JET)
    overlay = cv2.addWeighted(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), 0.55, heat, 0.45, 0)
    for outline in outlines:
        cv2.polylines(overlay, [np.array(outline, np.int32)], True, WHITE, 1, cv2.LINE_AA)
    if roi is not None:
        edge, _ = cv2.findContours(roi.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(overlay, edge, -1, CYAN, 1)
    return {"overlay": overlay, "heat": heat, "mask": mask.astype(np.uint8) * np.uint8(255)}  # type: ignore[dict-item]


class OverlayFolder:
    """Where the pictures of predictions lie: never overwritten, at most `keep` sets of them."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, name: str, pictures: Mapping[str, BGR]) -> dict[str, str]:
        """Write each picture as <name>-<random>_<kind>.png; the oldest sets over `keep` go.

        Args:
            name: what the sender calls the image; only its letters and digits find their way into the file names.

        Returns:
            The file name of each kind.
        """
        stem = re.sub(r"[^A-Za-z0-9-]+", "-", Path(name).stem).strip("-")[:40] or "image"
        token = uuid.uuid4().hex[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        names = {kind: f"{stem}-{token}_{kind}.png" for kind in pictures}
        for kind, picture in pictures.items():
            with (self.folder / names[kind]).open("xb") as file:
                file.write(encode_png(picture))
        self._prune(len(pictures))
        return names

    def _prune(self, per_set: int) -> None:
        with os.scandir(self.folder) as entries:
            aged = sorted((entry.stat().st_mtime_ns, entry.path) for entry in entries if _PICTURE.search(entry.name))
        for _, path in aged[: max(0, len(aged) - self.keep * per_set)]:
            Path(path).unlink(missing_ok=True)

"""What the ResNet18 web API shows of a prediction: polygons, three pictures, and the folder that these lie in."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.base.files import write_atomic
from backend.base.images import encode_png

Grey = NDArray[np.uint8]
BGR = NDArray[np.uint8]
AnomalyMap = NDArray[np.float32]
Mask = NDArray[np.bool_]
Polygon = list[list[int]]

CYAN = (255, 255, 0)
WHITE = (255, 255, 255)
EPSILON = 2.0  # px that a simplified outline may stray
ADAPTIVE_PERCENTILE = 98.0
KERNEL = np.ones((3, 3), np.uint8)
LEFT_OVER_S = 3600.0  # no picture takes this long to write
_PICTURE = re.compile(r"-[0-9a-f]{16}_[a-z]+\.png$")


def scored_area(size: int, border_pct: float, picture: Grey | None = None) -> Mask | None:
    """The (size, size) bool mask of the pixels that are scored; None where all are.

    Args:
        size: side of the resized image in pixels.
        border_pct: share of each edge that is left out, in percent.
        picture: (H, W) uint8 mask of any size; pixels over 127 are scored.

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


def normalised(anomaly_map: AnomalyMap) -> AnomalyMap:
    """`anomaly_map` stretched to 0–1 between its own minimum and maximum."""
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    return (anomaly_map - np.float32(low)) / np.float32(high - low + 1e-8)


def relative_threshold(anomaly_map: AnomalyMap, threshold: float) -> float | None:
    """`threshold` on the scale of `normalised`; None when all of the map is above it, so that it outlines nothing."""
    low, high = float(anomaly_map.min()), float(anomaly_map.max())
    value = (threshold - low) / (high - low + 1e-8)
    return value if value > 0 else None


def binarise(relative: AnomalyMap, threshold: float | None, area: Mask | None) -> Mask:
    """Where a normalised map is at or above `threshold` inside the scored area, opened and closed with a 3×3 square.

    Without a threshold it is the 98th percentile of the values above 0.
    """
    if threshold is None:
        positive = relative[relative > 0]
        threshold = float(np.percentile(positive, ADAPTIVE_PERCENTILE)) if positive.size else 1.0
    hot = relative >= threshold
    if area is not None:
        hot &= area
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


def draw(grey: Grey, relative: AnomalyMap, mask: Mask, outlines: list[Polygon], area: Mask | None) -> dict[str, BGR]:
    """`overlay`, `heat` and `mask` of a prediction, each as large as `grey` (H, W) uint8.

    The overlay is the image under the normalised map in the colours of JET, with the polygons in white and the edge of
    the scored area in cyan.
    """
    heat = cv2.applyColorMap((np.clip(relative, 0, 1) * 255).astype(np.uint8), cv2.COLORMAP_JET)
    overlay = cv2.addWeighted(cv2.cvtColor(grey, cv2.COLOR_GRAY2BGR), 0.55, heat, 0.45, 0)
    for outline in outlines:
        cv2.polylines(overlay, [np.array(outline, np.int32)], True, WHITE, 1, cv2.LINE_AA)
    if area is not None:
        edge, _ = cv2.findContours(area.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
        cv2.drawContours(overlay, edge, -1, CYAN, 1)
    return {"overlay": overlay, "heat": heat, "mask": mask.astype(np.uint8) * np.uint8(255)}  # type: ignore[dict-item]


class OverlayFolder:
    """The pictures of the last `keep` predictions; none is overwritten."""

    def __init__(self, folder: Path, keep: int) -> None:
        self.folder = folder
        self.keep = keep

    def save(self, name: str, pictures: Mapping[str, BGR]) -> dict[str, str]:
        """Write each picture as <name>-<random>_<kind>.png.

        Args:
            name: what the sender calls the image; only its letters and digits find their way into the file names.

        Returns:
            The file name of each kind.

        Raises:
            DiskFull, ReadOnlyStore.
        """
        stem = re.sub(r"[^A-Za-z0-9-]+", "-", Path(name).stem).strip("-")[:40] or "image"
        token = uuid.uuid4().hex[:16]
        names = {kind: f"{stem}-{token}_{kind}.png" for kind in pictures}
        for kind, picture in pictures.items():
            self._write(names[kind], encode_png(picture))
        self._prune(len(pictures))
        return names

    def _write(self, name: str, png: bytes) -> None:
        write_atomic(self.folder / name, lambda file: file.write(png))

    def _prune(self, per_set: int) -> None:
        """Remove the pictures that are too many, and what a writer that was killed left behind."""
        pictures, left_overs = [], []
        for path in self.folder.iterdir():
            with suppress(FileNotFoundError):  # another prediction prunes, too
                if _PICTURE.search(path.name):
                    pictures.append((path.stat().st_mtime_ns, path))
                elif path.match(".*.tmp") and time.time() - path.stat().st_mtime > LEFT_OVER_S:
                    left_overs.append(path)
        too_many = sorted(pictures)[: max(0, len(pictures) - self.keep * per_set)]
        for path in [*left_overs, *(path for _, path in too_many)]:
            path.unlink(missing_ok=True)

"""One image's tokens and one memory become an anomaly map, a score and regions. Pure: no disk, no HTTP, no network.

The anomaly map is each token's distance to the memory (PatchCore, Roth et al. 2022, eq. 6 without re-weighting) on the
token grid, bilinear at ROI resolution, blurred; the score is a percentile of it inside the mask.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.base.arrays import Ranked
from backend.base.codecs import encode_grey
from backend.base.errors import MaskEmpty
from backend.base.images import encode_png, working_scale
from backend.roi_mask import Shape, build_mask, nearest_inside, token_mask

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]
HeatmapScale = Literal["relative", "absolute", "color", "none"]
TOP_SHARE = 0.01
POWER = 32.0
Method = Literal["percentile", "max", "top_mean", "power_mean"]


class Memory(Protocol):
    """What scoring needs of a memory bank."""

    def distances(self, q: Float, k: int = 1, *, leave_out: int | None = None, density: int = 0) -> Float:
        """(T,) mean Euclidean distance of each row of q to its k nearest rows, weighed by how densely these lie."""
        ...

    def weight(self, q: Float, neighbours: int) -> float:
        """How much one row (D,) counts as its image's score: PatchCore, eq. 7."""
        ...


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How a heatmap becomes a number; a calibration holds only for the scoring it was made with.

    Attributes:
        where: the values that the method is applied to: the blurred heatmap at ROI resolution, or the token grid.
        top_share: share of the values that top_mean averages.
        power: of power_mean (Ranked.power_mean).
        reweight: neighbours of the re-weighted score (PatchCore, eq. 7); 0: none.
        token_blur: Gaussian blur of the token grid, in tokens: what one token alone says counts less than what several
            say together, at any size of the ROI.
        memory: in which way the memory measures, if not in the common one.
        density: neighbours of a row that tell how densely the memory's rows lie there; 0: distances are plain.
    """

    method: Method = "percentile"
    percentile: float = 99.0
    blur_sigma: float = 1.0
    k: int = 1
    where: Literal["roi", "tokens"] = "roi"
    top_share: float = TOP_SHARE
    power: float = POWER
    reweight: int = 0
    token_blur: float = 0.0
    memory: str = ""
    density: int = 0


@dataclass(frozen=True)
class RoiSize:
    """The sender's ROI size in pixels and the (smaller or equal) size the heatmap is computed at."""

    height: int
    width: int

    @property
    def scale(self) -> float:
        """Working pixels per sender's pixel (≤ 1)."""
        return working_scale(self.height, self.width)

    @property
    def working(self) -> tuple[int, int]:
        """(height, width) of the heatmap."""
        return max(1, round(self.height * self.scale)), max(1, round(self.width * self.scale))


def part_mask(shape: Shape | None, frame: RoiSize) -> Mask | None:
    """The mask of the part at working resolution; None without a shape.

    Raises:
        MaskEmpty: it speaks of the sender's pixels.
    """
    try:
        return build_mask(shape.scaled(frame.scale) if shape else None, *frame.working)
    except MaskEmpty as err:
        raise MaskEmpty(width=frame.width, height=frame.height) from err


@dataclass(frozen=True)
class Region:
    """A connected area at or above the threshold, in the sender's pixels (x to the right, y down)."""

    bbox: tuple[int, int, int, int]
    area_px: float
    area_mm2: float
    contour: list[list[int]]


@dataclass(frozen=True)
class Inspection:
    """What scoring says of one image.

    `heat`: (h, w) float32 distances at working resolution, 0 outside the mask; `ranked`: those inside by rank.
    """

    score: float
    stats: dict[str, float]
    heat: Float
    mask: Mask | None
    regions: list[Region]
    frame: RoiSize
    ranked: Ranked


@lru_cache(64)
def enlarging(n: int, size: int, sigma: float) -> Float:
    """(size, n) float32: what brings a line of n tokens to `size` pixels, bilinearly, and blurs it with `sigma` pixels.

    Enlarging and blurring are linear and act on rows and columns apart, so two small products do both for a whole map.
    """
    line = cv2.resize(np.eye(n, dtype=np.float32), (n, size), interpolation=cv2.INTER_LINEAR)
    if sigma > 0:
        # As long as OpenCV's own blur of float images takes it: four deviations to each side.
        kernel = cv2.getGaussianKernel(round(8 * sigma + 1) | 1, sigma, cv2.CV_32F)
        line = cv2.sepFilter2D(line, -1, np.ones(1, np.float32), kernel)
    line.flags.writeable = False  # it is everybody's
    return line  # type: ignore[return-value]


class InferenceEngine:
    """Scores tokens against a memory with one `Scoring`."""

    def __init__(self, scoring: Scoring) -> None:
        self.scoring = scoring

    def token_map(
        self,
        tokens: Float,
        grid: tuple[int, int],
        memory: Memory,
        leave_out: int | None = None,
        *,
        part: Mask | None = None,
    ) -> Float:
        """(h, w) float32 distances of tokens (h·w, D) to `memory`, blurred if the scoring says so.

        `leave_out`: rows of this image are no neighbours.
        `part`: the mask, for a memory that knows the part alone: tokens beside it, which it never saw, take on the
        distance of the nearest one that touches the part, so that nothing bleeds in from there.
        """
        distances = memory.distances(tokens, self.scoring.k, leave_out=leave_out, density=self.scoring.density).reshape(
            grid
        )
        if part is not None:
            distances = nearest_inside(distances, token_mask(part, grid))
        if self.scoring.token_blur > 0:
            distances = np.asarray(cv2.GaussianBlur(distances, (0, 0), self.scoring.token_blur), np.float32)
        return distances

    def weigher(self, tokens: Float, memory: Memory) -> Callable[[int], float] | None:
        """The weight of a token by its number, for `run`; None unless scores are re-weighted."""
        n = self.scoring.reweight
        return (lambda token: memory.weight(tokens[token], n)) if n else None

    def anomaly_map(self, token_map: Float, frame: RoiSize, mask: Mask | None = None) -> Float:
        """The token map at working resolution, blurred, 0 outside `mask`: (h, w) float32."""
        (height, width), (rows, columns) = frame.working, token_map.shape
        down = enlarging(rows, height, self.scoring.blur_sigma)
        across = enlarging(columns, width, self.scoring.blur_sigma)
        heat: Float = down @ (token_map @ across.T)
        return heat if mask is None else cv2.copyTo(heat, mask.view(np.uint8))  # type: ignore[return-value]

    def run(
        self,
        token_map: Float,
        frame: RoiSize,
        *,
        mask: Mask | None = None,
        threshold: float | None = None,
        mm_per_px: float = 1.0,
        area_mm2_thr: float = 0.0,
        weigher: Callable[[int], float] | None = None,
    ) -> Inspection:
        """Score a token map and outline what is at or above `threshold`.

        Args:
            token_map: (h, w) float32 distances on the token grid.
            frame: the sender's ROI size.
            mask: working-resolution bool mask of the part, or None for the whole ROI.
            mm_per_px: millimetres per sender's pixel.
            area_mm2_thr: regions smaller than this (mm²) are dropped.
            weigher: what `weigher` gave.
        """
        heat = self.anomaly_map(token_map, frame, mask)
        ranked = Ranked(heat, mask)
        stats = statistics(ranked)
        score = self._score(token_map, mask, ranked, stats, weigher)
        found = [] if threshold is None else regions(heat, mask, threshold, frame, mm_per_px, area_mm2_thr)
        return Inspection(score, stats, heat, mask, found, frame, ranked)

    def _score(
        self,
        token_map: Float,
        mask: Mask | None,
        ranked: Ranked,
        stats: dict[str, float],
        weigher: Callable[[int], float] | None,
    ) -> float:
        inside = None if mask is None else token_mask(mask, token_map.shape)
        on_tokens = self.scoring.where == "tokens"
        values = Ranked(token_map, inside) if on_tokens else ranked
        score = score_of(values, self.scoring, None if on_tokens else stats)
        if weigher is None:
            return score
        farthest = int((token_map if inside is None else np.where(inside, token_map, -1.0)).argmax())
        return score * weigher(farthest)


def score_of(values: Ranked, scoring: Scoring, stats: dict[str, float] | None = None) -> float:
    """The score of values, the masked heatmap's or the token grid's, under `scoring`."""
    if scoring.method == "percentile":
        return values.percentile(scoring.percentile)
    if scoring.method == "max":
        return float(values.max)
    if scoring.method == "power_mean":
        return values.power_mean(scoring.power)
    if stats and scoring.top_share == TOP_SHARE:
        return stats["top1_mean"]
    return values.top_mean(max(1, round(values.n * scoring.top_share)))


def statistics(values: Ranked) -> dict[str, float]:
    """max, mean, median and the mean of the largest 1 % (at least one value)."""
    return {
        "max": values.max,
        "mean": values.mean,
        "median": values.median,
        "top1_mean": values.top_mean(max(1, round(values.n * TOP_SHARE))),
    }


def regions(
    heat: Float, mask: Mask | None, threshold: float, frame: RoiSize, mm_per_px: float, area_mm2_thr: float
) -> list[Region]:
    """Connected components (8 neighbours) of heat ≥ threshold inside the mask, largest first."""
    hot = heat >= threshold
    if mask is not None:
        hot &= mask
    outlines, tree = cv2.findContours(hot.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    px_area = 1.0 / frame.scale**2
    found = []
    parents = [links[3] for links in tree[0]] if outlines else []
    for outline, parent in zip(outlines, parents, strict=True):
        x, y, w, h = cv2.boundingRect(outline)
        if parent >= 0 or w * h * px_area * mm_per_px**2 < area_mm2_thr:  # a hole, or too small at the very best
            continue
        area_px = _connected(hot[y : y + h, x : x + w], *(outline[0, 0] - (x, y))) * px_area
        if area_px * mm_per_px**2 >= area_mm2_thr:
            found.append(_region(outline[:, 0], (x, y, w, h), frame, area_px, area_px * mm_per_px**2))
    return sorted(found, key=lambda region: region.area_px, reverse=True)


def _connected(hot: Mask, x: int, y: int) -> int:
    """Pixels of the component that (x, y) belongs to."""
    _, labels = cv2.connectedComponents(np.ascontiguousarray(hot).view(np.uint8), connectivity=8)
    return int(np.count_nonzero(labels == labels[y, x]))


def _region(points: NDArray[Any], box: tuple[int, int, int, int], frame: RoiSize, px: float, mm2: float) -> Region:
    if frame.scale == 1.0:
        return Region(box, px, mm2, points.tolist())
    x, y, w, h = box
    up = 1.0 / frame.scale
    left, top = int(x * up), int(y * up)
    right, bottom = min(frame.width, round((x + w) * up)), min(frame.height, round((y + h) * up))
    scaled = np.minimum(np.rint(points * up), (frame.width - 1, frame.height - 1)).astype(int)
    return Region((left, top, right - left, bottom - top), px, mm2, scaled.tolist())


def heatmap_range(inspection: Inspection, scale: HeatmapScale, threshold: float | None) -> tuple[float, float]:
    """The distances that 0 and 255 of the heatmap stand for: p1–p99 of this image, or 0 to a fixed top.

    The top of an absolute heatmap is twice the threshold, or without one the image's own maximum.
    """
    if scale == "absolute":
        top = max(2.0 * threshold if threshold else 0.0, inspection.stats["max"])
        return 0.0, float(top) or 1.0
    low, high = inspection.ranked.percentile(1.0), inspection.ranked.percentile(99.0)
    return (low, high) if high > low else (low, low + 1e-6)


def heatmap_png(inspection: Inspection, scale: HeatmapScale, low: float, high: float) -> bytes:
    """PNG of the heatmap at the sender's ROI size: 8-bit grey, or BGR with scale "color"; 0 outside the mask."""
    gain = 255.0 / (high - low)
    grey = cv2.addWeighted(inspection.heat, gain, inspection.heat, 0.0, -low * gain, dtype=cv2.CV_8U)
    frame = inspection.frame
    if grey.shape != (frame.height, frame.width):
        grey = cv2.resize(grey, (frame.width, frame.height), interpolation=cv2.INTER_LINEAR)
    return encode_png(cv2.applyColorMap(grey, cv2.COLORMAP_JET)) if scale == "color" else encode_grey(grey)  # type: ignore[arg-type]

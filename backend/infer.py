"""One image's tokens and one memory become an Inspection: anomaly map, score and regions. No disk, no network.

The anomaly map is each token's distance to the memory (PatchCore, Roth et al. 2022, eq. 6 without re-weighting) on the
token grid, brought to ROI resolution bilinearly and blurred; the score is a percentile of it inside the mask.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.base.arrays import Ranked
from backend.base.enlarging import enlarging
from backend.base.errors import MaskEmpty
from backend.base.images import encode_grey, encode_png, working_scale
from backend.base.levels import connected_level, largest_region
from backend.base.options import filled, option
from backend.calib import GoodScores
from backend.memory.on_device import Seen, View
from backend.roi_mask import Shape, build_mask, nearest_inside, token_mask

if TYPE_CHECKING:
    from backend.base.config import Settings

Float = NDArray[np.float32]
Mask = NDArray[np.bool_]
HeatmapScale = Literal["relative", "absolute", "color", "none"]
Method = Literal["percentile", "max", "top_mean", "power_mean", "area"]
TOP_SHARE = 0.01
_STEPS_PER_TOKEN = 8


class Memory(Protocol):
    """What an inspection asks of a memory bank."""

    def distances(self, q: Float, k: int = 1, *, leave_out: int | None = None, density: int = 0) -> Float:
        """(T,) mean Euclidean distance of each row of q to its k nearest rows, weighed by how densely these lie."""
        ...

    def weight(self, q: Float, neighbours: int, *, leave_out: int | None = None) -> float:
        """How much one row (D,) counts as its image's score: PatchCore, eq. 7."""
        ...


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How an anomaly map becomes a number. A calibration holds only for the scoring it was made with.

    An option is declared in its field and nowhere else: its default, the setting that fills it, whether a calibration
    remembers it (`always`, never, or only a value that was `changed` from the default, and `of_method` under that
    method alone), and the name under which /infer reports it in `params`. A calibration does not hold the options
    that are added after it, so what is `changed` must keep its default.

    Attributes:
        method: percentile, max, top_mean (of the largest values), power_mean (Ranked.power_mean) or area: the highest
            level at which a connected region of `area_mm2` of the anomaly map lights up.
        percentile: of the method of that name. A calibration may choose its own.
        blur_sigma: Gaussian blur of the anomaly map, in working pixels.
        k: neighbours in the memory whose distances are averaged.
        where: the values that the method is applied to: the anomaly map (`roi`) or the token map (`tokens`).
        top_share: share of the values that top_mean averages.
        reweight: neighbours of the re-weighted score (PatchCore, eq. 7); 0: none.
        token_blur: Gaussian blur of the token map, in tokens: what one token says alone counts less than what several
            say together, at any size of the ROI.
        memory: how the memory measures, in its own words, if not in the common way.
        density: neighbours of a row that tell how densely the memory's rows lie there; 0: distances are plain.
        power: exponent of power_mean.
        area_mm2: of the method area; None: the calibration's smallest region.
    """

    method: Method = option("percentile", "score_method", remembered="always", reported="score_method")
    percentile: float = option(99.0, "score_percentile", remembered="never", reported="score_percentile")
    blur_sigma: float = option(1.0, "blur_sigma", remembered="always", reported="blur_sigma")
    k: int = option(1, "patchcore_knn_k", remembered="always", reported="k")
    where: Literal["roi", "tokens"] = option("roi", "score_map", remembered="changed")
    top_share: float = option(TOP_SHARE, "score_top_share", remembered="changed")
    reweight: int = option(0, "patchcore_reweight", remembered="changed")
    token_blur: float = option(0.0, "token_blur", remembered="changed")
    memory: str = option("", remembered="changed")
    density: int = option(0, "patchcore_density_k", remembered="changed")
    power: float = option(32.0, "score_power", remembered="changed", of_method="power_mean")
    area_mm2: float | None = option(None, "score_area_mm2", remembered="changed", of_method="area")

    @classmethod
    def of(cls, settings: Settings, memory: str = "") -> Scoring:
        """The scoring that `settings` ask for, with a memory that measures in the way `memory` names."""
        return cls(**filled(cls, settings), memory=memory)

    @property
    def rejects_at_threshold(self) -> bool:
        """Whether a part whose score is the threshold is bad."""
        return self.method == "area"

    def most(self, longest: float) -> float:
        """The highest score that can be: the distance from a unit vector to a memory row of length `longest`.

        Cosine distances reach 2; density divides a distance by 1/2 at least; whitening leaves no bound.
        """
        if self.memory and "mahalanobis" in self.memory:
            return math.inf
        reach = 2.0 if "cosine" in self.memory else 1.0 + longest
        return reach * (2.0 if self.density else 1.0)

    def remembered(self) -> dict[str, Any]:
        """What calib.json holds as `scoring`: a calibration applies while this stays equal."""
        known = {}
        for own in fields(self):
            when, value = own.metadata["remembered"], getattr(self, own.name)
            of_this_method = own.metadata.get("of_method", self.method) == self.method
            if when == "always" or (when == "changed" and value != own.default and of_this_method):
                known[own.name] = value
        return known

    def reported(self) -> dict[str, Any]:
        """What /infer says of it in `params`."""
        return {own.metadata["reported"]: getattr(self, own.name) for own in fields(self) if "reported" in own.metadata}


@dataclass(frozen=True)
class RoiSize:
    """The size of an ROI as it was sent, in pixels, and the smaller or equal one that it is inspected at."""

    height: int
    width: int

    @property
    def scale(self) -> float:
        """Working pixels per sent pixel, at most 1."""
        return working_scale(self.height, self.width)

    @property
    def working(self) -> tuple[int, int]:
        """(height, width) of the anomaly map."""
        return max(1, round(self.height * self.scale)), max(1, round(self.width * self.scale))


def working_mask(shape: Shape | None, roi_size: RoiSize) -> Mask | None:
    """The mask of `shape`, given in sent pixels, at working resolution; None without a shape.

    Raises:
        MaskEmpty: the shape covers no pixel; the error names the sent size.
    """
    try:
        return build_mask(shape.scaled(roi_size.scale) if shape else None, *roi_size.working)
    except MaskEmpty as err:
        raise MaskEmpty(width=roi_size.width, height=roi_size.height) from err


@dataclass(frozen=True)
class Roi:
    """What an inspection needs to know of the ROI beside its tokens.

    Attributes:
        size: as it was sent.
        grid: token rows and columns.
        mask: (h, w) bool at working resolution, True on the part (see working_mask); None: the whole ROI.
        mm_per_px: millimetres per sent pixel.
        shape: what the mask was made of, in sent pixels.
    """

    size: RoiSize
    grid: tuple[int, int]
    mask: Mask | None = None
    mm_per_px: float = 1.0
    shape: Shape | None = None

    @property
    def inside(self) -> Mask | None:
        """(rows, columns) bool, the tokens that touch the part; None without a mask."""
        return None if self.mask is None else token_mask(self.mask, self.grid)

    @property
    def token_mm2(self) -> float:
        """The area of one token's cell, mm²."""
        return self.size.height * self.size.width / (self.grid[0] * self.grid[1]) * self.mm_per_px**2

    def pixels(self, area_mm2: float) -> int:
        """The fewest working pixels, at least one, that have `area_mm2`; one more than there are if all have less."""
        (height, width), each = self.size.working, self.mm_per_px**2 / self.size.scale**2
        if height * width * each < area_mm2:
            return height * width + 1
        n = math.ceil(area_mm2 / each) if area_mm2 > 0 else 1
        while n > 1 and (n - 1) * each >= area_mm2:  # the quotient rounds; the products decide
            n -= 1
        while n * each < area_mm2:
            n += 1
        return max(1, n)


@dataclass(frozen=True)
class Criteria:
    """What an inspection is judged by: the scoring, the threshold, and the smallest region that counts.

    Attributes:
        threshold: a score; `rejects` says what it means for a part, and what is at or above it in the anomaly map is a
            region. None: there is no verdict, and there are no regions.
        area_mm2_thr: regions smaller than this (mm²) are dropped, unless the scoring has an area of its own.
        good: the good scores that the threshold was chosen with, if they are known.
    """

    scoring: Scoring = field(default_factory=Scoring)
    threshold: float | None = None
    area_mm2_thr: float = 0.0
    good: GoodScores | None = None

    @property
    def smallest_mm2(self) -> float:
        """The smallest region that counts: the area that is scored by, if it is, so that both are about the same."""
        own = self.scoring.area_mm2 if self.scoring.method == "area" else None
        return self.area_mm2_thr if own is None else own

    def rejects(self, score: float) -> bool | None:
        """Whether a part with this score is bad; None without a threshold.

        Above the threshold it is. Scored by area it is at the threshold too, where a region of that area is.
        """
        if self.threshold is None:
            return None
        return score >= self.threshold if self.scoring.rejects_at_threshold else score > self.threshold


@dataclass(frozen=True)
class Region:
    """A connected area at or above the threshold, in sent pixels (x to the right, y down).

    Attributes:
        area_px, area_mm2: what is at or above the threshold.
        area_mm2_estimate: how large the defect is that made it; see `estimated_area`.
    """

    bbox: tuple[int, int, int, int]
    area_px: float
    area_mm2: float
    area_mm2_estimate: float
    contour: list[list[int]]


@dataclass(frozen=True)
class Heat:
    """The anomaly map of a token map. Its values are made when they are first asked for.

    Attributes:
        token_map: (rows, columns) float32 distances.
        roi: what they are of.
        blur_sigma: in working pixels.
        seen: what a device said of this very map.
    """

    token_map: Float
    roi: Roi
    blur_sigma: float
    seen: Seen | None = None

    @cached_property
    def values(self) -> Float:
        """See anomaly_map."""
        return anomaly_map(self.token_map, self.roi, self.blur_sigma)

    @cached_property
    def ranked(self) -> Ranked:
        """The values inside the mask, by rank."""
        return Ranked(self.values, self.roi.mask)

    @cached_property
    def stats(self) -> dict[str, float]:
        """See Inspection."""
        if self.seen is None:
            return statistics(self.ranked)
        known = self.seen
        return {"max": known.max, "mean": known.mean, "median": known.percentiles[50.0], "top1_mean": known.top_mean}

    def percentile(self, q: float) -> float:
        """The q-th percentile (0–100) of the values inside the mask."""
        known = self.seen.percentiles if self.seen else {}
        return known[q] if q in known else self.ranked.percentile(q)

    def picture(self, low: float, high: float) -> NDArray[np.uint8]:
        """(h, w) uint8: 0 at `low` and below, 255 at `high` and above; 0 outside the mask."""
        if self.seen and self.seen.picture.size and self.seen.limits == (low, high):
            return self.seen.picture
        gain = 255.0 / (high - low)
        return cv2.addWeighted(self.values, gain, self.values, 0.0, -low * gain, dtype=cv2.CV_8U)  # type: ignore[return-value]


@dataclass(frozen=True)
class Inspection:
    """What there is to say of one image.

    Attributes:
        score: one number, from 0; under most methods a distance, so at most 2.
        stats: max, mean, median and top1_mean (the largest 1 %) of the anomaly map inside the mask.
        heat: the anomaly map.
        regions: what is at or above the threshold, largest first; empty without a threshold.
        weight: what the score was multiplied by, where scores are re-weighted (PatchCore, eq. 7).
    """

    score: float
    stats: dict[str, float]
    heat: Heat
    regions: list[Region]
    weight: float = 1.0

    @property
    def roi(self) -> Roi:
        """What was inspected."""
        return self.heat.roi

    @property
    def token_map(self) -> Float:
        """(rows, columns) float32 distances on the token grid, from which `inspect_map` makes all else again."""
        return self.heat.token_map

    @property
    def anomaly_map(self) -> Float:
        """(h, w) float32 distances at working resolution, 0 outside the mask."""
        return self.heat.values


def inspect(
    tokens: Float | Seen,
    memory: Memory,
    roi: Roi,
    criteria: Criteria,
    *,
    part_only: bool = False,
    leave_out: int | None = None,
    mark: Callable[[str], None] = lambda _: None,
) -> Inspection:
    """The inspection of one image: how far its tokens are from the memory, as a map, a score and regions.

    Args:
        tokens: (rows · columns, D) float32 unit rows, the grid's rows one after the other; or what a device that holds
            the memory said of them, asked by `view_of` for the same ROI and criteria.
        part_only: the memory knows nothing but the part, so tokens beside it count as the nearest one that touches it.
        leave_out: rows of the memory that came from this image are no neighbours.
        mark: told when the stages `knn` and `post` are over.
    """
    if isinstance(tokens, Seen):
        mark("knn")
        inspection = inspect_map(tokens.token_map, roi, criteria, seen=tokens)
        mark("post")
        return inspection
    scoring = criteria.scoring
    inside = token_mask(roi.mask, roi.grid) if part_only and roi.mask is not None else None
    distances = token_map(tokens, roi.grid, memory, scoring, inside=inside, leave_out=leave_out)
    mark("knn")
    weight = 1.0
    if scoring.reweight:
        weight = memory.weight(tokens[farthest(distances, roi)], scoring.reweight, leave_out=leave_out)
    inspection = inspect_map(distances, roi, criteria, weight)
    mark("post")
    return inspection


def token_map(
    tokens: Float,
    grid: tuple[int, int],
    memory: Memory,
    scoring: Scoring,
    *,
    inside: Mask | None = None,
    leave_out: int | None = None,
) -> Float:
    """(rows, columns) float32 distances of tokens (rows · columns, D) to `memory`, blurred if the scoring says so.

    `inside`: (rows, columns) bool, the tokens that touch the part, for a memory that knows the part alone. The others,
    which it never saw, take on the distance of the nearest of these, so that nothing bleeds in from beside the part.
    """
    asked = tokens if inside is None else tokens[inside.ravel()]
    found = memory.distances(asked, scoring.k, leave_out=leave_out, density=scoring.density)
    if inside is None:
        distances = found.reshape(grid)
    else:
        distances = np.zeros(grid, np.float32)
        distances[inside] = found
        distances = nearest_inside(distances, inside)
    if scoring.token_blur > 0:
        distances = np.asarray(cv2.GaussianBlur(distances, (0, 0), scoring.token_blur), np.float32)
    return distances


def farthest(token_map: Float, roi: Roi) -> int:
    """The number of the token that is farthest from the memory, of those that touch the part."""
    inside = None if roi.mask is None else token_mask(roi.mask, roi.grid)
    return int((token_map if inside is None else np.where(inside, token_map, -1.0)).argmax())


def inspect_map(
    token_map: Float, roi: Roi, criteria: Criteria, weight: float = 1.0, seen: Seen | None = None
) -> Inspection:
    """What a token map (rows, columns) says of `roi`.

    `weight`: what the score is multiplied by, where scores are re-weighted. The threshold is one of such scores, so the
    map, which is not, is compared with the threshold divided by it. `seen`: what a device said of the same map.
    """
    heat = Heat(token_map, roi, criteria.scoring.blur_sigma, seen)
    smallest, level = roi.pixels(criteria.smallest_mm2), level_of(criteria.threshold, weight)
    if criteria.scoring.method == "area":
        score, smallest = area_score(heat.values, roi.mask, smallest)
    else:
        score = weight * image_score(heat, criteria.scoring)
    lit = level is not None and heat.stats["max"] >= level
    found = regions(heat.values, roi, level, smallest) if lit else []
    return Inspection(score, heat.stats, heat, found, weight)


def view_of(roi: Roi, criteria: Criteria, heatmap: HeatmapScale = "none", *, part_only: bool = False) -> View | None:
    """What to ask a device that holds an image's tokens, so that `inspect_map` needs nothing else of them.

    None where the scoring asks for more than a token map of plain distances. `part_only`: see `inspect`.
    """
    scoring = criteria.scoring
    if scoring.reweight or scoring.density or scoring.token_blur > 0:
        return None
    stand_ins = None
    if part_only and roi.mask is not None:
        numbers = np.arange(math.prod(roi.grid), dtype=np.float32).reshape(roi.grid)
        stand_ins = nearest_inside(numbers, token_mask(roi.mask, roi.grid)).astype(np.int64)
    return View(
        grid=roi.grid,
        k=scoring.k,
        size=roi.size.working,
        sigma=scoring.blur_sigma,
        mask=roi.mask,
        stand_ins=stand_ins,
        percentile=scoring.percentile,
        top_share=TOP_SHARE,
        drawn=heatmap != "none",
        ceiling=2.0 * (criteria.threshold or 0.0) if heatmap == "absolute" else None,
    )


def level_of(threshold: float | None, weight: float) -> float | None:
    """Where the map of an image whose score weighs `weight` is at the threshold, which is one of weighted scores."""
    return threshold if threshold is None or weight == 1 else threshold / max(weight, 1e-9)


def anomaly_map(token_map: Float, roi: Roi, blur_sigma: float) -> Float:
    """The token map at the ROI's working resolution, blurred, 0 outside the mask: (h, w) float32."""
    (height, width), (rows, columns) = roi.size.working, token_map.shape
    distances: Float = enlarging(rows, height, blur_sigma) @ (token_map @ enlarging(columns, width, blur_sigma).T)
    return distances if roi.mask is None else cv2.copyTo(distances, roi.mask.view(np.uint8))  # type: ignore[return-value]


def area_score(anomaly_map: Float, mask: Mask | None, pixels: int) -> tuple[float, int]:
    """The highest level at which a region of so many pixels inside the mask is at or above it, and the pixels it took.

    They are fewer where the part has no region of that size: then its largest one, as a whole, is the region.
    """
    level = connected_level(anomaly_map, pixels, mask)
    if math.isinf(level):
        pixels = anomaly_map.size if mask is None else largest_region(mask)
        level = connected_level(anomaly_map, pixels, mask)
    return level, pixels


def image_score(heat: Heat, scoring: Scoring) -> float:
    """The score of an anomaly map, or of the token map that it came from."""
    if scoring.where == "tokens":
        inside = None if heat.roi.mask is None else token_mask(heat.roi.mask, heat.roi.grid)
        return score_of(Ranked(heat.token_map, inside), scoring)
    match scoring.method:
        case "percentile":
            return heat.percentile(scoring.percentile)
        case "max":
            return heat.stats["max"]
        case "top_mean" if scoring.top_share == TOP_SHARE:
            return heat.stats["top1_mean"]
    return score_of(heat.ranked, scoring)


def score_of(values: Ranked, scoring: Scoring) -> float:
    """The score of values by rank under `scoring`.

    The method area is a level of the anomaly map, which ranks do not tell: `area_score` finds it.
    """
    match scoring.method:
        case "percentile":
            return values.percentile(scoring.percentile)
        case "max":
            return float(values.max)
        case "power_mean":
            return values.power_mean(scoring.power)
        case "top_mean":
            return values.top_mean(max(1, round(values.n * scoring.top_share)))
        case "area":
            raise ValueError("a score by area is a level of the anomaly map")


def statistics(values: Ranked) -> dict[str, float]:
    """max, mean, median and the mean of the largest 1 % (at least one value)."""
    return {
        "max": values.max,
        "mean": values.mean,
        "median": values.median,
        "top1_mean": values.top_mean(max(1, round(values.n * TOP_SHARE))),
    }


def regions(anomaly_map: Float, roi: Roi, threshold: float | None, smallest: int = 1) -> list[Region]:
    """Connected components (8 neighbours) of what is at or above the threshold inside the mask, largest first.

    Without a threshold there are none. `smallest`: working pixels; smaller regions are left out.
    """
    if threshold is None:
        return []
    hot = anomaly_map >= float32_from(threshold)
    if roi.mask is not None:
        hot &= roi.mask
    outlines, tree = cv2.findContours(hot.view(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
    found = []
    parents = [links[3] for links in tree[0]] if outlines else []
    for outline, parent in zip(outlines, parents, strict=True):
        x, y, w, h = cv2.boundingRect(outline)
        if parent >= 0 or w * h < smallest:  # a hole, or too small even if it filled its box
            continue
        inside = _connected(hot[y : y + h, x : x + w], *(outline[0, 0] - (x, y)))
        pixels = int(np.count_nonzero(inside))
        if pixels >= smallest:
            estimate = estimated_area(anomaly_map, roi, inside, (x, y))
            found.append(_region(outline[:, 0], (x, y, w, h), roi, (pixels, estimate)))
    return sorted(found, key=lambda region: region.area_px, reverse=True)


def float32_from(threshold: float) -> np.float32:
    """The least float32 at or above `threshold`: a float32 value is at or above the one exactly if it is the other."""
    rounded = np.float32(threshold)
    return rounded if float(rounded) >= threshold else np.nextafter(rounded, np.float32(np.inf))


def _connected(hot: Mask, x: int, y: int) -> Mask:
    """The component of `hot` (h, w) that (x, y) belongs to."""
    _, labels = cv2.connectedComponents(np.ascontiguousarray(hot).view(np.uint8), connectivity=8)
    return np.asarray(labels == labels[y, x])


def estimated_area(anomaly_map: Float, roi: Roi, region: Mask, corner: tuple[int, int]) -> int:
    """Working pixels of the defect that made a region: what is at or above half of its peak, beside its surroundings.

    A token tells of its neighbours too, so a map is a blurred picture of the defect, and a low threshold makes regions
    many times as large. Half the height is where a blurred edge was. The surroundings are the median within a token
    of the box around the region, other regions aside; what is at that level and connected with the region counts.
    A map changes little within an eighth of a token, so of a finer map every n-th row and column are looked at.

    Args:
        region: (h, w) bool, in its box.
        corner: x and y of the box in the map.
    """
    (x, y), (height, width) = corner, region.shape
    down, across = (round(side / n) for side, n in zip(anomaly_map.shape, roi.grid, strict=True))
    top, left = max(0, y - down), max(0, x - across)
    box = slice(top, y + height + down), slice(left, x + width + across)
    step = max(1, min(down, across) // _STEPS_PER_TOKEN)
    own = np.zeros(anomaly_map[box].shape, np.bool_)
    own[y - top : y - top + height, x - left : x - left + width] = region
    if not own[::step, ::step].any():
        step = 1
    values: Float = np.ascontiguousarray(anomaly_map[box][::step, ::step])
    own = own[::step, ::step]
    inside = np.ones(values.shape, np.bool_) if roi.mask is None else roi.mask[box][::step, ::step]
    lowest, peak = float(values[own].min()), float(values[own].max())
    around = values[inside & (values < lowest)]
    ground = float(np.median(around)) if around.size else 0.0
    half = ground + (peak - ground) / 2
    _, labels = cv2.connectedComponents((inside & (values >= half)).view(np.uint8), connectivity=8)
    touched = np.zeros(int(labels.max()) + 1, np.bool_)
    touched[labels[own]] = True
    touched[0] = False
    return int(np.count_nonzero(touched[labels])) * int(step) ** 2


def _region(points: NDArray[Any], box: tuple[int, int, int, int], roi: Roi, pixels: tuple[int, int]) -> Region:
    """A region in sent pixels, of its outline (n, 2), box, pixels and estimated pixels at working resolution."""
    size, (px, estimate) = roi.size, (n / roi.size.scale**2 for n in pixels)
    areas = px, px * roi.mm_per_px**2, estimate * roi.mm_per_px**2
    if size.scale == 1.0:
        return Region(box, *areas, points.tolist())
    x, y, w, h = box
    up = 1.0 / size.scale
    left, top = int(x * up), int(y * up)
    right, bottom = min(size.width, round((x + w) * up)), min(size.height, round((y + h) * up))
    scaled = np.minimum(np.rint(points * up), (size.width - 1, size.height - 1)).astype(int)
    return Region((left, top, right - left, bottom - top), *areas, scaled.tolist())


def heatmap_range(inspection: Inspection, scale: HeatmapScale, threshold: float | None) -> tuple[float, float]:
    """The distances that 0 and 255 of the heatmap stand for: p1–p99 of this image, or 0 to a fixed top.

    The top of an absolute heatmap is twice the threshold, or without one the image's own maximum.
    """
    if scale == "absolute":
        top = max(2.0 * (level_of(threshold, inspection.weight) or 0.0), inspection.stats["max"])
        return 0.0, float(top) or 1.0
    low, high = inspection.heat.percentile(1.0), inspection.heat.percentile(99.0)
    return (low, high) if high > low else (low, low + 1e-6)


def heatmap_png(inspection: Inspection, scale: HeatmapScale, low: float, high: float) -> bytes:
    """PNG of the anomaly map at the ROI's sent size: 8-bit grey, or in colour with scale "color"; 0 outside the mask.

    `low` and `high` are the distances that 0 and 255 stand for.
    """
    grey = inspection.heat.picture(low, high)
    size = inspection.roi.size
    if grey.shape != (size.height, size.width):
        grey = np.asarray(cv2.resize(grey, (size.width, size.height), interpolation=cv2.INTER_LINEAR), np.uint8)
    return encode_png(cv2.applyColorMap(grey, cv2.COLORMAP_JET)) if scale == "color" else encode_grey(grey)


class InferenceEngine:
    """`inspect` by criteria of its own, under the name that the station's documents use."""

    def __init__(
        self, scoring: Scoring | None = None, threshold: float | None = None, area_mm2_thr: float = 0.0
    ) -> None:
        self.criteria = Criteria(scoring or Scoring(), threshold, area_mm2_thr)

    def run(self, tokens: Float, memory: Memory, roi: Roi, *, leave_out: int | None = None) -> Inspection:
        """See `inspect`."""
        return inspect(tokens, memory, roi, self.criteria, leave_out=leave_out)

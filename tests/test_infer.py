import json
import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from backend.base.arrays import Ranked
from backend.base.config import Settings
from backend.base.enlarging import enlarging
from backend.base.errors import MaskEmpty
from backend.infer import (
    Criteria,
    HeatmapScale,
    InferenceEngine,
    Inspection,
    Method,
    Roi,
    RoiSize,
    Scoring,
    anomaly_map,
    heatmap_png,
    heatmap_range,
    inspect,
    inspect_map,
    regions,
    score_of,
    statistics,
    token_map,
    working_mask,
)
from backend.patchcore import PatchCoreMemory
from backend.roi_mask import Shape, build_mask

Float = NDArray[np.float32]


METHODS: list[Method] = ["percentile", "max", "top_mean", "power_mean"]


def roi_of(height: int, width: int, grid: tuple[int, int] = (8, 8), **more: Any) -> Roi:
    return Roi(RoiSize(height, width), grid, **more)


def read(png: bytes) -> Any:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


def bilinear(grid: Float, height: int, width: int) -> NDArray[np.float64]:
    """The half-pixel bilinear interpolation, edges held, one pixel at a time."""
    out = np.empty((height, width))
    for y in range(height):
        for x in range(width):
            v = min(max((y + 0.5) * grid.shape[0] / height - 0.5, 0), grid.shape[0] - 1)
            u = min(max((x + 0.5) * grid.shape[1] / width - 0.5, 0), grid.shape[1] - 1)
            i, j = int(v), int(u)
            k, m = min(i + 1, grid.shape[0] - 1), min(j + 1, grid.shape[1] - 1)
            a, b = v - i, u - j
            top, low = (grid[i, j] * (1 - b) + grid[i, m] * b), (grid[k, j] * (1 - b) + grid[k, m] * b)
            out[y, x] = top * (1 - a) + low * a
    return out


@pytest.fixture
def problem(rng: np.random.Generator) -> tuple[Float, Float]:
    """Unit tokens of a 5×7 grid and a memory of 40 unit rows."""
    tokens, bank = rng.normal(size=(35, 16)), rng.normal(size=(40, 16))
    unit = [np.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), np.float32) for x in (tokens, bank)]
    return unit[0], unit[1]


@pytest.mark.parametrize("shape", [None, Shape("circle", {"cx": 40, "cy": 28, "r": 25})])
@pytest.mark.parametrize("scoring", [Scoring(), Scoring(percentile=90, k=3, blur_sigma=2), Scoring(blur_sigma=0)])
def test_the_score_is_what_the_slow_road_gives(
    problem: tuple[Float, Float], scoring: Scoring, shape: Shape | None
) -> None:
    tokens, bank = problem
    mask = build_mask(shape, 60, 84)
    found = inspect(tokens, PatchCoreMemory(bank), roi_of(60, 84, (5, 7), mask=mask), Criteria(scoring))

    pairs = np.sqrt(((tokens[:, None].astype(np.float64) - bank[None]) ** 2).sum(axis=2))
    nearest = np.sort(pairs, axis=1)[:, : scoring.k].mean(axis=1).reshape(5, 7)
    np.testing.assert_allclose(found.token_map, nearest, atol=1e-5)
    heat = bilinear(nearest.astype(np.float32), 60, 84)
    if scoring.blur_sigma:
        heat = ndimage.gaussian_filter(heat, scoring.blur_sigma, mode="mirror", truncate=4)
    inside = heat if mask is None else heat[mask]
    assert found.score == pytest.approx(np.percentile(inside, scoring.percentile), abs=2e-3)
    assert found.stats["max"] == pytest.approx(inside.max(), abs=2e-3)
    assert found.stats["mean"] == pytest.approx(inside.mean(), abs=2e-3)
    assert found.stats["median"] == pytest.approx(np.median(inside), abs=2e-3)
    assert np.abs(found.anomaly_map - (heat if mask is None else heat * mask)).max() < 4e-3


@pytest.mark.parametrize("sigma", [0.0, 0.6, 1.0, 4.0])
@pytest.mark.parametrize(
    ("grid", "size"), [((32, 32), (448, 448)), ((5, 9), (61, 200)), ((1, 1), (7, 5)), ((9, 8), (6, 5))]
)
def test_the_map_is_what_enlarging_and_then_blurring_gives(
    rng: np.random.Generator, grid: tuple[int, int], size: tuple[int, int], sigma: float
) -> None:
    distances = rng.random(grid, np.float32)
    expected = cv2.resize(distances, size[::-1], interpolation=cv2.INTER_LINEAR)
    if sigma:
        expected = cv2.GaussianBlur(expected, (0, 0), sigma)
    found = anomaly_map(distances, roi_of(*size, grid), sigma)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-6)


def test_the_other_scores_are_maximum_mean_of_the_top_percent_and_power_mean(rng: np.random.Generator) -> None:
    values = rng.random((20, 50), np.float32)
    assert score_of(Ranked(values), Scoring(method="max")) == values.max()
    assert score_of(Ranked(values), Scoring(method="top_mean")) == pytest.approx(
        np.sort(values, axis=None)[-10:].mean()
    )
    assert score_of(Ranked(values), Scoring(method="power_mean", power=2)) == pytest.approx((values**2).mean() ** 0.5)


def test_a_power_mean_hears_one_token_and_hears_several_better() -> None:
    criteria, scores = Criteria(Scoring(method="power_mean", where="tokens")), []
    for n in (0, 1, 2, 8):
        distances = np.full((32, 32), 0.5, np.float32)
        distances[0, :n] = 1.0
        scores.append(inspect_map(distances, roi_of(64, 64, (32, 32)), criteria).score)
    assert scores[0] == pytest.approx(0.5) and 0.8 < scores[1] < scores[2] < scores[3] < 1.0


@pytest.mark.parametrize("size", [1, 2, 3, 99, 100, 1001])
def test_statistics_equal_their_definitions(rng: np.random.Generator, size: int) -> None:
    values = rng.random((1, size), np.float32)
    top = max(1, round(size * 0.01))
    assert statistics(Ranked(values)) == pytest.approx(
        {
            "max": values.max(),
            "mean": values.mean(dtype=np.float64),
            "median": np.median(values),
            "top1_mean": np.sort(values, axis=None)[-top:].mean(dtype=np.float64),
        }
    )


def test_a_hot_spot_outside_the_mask_counts_for_nothing() -> None:
    distances = np.full((8, 8), 0.2, np.float32)
    distances[0, 0] = 1.5
    mask = build_mask(Shape("rect", {"x": 40, "y": 40, "w": 40, "h": 40}), 80, 80)
    found = inspect_map(distances, roi_of(80, 80, mask=mask), Criteria(threshold=0.5))
    assert found.score == pytest.approx(0.2, abs=1e-5) and found.regions == []
    assert (found.anomaly_map[:40] == 0).all()


def found_in(heat: Float, *, mask: Any = None, threshold: float = 0.5, area_mm2_thr: float = 0.0) -> Any:
    roi = roi_of(*heat.shape, mask=mask, mm_per_px=0.2)
    return regions(heat, roi, threshold, roi.pixels(area_mm2_thr))


@pytest.fixture
def three_spots() -> Float:
    heat = np.zeros((60, 90), np.float32)
    heat[5:10, 5:11] = 0.9  # 30 px
    heat[20:40, 30:60] = 0.8  # 600 px with a hole of 100
    heat[25:35, 40:50] = 0.1
    heat[50, 80] = 0.5  # exactly the threshold
    return heat


def test_regions_count_pixels_and_come_largest_first(three_spots: Float) -> None:
    found = found_in(three_spots)
    assert [region.area_px for region in found] == [500, 30, 1]
    assert [region.bbox for region in found] == [(30, 20, 30, 20), (5, 5, 6, 5), (80, 50, 1, 1)]
    assert [region.area_mm2 for region in found] == pytest.approx([20.0, 1.2, 0.04])


def test_small_islands_are_dropped_by_their_area_in_square_millimetres(three_spots: Float) -> None:
    assert [region.area_px for region in found_in(three_spots, area_mm2_thr=1.2)] == [500, 30]
    assert [region.area_px for region in found_in(three_spots, area_mm2_thr=1.21)] == [500]
    assert found_in(three_spots, area_mm2_thr=21) == []


def test_regions_agree_with_scipys_labels(rng: np.random.Generator) -> None:
    heat = ndimage.gaussian_filter(rng.random((120, 150)), 2).astype(np.float32)
    threshold = float(np.percentile(heat, 80))
    labels, count = ndimage.label(heat >= threshold, structure=np.ones((3, 3)))
    sizes = sorted(np.bincount(labels.ravel())[1:], reverse=True)
    found = found_in(heat, threshold=threshold)
    assert len(found) == count and [region.area_px for region in found] == sizes


def test_touching_corners_are_one_region_and_the_mask_divides() -> None:
    heat = np.zeros((20, 20), np.float32)
    heat[2:5, 2:5] = heat[5:8, 5:8] = 1
    assert len(found_in(heat)) == 1
    mask = np.ones((20, 20), bool)
    mask[:, 4:6] = False
    assert [region.area_px for region in found_in(heat, mask=mask)] == [6, 6]


def test_a_contour_outlines_its_region(three_spots: Float) -> None:
    region = found_in(three_spots)[0]
    x, y, w, h = region.bbox
    points = np.array(region.contour)
    assert points.min(axis=0).tolist() == [x, y] and points.max(axis=0).tolist() == [x + w - 1, y + h - 1]
    assert all(three_spots[py, px] >= 0.5 for px, py in region.contour)


def test_of_a_large_roi_everything_comes_back_in_the_senders_pixels() -> None:
    size = RoiSize(6000, 8000)
    assert size.working == (887, 1182) and size.scale == pytest.approx(0.1478, abs=1e-4)
    distances = np.full((27, 36), 0.1, np.float32)
    distances[9:12, 12:15] = 1.0
    found = inspect_map(distances, Roi(size, (27, 36), mm_per_px=0.01), Criteria(threshold=0.55))
    (region,) = found.regions
    x, y, w, h = region.bbox
    cell = 8000 / 36
    assert (x, y) == pytest.approx((12 * cell, 9 * cell), abs=0.2 * cell)
    assert (w, h) == pytest.approx((3 * cell, 3 * cell), abs=0.4 * cell)
    assert region.area_px == pytest.approx(9 * cell**2, rel=0.1)
    assert region.area_mm2 == pytest.approx(region.area_px * 1e-4)
    assert region.area_px > 0.9 * w * h
    assert all(x <= px <= x + w and y <= py <= y + h for px, py in region.contour)
    picture = read(heatmap_png(found, "relative", *heatmap_range(found, "relative", 0.55)))
    assert picture.shape == (6000, 8000)
    assert picture[int(10.5 * cell), int(13.5 * cell)] > 200 and picture[100, 100] < 20


@pytest.mark.parametrize(("height", "width"), [(1448, 1448), (2000, 2000), (1500, 4000), (3000, 4000)])
@pytest.mark.parametrize("side", [32, 64])
def test_of_a_large_roi_regions_and_statistics_are_those_of_a_map_at_its_own_size(
    height: int, width: int, side: int
) -> None:
    rng = np.random.default_rng(height + side)
    distances = (0.4 + 0.3 * rng.random((side, side))).astype(np.float32)
    distances[side // 2 : side // 2 + 3, side // 3 : side // 3 + 2] += 0.5
    roi = Roi(RoiSize(height, width), (side, side))
    found = inspect_map(distances, roi, Criteria(threshold=0.75))
    working = 1 / roi.size.scale
    own = enlarging(side, height, working) @ (distances @ enlarging(side, width, working).T)
    assert found.score == pytest.approx(np.percentile(own, 99), rel=0.001)
    assert found.stats["max"] == pytest.approx(own.max(), rel=0.005)
    _, _, boxes, _ = cv2.connectedComponentsWithStats((own >= 0.75).view(np.uint8), connectivity=8)
    left, top, across, down, area = max(boxes[1:].tolist(), key=lambda one: int(one[4]))
    (region, *_) = found.regions
    assert region.area_px == pytest.approx(area, rel=0.01)
    x, y, w, h = region.bbox
    np.testing.assert_allclose((x, y, x + w, y + h), (left, top, left + across, top + down), atol=1.5 * working)


@pytest.mark.parametrize("side", [1448, 2000])
def test_the_map_of_a_large_roi_gives_the_score_of_a_map_at_its_own_size(side: int) -> None:
    distances = (0.3 + 0.05 * np.random.default_rng(side).standard_normal((32, 32))).astype(np.float32)
    distances[10:14, 12:18] += 0.5
    roi = Roi(RoiSize(side, side), (32, 32), mm_per_px=0.05)
    small, whole = inspect_map(distances, roi, Criteria(threshold=0.5, area_mm2_thr=1.0)), enlarge(distances, side)
    assert small.score == pytest.approx(np.percentile(whole, 99), rel=0.001)
    assert small.stats["mean"] == pytest.approx(whole.mean(), rel=0.001)
    assert sum(region.area_px for region in small.regions) == pytest.approx(np.count_nonzero(whole >= 0.5), rel=0.005)


def enlarge(token_map: NDArray[np.float32], side: int) -> NDArray[np.float32]:
    """The token map at `side` × `side` pixels by OpenCV's own filters, blurred as an anomaly map is."""
    large = cv2.resize(token_map, (side, side), interpolation=cv2.INTER_LINEAR)
    return np.asarray(cv2.GaussianBlur(large, (0, 0), 1.0), np.float32)


@pytest.fixture
def ramp() -> Inspection:
    """An inspection whose map rises from 0.2 to 0.6 from left to right; its lower half is masked out."""
    distances = np.tile(np.linspace(0.2, 0.6, 16, dtype=np.float32), (16, 1))
    mask = np.zeros((64, 64), bool)
    mask[:32] = True
    return inspect_map(distances, roi_of(64, 64, (16, 16), mask=mask), Criteria(Scoring(blur_sigma=0)))


def test_a_relative_heatmap_spans_the_1st_to_99th_percentile_inside_the_mask(ramp: Inspection) -> None:
    low, high = heatmap_range(ramp, "relative", None)
    inside = ramp.anomaly_map[:32]
    assert (low, high) == pytest.approx((np.percentile(inside, 1), np.percentile(inside, 99)), abs=1e-5)
    picture = read(heatmap_png(ramp, "relative", low, high))
    assert picture.dtype == np.uint8 and picture.shape == (64, 64)
    assert (picture[32:] == 0).all() and picture[:32, -1].min() == 255 and picture[:32, 0].max() == 0
    expected = np.clip(255 * (inside - low) / (high - low), 0, 255)
    assert np.abs(picture[:32] - expected).max() <= 1


@pytest.mark.parametrize(("threshold", "top"), [(None, 0.6), (0.5, 1.0), (0.1, 0.6), (0.0, 0.6)])
def test_an_absolute_heatmap_starts_at_zero(ramp: Inspection, threshold: float | None, top: float) -> None:
    low, high = heatmap_range(ramp, "absolute", threshold)
    assert low == 0.0 and high == pytest.approx(top)
    picture = read(heatmap_png(ramp, "absolute", low, high))
    assert picture[0, 0] == pytest.approx(255 * 0.2 / top, abs=1)
    assert (picture[32:] == 0).all()


def test_a_colour_heatmap_has_three_channels_and_is_red_where_it_is_hot(ramp: Inspection) -> None:
    low, high = heatmap_range(ramp, "color", None)
    picture = read(heatmap_png(ramp, "color", low, high)).astype(int)
    assert picture.shape == (64, 64, 3)
    assert picture[0, -1, 2] > picture[0, -1, 0] and picture[0, 0, 0] > picture[0, 0, 2]


def test_a_flat_heatmap_still_has_a_range() -> None:
    flat = inspect_map(np.zeros((4, 4), np.float32), roi_of(32, 32, (4, 4)), Criteria())
    scales: list[HeatmapScale] = ["relative", "absolute", "color"]
    for scale in scales:
        low, high = heatmap_range(flat, scale, None)
        assert high > low and math.isfinite(high)
        assert read(heatmap_png(flat, scale, low, high)).max() <= 128


def test_rows_of_an_image_left_out_are_no_neighbours(problem: tuple[Float, Float]) -> None:
    tokens, _ = problem
    memory = PatchCoreMemory(tokens, image_ids=np.repeat(np.arange(5, dtype=np.int32), 7))
    roi = roi_of(50, 70, (5, 7))
    assert inspect(tokens, memory, roi, Criteria()).token_map.max() < 1e-3
    left_out = inspect(tokens, memory, roi, Criteria(), leave_out=2).token_map
    assert left_out[2].min() > 0.1 and np.delete(left_out, 2, axis=0).max() < 1e-3


@pytest.mark.parametrize(("share", "cell"), [(0.5, 1), (0.3, 1), (0.55, 4), (0.02, 3), (0.97, 2)])
def test_regions_are_the_connected_components(rng: np.random.Generator, share: float, cell: int) -> None:
    hot = (rng.random((40, 56)) < share).astype(np.float32)
    heat = cv2.resize(hot, (56 * cell, 40 * cell), interpolation=cv2.INTER_NEAREST)
    found = regions(np.asarray(heat, np.float32), roi_of(*heat.shape, mm_per_px=0.1), 0.5, 3)

    count, labels, stats, _ = cv2.connectedComponentsWithStats(heat.astype(np.uint8), connectivity=8)
    expected = []
    for label in range(1, count):
        x, y, w, h, area = (int(v) for v in stats[label])
        if area * 0.01 >= 0.03:
            (outline, *_), _ = cv2.findContours(
                (labels == label).astype(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE
            )
            expected.append(((x, y, w, h), area, {(int(px), int(py)) for px, py in outline[:, 0]}))
    assert sorted((r.bbox, r.area_px) for r in found) == sorted((box, area) for box, area, _ in expected)
    outlines = {r.bbox: {(px, py) for px, py in r.contour} for r in found}
    assert all(outlines[box] == points for box, _, points in expected if sum(b == box for b, _, _ in expected) == 1)
    assert [r.area_px for r in found] == sorted((r.area_px for r in found), reverse=True)


sides = st.integers(1, 70)
levels = st.floats(0, 2, width=32)
some_areas = st.one_of(st.just(0.0), st.floats(1e-6, 1e6))


@given(
    distances=arrays(np.float32, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=levels),
    size=st.tuples(sides, sides),
    masked=st.one_of(st.none(), st.tuples(st.integers(0, 2**32 - 1), st.floats(0.02, 1.0))),
    mm_per_px=st.floats(1e-3, 1e3),
    area=some_areas,
    own_area=st.booleans(),
    threshold=st.one_of(levels, st.floats(0, 2)),
)
def test_scored_by_area_a_part_is_bad_exactly_when_a_region_of_that_area_is_there(
    distances: Float,
    size: tuple[int, int],
    masked: tuple[int, float] | None,
    mm_per_px: float,
    area: float,
    own_area: bool,
    threshold: float,
) -> None:
    mask = None
    if masked is not None:
        mask = np.random.default_rng(masked[0]).random(size) < masked[1]
        mask[size[0] // 2, size[1] // 2] = True
    roi = Roi(RoiSize(*size), distances.shape, mask, mm_per_px)
    scoring = Scoring(method="area", area_mm2=area if own_area else None)
    found = inspect_map(distances, roi, Criteria(scoring, None, area))
    at = np.float32(found.score)
    around = [float(np.nextafter(at, np.float32(way))) for way in (-np.inf, np.inf)]
    for level in [threshold, found.score, *around, np.nextafter(found.score, 2), np.nextafter(found.score, 0)]:
        criteria = Criteria(scoring, float(level), area)
        again = inspect_map(distances, roi, criteria)
        assert again.score == found.score
        assert bool(again.regions) == (again.score >= level) == criteria.rejects(again.score)
        whole = roi.size.height * roi.size.width if mask is None else np.count_nonzero(mask)
        assert all(one.area_mm2 >= area or one.area_px <= whole < roi.pixels(area) for one in again.regions)


def test_scored_by_area_the_score_is_the_level_that_a_region_of_that_area_reaches() -> None:
    distances = np.zeros((16, 16), np.float32)
    distances[2, 2], distances[8:12, 8:12] = 1.0, 0.6
    roi = roi_of(128, 128, (16, 16), mm_per_px=0.5)

    def score(area: float) -> float:
        return inspect_map(distances, roi, Criteria(Scoring(method="area", area_mm2=area))).score

    assert score(0.1) > 0.7  # the one token
    assert score(100) == pytest.approx(0.6, abs=0.01)  # 400 px: what the token lights up is not that large
    assert score(5000) == 0.0


def test_a_part_without_a_region_of_that_area_is_a_region_as_a_whole() -> None:
    distances = np.full((8, 8), 0.3, np.float32)
    mask = np.zeros((64, 64), bool)
    mask[10:20, 10:20] = True
    criteria = Criteria(Scoring(method="area"), 0.25, area_mm2_thr=1e6)
    found = inspect_map(distances, roi_of(64, 64, mask=mask), criteria)
    assert found.score == pytest.approx(0.3) and criteria.rejects(found.score)
    assert [region.area_px for region in found.regions] == [100]


@pytest.mark.parametrize("method", ["percentile", "max", "top_mean", "power_mean"])
def test_by_the_other_scores_a_part_is_bad_above_the_threshold(method: Any) -> None:
    criteria = Criteria(Scoring(method=method), 0.5)
    assert criteria.rejects(0.5) is False and criteria.rejects(0.5000001) is True
    assert Criteria(Scoring(method=method)).rejects(0.5) is None


@pytest.mark.parametrize("mm_per_px", [1e-200, 1e-6, 0.07, 0.1, 0.3, 1.0, 1e6])
@pytest.mark.parametrize("area", [0.0, 1e-9, 0.01, 0.3, 1.0, 7.29, 1e12])
@pytest.mark.parametrize("height", [50, 5000])
def test_the_pixels_of_an_area_are_the_fewest_that_have_it(mm_per_px: float, area: float, height: int) -> None:
    roi = Roi(RoiSize(height, 4000), (8, 8), mm_per_px=mm_per_px)
    n, each = roi.pixels(area), mm_per_px**2 / roi.size.scale**2
    whole = roi.size.working[0] * roi.size.working[1]
    assert 1 <= n <= whole + 1
    assert n * each >= area or n == whole + 1
    assert n == 1 or (n - 1) * each < area


def blurred_disc(radius: float, height: float, ground: float) -> Float:
    """A disc on even ground, as its edge looks through tokens of 8 px."""
    rows, columns = np.ogrid[:200, :200]
    disc = (np.hypot(rows - 100, columns - 100) <= radius).astype(np.float32)
    return np.asarray(ground + height * cv2.GaussianBlur(disc, (0, 0), 6), np.float32)


@pytest.mark.parametrize("radius", [12, 25, 50])
def test_the_estimate_of_an_area_depends_little_on_the_threshold(radius: float) -> None:
    heat, true = blurred_disc(radius, 0.8, 0.2), 0.25 * math.pi * radius**2
    found = [regions(heat, roi_of(200, 200, (25, 25), mm_per_px=0.5), threshold)[0] for threshold in (0.25, 0.4, 0.55)]
    assert [region.area_mm2 for region in found] == [region.area_px * 0.25 for region in found]
    counted, estimated = ([region.area_mm2 for region in found], [region.area_mm2_estimate for region in found])
    assert estimated == pytest.approx([true] * 3, rel=0.35)
    assert max(estimated) / min(estimated) < 0.8 * max(counted) / min(counted)


def test_another_region_nearby_does_not_count_as_the_surroundings() -> None:
    heat = np.full((60, 60), 0.1, np.float32)
    heat[20:24, 20:24] = 0.5
    heat[:, 26:] = 2.0
    found = regions(heat, roi_of(60, 60, (12, 12)), 0.4)
    assert [region.area_mm2_estimate for region in found] == [60 * 34, 16]


def test_by_default_a_calibration_remembers_what_it_always_did() -> None:
    assert json.dumps(Scoring().remembered()) == '{"method": "percentile", "blur_sigma": 1.0, "k": 1}'


def test_a_calibration_remembers_each_option_that_is_not_the_defaults() -> None:
    other: dict[str, Any] = {
        "where": "tokens",
        "top_share": 0.02,
        "reweight": 3,
        "token_blur": 0.5,
        "memory": "cosine",
        "density": 2,
    }
    told = Scoring(method="max", percentile=50, blur_sigma=2, k=5, power=8, **other).remembered()
    assert list(told.items()) == [("method", "max"), ("blur_sigma", 2), ("k", 5), *other.items()]
    assert Scoring(method="power_mean", power=8).remembered()["power"] == 8
    assert "power" not in Scoring(method="power_mean").remembered()


@pytest.mark.parametrize("own", fields(Scoring), ids=lambda own: str(own.name))
def test_an_option_of_scoring_says_who_sets_it_and_who_remembers_it(own: Any) -> None:
    assert set(own.metadata) <= {"setting", "remembered", "reported", "of_method"}
    assert own.metadata["remembered"] in {"always", "changed", "never"}
    if setting := own.metadata["setting"]:
        others: dict[str, Any] = {"method": "max", "percentile": 50.0, "where": "tokens", "top_share": 0.5}
        value = others.get(own.name, 2)
        assert Scoring.of(Settings(**{setting: value})) == Scoring(**{own.name: value})


def test_settings_and_the_memory_fill_a_scoring() -> None:
    assert Scoring.of(Settings()) == Scoring()
    assert Scoring.of(Settings(), memory="cosine") == Scoring(memory="cosine")


def test_infer_reports_the_options_under_the_names_that_it_always_had() -> None:
    assert Scoring(method="max", percentile=95, blur_sigma=2, k=3).reported() == {
        "k": 3,
        "score_percentile": 95,
        "score_method": "max",
        "blur_sigma": 2,
    }


def test_the_documents_name_every_option_that_is_remembered_or_reported() -> None:
    docs = Path(__file__).resolve().parent.parent / "docs"
    remembered = [own.name for own in fields(Scoring) if own.metadata["remembered"] != "never"]
    formats, reference = ((docs / name).read_text("utf-8") for name in ("DATA_FORMATS.md", "API_REFERENCE.md"))
    calibration = formats[formats.index("### calib.json") : formats.index("### .trash")]
    assert [name for name in remembered if f"`{name}`" not in calibration] == []
    (params,) = [line for line in reference.splitlines() if line.startswith("| `params`")]
    assert [name for name in Scoring().reported() if f"`{name}`" not in params] == []


@pytest.fixture
def masked() -> Roi:
    """A 4×4 grid of which the mask touches the left half."""
    mask = np.zeros((40, 40), bool)
    mask[:, :18] = True
    return roi_of(40, 40, (4, 4), mask=mask)


def test_a_memory_of_the_part_alone_takes_what_lies_beside_it_for_its_neighbour(masked: Roi) -> None:
    tokens = np.eye(16, dtype=np.float32)
    memory = PatchCoreMemory(tokens[[0, 1, 4, 5, 8, 9, 12]])  # of the left half all but the token 13
    whole = inspect(tokens, memory, masked, Criteria()).token_map
    assert (whole[:, 2:] > 1).all() and whole[3, 1] > 1 and whole[:3, :2].max() < 1e-3
    part = inspect(tokens, memory, masked, Criteria(), part_only=True).token_map
    np.testing.assert_array_equal(part[:, :2], whole[:, :2])
    np.testing.assert_array_equal(part[:, 2:], np.repeat(whole[:, 1:2], 2, axis=1))
    unmasked = inspect(tokens, memory, roi_of(40, 40, (4, 4)), Criteria(), part_only=True).token_map
    np.testing.assert_array_equal(unmasked, whole)


def test_a_score_on_tokens_is_that_of_the_tokens_that_touch_the_part(rng: np.random.Generator, masked: Roi) -> None:
    distances = rng.random((4, 4), np.float32)
    on_tokens = {method: Criteria(Scoring(method=method, where="tokens")) for method in METHODS}
    assert inspect_map(distances, masked, on_tokens["max"]).score == distances[:, :2].max()
    percentile = np.percentile(distances[:, :2].astype(np.float64), 99)
    assert inspect_map(distances, masked, on_tokens["percentile"]).score == pytest.approx(percentile)
    assert inspect_map(distances, roi_of(40, 40, (4, 4)), on_tokens["max"]).score == distances.max()


@pytest.mark.parametrize("where", ["roi", "tokens"])
def test_a_reweighted_score_is_weighed_by_the_farthest_token_inside_the_mask(masked: Roi, where: Any) -> None:
    tokens, asked = np.arange(64, dtype=np.float32).reshape(16, 4), []

    class Weighing:
        """A memory whose distances rise with the token's number, and that remembers what it was asked to weigh."""

        def distances(self, q: Float, k: int = 1, *, leave_out: int | None = None, density: int = 0) -> Float:
            return np.linspace(0.1, 0.9, len(q), dtype=np.float32)

        def weight(self, q: Float, neighbours: int, *, leave_out: int | None = None) -> float:
            asked.append((q.tolist(), neighbours))
            return 0.5

    scoring = Scoring(where=where, reweight=7)
    found = inspect(tokens, Weighing(), masked, Criteria(scoring))
    plain = inspect(tokens, Weighing(), masked, Criteria(replace(scoring, reweight=0)))
    assert found.score == pytest.approx(0.5 * plain.score)
    assert asked == [(tokens[13].tolist(), 7)]  # the last row's token at the mask's edge
    inspect(tokens, Weighing(), roi_of(40, 40, (4, 4)), Criteria(scoring))
    assert asked[1] == (tokens[15].tolist(), 7)


def test_a_token_alone_counts_for_less_once_the_tokens_are_blurred(problem: tuple[Float, Float]) -> None:
    tokens, bank = problem
    plain, blurred = (
        token_map(tokens, (5, 7), PatchCoreMemory(bank), Scoring(token_blur=sigma)) for sigma in (0.0, 1.0)
    )
    np.testing.assert_allclose(blurred, cv2.GaussianBlur(plain, (0, 0), 1.0), atol=1e-6)
    assert blurred.std() < plain.std()


def test_what_it_asks_of_a_memory_is_what_the_scoring_says(problem: tuple[Float, Float]) -> None:
    tokens, bank = problem
    memory = PatchCoreMemory(bank)
    found = inspect(tokens, memory, roi_of(50, 70, (5, 7)), Criteria(Scoring(k=4, density=3)))
    np.testing.assert_array_equal(found.token_map.ravel(), memory.distances(tokens, 4, density=3))


def test_stages_are_told_when_they_are_over(problem: tuple[Float, Float]) -> None:
    marks: list[str] = []
    inspect(problem[0], PatchCoreMemory(problem[1]), roi_of(50, 70, (5, 7)), Criteria(), mark=marks.append)
    assert marks == ["knn", "post"]


def test_an_inspection_can_be_made_again_from_its_token_map(problem: tuple[Float, Float]) -> None:
    tokens, bank = problem
    mask = build_mask(Shape("circle", {"cx": 40, "cy": 28, "r": 25}), 60, 84)
    roi, criteria = roi_of(60, 84, (5, 7), mask=mask, mm_per_px=0.5), Criteria(threshold=0.9, area_mm2_thr=2.0)
    found = inspect(tokens, PatchCoreMemory(bank), roi, criteria)
    again = inspect_map(found.token_map, roi, criteria)
    np.testing.assert_array_equal(again.anomaly_map, found.anomaly_map)
    assert (again.score, again.stats, again.regions) == (found.score, found.stats, found.regions) and found.regions


def test_the_engine_of_the_documents_is_the_same_pipeline(problem: tuple[Float, Float]) -> None:
    tokens, bank = problem
    roi, memory = roi_of(50, 70, (5, 7)), PatchCoreMemory(bank, image_ids=np.arange(40, dtype=np.int32))
    engine = InferenceEngine(Scoring(percentile=90), threshold=0.8, area_mm2_thr=3.0)
    for leave_out in (None, 3):
        one = engine.run(tokens, memory, roi, leave_out=leave_out)
        other = inspect(tokens, memory, roi, Criteria(Scoring(percentile=90), 0.8, 3.0), leave_out=leave_out)
        assert (one.score, one.stats, one.regions) == (other.score, other.stats, other.regions)
    assert InferenceEngine().criteria == Criteria()


def test_a_mask_at_working_size_speaks_of_sent_pixels() -> None:
    assert working_mask(None, RoiSize(40, 50)) is None
    large = working_mask(Shape("rect", {"x": 200, "y": 100, "w": 400, "h": 60}), RoiSize(2048, 2048))
    assert large is not None and large.shape == (1024, 1024)
    assert large[50:80, 100:300].all() and large.sum() == 30 * 200
    with pytest.raises(MaskEmpty, match="width=8000, height=6000"):
        working_mask(Shape("rect", {"x": 9000, "y": 0, "w": 5, "h": 5}), RoiSize(6000, 8000))


def test_regions_of_a_reweighted_score_are_where_the_weighted_map_is_at_the_threshold(
    problem: tuple[Float, Float],
) -> None:
    tokens, bank = problem
    memory, roi, scoring = PatchCoreMemory(bank), roi_of(50, 70, (5, 7)), Scoring(method="max", reweight=5)
    score = inspect(tokens, memory, roi, Criteria(scoring)).score
    for share, seen in ((0.999, True), (1.001, False)):
        found = inspect(tokens, memory, roi, Criteria(scoring, score * share))
        assert 0 < found.weight < 1 and bool(found.regions) == seen
        assert heatmap_range(found, "absolute", score * share)[1] == pytest.approx(2 * score * share / found.weight)

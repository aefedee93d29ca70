"""The figures against scikit-learn and against slow, obvious re-computations."""

from itertools import pairwise

import numpy as np
import pytest
from scipy import ndimage
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from backend.calib import choose_threshold
from backend.evaluation.figures import (
    Labels,
    Scores,
    area_until,
    auroc_interval,
    calibration_rates,
    image_figures,
    pixel_figures,
    rates_under_change,
)


def slow_aupro(masks: list[Labels], maps: list[Scores], limit: float = 0.3) -> float:
    """One threshold at a time: the share of each component that is found, and the share of good pixels that is hit."""
    components = []
    for number, mask in enumerate(masks):
        labels, count = ndimage.label(mask, structure=np.ones((3, 3)))
        components += [(number, labels == label) for label in range(1, count + 1)]
    good = sum(int((~mask).sum()) for mask in masks)
    points = [(0.0, 0.0)]
    for threshold in sorted({float(v) for m in maps for v in m.ravel()}, reverse=True):
        hits = [m >= threshold for m in maps]
        false = sum(int((hit & ~mask).sum()) for hit, mask in zip(hits, masks, strict=True))
        overlap = np.mean([hits[number][inside].mean() for number, inside in components])
        points.append((false / good, float(overlap)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(points):
        if x0 >= limit:
            break
        stop = min(x1, limit)
        y_stop = y1 if x1 == x0 else y0 + (y1 - y0) * (stop - x0) / (x1 - x0)
        area += (stop - x0) * (y0 + y_stop) / 2
    return area / limit


def some_maps(rng: np.random.Generator, levels: int) -> tuple[list[Labels], list[Scores]]:
    """Small maps with blobs; few levels make many ties."""
    masks, maps = [], []
    for _ in range(4):
        blobs = ndimage.gaussian_filter(rng.normal(size=(23, 31)), 2) > 0.12
        heat = ndimage.gaussian_filter(rng.normal(size=(23, 31)), 2) * 3 + blobs * rng.uniform(0, 2)
        masks.append(blobs)
        maps.append(np.round(heat * levels).astype(np.float32) / levels)
    masks[3][:] = False
    return masks, maps


@pytest.mark.parametrize("levels", [3, 1000])
def test_pixel_figures_agree_with_sklearn_and_brute_force(rng: np.random.Generator, levels: int) -> None:
    for _ in range(5):
        masks, maps = some_maps(rng, levels)
        figures = pixel_figures(masks, maps)
        assert figures is not None
        flat = np.concatenate([m.ravel() for m in masks]), np.concatenate([m.ravel() for m in maps])
        assert figures.auroc == pytest.approx(roc_auc_score(*flat), abs=1e-6)
        assert figures.aupro == pytest.approx(slow_aupro(masks, maps), abs=1e-6)


def test_a_perfect_map_has_aupro_1_and_a_constant_one_what_chance_gives(rng: np.random.Generator) -> None:
    masks, _ = some_maps(rng, 10)
    perfect = pixel_figures(masks, [m.astype(np.float32) for m in masks])
    constant = pixel_figures(masks, [np.ones(m.shape, np.float32) for m in masks])
    assert perfect is not None
    assert constant is not None
    assert (perfect.auroc, perfect.aupro) == (1.0, 1.0)
    assert constant.auroc == pytest.approx(0.5)
    assert constant.aupro == pytest.approx(0.15)


def test_two_corners_that_touch_are_one_component() -> None:
    mask = np.zeros((6, 6), bool)
    mask[1, 1] = mask[2, 2] = mask[2, 3] = True
    heat = np.zeros((6, 6), np.float32)
    heat[1, 1] = 1.0
    figures = pixel_figures([mask], [heat])
    assert figures is not None
    assert figures.aupro == pytest.approx(slow_aupro([mask], [heat]), abs=1e-9)
    assert figures.aupro < 0.5


def test_no_mask_no_pixel_figures() -> None:
    assert pixel_figures([np.zeros((3, 3), bool)], [np.ones((3, 3), np.float32)]) is None


def test_image_figures_are_those_of_sklearn_and_f1_is_the_best_of_all_thresholds(rng: np.random.Generator) -> None:
    defective = rng.random(80) < 0.4
    scores = np.round(rng.normal(size=80) + defective, 1)
    figures = image_figures(defective, scores)
    assert figures.auroc == pytest.approx(roc_auc_score(defective, scores), abs=1e-12)
    assert figures.ap == pytest.approx(average_precision_score(defective, scores), abs=1e-12)
    assert figures.f1_max == pytest.approx(max(f1_score(defective, scores >= t) for t in set(scores)), abs=1e-12)
    assert f1_score(defective, scores >= figures.threshold) == pytest.approx(figures.f1_max)


def test_area_is_cut_at_the_limit() -> None:
    x, y = np.array([0.0, 0.2, 1.0]), np.array([0.0, 1.0, 1.0])
    assert area_until(x, y, 0.1) == pytest.approx(0.025)
    assert area_until(x, y, 0.2) == pytest.approx(0.1)
    assert area_until(x, y, 0.5) == pytest.approx(0.4)


def test_bootstrap_interval_holds_the_figure_and_narrows_with_more_parts(rng: np.random.Generator) -> None:
    widths = []
    for n in (40, 640):
        defective = np.arange(n) % 2 == 0
        scores = rng.normal(size=n) + defective
        found = auroc_interval(defective, scores, rng)
        assert found.low < roc_auc_score(defective, scores) < found.high
        widths.append(found.high - found.low)
    assert widths[1] < widths[0] / 2.5


def test_calibration_rates_are_those_of_the_parts_not_drawn(rng: np.random.Generator) -> None:
    ok, ng = rng.normal(1.0, 0.1, 60), rng.normal(1.35, 0.1, 40)
    rates = calibration_rates(ok, ng, n_ok=20, n_ng=2, rng=np.random.default_rng(5), draws=50)
    again = np.random.default_rng(5)
    rejected, missed = [], []
    for _ in range(50):
        good, bad = again.permutation(ok), again.permutation(ng)
        value = choose_threshold(list(good[:20]), list(bad[:2])).value
        rejected.append(sum(s > value for s in good[20:]) / 40)
        missed.append(sum(s <= value for s in bad[2:]) / 38)
    assert rates.false_reject == pytest.approx(np.mean(rejected))
    assert rates.miss == pytest.approx(np.mean(missed))
    assert rates.miss_range[0] <= rates.miss <= rates.miss_range[1]


def test_calibration_needs_parts_left_to_judge(rng: np.random.Generator) -> None:
    with pytest.raises(ValueError, match="nothing to judge"):
        calibration_rates(np.ones(5), np.ones(5), n_ok=5, n_ng=1, rng=rng)


def test_a_change_is_judged_by_a_threshold_that_was_chosen_without_it() -> None:
    rng = np.random.default_rng(0)
    ok, ng = np.linspace(1, 2, 40), np.linspace(3, 4, 30)
    rejected, missed = rates_under_change(ok, ok, ng, rng=rng)
    assert 0 < rejected < 0.15 and missed == 0
    assert rates_under_change(ok, ok + 5, ng + 5, rng=rng) == (1.0, 0.0)
    assert rates_under_change(ok, ok - 5, ng - 5, rng=rng) == (0.0, 1.0)
    kept = ok.copy()
    kept[ok > 1.5] += 5
    assert 0.3 < rates_under_change(ok, kept, ng, rng=rng)[0] < 0.7

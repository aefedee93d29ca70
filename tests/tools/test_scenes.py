from __future__ import annotations

import functools
from typing import cast, get_args

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from backend.tools.scenes import MM_PER_PX, Defect, Scene, brake_disc

DEFECTS = [cast(Defect, name) for name in get_args(Defect) if name]
SEEDS = [3, 11]


@functools.cache
def disc(seed: int, defect: Defect = "", size: int = 448) -> Scene:
    return brake_disc(np.random.default_rng(seed), size=size, defect=defect)


def distance_from_centre(size: int = 448) -> NDArray[np.float64]:
    line = np.arange(size) - (size - 1) / 2
    return np.asarray(np.hypot(*np.meshgrid(line, line)))


@pytest.fixture(scope="module")
def good() -> list[Scene]:
    return [disc(seed) for seed in range(5)]


@pytest.mark.parametrize("size", [64, 224, 448])
def test_a_scene_is_a_square_colour_picture_with_its_truth(size: int) -> None:
    scene = disc(0, size=size)
    assert scene.image.shape == (size, size, 3)
    assert scene.image.dtype == np.uint8
    assert scene.truth.shape == (size, size)
    assert scene.truth.dtype == np.bool_
    assert scene.defect == ""
    assert not scene.truth.any()


def test_the_same_seed_draws_the_same_disc_and_another_seed_another() -> None:
    again = brake_disc(np.random.default_rng(5))
    assert np.array_equal(disc(5).image, again.image)
    assert not np.array_equal(disc(5).image, disc(6).image)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("defect", DEFECTS)
def test_truth_holds_all_that_the_defect_changed_and_little_else(defect: Defect, seed: int) -> None:
    bad, same_part = disc(seed, defect), disc(seed)
    change = cv2.absdiff(bad.image, same_part.image).max(axis=2)
    assert bad.defect == defect
    assert not change[~bad.truth].any()
    assert (change[bad.truth] > 0).mean() > 0.9


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("defect", DEFECTS)
def test_a_defect_is_small_visible_and_on_the_friction_ring(defect: Defect, seed: int) -> None:
    bad = disc(seed, defect)
    change = cv2.absdiff(bad.image, disc(seed).image).max(axis=2)
    area_mm2 = bad.truth.sum() * MM_PER_PX**2
    assert 15 < area_mm2 < 1500
    assert np.percentile(change[bad.truth], 80) > 15
    radius = distance_from_centre()[bad.truth]
    assert radius.min() > bad.shape["r_inner"] - 2
    assert radius.max() < bad.shape["r"] + 2


def test_rust_is_brown_and_a_crack_is_dark() -> None:
    rust, crack = disc(3, "rust"), disc(3, "crack")
    blue, _, red = rust.image[rust.truth].mean(axis=0)
    assert red > blue + 15
    change = crack.image[crack.truth].astype(int) - disc(3).image[crack.truth]
    assert change.mean() < -10
    assert np.percentile(change, 20) < -35


def test_a_missing_hole_is_one_hole_less() -> None:
    def holes(scene: Scene) -> int:
        radius = distance_from_centre()
        ring = (radius > scene.shape["r_inner"] + 4) & (radius < scene.shape["r"] - 4)
        dark = (scene.image.max(axis=2) < 85) & ring
        _, _, stats, _ = cv2.connectedComponentsWithStats(dark.astype(np.uint8))
        return int((np.asarray(stats)[1:, cv2.CC_STAT_AREA] >= 12).sum())

    assert holes(disc(4)) == 36
    assert holes(disc(4, "missing_hole")) == 35


def test_good_parts_differ_in_brightness_and_texture_but_stay_in_place(good: list[Scene]) -> None:
    means = [scene.image.mean() for scene in good]
    assert 0.3 < np.std(means) < 8
    first = cv2.cvtColor(good[0].image, cv2.COLOR_BGR2GRAY).astype(np.float32)
    for scene in good[1:]:
        grey = cv2.cvtColor(scene.image, cv2.COLOR_BGR2GRAY).astype(np.float32)
        (dx, dy), _ = cv2.phaseCorrelate(first, grey)
        assert np.hypot(dx, dy) < 1.5
        assert np.corrcoef(first.ravel(), grey.ravel())[0, 1] > 0.95
        assert np.abs(first - grey).mean() > 1


def test_the_shape_frames_the_friction_ring(good: list[Scene]) -> None:
    shape, image = good[0].shape, good[0].image
    radius = distance_from_centre()
    assert shape["kind"] == "annulus"
    assert shape["cx"] == shape["cy"] == 223.5
    ring = image[(radius < shape["r"] - 2) & (radius > shape["r_inner"] + 2)].mean()
    bench = image[radius > shape["r"] + 6].mean()
    undercut = image[(radius < shape["r_inner"] - 2) & (radius > shape["r_inner"] - 5)].mean()
    assert ring > bench + 60
    assert ring > undercut + 60


def test_the_shape_scales_with_the_picture() -> None:
    small, native = disc(0, size=224).shape, disc(0).shape
    assert small["r"] == pytest.approx(native["r"] / 2, abs=0.1)
    assert small["r_inner"] == pytest.approx(native["r_inner"] / 2, abs=0.1)
    assert small["cx"] == 111.5


def test_the_light_glints_across_the_grooves(good: list[Scene]) -> None:
    """Turned metal is brighter along two opposite radii than across them, which paint is not."""
    image, radius = good[0].image.mean(axis=2), distance_from_centre()
    line = np.arange(448) - 223.5
    angle = np.degrees(np.arctan2(*np.meshgrid(line, line, indexing="ij"))) % 360
    ring = (radius > 130) & (radius < 200)
    sectors = np.array([np.median(image[ring & (angle // 30 == n)]) for n in range(12)])
    assert sectors.max() - sectors.min() > 15
    assert np.argmax(sectors) in {7, 8, 9}


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match="defect must be one of crack"):
        disc(0, cast(Defect, "melted"))
    with pytest.raises(ValueError, match="at least 64"):
        disc(0, size=63)

"""Where pictures lie beside a mean one, and how they differ."""

import cv2
import numpy as np
import pytest

from backend.assurance.likeness import BANDS_AT, CELLS_AT, N_FEATURES, Placing, features_of, grey_of
from backend.service.appearance import SIDE, Appearance, appearance_of
from tests.parts import BGR


def scene(seed: int = 0, side: int = 128) -> BGR:
    """Blobs of many sizes on a ground with grain: nothing about it is round."""
    rng = np.random.default_rng(seed)
    image = np.full((side, side, 3), 90.0)
    for _ in range(12):
        x, y = (int(n) for n in rng.integers(side // 5, 4 * side // 5, 2))
        colour = rng.uniform(60, 220, 3).tolist()
        cv2.ellipse(image, (x, y), (int(rng.integers(5, 24)), 6), int(rng.integers(180)), 0, 360, colour, -1)
    return np.asarray(np.clip(image + rng.normal(0, 2, image.shape), 0, 255), np.uint8)


def moved(image: BGR, right: float = 0, down: float = 0, degrees: float = 0, size: float = 1) -> BGR:
    """Turned clockwise."""
    side = image.shape[0]
    matrix = cv2.getRotationMatrix2D(((side - 1) / 2, (side - 1) / 2), -degrees, size)
    matrix[:, 2] += right * side, down * side
    return np.asarray(cv2.warpAffine(image, matrix, (side, side), borderMode=cv2.BORDER_REPLICATE), np.uint8)


@pytest.fixture(scope="module")
def placing() -> Placing:
    return Placing(grey_of(appearance_of(scene())))


@pytest.mark.parametrize(
    ("right", "down", "degrees", "size"),
    [
        (0, 0, 0, 1),
        (0.03, 0, 0, 1),
        (-0.02, 0.05, 0, 1),
        (0, 0, 6, 1),
        (0, 0, -4, 1),
        (0, 0, 0, 1.05),
        (0.01, 0, 3, 0.97),
    ],
)
def test_a_picture_is_found_where_it_was_moved_to(
    placing: Placing, right: float, down: float, degrees: float, size: float
) -> None:
    darker = (0.7 * moved(scene(), right, down, degrees, size)).astype(np.uint8)
    found = placing.place(grey_of(appearance_of(darker)))
    assert found * (1, 1, 0.1, 1) == pytest.approx([right, down, 0.1 * degrees, np.log(size)], abs=0.005, rel=0.05)


def test_a_blur_takes_fine_detail_and_leaves_brightness(placing: Placing) -> None:
    sharp, blurred = (
        features_of(appearance_of(image), placing)
        for image in (scene(), np.asarray(cv2.GaussianBlur(scene(), (0, 0), 1.5), np.uint8))
    )
    assert (blurred[BANDS_AT] < sharp[BANDS_AT] - 0.2).all()
    assert np.abs(blurred[CELLS_AT] - sharp[CELLS_AT]).max() < 0.05


@pytest.mark.parametrize("fill", [0, 255])
def test_a_picture_without_anything_in_it_has_finite_features(placing: Placing, fill: int) -> None:
    blank = appearance_of(np.full((128, 128, 3), fill, np.uint8))
    assert np.isfinite(features_of(blank, placing)).all()
    assert np.isfinite(features_of(appearance_of(scene()), Placing(grey_of(blank)))).all()


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 8), (14, 700), (448, 448)])
def test_any_image_has_an_appearance(height: int, width: int) -> None:
    found = appearance_of(np.zeros((height, width, 3), np.uint8))
    assert found.colour.shape == (SIDE, SIDE, 3)
    assert np.isfinite(found.bands).all()
    assert len(features_of(found, Placing(np.zeros((SIDE, SIDE), np.float32)))) == N_FEATURES


def test_red_is_the_first_of_the_channels() -> None:
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[..., 0] = 200
    assert isinstance(found := appearance_of(pixels), Appearance)
    assert found.colour[..., 0].min() == 200

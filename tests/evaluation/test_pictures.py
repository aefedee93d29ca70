from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from backend.evaluation.pictures import MAX_ALPHA, MAX_SHEET_WIDTH, MAX_SIDE, MIN_WIDTH, overlay, sheet

Picture = NDArray[np.uint8]
RED, GREEN, PAPER = (45, 35, 205), (60, 140, 30), (28, 28, 28)


def grey(height: int, width: int, level: int = 128) -> Picture:
    return np.full((height, width, 3), level, np.uint8)


def spot(height: int, width: int) -> NDArray[np.float32]:
    """Heat 0 everywhere but 1 over the middle quarter."""
    heat = np.zeros((height, width), np.float32)
    heat[height * 3 // 8 : height * 5 // 8, width * 3 // 8 : width * 5 // 8] = 1
    return heat


def draw(image: Picture, heat: NDArray[np.float32] | None = None, **changes: Any) -> Picture:
    heat = np.zeros(image.shape[:2], np.float32) if heat is None else heat
    settings: dict[str, Any] = {"low": 0.2, "high": 0.8, "score": 0.5, "threshold": 0.4, **changes}
    return overlay(image, heat, **settings)


def has(picture: Picture, colour: tuple[int, int, int]) -> bool:
    return bool((picture == colour).all(axis=2).any())


def square(left: int, top: int, side: int) -> list[list[int]]:
    return [[left, top], [left + side, top], [left + side, top + side], [left, top + side]]


@pytest.mark.parametrize(
    ("height", "width", "drawn"),
    [(28, 28, (320, 320)), (448, 448, (448, 448)), (3000, 4000, (1200, 1600)), (40, 2000, (32, 1600))],
)
def test_the_roi_is_scaled_to_a_readable_size_in_proportion(height: int, width: int, drawn: tuple[int, int]) -> None:
    picture = draw(grey(height, width))
    assert picture.dtype == np.uint8
    assert picture.shape[1] == drawn[1]
    assert (picture[: drawn[0]] == 128).all()
    assert tuple(picture[drawn[0], 0]) == PAPER


@pytest.mark.parametrize(("height", "width"), [(2800, 28), (1, 1), (1, 5000), (5000, 1)])
def test_extreme_shapes_stay_within_bounds(height: int, width: int) -> None:
    picture = draw(grey(height, width), title="strip")
    assert MIN_WIDTH <= picture.shape[1] <= MAX_SIDE
    assert (picture == 128).all(axis=2).any()


def test_cold_heat_leaves_the_part_as_it_is() -> None:
    image = np.random.default_rng(0).integers(0, 256, (400, 400, 3), dtype=np.uint8)
    assert np.array_equal(draw(image, np.full((400, 400), 0.2, np.float32))[:400], image)


def test_colour_grows_with_heat_and_never_hides_the_part() -> None:
    ramp = np.tile(np.linspace(0, 1, 400, dtype=np.float32), (400, 1))
    dark, light = draw(grey(400, 400, 40), ramp)[200], draw(grey(400, 400, 200), ramp)[200]
    visible = (light.astype(int) - dark.astype(int)).mean(axis=1) / 160
    assert (np.diff(visible) < 0.02).all()
    assert visible[:80] == pytest.approx(1, abs=0.01)
    assert visible[-70:] == pytest.approx(1 - MAX_ALPHA, abs=0.01)


def test_the_hot_spot_is_red_where_it_is() -> None:
    blue, _, red = np.moveaxis(draw(grey(448, 448), spot(448, 448)).astype(int), 2, 0)
    assert red[224, 224] > blue[224, 224] + 30
    assert red[40, 40] == blue[40, 40]


def test_heat_that_is_no_number_is_left_out() -> None:
    heat = np.full((400, 400), np.nan, np.float32)
    assert (draw(grey(400, 400), heat)[:400] == 128).all()


def test_a_flat_range_still_draws() -> None:
    picture = draw(grey(400, 400), spot(400, 400), low=0.5, high=0.5)
    assert (picture[200, 200] != 128).any()
    assert (picture[20, 20] == 128).all()


def test_the_mask_keeps_heat_to_the_part_inspected_and_is_outlined() -> None:
    mask = np.zeros((400, 400), np.bool_)
    mask[100:300, 100:300] = True
    hot = np.ones((400, 400), np.float32)
    picture = draw(grey(400, 400), hot, mask=mask)
    assert (picture[:95, :] == 128).all()
    assert (picture[200, 200] != 128).any()
    outline = (draw(grey(400, 400), mask=mask)[:400] != 128).any(axis=2)
    assert outline[100, 200]
    assert outline[200, 299]
    assert not outline[200, 200]


def test_the_inputs_are_left_alone() -> None:
    image, heat = grey(400, 400), spot(400, 400)
    draw(image, heat, regions=[{"contour": square(150, 150, 99), "area_mm2": 5.0}], mask=heat > 0)
    assert (image == 128).all()
    assert np.array_equal(heat, spot(400, 400))


@pytest.mark.parametrize(("size", "scale"), [(40, 8), (400, 1), (3200, 0.5)])
def test_a_region_is_outlined_where_it_lies(size: int, scale: float) -> None:
    corner, side = size // 4, size // 2
    picture = draw(grey(size, size), regions=[{"contour": square(corner, corner, side)}])
    changed = (picture[: int(size * scale)] != 128).any(axis=2)
    rows, columns = np.nonzero(changed)
    edge = (corner + 0.5) * scale
    for found in (rows, columns):
        assert found.min() == pytest.approx(edge, abs=6)
        assert found.max() == pytest.approx(edge + side * scale, abs=6)
    assert not changed[int(size * scale / 2), int(size * scale / 2)]


def test_a_region_of_one_pixel_shows() -> None:
    picture = draw(grey(400, 400), regions=[{"contour": [[200, 200]], "area_mm2": 0.1}])
    assert (picture[195:205, 195:205] != 128).any()


def test_a_region_without_points_is_passed_over() -> None:
    assert (draw(grey(400, 400), regions=[{"contour": [], "area_mm2": 1.0}])[:400] == 128).all()


def test_the_area_is_written_beside_the_region() -> None:
    region = {"contour": square(150, 150, 100), "area_mm2": 12.3}
    plain = draw(grey(400, 400), regions=[{"contour": region["contour"]}])
    labelled = draw(grey(400, 400), regions=[region])
    rows, columns = np.nonzero((plain != labelled).any(axis=2))
    assert len(rows) > 100
    assert rows.max() < 150
    assert columns.min() > 130


def test_labels_overlap_neither_each_other_nor_a_region() -> None:
    regions = [{"contour": square(60 * n + 10, 195, 40), "area_mm2": 100.0 + n} for n in range(6)]
    plain = draw(grey(400, 400), regions=[{"contour": region["contour"]} for region in regions])
    black = (draw(grey(400, 400), regions=regions) != plain).any(axis=2).astype(np.uint8)
    count, _ = cv2.connectedComponents(cv2.dilate(black, np.ones((3, 3), np.uint8)))
    assert count > 2
    assert not black[196:234].any()


def test_a_region_that_fills_the_picture_goes_without_label() -> None:
    whole = {"contour": square(0, 0, 399)}
    with_area = draw(grey(400, 400), regions=[{**whole, "area_mm2": 9.0}])
    assert np.array_equal(with_area, draw(grey(400, 400), regions=[whole]))


@pytest.mark.parametrize(
    ("changes", "shown"),
    [
        ({"score": 0.5, "threshold": 0.4}, RED),
        ({"score": 0.3, "threshold": 0.4}, GREEN),
        ({"score": 0.5, "threshold": 0.4, "decision": "ok"}, GREEN),
        ({"score": 0.3, "threshold": 0.4, "decision": "NG"}, RED),
        ({"score": 0.3, "threshold": None, "decision": "ng"}, RED),
        ({"score": 0.5, "threshold": None}, None),
    ],
)
def test_the_verdict_is_coloured(changes: dict[str, Any], shown: tuple[int, int, int] | None) -> None:
    picture = draw(grey(400, 400), **changes)
    assert [colour for colour in (RED, GREEN) if has(picture, colour)] == ([shown] if shown else [])


def test_the_verdict_is_a_word_too() -> None:
    """Without its colour the badge still differs: OK and NG are other strokes."""
    ok, ng = (draw(grey(400, 400), decision=word)[400:] for word in ("ok", "ng"))
    assert ((ok == 255).all(axis=2) != (ng == 255).all(axis=2)).any()


def test_score_threshold_and_title_are_written() -> None:
    base = draw(grey(400, 400))
    assert not np.array_equal(base, draw(grey(400, 400), score=0.6))
    assert not np.array_equal(base, draw(grey(400, 400), threshold=0.41))
    assert draw(grey(400, 400), title="disc 7").shape[0] > base.shape[0]


@pytest.mark.parametrize("width", [28, 320, 448, 1000, 1600])
@pytest.mark.parametrize(
    "title",
    ["", "disc_0017.png", "Ñandú – 12 mm² «rugosidad» " * 6, "a" * 300, "gjpqy |" * 20],
    ids=["none", "file", "sentence", "unbroken", "descenders"],
)
def test_no_text_is_cut_off(width: int, title: str) -> None:
    picture = draw(grey(100, width), title=title, score=123456.789, threshold=0.000123456)
    top = round(100 * max(MIN_WIDTH / width, 1))
    strip = picture[top:]
    for edge in (strip[:2], strip[-2:], strip[:, :2], strip[:, -2:]):
        assert (edge == PAPER).all()


def test_a_long_title_takes_more_lines() -> None:
    one, many = (draw(grey(320, 320), title="word " * count).shape[0] for count in (2, 40))
    assert many > one + 3 * 12


def test_text_is_drawn_in_ascii() -> None:
    def strip(title: str) -> Picture:
        return draw(grey(400, 400), title=title)

    for written, spelled in [
        ("Señal ok", "Senal ok"),
        ("12 mm²", "12 mm2"),
        ("3 × 4", "3 x 4"),
        ("±5°", "+/-5 deg"),
    ]:
        assert np.array_equal(strip(written), strip(spelled))
    assert np.array_equal(strip("盘 1\n2"), strip("? 1 2"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image": np.zeros((40, 40), np.uint8)}, "uint8 BGR"),
        ({"image": np.zeros((40, 40, 3), np.float32)}, "uint8 BGR"),
        ({"heat": np.zeros((40, 41), np.float32)}, "the heat must"),
        ({"mask": np.ones((41, 40), np.bool_)}, "the mask must"),
        ({"low": 2.0}, "low must not be above"),
        ({"high": float("nan")}, "low must not be above"),
        ({"decision": "maybe"}, "'ok' or 'ng'"),
    ],
)
def test_what_does_not_fit_together_is_refused(change: dict[str, Any], message: str) -> None:
    arguments = {"image": grey(40, 40), "heat": np.zeros((40, 40), np.float32), **change}
    with pytest.raises(ValueError, match=message):
        draw(**arguments)


def test_a_sheet_has_equal_cells_in_rows() -> None:
    page = sheet([grey(100, 120, 50 * n) for n in range(1, 6)], columns=3)
    gap = 4
    assert page.shape == (2 * 100 + 3 * gap, 3 * 120 + 4 * gap, 3)
    for n in range(5):
        top, left = gap + n // 3 * (100 + gap), gap + n % 3 * (120 + gap)
        assert (page[top : top + 100, left : left + 120] == 50 * (n + 1)).all()
    assert (page[gap + 104 :, gap + 2 * 124 :] == PAPER).all()


def test_a_sheet_keeps_proportions() -> None:
    circle = grey(60, 60, 0)
    cv2.circle(circle, (30, 30), 20, (255, 255, 255), cv2.FILLED)
    page = sheet([grey(100, 300), circle], columns=2)
    rows, columns = np.nonzero((page > 200).all(axis=2))
    assert np.ptp(rows) == pytest.approx(np.ptp(columns), abs=1)
    assert np.ptp(rows) == pytest.approx(41 * 100 / 60, abs=3)


def test_a_sheet_of_few_pictures_has_no_empty_columns() -> None:
    assert sheet([grey(100, 100)], columns=4).shape == (108, 108, 3)


def test_a_sheet_of_large_pictures_is_reduced() -> None:
    page = sheet([grey(1500, 1600)] * 8, columns=8)
    assert 0.95 * MAX_SHEET_WIDTH < page.shape[1] <= MAX_SHEET_WIDTH


def test_an_empty_sheet_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one picture"):
        sheet([])
    with pytest.raises(ValueError, match="one column"):
        sheet([grey(10, 10)], columns=0)

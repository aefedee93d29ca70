import math
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.api.catalogue import sentence
from backend.base.errors import (
    InspectionError,
    InvalidShape,
    MaskEmpty,
    ShapeBadNumber,
    ShapeInverted,
    ShapeNotJson,
    ShapeUnknownKind,
)
from backend.roi_mask import Shape, build_mask, nearest_inside, parse_shape, token_mask


def mask_of(shape: dict[str, Any], height: int, width: int) -> Any:
    return build_mask(parse_shape(shape), height, width)


def test_a_rectangle_covers_exactly_its_pixels() -> None:
    mask = mask_of({"kind": "rect", "x": 2, "y": 1, "w": 3, "h": 2}, 5, 8)
    expected = np.zeros((5, 8), bool)
    expected[1:3, 2:5] = True
    assert (mask == expected).all()


@pytest.mark.parametrize(("cx", "cy", "r"), [(10, 8, 5), (9.5, 7.5, 4.2), (0, 0, 6)])
def test_a_circle_covers_the_pixels_within_its_radius(cx: float, cy: float, r: float) -> None:
    mask = mask_of({"kind": "circle", "cx": cx, "cy": cy, "r": r}, 17, 21)
    for y in range(17):
        for x in range(21):
            assert mask[y, x] == (math.hypot(x - cx, y - cy) <= r)


def test_an_annulus_leaves_its_middle_out() -> None:
    mask = mask_of({"kind": "annulus", "cx": 20, "cy": 20, "r": 15, "r_inner": 8}, 41, 41)
    disc = mask_of({"kind": "circle", "cx": 20, "cy": 20, "r": 15}, 41, 41)
    assert not mask[20, 20] and mask[20, 32] and not mask[20, 36]
    assert mask.sum() < disc.sum()
    assert (mask & ~disc).sum() == 0
    assert mask.sum() == pytest.approx(math.pi * (15**2 - 8**2), rel=0.03)


def test_what_lies_outside_the_image_is_cut_off() -> None:
    assert mask_of({"kind": "rect", "x": -5, "y": -5, "w": 7, "h": 7}, 10, 10).sum() == 4


def test_numbers_may_come_as_a_json_text_with_any_case_of_kind() -> None:
    shape = parse_shape(' {"kind": "Circle", "cx": 1, "cy": 2.5, "r": 3} ')
    assert shape == Shape("circle", {"cx": 1.0, "cy": 2.5, "r": 3.0})
    assert Shape("circle", {"cx": 1.0, "cy": 2.5, "r": 3.0}).as_dict() == {
        "kind": "circle",
        "cx": 1.0,
        "cy": 2.5,
        "r": 3.0,
    }


@pytest.mark.parametrize("nothing", [None, "", "  ", "null"])
def test_no_shape_means_the_whole_roi(nothing: str | None) -> None:
    assert parse_shape(nothing) is None
    assert build_mask(None, 3, 3) is None


def test_scaling_scales_every_number() -> None:
    shape = Shape("annulus", {"cx": 10, "cy": 20, "r": 8, "r_inner": 4})
    assert shape.scaled(0.5) == Shape("annulus", {"cx": 5, "cy": 10, "r": 4, "r_inner": 2})


CIRCLE = {"kind": "circle", "cx": 5, "cy": 5, "r": 3}
BAD: list[tuple[Any, type[InspectionError]]] = [
    ("not json", ShapeNotJson),
    ("[1, 2]", ShapeNotJson),
    ('"circle"', ShapeNotJson),
    ("7", ShapeNotJson),
    ("[" * 100_000, ShapeNotJson),
    ('{"kind":' * 50_000, ShapeNotJson),
    ({}, ShapeUnknownKind),
    ({**CIRCLE, "kind": "star"}, ShapeUnknownKind),
    ({**CIRCLE, "kind": ["circle"]}, ShapeUnknownKind),
    ({"kind": "circle", "cx": 5, "cy": 5}, ShapeBadNumber),
    ({**CIRCLE, "r": 0}, ShapeBadNumber),
    ({**CIRCLE, "r": -1}, ShapeBadNumber),
    ({**CIRCLE, "r": "3"}, ShapeBadNumber),
    ({**CIRCLE, "r": True}, ShapeBadNumber),
    ({**CIRCLE, "cx": float("nan")}, ShapeBadNumber),
    ({**CIRCLE, "cx": 10**400}, ShapeBadNumber),
    ('{"kind":"circle","cx":NaN,"cy":1,"r":2}', ShapeBadNumber),
    ('{"kind":"circle","cx":1e999,"cy":1,"r":2}', ShapeBadNumber),
    ({"kind": "rect", "x": 0, "y": 0, "w": 0, "h": 4}, ShapeBadNumber),
    ({**CIRCLE, "kind": "annulus", "r_inner": -0.5}, ShapeBadNumber),
    ({**CIRCLE, "kind": "annulus", "r_inner": 3}, ShapeInverted),
    ({**CIRCLE, "kind": "annulus", "r_inner": 4}, ShapeInverted),
]


@pytest.mark.parametrize(("shape", "error"), BAD)
def test_a_shape_that_makes_no_sense_is_refused_by_name(shape: Any, error: type[InspectionError]) -> None:
    with pytest.raises(error) as caught:
        parse_shape(shape)
    assert isinstance(caught.value, InvalidShape)
    assert len(sentence(caught.value, "es")) < 200


ANNULUS = {**CIRCLE, "kind": "annulus"}
TOLD: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"kind": "star"}, {"kind": "'star'", "known": "rect, circle, annulus"}),
    ({"kind": "s" * 60}, {"kind": "'" + "s" * 39, "known": "rect, circle, annulus"}),
    ({"shape": "circle"}, {"kind": "None", "known": "rect, circle, annulus"}),
    ({**CIRCLE, "kind": "CIRCLE", "colour": 1}, {"kind": "circle", "keys": "colour", "known": "cx, cy, r"}),
    (
        {**CIRCLE, **{letter * 50: 0 for letter in "abcdefg"}},
        {"kind": "circle", "keys": ", ".join(letter * 40 for letter in "abcde"), "known": "cx, cy, r"},
    ),
    ({**CIRCLE, "cx": "5"}, {"kind": "circle", "field": "cx", "rule": ""}),
    ({**CIRCLE, "r": "5"}, {"kind": "circle", "field": "r", "rule": " > 0"}),
    ({**CIRCLE, "r": 0}, {"kind": "circle", "field": "r", "rule": " > 0"}),
    ({**ANNULUS, "r_inner": None}, {"kind": "annulus", "field": "r_inner", "rule": " ≥ 0"}),
    ({**ANNULUS, "r_inner": -1}, {"kind": "annulus", "field": "r_inner", "rule": " ≥ 0"}),
    ({"kind": "rect", "x": 0, "y": 0, "w": 3, "h": -1}, {"kind": "rect", "field": "h", "rule": " > 0"}),
    ({**CIRCLE, "cy": 1e9 + 1}, {"kind": "circle", "field": "cy", "rule": ""}),
    ({**ANNULUS, "r_inner": 4}, {"r": 3.0, "r_inner": 4.0}),
]


@pytest.mark.parametrize(("shape", "values"), TOLD)
def test_a_refusal_says_what_is_wrong_and_what_is_known(shape: dict[str, Any], values: dict[str, Any]) -> None:
    with pytest.raises(InvalidShape) as caught:
        parse_shape(shape)
    assert caught.value.values == values


def test_numbers_may_go_to_their_edge() -> None:
    for shape in (
        {**CIRCLE, "cx": 1e9},
        {**CIRCLE, "cx": -1e9},
        {**ANNULUS, "r_inner": 0},
        {**ANNULUS, "r_inner": 0.5},
    ):
        parsed = parse_shape(shape)
        assert parsed is not None and parsed.as_dict() == shape


def test_an_annulus_has_both_its_edges() -> None:
    mask = mask_of({"kind": "annulus", "cx": 10, "cy": 10, "r": 8, "r_inner": 5}, 21, 21)
    assert mask[10, 2] and mask[10, 5] and not mask[10, 1] and not mask[10, 6]
    assert mask[7, 14] and not mask[8, 13]  # 3, 4 and 5


def test_a_mask_that_covers_nothing_says_of_what_size() -> None:
    with pytest.raises(MaskEmpty) as caught:
        mask_of({**CIRCLE, "cx": 90}, 20, 30)
    assert caught.value.values == {"width": 30, "height": 20}


@pytest.mark.parametrize(
    "shape",
    [
        {"kind": "rect", "x": 100, "y": 0, "w": 5, "h": 5},
        {"kind": "rect", "x": -9, "y": -9, "w": 5, "h": 5},
        {"kind": "circle", "cx": -50, "cy": 0, "r": 10},
        {"kind": "circle", "cx": 5.5, "cy": 5.5, "r": 0.2},
        {"kind": "annulus", "cx": 5, "cy": 5, "r": 900, "r_inner": 800},
    ],
)
def test_a_mask_that_covers_no_pixel_is_refused(shape: dict[str, Any]) -> None:
    with pytest.raises(MaskEmpty):
        mask_of(shape, 20, 20)


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_any_json_value_is_a_shape_or_a_clear_refusal(value: Any) -> None:
    given_shape = value if isinstance(value, dict) else None
    with suppress(InvalidShape):
        assert parse_shape(given_shape) is None or given_shape


def test_tokens_beside_the_part_take_on_the_nearest_ones_distance() -> None:
    values = np.arange(12, dtype=np.float32).reshape(3, 4)
    inside = np.zeros((3, 4), bool)
    inside[1, 1:3] = True
    spread = nearest_inside(values, inside)
    np.testing.assert_array_equal(spread, [[5, 5, 6, 6]] * 3)


def test_a_token_is_of_the_part_when_its_cell_touches_it() -> None:
    mask = np.zeros((40, 60), bool)
    mask[19:21, 29] = True
    np.testing.assert_array_equal(np.argwhere(token_mask(mask, (4, 6))), [[1, 2], [2, 2]])

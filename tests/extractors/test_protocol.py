from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.base.config import Settings
from backend.base.options import settings_of
from backend.extractors.protocol import ExtractorOptions, prepare, token_grid
from backend.extractors.texture import TextureFeatures
from tests.parts import part

SIDE = st.integers(28, 9000)
PATCH = st.sampled_from([(448, 14), (448, 8), (224, 16), (112, 14)])


def test_an_option_is_the_setting_of_its_name_with_the_same_default() -> None:
    assert ExtractorOptions.of(Settings()) == ExtractorOptions()


def test_every_setting_of_an_extractor_reaches_it() -> None:
    given = {
        "model_name": "resnet18", "weights": "here.pth", "input_size": 120, "input_edge": "smaller",
        "input_aspect": "square", "device": "cpu", "runtime": "openvino", "precision": "bf16", "threads": 3,
        "blocks": ("-1", "5"), "resnet_offset": 2.5, "patchcore_patch_size": 7, "patchcore_stride": 4, "tiles": 2,
        "tile_overlap": 0.5,
    }  # fmt: skip
    options = ExtractorOptions.of(Settings(**given))  # type: ignore[arg-type]
    assert set(settings_of(ExtractorOptions)) == set(given)
    assert options.blocks == (-1, 5)
    own = {f.metadata["setting"]: getattr(options, f.name) for f in fields(options) if "setting" in f.metadata}
    assert {**own, "blocks": given["blocks"]} == given


@pytest.mark.parametrize(
    ("size", "grid"),
    [
        ((448, 448), (32, 32)), ((225, 225), (32, 32)), ((28, 28), (32, 32)), ((448, 896), (22, 45)),
        ((576, 768), (27, 36)),
    ],
)  # fmt: skip
def test_the_documented_grids(size: tuple[int, int], grid: tuple[int, int]) -> None:
    rows, cols = token_grid(*size, input_size=448, patch=14)
    assert abs(rows - grid[0]) <= 1 and abs(cols - grid[1]) <= 1
    if size[0] == size[1]:
        assert (rows, cols) == grid


@given(SIDE, SIDE, PATCH)
def test_a_grid_fits_the_budget_and_the_aspect(height: int, width: int, patch: tuple[int, int]) -> None:
    budget = round(patch[0] / patch[1]) ** 2
    rows, cols = token_grid(height, width, input_size=patch[0], patch=patch[1])
    assert rows >= 1 and cols >= 1 and rows * cols <= budget
    side, aspect = patch[0] / patch[1], (width / height) ** 0.5
    for tokens, exact in ((rows, side / aspect), (cols, side * aspect)):
        assert abs(tokens - max(1.0, exact)) < 1 or min(rows, cols) == 1


@given(st.integers(100, 4000), st.floats(1, 4), st.integers(-1, 1), st.integers(-1, 1))
def test_one_pixel_more_or_less_moves_a_grid_by_one_token_at_most(height: int, aspect: float, dy: int, dx: int) -> None:
    width = round(height * aspect)
    here = token_grid(height, width, input_size=448, patch=14)
    there = token_grid(height + dy, width + dx, input_size=448, patch=14)
    assert max(abs(here[0] - there[0]), abs(here[1] - there[1])) <= 1


@given(SIDE, SIDE, PATCH)
def test_the_smaller_edge_gets_the_input_size_and_the_other_the_aspect(
    height: int, width: int, patch: tuple[int, int]
) -> None:
    rows, cols = token_grid(height, width, input_size=patch[0], patch=patch[1], edge="smaller")
    assert min(rows, cols) == round(patch[0] / patch[1])
    assert abs(max(rows, cols) - patch[0] / patch[1] * max(height, width) / min(height, width)) <= 0.5


def test_a_cell_larger_than_the_smaller_edge_still_gives_a_token() -> None:
    assert token_grid(300, 600, input_size=56, patch=128, edge="smaller") == (1, 1)


def test_an_extractor_follows_the_edge_that_it_was_given() -> None:
    area, smaller = TextureFeatures(448), TextureFeatures(448, "smaller")
    assert area.grid(300, 600) == token_grid(300, 600, input_size=448, patch=14) == (22, 45)
    assert smaller.grid(300, 600) == (32, 64)
    assert smaller.grid(448, 448) == area.grid(448, 448) == (32, 32)
    assert smaller.fingerprint == area.fingerprint


def test_a_square_aspect_brings_every_roi_to_the_same_grid() -> None:
    keep, square = TextureFeatures(448), TextureFeatures(448, input_aspect="square")
    assert {square.grid(height, width) for height, width in ((300, 600), (448, 448), (90, 31), (1, 2000))} == {(32, 32)}
    assert TextureFeatures(448, "smaller", "square").grid(300, 600) == (32, 32)
    assert keep.grid(448, 448) == square.grid(448, 448) and keep.fingerprint == square.fingerprint


def test_prepare_neither_pads_nor_crops_and_turns_bgr_into_rgb() -> None:
    image = part(1, height=61, width=97)
    ready = prepare(image, (4, 7), 14)
    assert ready.shape == (56, 98, 3) and ready.dtype == np.uint8 and ready.flags.c_contiguous
    assert ready.mean(axis=(0, 1)) == pytest.approx(image.mean(axis=(0, 1))[::-1], abs=1.5)
    same = part(2, height=56, width=98)
    assert (prepare(same, (4, 7), 14) == same[:, :, ::-1]).all()

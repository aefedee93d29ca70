"""Which tokens are the part, told by what good images have in common."""

import numpy as np
import pytest

from backend.memory.foreground import Foreground
from backend.patchcore import Array, l2_normalize

GRID = (12, 10)
PART, GROUND = (0.9, 0.3, 0.3), (0.2, 0.9, 0.3)


def disc(radius: float = 3.6) -> np.ndarray:
    y, x = np.mgrid[: GRID[0], : GRID[1]]
    return np.asarray(np.hypot(y - 5.5, x - 4.5) < radius).ravel()


def tokens(rng: np.random.Generator, inside: np.ndarray) -> Array:
    values = np.where(inside[:, None], PART, GROUND) + rng.normal(0, 0.02, (len(inside), 3))
    return l2_normalize(values.astype(np.float32))


@pytest.fixture
def emb(rng: np.random.Generator) -> Array:
    """Five images of a disc."""
    return np.concatenate([tokens(rng, disc()) for _ in range(5)])


@pytest.mark.parametrize("mirrored", [False, True])
def test_the_part_is_what_the_border_has_less_of(rng: np.random.Generator, mirrored: bool) -> None:
    inside = ~disc() if mirrored else disc()
    found = Foreground.learnt(np.concatenate([tokens(rng, inside) for _ in range(5)]), GRID)
    loose = tokens(rng, inside)[:-1]  # not a whole image: token by token
    np.testing.assert_array_equal(found.of(loose), disc()[:-1])
    assert found.axis.shape == (3,) and found.axis.dtype == np.float32


def test_the_part_of_an_image_has_no_holes_and_is_a_token_wider(rng: np.random.Generator, emb: Array) -> None:
    found = Foreground.learnt(emb, GRID)
    holed = disc()
    holed[5 * GRID[1] + 4] = False
    part = found.of(tokens(rng, holed)).reshape(GRID)
    inside = disc().reshape(GRID)
    wider = np.zeros(GRID, bool)
    for y, x in np.argwhere(inside):
        wider[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = True
    np.testing.assert_array_equal(part, wider)


def test_several_images_are_taken_one_by_one(emb: Array) -> None:
    found = Foreground.learnt(emb, GRID)
    np.testing.assert_array_equal(found.of_images(emb), np.concatenate([found.of(one) for one in np.split(emb, 5)]))


def test_an_image_of_background_alone_is_taken_for_the_part(rng: np.random.Generator, emb: Array) -> None:
    found = Foreground.learnt(emb, GRID)
    ground = tokens(rng, np.zeros(len(disc()), bool))
    assert found.of(ground).all()
    assert not found.of(ground[:-1]).any()


def test_a_grid_that_is_all_border_has_a_part(rng: np.random.Generator) -> None:
    inside = np.array([True, True, False, False, False, False])
    values = np.where(inside[:, None], PART, GROUND) + rng.normal(0, 0.02, (6, 3))
    found = Foreground.learnt(np.tile(l2_normalize(values.astype(np.float32)), (4, 1)), (2, 3))
    assert found.of(l2_normalize(values[:5].astype(np.float32))).sum() in {2, 3}


def test_tokens_that_are_all_alike_have_a_finite_rule() -> None:
    same = np.tile(l2_normalize(np.array([PART], np.float32)), (120, 1))
    found = Foreground.learnt(same, GRID)
    assert np.isfinite(found.axis).all() and np.isfinite(found.cut)
    assert found.of(same).shape == (120,)


def test_a_rule_is_the_same_after_it_was_stored(emb: Array) -> None:
    found = Foreground.learnt(emb, GRID)
    stored = found.as_array()
    assert stored.dtype == np.float32 and stored.shape == (4,)
    back = Foreground.from_array(stored, GRID)
    np.testing.assert_array_equal(back.axis, found.axis)
    assert (back.cut, back.grid) == (found.cut, GRID)

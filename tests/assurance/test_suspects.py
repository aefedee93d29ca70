import numpy as np
import pytest
from numpy.typing import NDArray

from backend.assurance.suspects import suspects
from backend.memory.left_out import LeftOut, left_out

Float = NDArray[np.float32]


def unit(rows: NDArray[np.float64]) -> Float:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)


def images(rng: np.random.Generator, n: int, bad: int = 0, *, copies: bool = False) -> Float:
    """(n + bad, 40, 16) tokens: those of good parts lie about the same 40 places, a bad part has three of its own."""
    places = rng.normal(size=(40, 16))
    tokens = unit(places + 0.1 * rng.normal(size=(n + bad, 40, 16)))
    elsewhere = rng.normal(size=(1 if copies else bad, 3, 16))
    tokens[n:, :3] = unit(elsewhere + 0.01 * rng.normal(size=(bad, 3, 16)))
    return tokens


def looked_at(tokens: Float) -> LeftOut:
    n, per_image, dim = tokens.shape
    ids = np.repeat(np.arange(n), per_image)
    return left_out([(own, number) for number, own in enumerate(tokens)], tokens.reshape(-1, dim), ids)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("bad", "copies"), [(1, False), (3, False), (2, True), (4, True), (5, True)])
def test_bad_parts_among_the_good_stand_out_alone_and_in_copies(seed: int, bad: int, copies: bool) -> None:
    found = suspects(looked_at(images(np.random.default_rng(seed), 40, bad, copies=copies)))
    assert {one.place for one in found[:bad]} == set(range(40, 40 + bad))
    assert {one.place for one in found if one.stands_out} >= set(range(40, 40 + bad))
    if copies:
        assert all(set(one.companions) < set(range(40, 45)) for one in found[:bad] if one.n_companions < bad)
    assert found[0].times > 2


def test_among_good_parts_alone_hardly_any_stands_out() -> None:
    named = sum(
        any(one.stands_out for one in suspects(looked_at(images(np.random.default_rng(seed), 24))))
        for seed in range(25)
    )
    assert named <= 3


@pytest.mark.parametrize("n", [5, 9, 30, 200])
def test_by_chance_alone_the_rate_of_fits_with_a_discovery_is_held(n: int) -> None:
    rng = np.random.default_rng(n)
    named = 0
    for _ in range(400):
        found = LeftOut(np.exp(rng.normal(-1, 0.2, (n, 1))), [[()]] * n)
        named += any(one.stands_out for one in suspects(found))
    assert named / 400 <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_few_images_and_equal_ones_are_no_suspects() -> None:
    assert suspects(LeftOut(np.array([[0.1], [0.2], [9.0]]), [[()]] * 3)) == []
    same = suspects(LeftOut(np.zeros((12, 2)), [[(), (1,)]] * 12))
    assert len(same) == 12 and not any(one.stands_out for one in same)


def test_all_images_are_ranked() -> None:
    found = suspects(looked_at(images(np.random.default_rng(0), 12, 1)))
    assert sorted(one.place for one in found) == list(range(13))
    assert [one.p_value for one in found] == sorted(one.p_value for one in found)

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.memory.left_out import RowsByImage, left_out, same_pictures

Float = NDArray[np.float32]


@pytest.fixture
def problem(rng: np.random.Generator) -> tuple[Float, NDArray[np.int64]]:
    """300 unit rows of 8 numbers, of 6 images and shared ones, in no order."""
    rows = rng.normal(size=(300, 8))
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32), rng.integers(-1, 6, 300)


def slowly(tokens: Float, emb: Float, keep: NDArray[np.bool_]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.norm(tokens[:, None].astype(np.float64) - emb[keep][None], axis=2).min(axis=1))


def test_distances_are_those_to_the_nearest_row_of_each_image(problem: tuple[Float, NDArray[np.int64]]) -> None:
    emb, ids = problem
    rows = RowsByImage(emb, ids)
    assert rows.images.tolist() == [-1, 0, 1, 2, 3, 4, 5]
    found = rows.distances(emb[:50])
    for column, image in enumerate(rows.images):
        np.testing.assert_allclose(found[:, column], slowly(emb[:50], emb, ids == image), atol=2e-3)


def test_an_image_is_compared_without_itself_and_the_images_nearest_to_each_place(
    problem: tuple[Float, NDArray[np.int64]],
) -> None:
    emb, ids = problem
    tokens = emb[ids == 2]
    found = RowsByImage(emb, ids).without(tokens, 2, 3)
    assert found.distances.shape == (4, len(tokens))
    shared = slowly(tokens, emb, ids == -1)
    by_image = np.sort([slowly(tokens, emb, ids == image) for image in (0, 1, 3, 4, 5)], axis=0)
    np.testing.assert_allclose(found.distances, np.minimum(by_image[:4], shared), atol=2e-3)
    assert found.companions[0] == () and all(2 not in images and -1 not in images for images in found.companions)
    assert found.scores == pytest.approx([row.max() for row in found.distances])


def test_rows_that_several_share_stay(problem: tuple[Float, NDArray[np.int64]]) -> None:
    emb, ids = problem
    assert RowsByImage(emb, ids).without(emb[ids == -1], -1, 2).distances.max() < 2e-3


def test_companions_are_the_images_that_vouch_for_the_farthest_places() -> None:
    emb = np.eye(8, dtype=np.float32)
    near = np.asarray([[1.0, 0.1, 0, 0, 0, 0, 0, 0]], np.float32) / np.float32(np.hypot(1, 0.1))
    found = RowsByImage(np.concatenate([near, emb]), np.array([7, 0, 1, 2, 3, 4, 5, 6, 8])).without(near, 7, 2)
    assert found.companions == [(), (0,), (0, 1)]


def test_no_more_companions_are_left_out_than_there_are_images_to_compare_with(
    problem: tuple[Float, NDArray[np.int64]],
) -> None:
    rows = RowsByImage(*problem)
    assert [rows.depth(n) for n in (1, 4, 8, 12, 20, 400)] == [0, 0, 1, 2, 4, 4]
    assert RowsByImage(problem[0], problem[1] % 2).depth(400) == 0


def test_every_nth_row_of_each_image_gives_bounds(problem: tuple[Float, NDArray[np.int64]]) -> None:
    emb, ids = problem
    exact, bounds = RowsByImage(emb, ids), RowsByImage(emb, ids, every=4)
    assert bounds.images.tolist() == exact.images.tolist()
    assert (bounds.distances(emb) >= exact.distances(emb) - 1e-6).all()
    assert (RowsByImage(emb, ids, every=1000).distances(emb) < 2).any()


@pytest.mark.parametrize("n_images", [1, 3, 6, 24])
def test_scores_are_of_the_farthest_hundredth(rng: np.random.Generator, n_images: int) -> None:
    emb = rng.normal(size=(300, 8)).astype(np.float32)
    emb /= np.linalg.norm(emb, axis=1, keepdims=True)
    ids = rng.integers(0, max(2, n_images), 300)
    tokens = rng.normal(size=(n_images, 400, 8)).astype(np.float32) * 0.2 + emb[:400].mean(axis=0)
    tokens /= np.linalg.norm(tokens, axis=2, keepdims=True)
    done: list[tuple[int, int]] = []
    found = left_out([(own, number) for number, own in enumerate(tokens)], emb, ids, lambda *at: done.append(at))
    rows = RowsByImage(emb, ids)
    depth = rows.depth(n_images)
    assert found.scores.shape == (n_images, depth + 1) and done == [(n + 1, n_images) for n in range(n_images)]
    for number, own in enumerate(tokens):
        whole = rows.without(own, number, depth)
        expected = np.sort(whole.distances, axis=1)[:, -4:].mean(axis=1)
        np.testing.assert_allclose(found.scores[number], expected, atol=1e-5)
        np.testing.assert_allclose(found.scores[number], whole.scores, atol=1e-5)
        assert found.companions[number] == whole.companions


def test_pictures_that_are_the_same_have_the_number_of_the_first(rng: np.random.Generator) -> None:
    a, b = rng.random((2, 5, 3), np.float32)
    assert same_pictures([a, b, a.copy(), b, a + 1]).tolist() == [0, 1, 0, 1, 4]

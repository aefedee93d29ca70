from collections.abc import Sequence

import cv2
import numpy as np
import pytest

from backend.extractors.neighbourhood import Neighbourhood, Tiled, spans
from backend.extractors.protocol import RGB, Extractor, Rows


def unit(rows: Rows) -> Rows:
    return np.asarray(rows / np.linalg.norm(rows, axis=-1, keepdims=True), np.float32)


class Means(Extractor):
    """The mean colour of each cell and a constant; unit rows."""

    name, dim, patch, runtime, device, fingerprint = "means", 4, 8, "test", "cpu", "means"
    input_size = 64

    def extract(self, images: Sequence[RGB]) -> Rows:
        return np.stack([self.tokens(image) for image in images])

    def tokens(self, image: RGB) -> Rows:
        means = image.reshape(image.shape[0] // 8, 8, -1, 8, 3).mean((1, 3)).reshape(-1, 3) / 255
        return unit(np.hstack([means, np.ones((len(means), 1))]))


class Placed(Means):
    """Tokens that also say where in the image they lie, as those of a network with a view of its surroundings do."""

    def tokens(self, image: RGB) -> Rows:
        rows, cols = image.shape[0] // 8, image.shape[1] // 8
        y, x = (place.ravel() for place in np.mgrid[0:rows, 0:cols])
        return unit(super().tokens(image) + np.stack([y / rows, x / cols, 0 * x, (x + y) / 9], axis=1))


@pytest.fixture
def image(rng: np.random.Generator) -> RGB:
    return cv2.GaussianBlur(rng.integers(0, 255, (48, 72, 3), dtype=np.uint8), (0, 0), 4).astype(np.uint8)


@pytest.mark.parametrize(("size", "stride"), [(3, 1), (5, 1), (3, 2), (1, 3)])
def test_a_token_is_the_mean_of_its_neighbourhood(image: RGB, size: int, stride: int) -> None:
    own = Neighbourhood(Means(), size, stride)
    maps = Means().extract([image])[0].reshape(6, 9, 4)
    slow = []
    for y in range(stride // 2, 6, stride):
        for x in range(stride // 2, 9, stride):
            h = size // 2
            around = maps[max(0, y - h) : y + h + 1, max(0, x - h) : x + h + 1].reshape(-1, 4).mean(axis=0)
            slow.append(around / np.linalg.norm(around))
    np.testing.assert_allclose(own.extract([image, image])[1], slow, atol=1e-6)
    assert own.patch == 8 * stride
    assert own.fingerprint not in {"means", Neighbourhood(Means(), 7, stride).fingerprint}


def test_tiles_see_the_whole_roi_on_a_finer_grid(rng: np.random.Generator) -> None:
    own = Tiled(Means(), 2, 0.25)
    assert own.input_size == 112 and own.grid(500, 500) == (14, 14)
    image = rng.integers(0, 255, (112, 112, 3), dtype=np.uint8)
    np.testing.assert_allclose(own.extract([image]), Means().extract([image]), atol=1e-6)


def test_where_tiles_overlap_the_middle_of_a_tile_counts_more(rng: np.random.Generator) -> None:
    image = rng.integers(0, 255, (112, 112, 3), dtype=np.uint8)
    total = np.zeros((14, 14, 4), np.float32)
    for top in (0, 6):  # two tiles of 8 tokens a side, which share two
        for left in (0, 6):
            tokens = Placed().tokens(image[top * 8 : (top + 8) * 8, left * 8 : (left + 8) * 8])
            for y in range(8):
                for x in range(8):
                    to_edge = min(y + 0.5, 7.5 - y) * min(x + 0.5, 7.5 - x)
                    total[top + y, left + x] += to_edge * tokens[8 * y + x]
    np.testing.assert_allclose(Tiled(Placed(), 2, 0.25).extract([image])[0], unit(total.reshape(-1, 4)), atol=1e-6)


@pytest.mark.parametrize(("length", "tiles", "overlap"), [(14, 2, 0.25), (15, 3, 0.5), (7, 4, 0.0), (3, 3, 0.9)])
def test_tiles_cover_everything_and_are_of_one_size(length: int, tiles: int, overlap: float) -> None:
    found = list(spans(length, tiles, overlap))
    assert {n for span in found for n in range(span.start, span.stop)} == set(range(length))
    assert len({span.stop - span.start for span in found}) == 1


def test_what_is_wrapped_shows_through() -> None:
    inner = Means()
    inner.input_edge, inner.streams = "smaller", 3
    own = Neighbourhood(Tiled(inner, 2), 3)
    assert (own.name, own.dim, own.runtime, own.device) == ("means", 4, "test", "cpu")
    assert own.streams == 3 and own.grid(100, 200) == (14, 28)
    inner.input_aspect = "square"
    assert Neighbourhood(Tiled(inner, 2), 3).grid(100, 200) == (14, 14)

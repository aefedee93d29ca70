"""Image files on their way to the extractor."""

import hashlib
import threading

import numpy as np
import pytest

from backend.base.decoding import ImageOptions
from backend.base.errors import ImageTooLarge, TokenGridMismatch
from backend.extractors.texture import TextureFeatures
from backend.infer import RoiSize
from backend.service.images import ImageFile, decoded, prepare_image
from tests.parts import image_file, part

EXTRACTOR = TextureFeatures(112)
LARGE = image_file(np.zeros((3500, 3500), np.uint8), "large.png")


def test_file_names_lose_their_folders_and_control_characters() -> None:
    assert ImageFile.named("C:\\parts\\a\x07b.png", bytes).name == "ab.png"
    assert ImageFile.named("../../x.png", bytes).name == "x.png"
    assert ImageFile.named(None, bytes).name == ImageFile.named("", bytes).name == "image"
    assert len(ImageFile.named("x" * 500, bytes).name) == 120


def test_a_prepared_image_says_what_it_was(rng: np.random.Generator) -> None:
    file = image_file(part(1, height=70, width=100))
    image = prepare_image(file, EXTRACTOR, digested=True)
    assert image.size == RoiSize(70, 100) and image.grid == (7, 9) and image.pixels.shape == (98, 126, 3)
    assert image.digest == hashlib.sha256(file.read()).hexdigest() and image.notices == ()
    assert prepare_image(file, EXTRACTOR).digest == ""


def test_an_roi_that_is_nearly_the_expected_one_is_resized_to_it_and_that_is_said() -> None:
    file = image_file(part(1, height=70, width=100), "roi.png")
    image = prepare_image(file, EXTRACTOR, expected=(7, 10))
    assert image.grid == (7, 10) and image.pixels.shape == (98, 140, 3)
    assert [(notice.code, notice.values) for notice in image.notices] == [
        ("roi_resized", {"got": (7, 9), "expected": (7, 10)})
    ]
    with pytest.raises(TokenGridMismatch, match=r"got=\(7, 9\), expected=\(7, 12\), name=roi\.png"):
        prepare_image(file, EXTRACTOR, expected=(7, 12))


def test_an_image_beyond_the_limit_is_refused_by_name() -> None:
    with pytest.raises(ImageTooLarge, match=r"large\.png"):
        prepare_image(LARGE, EXTRACTOR, options=ImageOptions(max_megapixels=12))


def test_large_images_are_decoded_one_at_a_time_and_small_ones_do_not_wait() -> None:
    done = threading.Event()

    def prepare() -> None:
        prepare_image(LARGE, EXTRACTOR)
        done.set()

    other = threading.Thread(target=prepare)
    with decoded(LARGE) as (_, image):
        assert image.pixels.shape == (3500, 3500, 3)
        other.start()
        prepare_image(image_file(part(1)), EXTRACTOR)
        assert not done.wait(1.0)
    assert done.wait(60)
    other.join()


def test_a_large_image_that_cannot_be_decoded_lets_the_next_one_through() -> None:
    broken = ImageFile("broken.png", lambda: LARGE.read()[:2000])
    for _ in range(2):
        with pytest.raises(Exception, match=r"broken\.png"):
            prepare_image(broken, EXTRACTOR)
    prepare_image(LARGE, EXTRACTOR)

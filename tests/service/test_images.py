"""Image files on their way to the extractor."""

import hashlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod
from pathlib import Path

import cv2
import numpy as np
import pytest

from backend.api.catalogue import sentence, status_of
from backend.base.decoding import Decoded, ImageOptions, decode
from backend.base.errors import ImageTooLarge, OutOfMemory, TokenGridMismatch, TooManyTokens
from backend.extractors.texture import TextureFeatures
from backend.infer import RoiSize
from backend.resnet_api.predictor import Predictor
from backend.samples.intake import drafts
from backend.service import images
from backend.service.embedding import Augmentation, _views
from backend.service.images import ImageFile, decoded, fitted_grid, prepare_image
from tests.parts import encoded, image_file, part, part_file, quick_settings

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


@pytest.mark.parametrize(("height", "width"), [(28, 20_000), (20_000, 28), (28, 460)])
def test_an_image_too_long_for_its_smaller_edge_names_the_setting(height: int, width: int) -> None:
    extractor = TextureFeatures(448, "smaller")
    with pytest.raises(TooManyTokens) as caught:
        fitted_grid("long.png", (height, width), extractor, None)
    assert "INPUT_EDGE" in sentence(caught.value, "en") and "INPUT_EDGE" in sentence(caught.value, "es")
    assert prod(fitted_grid("long.png", (28, 400), extractor, None)[0]) > 14 * 32 * 32
    assert prod(TextureFeatures(448).grid(height, width)) <= 32 * 32


@pytest.mark.parametrize("error", [MemoryError(), cv2.error("no room")])
def test_memory_that_runs_out_while_decoding_is_no_fault_of_the_image(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    error.code = cv2.Error.StsNoMem  # type: ignore[attr-defined]
    monkeypatch.setattr(cv2, "cvtColor", fail)
    with pytest.raises(OutOfMemory):
        decode(encoded(part(1)))
    assert status_of(OutOfMemory(retry_after=5)) == 503


def test_large_images_are_decoded_one_at_a_time_whoever_asks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    most, now, lock = [0], [0], threading.Lock()

    def slowly(data: bytes, **kind: object) -> Decoded:
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.02)
        with lock:
            now[0] -= 1
        return Decoded(part(1))

    monkeypatch.setattr(images, "decode", slowly)
    monkeypatch.setattr(images, "is_large", lambda *_: True)
    file, settings = part_file(1), quick_settings(tmp_path)
    predictor, embed = Predictor(settings), TextureFeatures(112)
    views = partial(_views, extractor=embed, augmentation=Augmentation(jitter=0.1), seed=0, options=None)
    asked: list[Callable[[], object]] = [
        lambda: prepare_image(file, embed),
        lambda: views(file, expected=None),
        lambda: predictor._grey(file),
        lambda: drafts([file], [], source="test", options=ImageOptions()),
    ]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda ask: ask(), asked * 2))
    predictor.close()
    assert most == [1]

import io
import struct
import zlib
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from backend.base import codecs
from backend.base.codecs import decode_whole, encode_grey
from tests.parts import part

PLAIN = [("PNG", "RGB"), ("PNG", "L"), ("PNG", "RGBA"), ("JPEG", "RGB"), ("JPEG", "L")]


def written(form: str, mode: str, size: tuple[int, int] = (61, 83), **options: Any) -> bytes:
    image = Image.fromarray(part(3, height=size[0], width=size[1])[:, :, ::-1]).convert("RGB")
    if mode == "RGBA":
        image.putalpha(image.getchannel(0))
    file = io.BytesIO()
    image.convert(mode).save(file, form, **options)
    return file.getvalue()


def slow(data: bytes) -> NDArray[np.uint8]:
    """What Pillow makes of the file."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[:, :, ::-1]


@pytest.mark.parametrize(("form", "mode"), PLAIN)
def test_whole_files_give_pillows_pixels(form: str, mode: str) -> None:
    for size in ((61, 83), (28, 28), (300, 41)):
        data = written(form, mode, size)
        pixels = decode_whole(data)
        assert pixels is not None and pixels.dtype == np.uint8 and pixels.flags.c_contiguous
        assert np.array_equal(pixels, slow(data))


@pytest.mark.parametrize("options", [{"quality": 60, "progressive": True}, {"quality": 100, "subsampling": 0}])
def test_jpegs_of_other_kinds_too(options: dict[str, Any]) -> None:
    data = written("JPEG", "RGB", **options)
    assert np.array_equal(decode_whole(data), slow(data))  # type: ignore[arg-type]


def test_exif_rotation_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = written("JPEG", "RGB", exif=exif)
    pixels = decode_whole(data)
    assert pixels is not None and pixels.shape == (61, 83, 3)


@pytest.mark.parametrize("mode", ["P", "LA", "1", "I;16"])
def test_pngs_that_need_more_care_are_left_to_another(mode: str) -> None:
    assert decode_whole(written("PNG", mode)) is None


def test_other_files_are_left_to_another() -> None:
    files = [written("BMP", "RGB"), written("TIFF", "RGB"), written("WEBP", "RGB"), b"", b"\x89PNG\r\n\x1a\n", b"junk"]
    assert [decode_whole(data) for data in files] == [None] * len(files)


@given(st.integers(1, 5000))
def test_a_png_that_is_cut_off_is_not_whole(cut: int) -> None:
    data = written("PNG", "RGB")
    assert decode_whole(data[: -min(cut, len(data) - 1)]) is None


@given(st.integers(8, 100_000), st.integers(1, 255))
def test_a_png_with_one_byte_changed_is_not_whole(place: int, change: int) -> None:
    data = bytearray(written("PNG", "RGB"))
    data[8 + (place - 8) % (len(data) - 8)] ^= change
    assert decode_whole(bytes(data)) is None


def test_a_png_that_promises_more_rows_than_it_has_is_not_whole() -> None:
    data = bytearray(written("PNG", "RGB"))
    data[20:24] = struct.pack(">I", 62)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    assert decode_whole(bytes(data)) is None


def test_a_jpeg_without_its_end_is_not_whole() -> None:
    data = written("JPEG", "RGB")
    assert decode_whole(data[:-2]) is None and decode_whole(data[: len(data) // 2]) is None


@pytest.mark.parametrize("deflate", [codecs.deflate, zlib], ids=["fastest", "zlib"])
def test_grey_pngs_are_lossless_with_either_library(
    deflate: Any, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(codecs, "deflate", deflate)
    smooth = cv2.GaussianBlur(rng.integers(0, 256, (130, 77), np.uint8), (0, 0), 5)
    for image in (smooth, rng.integers(0, 256, (33, 500), np.uint8), np.zeros((28, 1), np.uint8)):
        data = encode_grey(np.asarray(image, np.uint8))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), image)
        pixels = decode_whole(data)
        assert pixels is not None and np.array_equal(pixels[:, :, 1], image)

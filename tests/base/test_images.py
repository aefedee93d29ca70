import base64
import io
import struct
import threading
import tracemalloc
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from backend.base import decoding, images
from backend.base.errors import (
    BadImage,
    EmptyFile,
    ImageTooLarge,
    ImageTooSmall,
    UndecodableImage,
)
from backend.base.images import (
    decode_image,
    encode_grey,
    encode_png,
    is_large,
    resize,
    resize_means,
    to_base64,
    working_scale,
)
from tests.parts import BGR, encoded, part

LOSSLESS: list[tuple[str, dict[str, Any]]] = [
    ("PNG", {}),
    ("BMP", {}),
    ("TIFF", {}),
    ("TIFF", {"compression": "tiff_lzw"}),
    ("WEBP", {"lossless": True}),
]


@pytest.fixture(scope="module")
def picture() -> BGR:
    return part(3, height=40, width=56)


@pytest.mark.parametrize(("form", "options"), LOSSLESS)
def test_lossless_formats_come_back_as_they_were(picture: BGR, form: str, options: dict[str, Any]) -> None:
    decoded = decode_image(encoded(picture, form, **options), name="misleading.txt")
    assert decoded.dtype == np.uint8 and decoded.flags.c_contiguous
    assert (decoded == picture).all()


@pytest.mark.parametrize("options", [{"quality": 95}, {"quality": 95, "progressive": True}])
def test_jpeg_comes_back_close(picture: BGR, options: dict[str, Any]) -> None:
    smooth = cv2.GaussianBlur(picture, (0, 0), 2)
    decoded = decode_image(encoded(smooth, "JPEG", **options))
    assert np.abs(decoded.astype(int) - smooth).mean() < 3


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF"])
def test_grey_becomes_three_equal_channels(picture: BGR, form: str) -> None:
    decoded = decode_image(encoded(picture[:, :, 0], form))
    assert (decoded == picture[:, :, :1]).all()


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
def test_alpha_is_dropped_and_not_blended(picture: BGR, form: str) -> None:
    alpha = np.arange(40 * 56, dtype=np.uint8).reshape(40, 56, 1)
    assert (decode_image(encoded(np.concatenate([picture, alpha], axis=2), form)) == picture).all()


@pytest.mark.parametrize("transparency", [None, 7, b"\x00\x80\xff"])
def test_a_palette_becomes_its_colours(picture: BGR, tmp_path: Path, transparency: int | bytes | None) -> None:
    image = Image.fromarray(picture[:, :, ::-1]).quantize(32)
    extra: dict[str, Any] = {} if transparency is None else {"transparency": transparency}
    image.save(tmp_path / "p.png", **extra)
    expected = np.asarray(image.convert("RGB"))[:, :, ::-1]
    assert (decode_image((tmp_path / "p.png").read_bytes()) == expected).all()


def test_one_bit_images_are_black_and_white(picture: BGR) -> None:
    data = encoded(picture[:, :, 0] > 90)
    assert set(np.unique(decode_image(data))) == {0, 255}


@pytest.mark.parametrize("ending", [".png", ".tiff"])
def test_16_bit_grey_keeps_its_high_byte(picture: BGR, ending: str) -> None:
    deep = picture[:, :, 0].astype(np.uint16) * 256 + 77
    data = cv2.imencode(ending, deep)[1].tobytes()
    assert (decode_image(data) == picture[:, :, :1]).all()


@pytest.mark.parametrize("channels", [3, 4])
def test_16_bit_colour_keeps_its_high_bytes(picture: BGR, channels: int) -> None:
    deep = np.full((40, 56, channels), 0xFF00, np.uint16)
    deep[:, :, :3] = picture.astype(np.uint16) * 256 + 131
    assert (decode_image(cv2.imencode(".png", deep)[1].tobytes()) == picture).all()


def test_exif_rotation_is_ignored(picture: BGR) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for form in ("JPEG", "PNG", "WEBP"):
        assert decode_image(encoded(picture, form, exif=exif)).shape == picture.shape


def test_opencv_reads_the_same_pixels(shared_data: Path) -> None:
    for path in [
        *sorted((shared_data / "cookies/test/crack").iterdir())[:1],
        *sorted((shared_data / "pills/train/good").iterdir())[:1],
    ]:
        data = path.read_bytes()
        theirs = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
        assert np.abs(decode_image(data).astype(int) - theirs).max() <= 3  # two JPEG decoders may round differently


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("share", [0.05, 0.5, 0.9])
@pytest.mark.parametrize(("form", "options"), [*LOSSLESS, ("JPEG", {})])
def test_a_truncated_file_is_refused(picture: BGR, form: str, options: dict[str, Any], share: float) -> None:
    data = encoded(picture, form, **options)
    with pytest.raises(UndecodableImage, match=r"cut off\.png"):
        decode_image(data[: int(len(data) * share)], name="cut off.png")


@pytest.mark.parametrize(
    "data",
    [
        b"GIF89a" + bytes(40),
        b"hello",
        b"\0",
        b"%PDF-1.7",
        b"\x89PNG\r\n\x1a\n",
        b"BM" + bytes(60),
        b"II*\0" + bytes(30),
        b"RIFF\x10\0\0\0WEBPVP8 ",
    ],
)
def test_what_is_no_image_is_refused(data: bytes) -> None:
    with pytest.raises(UndecodableImage):
        decode_image(data)


def test_an_empty_file_is_called_empty() -> None:
    with pytest.raises(EmptyFile, match=r"roi\.png"):
        decode_image(b"", name="roi.png")


@pytest.mark.parametrize(("height", "width"), [(1, 1), (27, 400), (400, 27)])
def test_an_image_too_small_to_see_anything_says_so(height: int, width: int) -> None:
    with pytest.raises(ImageTooSmall, match=f"width={width}, height={height}"):
        decode_image(encoded(np.zeros((height, width), np.uint8)))


def test_the_smallest_image_is_28_pixels_a_side() -> None:
    assert decode_image(encoded(np.zeros((28, 28), np.uint8))).shape == (28, 28, 3)


def png_header(width: int, height: int) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def bmp_header(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 2835, 2835, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54 + 1000, 0, 0, 54) + info + bytes(1000)


def webp_header(width: int, height: int) -> bytes:
    bits = (width - 1) | (height - 1) << 14
    body = b"VP8L" + struct.pack("<I", 6) + b"\x2f" + struct.pack("<I", bits) + b"\0"
    return b"RIFF" + struct.pack("<I", len(body) + 4) + b"WEBP" + body


@pytest.mark.parametrize(
    ("data", "size"),
    [
        (png_header(30_000, 30_000), "width=30000, height=30000"),
        (png_header(11_000, 10_000), "width=11000, height=10000"),
        (png_header(2**31 - 1, 2**31 - 1), "2147483647"),
        (bmp_header(30_000, 30_000), "width=30000, height=30000"),
    ],
)
def test_a_huge_image_is_refused_from_its_header(data: bytes, size: str) -> None:
    tracemalloc.start()
    with pytest.raises(ImageTooLarge, match=f"{size}.*limit=100"):
        decode_image(data, name="huge")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1_000_000


def test_a_huge_webp_is_refused_whatever_its_decoder_thinks_of_it() -> None:
    with pytest.raises(BadImage):
        decode_image(webp_header(16_383, 16_383))
    assert is_large(webp_header(16_383, 16_383))


def test_a_setting_may_allow_more_than_pillow_would() -> None:
    with pytest.raises(UndecodableImage):  # truncated, but not too large
        decode_image(png_header(20_000, 10_000), max_megapixels=300)


def test_decoding_in_many_threads_leaves_warnings_as_they_were(picture: BGR) -> None:
    import warnings

    before, data = list(warnings.filters), encoded(picture)
    threads = [threading.Thread(target=lambda: [decode_image(data) for _ in range(30)]) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert list(warnings.filters) == before


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@given(st.integers(0, 5), st.integers(0, 10_000), st.binary(min_size=1, max_size=12))
def test_a_corrupted_file_is_decoded_or_refused_and_nothing_else(kind: int, place: int, patch: bytes) -> None:
    form, options = [*LOSSLESS, ("JPEG", {})][kind]
    data = bytearray(encoded(part(1, height=32, width=32), form, **options))
    at = place % len(data)
    data[at : at + len(patch)] = patch
    with suppress(BadImage):
        assert decode_image(bytes(data)).ndim == 3


def test_png_is_lossless_and_refuses_what_is_no_picture(picture: BGR) -> None:
    back = cv2.imdecode(np.frombuffer(encode_png(picture), np.uint8), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(np.asarray(back), picture)
    with pytest.raises((ValueError, cv2.error)):
        encode_png(np.zeros((4, 4, 7), np.uint8))


def test_base64_is_ascii() -> None:
    assert base64.b64decode(to_base64(b"\0\xff")) == b"\0\xff"


@pytest.mark.parametrize("size", [(20, 28), (80, 112), (40, 56), (41, 55)])
def test_resizing_keeps_type_channels_and_brightness(picture: BGR, size: tuple[int, int]) -> None:
    resized = resize(picture, *size)
    assert resized.shape == (*size, 3) and resized.dtype == np.uint8
    assert resized.mean() == pytest.approx(picture.mean(), abs=1)


def test_only_maps_of_more_than_a_mebipixel_are_scaled_down() -> None:
    assert working_scale(1024, 1024) == 1.0
    assert working_scale(2048, 2048) == pytest.approx(0.5)


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
        pixels = decode_image(data)
        assert pixels.dtype == np.uint8 and pixels.flags.c_contiguous
        assert np.array_equal(pixels, slow(data))


@pytest.mark.parametrize("options", [{"quality": 60, "progressive": True}, {"quality": 100, "subsampling": 0}])
def test_jpegs_of_other_kinds_too(options: dict[str, Any]) -> None:
    data = written("JPEG", "RGB", **options)
    assert np.array_equal(decode_image(data), slow(data))


def test_exif_rotation_of_whole_files_is_ignored() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = written("JPEG", "RGB", exif=exif)
    pixels = decode_image(data)
    assert pixels.shape == (61, 83, 3)


COLOUR_CHUNKS = [(b"gAMA", struct.pack(">I", 30_000)), (b"tRNS", bytes(6)), (b"bKGD", bytes(6)), (b"sBIT", b"\5\5\5")]


@pytest.mark.parametrize(("kind", "body"), COLOUR_CHUNKS, ids=[kind.decode() for kind, _ in COLOUR_CHUNKS])
def test_what_a_png_says_of_its_colours_changes_no_pixel(kind: bytes, body: bytes) -> None:
    data = written("PNG", "RGB")
    told = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    assert np.array_equal(decode_image(data[:33] + told + data[33:]), slow(data))


@given(st.integers(1, 5000))
def test_a_png_that_is_cut_off_is_not_whole(cut: int) -> None:
    data = written("PNG", "RGB")
    with pytest.raises(UndecodableImage):
        decode_image(data[: -min(cut, len(data) - 1)])


@given(st.integers(8, 100_000), st.integers(1, 255))
def test_a_png_with_one_byte_changed_is_not_whole(place: int, change: int) -> None:
    data = bytearray(written("PNG", "RGB"))
    data[8 + (place - 8) % (len(data) - 8)] ^= change
    with pytest.raises(UndecodableImage):
        decode_image(bytes(data))


def test_a_png_that_promises_more_rows_than_it_has_is_not_whole() -> None:
    data = bytearray(written("PNG", "RGB"))
    data[20:24] = struct.pack(">I", 62)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(UndecodableImage):
        decode_image(bytes(data))


def test_a_jpeg_without_its_end_is_not_whole() -> None:
    data = written("JPEG", "RGB")
    with pytest.raises(UndecodableImage):
        decode_image(data[:-2])
    with pytest.raises(UndecodableImage):
        decode_image(data[: len(data) // 2])


@pytest.mark.parametrize("deflate", [decoding.deflate, zlib], ids=["fastest", "zlib"])
def test_grey_pngs_are_lossless_with_either_library(
    deflate: Any, monkeypatch: pytest.MonkeyPatch, rng: np.random.Generator
) -> None:
    monkeypatch.setattr(images, "deflate", deflate)
    smooth = cv2.GaussianBlur(rng.integers(0, 256, (130, 77), np.uint8), (0, 0), 5)
    for image in (smooth, rng.integers(0, 256, (33, 500), np.uint8), np.zeros((28, 28), np.uint8)):
        data = encode_grey(np.asarray(image, np.uint8))
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), image)
        pixels = decode_image(data)
        assert np.array_equal(pixels[:, :, 1], image)


@pytest.mark.parametrize("n", [2, 4, 8])
@pytest.mark.parametrize(("height", "width"), [(1024, 1280), (1019, 1277), (1021, 1303)])
def test_means_of_pixels_are_resized_as_all_the_pixels_would_be(n: int, height: int, width: int) -> None:
    rng = np.random.default_rng(height)
    coarse = rng.integers(0, 256, (height // n // 4, width // n // 4, 3), np.uint8)
    whole = np.asarray(cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)
    padded = np.pad(whole, ((0, -height % n), (0, -width % n), (0, 0)), mode="edge")
    means = resize(padded, padded.shape[0] // n, padded.shape[1] // n)
    target = round(height / n / 2.3), round(width / n / 2.3)
    found, expected = resize_means(means, (height, width), *target), resize(whole, *target)
    assert found.shape == expected.shape and found.dtype == np.uint8
    apart = np.abs(found.astype(int) - expected)
    plain = np.abs(resize(means, *target).astype(int) - expected)
    assert apart.mean() < min(1.5, 0.75 * plain.mean())
    assert apart[:, -10:].mean() < 1.5 * apart.mean() + 0.5  # nothing is stretched towards the far edges

import io
import struct
import sys
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import process_time
from typing import Any

import cv2
import imagecodecs
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from backend.base import decoding
from backend.base.decoding import Decoded, ImageOptions, Needed, decode, read_header
from backend.base.errors import BadImage, ImageTooLarge, UndecodableImage
from backend.base.images import is_large
from tests.formats import FORMS, interlaced_png, peaks
from tests.parts import encoded, part
from tests.tiffs import COMPRESSIONS, Page, write_tiff

HEIGHT, WIDTH = 30, 41
CHANNELS = {0: 1, 1: 1, 2: 3, 3: 1, 5: 4}


def samples(bits: int, channels: int = 1, seed: int = 0) -> NDArray[np.int64]:
    """Values that use the whole range of `bits`."""
    values = np.random.default_rng(seed).integers(0, 1 << bits, (HEIGHT, WIDTH, channels))
    values[0, 0], values[0, 1] = 0, (1 << bits) - 1
    return values[:, :, 0] if channels == 1 else values


def high_byte(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    return (values >> (bits - 8) if bits >= 8 else values * 255 // ((1 << bits) - 1)).astype(np.uint8)


def meant(page: Page) -> NDArray[np.uint8]:
    """(H, W, 3) BGR: what the header and the values of a page stand for."""
    values, bits = page.values, page.bits
    if page.photometric == 3:
        table = np.array(page.tags[320][1]).reshape(3, -1) >> 8
        return np.ascontiguousarray(table[::-1, values].transpose(1, 2, 0), np.uint8)
    eight = high_byte((1 << bits) - 1 - values if page.photometric == 0 else values, bits)
    if page.photometric == 5:
        ink = eight.astype(int)
        rgb = ((255 - ink[:, :, :3]) * (255 - ink[:, :, 3:]) + 127) // 255
        return np.ascontiguousarray(rgb[:, :, ::-1], np.uint8)
    if eight.ndim == 2:
        return np.repeat(eight[:, :, None], 3, axis=2)
    return np.ascontiguousarray(eight[:, :, ::-1])


def page(bits: int, photometric: int, **kind: Any) -> Page:
    tags = {}
    if photometric == 3:
        tags[320] = (3, np.random.default_rng(9).integers(0, 65536, 3 << bits).tolist())
    return Page(values=samples(bits, CHANNELS[photometric]), bits=bits, photometric=photometric, tags=tags, **kind)


def codes(decoded: Decoded) -> set[str]:
    return {notice.code for notice in decoded.notices}


@given(
    bits=st.sampled_from([1, 2, 4, 8, 10, 12, 14, 16, 32]),
    photometric=st.sampled_from(sorted(CHANNELS)),
    planar=st.sampled_from([1, 2]),
    frames=st.integers(1, 3),
    order=st.sampled_from(["<", ">"]),
    compression=st.sampled_from(sorted(COMPRESSIONS)),
    rows=st.sampled_from([None, 7]),
)
def test_a_tiff_is_what_its_header_declares_or_refused(
    bits: int, photometric: int, planar: int, frames: int, order: str, compression: str, rows: int | None
) -> None:
    if photometric == 3 and bits > 8:
        photometric = 1
    one = page(bits, photometric, planar=planar, compression=compression, rows_per_strip=rows)
    data = write_tiff([one] * frames, order)
    started = process_time()
    try:
        decoded = decode(data)
    except UndecodableImage as err:
        assert len(str(err)) > 40
        return
    assert process_time() - started < 5
    np.testing.assert_array_equal(decoded.pixels, meant(one))
    assert decoded.pixels.flags.c_contiguous
    assert ("frames_ignored" in codes(decoded)) == (frames > 1)


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
@pytest.mark.parametrize("photometric", [0, 1, 2])
def test_the_depths_of_cameras_are_read_in_every_layout(bits: int, photometric: int) -> None:
    for planar in (1, 2):
        for order in "<>":
            one = page(bits, photometric, planar=planar)
            np.testing.assert_array_equal(decode(write_tiff([one], order)).pixels, meant(one))


@pytest.mark.parametrize("turned", range(1, 9))
def test_orientation_is_ignored_in_a_tiff_as_everywhere(turned: int) -> None:
    one = page(8, 2)
    decoded = decode(write_tiff([Page(values=one.values, photometric=2, tags={274: (3, [turned])})]))
    np.testing.assert_array_equal(decoded.pixels, meant(one))


def test_a_thumbnail_before_the_picture_is_no_frame() -> None:
    one = page(8, 2)
    small = Page(values=samples(8)[:28, :28], tags={254: (4, [1])})
    unmarked = Page(values=samples(8)[:28, :28])
    for first in (small, unmarked):
        decoded = decode(write_tiff([first, one]))
        np.testing.assert_array_equal(decoded.pixels, meant(one))
        assert not decoded.notices


@pytest.mark.parametrize(("bits", "kind"), [(8, "i1"), (16, "i2"), (32, "i4")])
def test_signed_samples_are_shifted_to_black(bits: int, kind: str) -> None:
    values = samples(bits)
    signed = (values - (1 << (bits - 1))).astype(kind)
    one = Page(values=signed.view(kind.replace("i", "u")), bits=bits, tags={339: (3, [2])})
    np.testing.assert_array_equal(decode(write_tiff([one])).pixels[:, :, 0], high_byte(values, bits))


@pytest.mark.parametrize(("bits", "kind"), [(8, "i1"), (16, "i2")])
def test_signed_samples_none_of_which_is_negative_are_warned_of(bits: int, kind: str) -> None:
    values = samples(bits) >> 1
    one = Page(values=values.astype(kind).view(kind.replace("i", "u")), bits=bits, tags={339: (3, [2])})
    decoded = decode(write_tiff([one]))
    assert codes(decoded) == {"no_value_negative"}
    np.testing.assert_array_equal(decoded.pixels[:, :, 0], high_byte(values + (1 << (bits - 1)), bits))


def test_a_32_bit_image_that_uses_few_levels_is_warned_of() -> None:
    one = Page(values=samples(8), bits=32)
    assert codes(decode(write_tiff([one]))) == {"few_levels_used"}


@pytest.mark.parametrize(
    ("tags", "photometric", "said"),
    [
        ({339: (3, [3])}, 1, "samples_not_integers"),
        ({}, 8, "CIELAB"),
        ({}, 32844, "LOGL"),
        ({259: (3, [9999])}, 1, ""),
        ({332: (3, [2])}, 5, "inks_not_cmyk"),
    ],
)
def test_what_is_not_understood_is_refused_in_words(tags: dict[int, Any], photometric: int, said: str) -> None:
    channels = 4 if photometric == 5 else 3 if photometric == 8 else 1
    values = samples(16 if photometric == 1 else 8, channels)
    one = Page(values=values, bits=16 if photometric == 1 else 8, photometric=photometric, tags=tags)
    with pytest.raises(UndecodableImage) as caught:
        decode(write_tiff([one]))
    assert said in str(caught.value)


@pytest.mark.parametrize("compression", sorted(COMPRESSIONS))
def test_a_tiff_that_ends_early_is_refused(compression: str) -> None:
    data = write_tiff([page(8, 2, compression=compression, rows_per_strip=5)])
    moved = bytearray(data)
    for at in (len(data) // 3, len(data) // 2):
        with pytest.raises(UndecodableImage):
            decode(data[:at])
    start = struct.unpack_from("<I", data, 4)[0]
    for entry in range(start + 2, start + 2 + 12 * struct.unpack_from("<H", data, start)[0], 12):
        if struct.unpack_from("<H", data, entry)[0] == 279:  # the last strip's bytes are said to be none
            (where,) = struct.unpack_from("<I", data, entry + 8)
            moved[where + 20 : where + 24] = b"\0\0\0\0"
    with pytest.raises(UndecodableImage):
        decode(bytes(moved))


def jpeg(**kind: Any) -> bytes:
    return encoded(part(3), "JPEG", **kind)


def png(**kind: Any) -> bytes:
    return encoded(part(3), "PNG", **kind)


def webp(**kind: Any) -> bytes:
    return encoded(part(3), "WEBP", **kind)


def halved(data: bytes) -> bytes:
    return data[: len(data) // 2]


def zeroed(data: bytes) -> bytes:
    at, n = len(data) // 2, max(200, len(data) // 8)
    return data[:at] + bytes(n) + data[at + n :]


def shortened(data: bytes) -> bytes:
    return data[: len(data) // 2] + data[len(data) // 2 + len(data) // 8 :]


@pytest.mark.parametrize("kind", [{}, {"quality": 95, "subsampling": 0}, {"progressive": True}, {"quality": 30}])
@pytest.mark.parametrize("damage", [halved, zeroed, shortened, lambda d: halved(d) + b"\xff\xd9", lambda d: d[:-2]])
def test_a_jpeg_whose_scan_is_damaged_is_refused(kind: dict[str, Any], damage: Any) -> None:
    decode(jpeg(**kind))
    with pytest.raises(UndecodableImage):
        decode(damage(jpeg(**kind)))


@pytest.mark.parametrize("kind", [{"quality": 80}, {"lossless": True}])
@pytest.mark.parametrize("damage", [halved, zeroed])
def test_a_damaged_webp_is_refused(kind: dict[str, Any], damage: Any) -> None:
    decode(webp(**kind))
    with pytest.raises(UndecodableImage):
        decode(damage(webp(**kind)))


@pytest.mark.parametrize("flipped", [40, 400, -40, -6])
def test_a_png_whose_checksum_fails_is_refused(flipped: int) -> None:
    data = bytearray(png())
    data[flipped] ^= 0x40
    with pytest.raises(UndecodableImage):
        decode(bytes(data))


@pytest.mark.parametrize("interlaced", [0, 1])
@pytest.mark.parametrize("colour", [0, 2, 4, 6])
@pytest.mark.parametrize("depth", [8, 16])
def test_a_png_with_right_checksums_and_too_few_pixels_is_refused(depth: int, colour: int, interlaced: int) -> None:
    header = struct.pack(">IIBBBBB", 64, 64, depth, colour, 0, 0, interlaced)
    body = zlib.compress(bytes(64 * 64 // 2))
    chunks = [(b"IHDR", header), (b"IDAT", body), (b"IEND", b"")]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks
    )
    with pytest.raises(UndecodableImage):
        decode(data)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
@pytest.mark.parametrize("form", ["PNG", "BMP", "WEBP", "TIFF"])
def test_every_mode_of_eight_bits_is_what_pillow_says(mode: str, form: str) -> None:
    image = Image.fromarray(part(2)[:, :, ::-1].copy()).convert(mode)
    buffer = io.BytesIO()
    try:
        image.save(buffer, form, **({"lossless": True, "exact": True} if form == "WEBP" else {}))
    except OSError:
        pytest.skip(f"{form} holds no {mode}")
    saved = Image.open(io.BytesIO(buffer.getvalue()))
    saved.info.pop("transparency", None)
    np.testing.assert_array_equal(decode(buffer.getvalue()).pixels, np.asarray(saved.convert("RGB"))[:, :, ::-1])


def test_jpegs_are_decoded_as_opencv_decodes_them(shared_data: Path) -> None:
    for path in sorted(shared_data.rglob("*.jpg"))[::60]:
        data = path.read_bytes()
        flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
        np.testing.assert_array_equal(decode(data).pixels, cv2.imdecode(np.frombuffer(data, np.uint8), flags))


def test_a_cmyk_jpeg_has_the_colours_that_adobe_means() -> None:
    image = Image.fromarray(part(2)[:, :, ::-1].copy())
    buffer = io.BytesIO()
    image.convert("CMYK").save(buffer, "JPEG", quality=95)
    difference = np.abs(decode(buffer.getvalue()).pixels.astype(int) - part(2))
    assert difference.mean() < 6


def grey16(values: NDArray[Any], form: str) -> bytes:
    return encoded(values.astype(np.uint16), form)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("bits", [10, 12, 14])
def test_a_camera_that_does_not_shift_is_warned_of_and_understood_once_said(form: str, bits: int) -> None:
    scene = part(7)[:, :, 0].astype(int)
    own = scene << (bits - 8)
    want = decode(grey16(own << (16 - bits), form))
    told = decode(grey16(own, form), options=ImageOptions(pixel_bits=bits))
    np.testing.assert_array_equal(told.pixels, want.pixels)
    assert not want.notices and not told.notices
    if bits == 12:
        guessed = decode(grey16(own, form))
        assert codes(guessed) == {"read_as_12_bits"}
        np.testing.assert_array_equal(guessed.pixels, want.pixels)
        as_declared = decode(grey16(own, form), options=ImageOptions(pixel_bits=16))
        assert as_declared.pixels.max() < 16 and not as_declared.notices
    with pytest.raises(UndecodableImage, match="beyond_pixel_bits"):
        decode(grey16(own << (16 - bits), form), options=ImageOptions(pixel_bits=bits))


def test_pixel_bits_leave_eight_bit_files_and_declared_depths_alone() -> None:
    one = page(12, 1)
    np.testing.assert_array_equal(decode(write_tiff([one]), options=ImageOptions(pixel_bits=10)).pixels, meant(one))
    np.testing.assert_array_equal(decode(png(), options=ImageOptions(pixel_bits=12)).pixels, part(3))


@pytest.mark.parametrize("form", ["GIF", "WEBP", "PNG", "TIFF"])
def test_the_first_of_several_frames_is_taken_and_that_is_said(form: str) -> None:
    frames = [Image.fromarray(part(seed)[:, :, ::-1].copy()) for seed in (1, 2, 3)]
    buffer = io.BytesIO()
    options = {"lossless": True} if form == "WEBP" else {}
    frames[0].save(buffer, form, save_all=True, append_images=frames[1:], **options)
    if form == "GIF":
        with pytest.raises(UndecodableImage):
            decode(buffer.getvalue())
        return
    decoded = decode(buffer.getvalue())
    np.testing.assert_array_equal(decoded.pixels, part(1))
    assert codes(decoded) == {"frames_ignored"}


@pytest.mark.parametrize("form", ["PNG", "JPEG", "BMP", "TIFF", "WEBP"])
def test_the_header_alone_tells_format_and_size(form: str) -> None:
    header = read_header(encoded(part(0, height=40, width=56), form))
    assert (header.width, header.height) == (56, 40)
    with pytest.raises(ImageTooLarge):
        decode(encoded(part(0), form), options=ImageOptions(max_megapixels=0.001))


@given(data=st.data(), form=st.sampled_from(["PNG", "JPEG", "BMP", "TIFF", "WEBP", "TIFF12", "PNG16"]))
def test_mutated_files_are_decoded_or_refused_and_nothing_else(data: st.DataObject, form: str) -> None:
    whole = {
        "TIFF12": lambda: write_tiff([page(12, 1, compression="lzw")]),
        "PNG16": lambda: grey16(part(1)[:, :, 0].astype(int) << 8, "PNG"),
    }.get(form, lambda: encoded(part(1), form))()
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.one_of(st.integers(0, min(200, len(whole) - 1)), st.integers(0, len(whole) - 1)))
        changed[at] = data.draw(st.integers(0, 255))
    started = process_time()
    try:
        decoded = decode(
            bytes(changed[: data.draw(st.integers(len(whole) // 2, len(whole)))]),
            options=ImageOptions(max_megapixels=4),
        )
        assert decoded.pixels.dtype == np.uint8 and decoded.pixels.ndim == 3
    except BadImage:
        pass
    assert process_time() - started < 5


# What libjpeg and libwebp need of their own, in bytes a pixel: coefficients of all scans, and ARGB beside BGR.
LIBRARIES = {
    "JPEG progressive": 3 + 3,
    "JPEG progressive 4:4:4": 6 + 3,
    "JPEG CMYK progressive": 8 + 4,
}
# Formats and layouts that take ways of their own through the decoder.
QUICK = (
    "PNG palette", "PNG RGBA 16", "PNG RGB interlaced", "JPEG progressive", "JPEG CMYK", "WebP alpha", "WebP lossless",
    "BMP RGB", "TIFF RGB planes", "TIFF RGB LZW, predictor, one strip", "TIFF RGB JPEG", "TIFF RGBA 16 tiles",
)  # fmt: skip
MIB = 1 << 20
ALL = pytest.param(tuple(FORMS), 1500, 2000, marks=pytest.mark.slow, id="all")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts it so")
@pytest.mark.parametrize(("names", "height", "width"), [pytest.param(QUICK, 1000, 1200, id="some"), ALL])
def test_decoding_takes_twice_the_pixels_at_most(names: tuple[str, ...], height: int, width: int) -> None:
    for taken in peaks(names, height, width).values():
        own = height * width * LIBRARIES.get(taken.name, 0)
        assert taken.peak < max(own, 2 * taken.pixels) + 2 * MIB, taken


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux counts it so")
def test_decoding_12_megapixels_takes_less_than_a_second() -> None:
    for taken in peaks(tuple(FORMS), 3000, 4000, by_itself=False).values():
        assert taken.seconds < 1, taken


@pytest.mark.parametrize("shape", [(28, 30), (31, 29), (33, 300), (300, 28)])
@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("channels", "depth"), [(1, 8), (2, 8), (3, 8), (4, 8), (1, 16), (2, 16), (3, 16), (4, 16)])
def test_pngs_of_all_kinds_are_what_was_written(
    channels: int, depth: int, interlaced: bool, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoding, "BAND", 200)  # several bands, so that filters reach across their borders
    values = np.random.default_rng(depth).integers(0, 1 << depth, (*shape, channels)).astype(f"u{depth // 8}")
    values = values[:, :, 0] if channels == 1 else values
    data = interlaced_png(values) if interlaced else bytes(imagecodecs.png_encode(values))
    high = (values >> (depth - 8)).astype(np.uint8)
    grey = high[:, :, 0] if channels == 2 else high
    want = np.dstack([grey] * 3) if grey.ndim == 2 else grey[:, :, 2::-1]
    np.testing.assert_array_equal(decode(data).pixels, want)


@pytest.mark.parametrize("form", ["PNG", "TIFF"])
@pytest.mark.parametrize("beyond", [0, 1, 999, 1999])
def test_one_value_beyond_twelve_bits_settles_what_all_of_them_are(form: str, beyond: int) -> None:
    """Rows that were drawn as 12 bits before it came are what they would be had it come first."""
    values = np.random.default_rng(1).integers(0, 4096, (2000, 200)).astype(np.uint16)
    values[beyond, 7] = 4096
    decoded = decode(encoded(values, form))
    assert not decoded.notices
    np.testing.assert_array_equal(decoded.pixels[:, :, 1], values >> 8)


def independent(data: bytes) -> NDArray[np.uint8]:
    """(H, W, 3) BGR: what Pillow, and libtiff below it, make of a file; of 16 bits the high byte."""
    image = Image.open(io.BytesIO(data))
    if image.mode.startswith("I"):
        values = np.asarray(image)
        return np.repeat((values.astype(np.int64) >> 8).astype(np.uint8)[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"))[:, :, ::-1]


def tifffile_of(values: NDArray[Any], **kind: Any) -> bytes:
    file = io.BytesIO()
    with tifffile.TiffWriter(file, bigtiff=kind.pop("big", False), byteorder=kind.pop("order", "<")) as writer:
        writer.write(values, **kind)
    return file.getvalue()


COLOUR = part(3, height=61, width=83)[:, :, ::-1].copy()
GREY, DEEP = COLOUR[:, :, 1].copy(), COLOUR[:, :, 1].astype(np.uint16) * 257
JPEG_IN_TIFF = {"compression": "jpeg", "compressionargs": {"outcolorspace": "ycbcr"}, "photometric": "ycbcr"}

# Layouts of TIFFs that are read, each as another program wrote it.
LAYOUTS: dict[str, tuple[NDArray[Any], dict[str, Any]]] = {
    "BigTIFF": (COLOUR, {"photometric": "rgb", "big": True}),
    "big endian, predictor": (DEEP, {"order": ">", "compression": "lzw", "predictor": 2}),
    "tiles with a predictor": (COLOUR, {"photometric": "rgb", "tile": (16, 32), "compression": "zlib", "predictor": 2}),
    "tiles of planes": (
        np.moveaxis(COLOUR, 2, 0),
        {"photometric": "rgb", "planarconfig": "separate", "tile": (16, 16)},
    ),
    "JPEG, 4:4:4": (COLOUR, {**JPEG_IN_TIFF, "subsampling": (1, 1)}),
    "JPEG, 4:2:0": (COLOUR, {**JPEG_IN_TIFF, "subsampling": (2, 2)}),
    "JPEG of RGB in strips": (COLOUR, {"photometric": "rgb", "compression": "jpeg", "rowsperstrip": 16}),
    "JPEG of RGB in tiles": (COLOUR, {"photometric": "rgb", "compression": "jpeg", "tile": (32, 32)}),
    "LZMA": (DEEP, {"photometric": "minisblack", "compression": "lzma"}),
    "Zstandard": (COLOUR, {"photometric": "rgb", "compression": "zstd"}),
    "one bit, white is zero": (GREY > 90, {"photometric": "miniswhite"}),
    "two bits": (GREY >> 6, {"photometric": "minisblack", "bitspersample": 2}),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_tiff_of_another_programs_making_has_the_pixels_of_an_independent_decoder(layout: str) -> None:
    values, kind = LAYOUTS[layout]
    data = tifffile_of(values, **{"photometric": "minisblack", **kind})
    np.testing.assert_array_equal(decode(data).pixels, independent(data))


REFUSED: dict[str, tuple[Any, str]] = {
    "JPEG 2000": (lambda: tifffile_of(COLOUR, photometric="rgb", compression="jpeg2000"), "JPEG2000"),
    "JPEG XR": (lambda: tifffile_of(COLOUR, photometric="rgb", compression="jpegxr"), "JPEGXR"),
    "WebP": (lambda: tifffile_of(COLOUR, photometric="rgb", compression="webp"), "WEBP"),
    "fax": (lambda: encoded_tiff("1", "group4"), "CCITTFAX4"),
    "floats": (lambda: tifffile_of(GREY.astype(np.float32), photometric="minisblack"), "samples_not_integers"),
    "64 bits": (lambda: tifffile_of(DEEP.astype(np.uint64), photometric="minisblack"), "samples_differ"),
    "a volume": (
        lambda: tifffile_of(np.stack([GREY] * 16), photometric="minisblack", volumetric=True, tile=(16, 16, 16)),
        "volume",
    ),
    "a Bayer pattern": (lambda: tifffile_of(GREY, photometric="cfa"), "CFA"),
    "a predictor that other readers leave aside": (
        lambda: write_tiff([Page(values=GREY, tags={317: (3, [2])})]), "header_not_valid",
    ),
    "a strip that is too short": (lambda: write_tiff([Page(values=GREY, tags={279: (4, [2000])})]), "cut_off"),
    "a JPEG of 12 bits": (lambda: imagecodecs.jpeg8_encode(DEEP >> 4, bitspersample=12), "bits=12"),
    "a lossless JPEG": (lambda: imagecodecs.ljpeg_encode(GREY), "SOF3"),
    "a JPEG-LS": (lambda: imagecodecs.jpegls_encode(GREY), "JPEG-LS"),
    "a palette PNG without its palette": (lambda: without_chunk(encoded_palette(), b"PLTE"), "palette_missing"),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_for_sure_is_refused_by_name(kind: str) -> None:
    make, said = REFUSED[kind]
    with pytest.raises(UndecodableImage, match=said):
        decode(make())


def encoded_tiff(mode: str, compression: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(COLOUR).convert(mode).save(file, "TIFF", compression=compression)
    return file.getvalue()


def encoded_palette() -> bytes:
    file = io.BytesIO()
    Image.fromarray(COLOUR).convert("P").save(file, "PNG")
    return file.getvalue()


def without_chunk(png: bytes, kind: bytes) -> bytes:
    at = png.index(kind) - 4
    return png[:at] + png[at + 12 + struct.unpack_from(">I", png, at)[0] :]


def needed(height: int, width: int) -> Needed:
    return lambda *_: (height, width)


JPEGS: list[dict[str, Any]] = [
    {},
    {"quality": 95, "subsampling": 0},
    {"quality": 60, "subsampling": 1},
    {"progressive": True},
    {"progressive": True, "subsampling": 0},
]


@pytest.mark.parametrize("kind", [*JPEGS, {"mode": "L"}, {"mode": "CMYK"}, {"mode": "CMYK", "progressive": True}])
@pytest.mark.parametrize(("height", "width"), [(480, 640), (481, 635), (487, 641)])
@pytest.mark.parametrize(("n", "left"), [(2, 2), (4, 3), (8, 3)])
def test_a_jpeg_is_decoded_to_the_smallest_picture_that_has_twice_or_three_times_what_is_needed(
    kind: dict[str, Any], height: int, width: int, n: int, left: int
) -> None:
    kind, smooth = dict(kind), cv2.GaussianBlur(part(3, height=height, width=width), (0, 0), 4)
    image = Image.fromarray(smooth[:, :, ::-1]).convert(kind.pop("mode", "RGB"))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **kind)
    whole = decode(buffer.getvalue())
    found = decode(buffer.getvalue(), needed=needed(height // (n * left), width // (n * left)))
    assert found.size == whole.size == (height, width)
    assert found.pixels.shape == (-(-height // n), -(-width // n), 3)
    averaged = cv2.resize(whole.pixels, found.pixels.shape[1::-1], interpolation=cv2.INTER_AREA)
    assert np.abs(found.pixels.astype(int) - averaged).mean() < 2
    larger = decode(buffer.getvalue(), needed=needed(height // (n * left) + 1, 1))
    assert larger.pixels.shape[0] == -(-height // (n // 2))


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "WEBP"])
def test_only_jpegs_are_decoded_smaller_than_they_are(form: str) -> None:
    data = encoded(part(3), form)
    np.testing.assert_array_equal(decode(data, needed=needed(1, 1)).pixels, decode(data).pixels)


@pytest.mark.parametrize("kind", [*JPEGS, {"quality": 30}])
@pytest.mark.parametrize("damage", [halved, zeroed, shortened, lambda d: halved(d) + b"\xff\xd9", lambda d: d[:-2]])
@pytest.mark.parametrize("side", [24, 8, 4])
def test_a_damaged_jpeg_is_refused_in_the_same_words_at_any_size(kind: dict[str, Any], damage: Any, side: int) -> None:
    data = damage(jpeg(**kind))
    with pytest.raises(UndecodableImage) as at_full_size:
        decode(data)
    with pytest.raises(UndecodableImage) as smaller:
        decode(data, needed=needed(side, side))
    assert str(smaller.value) == str(at_full_size.value)


def test_a_jpeg_counts_as_large_by_what_decoding_it_takes() -> None:
    large = np.full((3500, 3500), 90, np.uint8)
    for progressive in (False, True):
        data = encoded(large, "JPEG", progressive=progressive)
        assert is_large(data) and is_large(data, needed(2000, 2000))
        assert is_large(data, needed(850, 850)) == progressive
    assert is_large(encoded(large), needed(850, 850))


def test_a_progressive_jpeg_that_lacks_its_last_scans_is_refused() -> None:
    data = jpeg(progressive=True)
    scans = [at for at in range(len(data) - 1) if data[at : at + 2] == b"\xff\xda"]
    assert len(scans) > 5
    for at in scans[1:]:
        tables = data.rfind(b"\xff\xc4", 0, at)
        with pytest.raises(UndecodableImage):
            decode(data[: tables if tables > 0 else at] + b"\xff\xd9")


@pytest.mark.parametrize("kind", [{}, {"lossless": True}])
def test_a_webp_with_bytes_left_over_after_its_last_pixel_is_refused(kind: dict[str, Any]) -> None:
    data = webp(**kind)
    (length,) = struct.unpack_from("<I", data, 16)
    for more in (8, 200):
        longer = data[: 20 + length] + bytes([165]) * more + b"\0" * (length % 2)
        sizes = data[:4] + struct.pack("<I", len(longer) - 8) + data[8:16] + struct.pack("<I", length + more)
        with pytest.raises(UndecodableImage, match="data_damaged"):
            decode(sizes + longer[20:])


@pytest.mark.parametrize("cut", [1, 2, 9, 100])
@pytest.mark.parametrize("kind", [{}, {"lossless": True}])
def test_a_webp_that_was_cut_off_is_refused_even_where_its_sizes_agree(kind: dict[str, Any], cut: int) -> None:
    data = webp(**kind)
    (length,) = struct.unpack_from("<I", data, 16)
    own = data[20 : 20 + length]
    with pytest.raises(UndecodableImage):
        decode(data[:-cut])
    if cut > 8:
        shorter = own[:-cut] + b"\0" * ((length - cut) % 2)
        sizes = struct.pack("<I", 12 + len(shorter)) + data[8:16] + struct.pack("<I", length - cut)
        with pytest.raises(UndecodableImage):
            decode(data[:4] + sizes + shorter)


@pytest.mark.parametrize("kind", [{}, {"quality": 95}, {"quality": 20, "method": 6}, {"lossless": True}])
def test_a_webp_that_was_changed_inside_is_refused_and_a_flat_one_is_not(kind: dict[str, Any]) -> None:
    data, noise = webp(**kind), np.random.default_rng(0).integers(0, 256, 1 << 14, np.uint8).tobytes()
    for at in (len(data) // 3, len(data) // 2):
        for changed in (data[:at] + noise[: len(data) - at], data[:at] + bytes(len(data) - at)):
            with pytest.raises(UndecodableImage):
                decode(changed[: len(data)])
    for flat in (np.zeros((300, 400, 3), np.uint8), np.full((300, 400, 3), 255, np.uint8)):
        np.testing.assert_array_equal(decode(encoded(flat, "WEBP", **kind)).pixels, flat)


BUSY = cv2.resize(np.random.default_rng(2).integers(40, 200, (40, 50, 3)).astype(np.uint8), (400, 320))
FLAT = np.full((600, 800, 3), 90, np.uint8)
CODED_JPEGS: list[dict[str, Any]] = [
    {},
    {"quality": 95, "subsampling": 0},
    {"optimize": True},
    {"quality": 97, "progressive": True},
    {"restart_marker_blocks": 7},
]


@pytest.mark.parametrize("kind", CODED_JPEGS)
def test_a_jpeg_with_a_zeroed_sector_is_refused_wherever_it_lies(kind: dict[str, Any]) -> None:
    """Zeros are codes too, and now and then libjpeg finds as many blocks in them as were lost."""
    data = encoded(BUSY, "JPEG", **kind)
    decode(data)
    first = data.index(b"\xff\xda") + 20
    for at in range(first, len(data) - 600, max(1, len(data) // 60)):
        with pytest.raises(UndecodableImage):
            decode(data[:at] + bytes(512) + data[at + 512 :])


@pytest.mark.parametrize("kind", CODED_JPEGS)
def test_a_flat_jpeg_is_whole_though_its_codes_are_zeros(kind: dict[str, Any]) -> None:
    assert np.abs(decode(encoded(FLAT, "JPEG", **kind)).pixels.astype(int) - 90).max() <= 1


def png_of(*chunks: tuple[bytes, bytes]) -> bytes:
    whole = (struct.pack(">I", len(b)) + k + b + struct.pack(">I", zlib.crc32(k + b)) for k, b in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(whole)


def png_chunks(data: bytes) -> dict[bytes, bytes]:
    found, at = {}, 8
    while at < len(data):
        (length,) = struct.unpack_from(">I", data, at)
        found[data[at + 4 : at + 8]] = data[at + 8 : at + 8 + length]
        at += 12 + length
    return found


def with_bytes(data: bytes, at: int, form: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, at, *values)
    return bytes(changed)


def saying(tags: dict[int, tuple[int, Sequence[int]]]) -> Page:
    return replace(page(8, 2), tags=tags)


SAVED = {form: encoded(BUSY, form) for form in ("PNG", "JPEG", "BMP", "TIFF", "WEBP")}
CHUNKS = png_chunks(encoded(part(3), "PNG"))
HEAD, BODY = (b"IHDR", CHUNKS[b"IHDR"]), zlib.decompress(CHUNKS[b"IDAT"])
END, PACKED = (b"IEND", b""), zlib.compress(BODY)
SOF = SAVED["JPEG"].index(b"\xff\xc0")
# What a disk, a transfer or another program makes of a file: its name, the file, and what is said of it.
NOT_WHOLE: dict[str, tuple[bytes, str]] = {
    "JPEG, its height comes after the scan": (with_bytes(SAVED["JPEG"], SOF + 5, ">H", 0), "jpeg_without_height"),
    "JPEG, its header is twice as high": (with_bytes(SAVED["JPEG"], SOF + 5, ">H", 640), "damaged"),
    "JPEG, its header is half as high": (with_bytes(SAVED["JPEG"], SOF + 5, ">H", 160), "damaged"),
    "JPEG, sent as text": (SAVED["JPEG"].decode("utf-8", "replace").encode(), "format_not_read"),
    "JPEG, its line ends were changed": (SAVED["JPEG"].replace(b"\n", b"\r\n"), "damaged"),
    "PNG, no last chunk": (png_of(HEAD, (b"IDAT", PACKED)), "cut_off"),
    "PNG, half the pixels": (png_of(HEAD, (b"IDAT", zlib.compress(BODY[: len(BODY) // 2])), END), "pixels_missing"),
    "PNG, one byte too few": (png_of(HEAD, (b"IDAT", zlib.compress(BODY[:-1])), END), "pixels_missing"),
    "PNG, no checksum of the pixels": (png_of(HEAD, (b"IDAT", PACKED[:-4]), END), "pixels_damaged"),
    "PNG, another checksum of the pixels": (png_of(HEAD, (b"IDAT", PACKED[:-4] + bytes(4)), END), "pixels_damaged"),
    "PNG, a lost chunk of pixels": (png_of(HEAD, (b"IDAT", PACKED[:500]), (b"IDAT", PACKED[900:]), END), "pixels"),
    "PNG, no pixels": (png_of(HEAD, END), "pixels_missing"),
    "PNG, a chunk that must be understood": (png_of(HEAD, (b"ABCD", b""), (b"IDAT", PACKED), END), "chunk_not_read"),
    "PNG, its line ends were changed": (SAVED["PNG"].replace(b"\r\n", b"\n"), "format_not_read"),
    "PNG, a comment whose checksum is wrong": (
        png_of(HEAD, (b"tEXt", b"a\0b"), (b"IDAT", PACKED), END).replace(b"a\0b", b"a\0c"),
        "checksum_wrong",
    ),
    **{
        f"PNG, an unknown {what}": (
            png_of((b"IHDR", with_bytes(HEAD[1], at, "B", 2)), (b"IDAT", PACKED), END),
            "header_not_valid",
        )
        for what, at in (("compression", 10), ("filtering", 11), ("interlacing", 12))
    },
    "BMP, one byte too few": (SAVED["BMP"][:-1], "damaged"),
    "BMP, its header is twice as high": (with_bytes(SAVED["BMP"], 22, "<i", 640), "damaged"),
    "BMP, its header is half as high": (with_bytes(SAVED["BMP"], 22, "<i", 160), "header_not_valid"),
    "BMP, its header is narrower": (with_bytes(SAVED["BMP"], 18, "<i", 300), "header_not_valid"),
    "BMP, its pixels begin beyond the end": (with_bytes(SAVED["BMP"], 10, "<I", 1 << 20), "damaged"),
    "TIFF, its header is narrower": (write_tiff([saying({256: (3, [WIDTH - 9])})]), "header_not_valid"),
    "TIFF, its header is twice as high": (write_tiff([saying({257: (3, [2 * HEIGHT])})]), "cut_off"),
    "WebP, half of it": (SAVED["WEBP"][: len(SAVED["WEBP"]) // 2], "cut_off"),
    "a pointer to a file": (b"version https://git-lfs.github.com/spec/v1\noid sha256:aa\nsize 12\n", "format_not_read"),
    "an error page": (b"<html>404</html>", "format_not_read"),
    "zeros": (bytes(5000), "format_not_read"),
    "GIF": (encoded(BUSY, "GIF"), "format_not_read"),
}


@pytest.mark.parametrize("kind", sorted(NOT_WHOLE))
def test_a_file_that_is_not_whole_is_refused_with_the_reason(kind: str) -> None:
    data, reason = NOT_WHOLE[kind]
    with pytest.raises(UndecodableImage, match=reason):
        decode(data)


@pytest.mark.parametrize("form", sorted(SAVED))
@pytest.mark.parametrize("behind", [bytes(100), b"trailing text " * 50, b"\xff\xd9\xff\xd8"])
def test_what_another_program_left_behind_a_file_does_not_count(form: str, behind: bytes) -> None:
    np.testing.assert_array_equal(decode(SAVED[form] + behind).pixels, decode(SAVED[form]).pixels)

"""Image files in and out, and their sizes: helpers that know nothing of models.

Compressing is most of what a PNG costs. Intel's ISA-L does it several times as fast as zlib; it is used where its
package `isal` is installed.
"""

from __future__ import annotations

import base64
import io
import math
import struct
import zlib
from collections.abc import Iterator
from functools import reduce
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

from backend.base.errors import (
    EmptyFile,
    ImageTooLarge,
    ImageTooSmall,
    UndecodableImage,
)

Pixels = NDArray[np.uint8]

deflate: Any = import_module("isal.isal_zlib") if find_spec("isal") else zlib

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "BMP": ".bmp", "TIFF": ".tif", "WEBP": ".webp"}
_PNG = b"\x89PNG\r\n\x1a\n"
_COLOURS = {0, 2, 6}  # of a PNG's samples: grey, RGB, RGBA
_UNSURE = {b"acTL", b"CgBI"}  # animations, and what iPhones write under the name of PNG
MIN_SIDE = 28
WORKING_PIXELS = 12_000_000

# What Pillow's decoders raise on files that are cut off, corrupt or hostile.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError,
    NotImplementedError, RuntimeError, AttributeError,
)  # fmt: skip


def decode_image(data: bytes, *, name: str = "image", max_megapixels: float = 100) -> Pixels:
    """Decode a PNG, JPEG, BMP, TIFF or WebP by its content.

    Grey and palette images become three channels, alpha is dropped, 16-bit samples keep their high byte, and EXIF
    rotation is ignored: the ROI is canonical as it was sent. The size is read from the header and refused before a
    pixel is decoded.

    Returns:
        (H, W, 3) uint8, BGR, C-contiguous.

    Raises:
        EmptyFile, UndecodableImage, ImageTooSmall, ImageTooLarge: with `name` in their text.
    """
    if not data:
        raise EmptyFile(name=name)
    try:
        image = _open(data)
        _check_size(image, name, max_megapixels)
        whole = decode_whole(data)
        if whole is not None:
            return whole
        image.load()
        return _to_bgr(image)
    except Image.DecompressionBombError as err:  # Pillow's own limit, inside its WebP reader
        raise ImageTooLarge(name=name, width="?", height="?", limit=f"{max_megapixels:g}") from err
    except _DECODER_ERRORS as err:
        raise UndecodableImage(name=name) from err


def decode_whole(data: bytes) -> Pixels | None:
    """(H, W, 3) uint8 BGR of a PNG or JPEG file that is plainly whole; None where a more careful reader must decide.

    Grey becomes three channels, alpha is dropped and EXIF rotation ignored.
    """
    if not (_is_plain_png(data) or (data.startswith(b"\xff\xd8\xff") and data.endswith(b"\xff\xd9"))):
        return None
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags)  # type: ignore[return-value]


def _is_plain_png(data: bytes) -> bool:
    """Whether a PNG has all its chunks, each with the right checksum, 8 bits a sample and no palette or interlacing.

    OpenCV alone would take a file that is cut off or corrupt.
    """
    if not data.startswith(_PNG):
        return False
    header, kind = b"", b""
    for kind, body in _chunks(data):
        if kind in _UNSURE:
            return False
        header = body if kind == b"IHDR" else header
    if kind != b"IEND" or len(header) != 13:
        return False
    depth, colour, *_, interlaced = header[8:]
    return depth == 8 and colour in _COLOURS and not interlaced


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of each chunk of a PNG whose length and checksum are right; stops at the first that is wrong."""
    at, view = len(_PNG), memoryview(data)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if end + 4 > len(data) or deflate.crc32(view[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            return
        yield data[at + 4 : at + 8], data[at + 8 : end]
        at = end + 4


def is_large(data: bytes) -> bool:
    """Whether a file's header speaks of more than 12 megapixels; false for what is no image."""
    try:
        width, height = _open(data).size
    except Image.DecompressionBombError:  # Pillow's own limit, inside its WebP reader
        return True
    except _DECODER_ERRORS:
        return False
    return width * height > WORKING_PIXELS


def _open(data: bytes) -> ImageFile.ImageFile:
    """The file with its header read. Unlike Image.open it leaves the limit of the size to the caller."""
    Image.init()
    for name in FORMATS:
        factory, accepts = Image.OPEN[name]
        if accepts is not None and accepts(data[:16]) is True:
            return factory(io.BytesIO(data), "")
    raise ValueError("no format that is read here")


def image_header(data: bytes, *, name: str = "image") -> tuple[str, int, int]:
    """What the header of an image file says: the suffix of its format (`.png`, `.jpg`, …), width and height in px.

    Raises:
        EmptyFile, UndecodableImage: with `name` in their text.
    """
    if not data:
        raise EmptyFile(name=name)
    try:
        image = _open(data)
        return SUFFIXES.get(str(image.format), ".jpg"), *image.size
    except (Image.DecompressionBombError, *_DECODER_ERRORS) as err:
        raise UndecodableImage(name=name) from err


def _check_size(image: ImageFile.ImageFile, name: str, max_megapixels: float) -> None:
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise ImageTooSmall(name=name, width=width, height=height, limit=MIN_SIDE)
    if width * height > max_megapixels * 1e6:
        raise ImageTooLarge(name=name, width=width, height=height, limit=f"{max_megapixels:g}")


def _to_bgr(image: Image.Image) -> Pixels:
    if image.mode == "F":
        raise ValueError("floating point samples have no agreed range")
    if image.mode.startswith("I"):
        grey = (np.clip(np.asarray(image).astype(np.int64), 0, 65535) >> 8).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    image.info.pop("transparency", None)
    return np.ascontiguousarray(np.asarray(image.convert("RGB"))[:, :, ::-1])


def encode_png(image: NDArray[Any], *, level: int = 1) -> bytes:
    """PNG bytes of a (H, W) grey or (H, W, 3) BGR uint8 image; `level` 0–9 trades time for size."""
    ok, png = cv2.imencode(".png", image, [cv2.IMWRITE_PNG_COMPRESSION, level])
    if not ok:
        raise ValueError(f"cannot encode an array of shape {image.shape} and dtype {image.dtype} as PNG")
    return png.tobytes()


def _chunk(kind: bytes, *body: bytes | memoryview) -> Iterator[bytes | memoryview]:
    """The pieces of a PNG's chunk."""
    yield struct.pack(">I", sum(map(len, body)))
    yield kind
    yield from body
    yield struct.pack(">I", reduce(lambda crc, piece: deflate.crc32(piece, crc), body, deflate.crc32(kind)))


def encode_grey(image: Pixels) -> bytes:
    """PNG bytes of a (H, W) uint8 image, each row as differences of neighbours: what suits a smooth one."""
    height, width = image.shape
    rows = np.empty((height, width + 1), np.uint8)
    rows[:, 0] = 1  # PNG's filter "Sub"
    rows[:, 1] = image[:, 0]
    np.subtract(image[:, 1:], image[:, :-1], out=rows[:, 2:])
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = deflate.compress(rows, 1)
    return b"".join((_PNG, *_chunk(b"IHDR", header), *_chunk(b"IDAT", body), *_chunk(b"IEND")))


def encode_jpeg(image: Pixels, *, quality: int = 85) -> bytes:
    """JPEG bytes of a (H, W, 3) BGR uint8 image."""
    ok, jpeg = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not ok:
        raise ValueError(f"cannot encode an array of shape {image.shape} and dtype {image.dtype} as JPEG")
    return jpeg.tobytes()


def to_base64(data: bytes) -> str:
    """Base64 text of `data`."""
    return base64.b64encode(data).decode("ascii")


def resize(image: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """`image` at (height, width): area average when it shrinks, bilinear when it grows; dtype and channels stay.

    What a cubic kernel sharpens in an image that grows is its noise, and anomaly maps show it.
    """
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized: NDArray[Any] = cv2.resize(image, (width, height), interpolation=method)
    return resized


def working_scale(height: int, width: int) -> float:
    """Factor (≤ 1) that brings an image over 12 megapixels down to 12."""
    return min(1.0, math.sqrt(WORKING_PIXELS / (height * width)))

"""Image files: which files are images, decoding, encoding, and their sizes.

Compressing is most of what a PNG costs. Intel's ISA-L does it several times as fast as zlib; it is used where its
package `isal` is installed.
"""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.base.decoding import ImageOptions, Needed, decode, deflate, read_header
from backend.base.errors import BadImage

Pixels = NDArray[np.uint8]

ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
_PNG = b"\x89PNG\r\n\x1a\n"
# What an anomaly map is made at, at most: a map of 64 × 64 tokens has 256 pixels to each there.
WORKING_PIXELS = 1 << 20
LARGE_PIXELS = 12_000_000


# Folders that an operating system or a file server keeps beside a person's own; hidden ones are known by their dot.
_SYSTEM_FOLDERS = frozenset(
    {"#recycle", "#snapshot", "__macosx", "__pycache__", "lost+found", "network trash folder", "temporary items",
     "system volume information"}
)  # fmt: skip


def is_image_name(name: str) -> bool:
    """Whether a file of this name is listed as an image: it has one of ENDINGS in any case, and it is not hidden.

    A name that begins with a dot is hidden; the `._part.png` that macOS leaves beside `part.png` is one of these.
    """
    return not name.startswith(".") and Path(name).suffix.lower() in ENDINGS


def list_images(folder: Path) -> list[Path]:
    """The image files right in `folder`, sorted by name; none where there is no such folder.

    Names alone decide (`is_image_name`), so that a file which cannot be decoded is named by whoever reads it. A folder
    is passed over, whatever its name ends in.
    """
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if is_image_name(path.name) and not path.is_dir())


def list_folders(folder: Path) -> list[Path]:
    """The folders right in `folder` that a person made, sorted by name; none where there is no such folder.

    Passed over are hidden ones (`.ipynb_checkpoints`), those of a file server or of Windows (`@eaDir`, `#recycle`,
    `$RECYCLE.BIN`) and others of the kind.
    """
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.is_dir() and _is_own(path.name))


def _is_own(name: str) -> bool:
    return not name.startswith((".", "@", "$")) and name.casefold() not in _SYSTEM_FOLDERS


def decode_image(data: bytes, *, name: str = "image", max_megapixels: float = 100) -> Pixels:
    """The pixels alone of what `decode` gives: (H, W, 3) uint8, BGR. Raises what `decode` does."""
    return decode(data, name=name, options=ImageOptions(max_megapixels=max_megapixels)).pixels


def is_large(data: bytes, needed: Needed | None = None) -> bool:
    """Whether decoding a file takes the memory of more than 12 megapixels, by its header; false for what is no image.

    `needed`: see decode.
    """
    try:
        header = read_header(data)
    except BadImage:
        return False
    held = header if header.buffered else header.shrunk(header.shrinkage(needed))
    return held.width * held.height > LARGE_PIXELS


def image_header(data: bytes, *, name: str = "image") -> tuple[str, int, int]:
    """The suffix of an image file's format, its width and height in px. Raises what `read_header` does."""
    header = read_header(data, name=name)
    return header.suffix, header.width, header.height


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
    """PNG bytes of a (H, W) uint8 image. Rows are stored as differences of neighbours, which suits smooth images."""
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

    A cubic kernel would sharpen the noise of an image that grows, and anomaly maps would show it.
    """
    if image.shape[:2] == (height, width):
        return image
    shrinks = height * width < image.shape[0] * image.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    resized: NDArray[Any] = cv2.resize(image, (width, height), interpolation=method)
    return resized


def resize_means(means: Pixels, size: tuple[int, int], height: int, width: int) -> Pixels:
    """An image of `size` at (height, width), at most half of that, as `resize` would shrink all of its pixels.

    Where the area that is averaged ends inside of n × n pixels, a share f of their mean stands for the nearer ones. In
    a slope s per n pixels that is wrong by s·f(1 − f)/2, or s/12 for f at random. The slopes at both ends differ by
    the second differences in between, so a twelfth of these, taken off each mean, sets it right on the average. Single
    pixels have the same error, 1/n² as large, and it is left in.

    Args:
        means: (h, w, 3) uint8 of n × n pixels each, the last of a side possibly of fewer.
        size: height and width in px.
    """
    n = round(size[0] / means.shape[0])
    beside, own = mean_correction(n)
    kernel = np.array([beside, own, beside], np.float32)
    corrected = cv2.sepFilter2D(means, -1, kernel, kernel, borderType=cv2.BORDER_REPLICATE)
    # OpenCV takes these factors as they are and rounds the size: what is left over at the edges is not stretched.
    factors = {"fx": n * width / size[1], "fy": n * height / size[0]}
    return np.asarray(cv2.resize(corrected, None, **factors, interpolation=cv2.INTER_AREA), np.uint8)


def mean_correction(n: int) -> tuple[float, float]:
    """What `resize_means` takes of the means beside one of n × n pixels, and of that itself, along a line; float32."""
    part = (1 - n**-2) / 12
    return float(np.float32(-part)), float(np.float32(1 + 2 * part))


def working_scale(height: int, width: int) -> float:
    """Factor (≤ 1) that brings a map of more than WORKING_PIXELS down to as many."""
    return min(1.0, math.sqrt(WORKING_PIXELS / (height * width)))

"""Images in and out: which files are images, decoding, encoding, resizing."""

from __future__ import annotations

import base64
import io
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from threadpoolctl import threadpool_limits

from backend.base.codecs import decode_whole
from backend.base.errors import EmptyFile, ImageTooLarge, ImageTooSmall, UndecodableImage

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
SUFFIXES = {"PNG": ".png", "JPEG": ".jpg", "BMP": ".bmp", "TIFF": ".tif", "WEBP": ".webp"}
ENDINGS = frozenset({".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp"})
MIN_SIDE = 28
WORKING_PIXELS = 12_000_000

# What Pillow's decoders raise on files that are cut off, corrupt or hostile.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, MemoryError,
    NotImplementedError, RuntimeError, AttributeError,
)  # fmt: skip


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


def decode_image(data: bytes, *, name: str = "image", max_megapixels: float = 100) -> NDArray[np.uint8]:
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


def _to_bgr(image: Image.Image) -> NDArray[np.uint8]:
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


def encode_jpeg(image: NDArray[np.uint8], *, quality: int = 85) -> bytes:
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


def few_threads_each() -> None:
    """Have a request's OpenCV and BLAS work on few cores: requests run side by side, most cores are the extractor's.

    BLAS keeps to the calling thread, since its others wait busily for their next product, which costs a forward pass
    beside them half of its pace. OpenCV's sleep; where cores abound, a quarter of them shortens what one request takes.
    """
    cv2.setNumThreads(max(1, available_cores() // 4))
    threadpool_limits(limits=1, user_api="blas")


def blocks(stop: int, size: int, start: int = 0) -> Iterator[slice]:
    """Slices of at most `size` that cover start … stop."""
    return (slice(at, min(at + size, stop)) for at in range(start, stop, size))


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1

"""Images in and out, percentiles, millimetres: helpers that know nothing of models."""

from __future__ import annotations

import base64
import math
import os
from collections.abc import Iterator
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from backend.base.decoding import decode, read_header
from backend.base.errors import BadImage

WORKING_PIXELS = 12_000_000


def decode_image(data: bytes, *, name: str = "image", max_megapixels: float = 100) -> NDArray[np.uint8]:
    """The pixels alone of what `decode` gives: (H, W, 3) uint8, BGR. Raises what `decode` does."""
    return decode(data, name=name, max_megapixels=max_megapixels).pixels


def is_large(data: bytes) -> bool:
    """Whether a file's header speaks of more than 12 megapixels; false for what is no image."""
    try:
        header = read_header(data)
    except BadImage:
        return False
    return header.width * header.height > WORKING_PIXELS


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

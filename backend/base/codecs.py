"""Pixels out of whole PNG and JPEG files, and PNG files out of pixels, faster than by the common way and the same.

Compressing is most of what a PNG costs. Intel's ISA-L does it several times as fast as zlib; it is used where its
package `isal` is installed.
"""

from __future__ import annotations

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

Pixels = NDArray[np.uint8]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 6: 4}
_UNSURE = {b"acTL", b"CgBI"}
_SUB = 1

deflate: Any = import_module("isal.isal_zlib") if find_spec("isal") else zlib


def decode_whole(data: bytes) -> Pixels | None:
    """(H, W, 3) uint8 BGR of a PNG or JPEG file that is plainly whole; None where a more careful reader must decide.

    Grey becomes three channels, alpha is dropped and EXIF rotation ignored.
    """
    if data.startswith(_SIGNATURE):
        data = _stored(data)
    elif not (data.startswith(b"\xff\xd8\xff") and data.endswith(b"\xff\xd9")):
        return None
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    return cv2.imdecode(np.frombuffer(data, np.uint8), flags) if data else None  # type: ignore[return-value]


def _stored(data: bytes) -> bytes:
    """The same PNG with its pixels inflated and stored as they are; empty unless it is whole, 8 bits and plain.

    OpenCV then copies what ISA-L inflates in half of zlib's time; and a file that is cut off or corrupt is found out,
    since lengths and checksums must all be right.
    """
    parts = dict.fromkeys((b"IHDR", b"IDAT", b"IEND"), b"")
    idat = []
    for kind, body in _chunks(data):
        if kind in _UNSURE or parts[b"IEND"]:
            return b""
        idat.append(body) if kind == b"IDAT" else parts.update({kind: body or b"."})
    if not parts[b"IEND"] or len(parts[b"IHDR"]) != 13:
        return b""
    width, height, depth, colour, *_, interlaced = struct.unpack(">IIBBBBB", parts[b"IHDR"])
    size = height * (width * _CHANNELS.get(colour, 0) + 1)
    raw = _inflated(b"".join(idat), size) if depth == 8 and colour in _CHANNELS and not interlaced else b""
    if len(raw) != size:
        return b""
    return b"".join(
        (_SIGNATURE, *_chunk(b"IHDR", parts[b"IHDR"]), *_chunk(b"IDAT", *_uncompressed(raw)), *_chunk(b"IEND"))
    )


def _chunks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Kind and body of each chunk whose length and checksum are right; stops at the first that is wrong."""
    at, view = len(_SIGNATURE), memoryview(data)
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if end + 4 > len(data) or deflate.crc32(view[at + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            return
        yield data[at + 4 : at + 8], data[at + 8 : end]
        at = end + 4


def _inflated(data: bytes, size: int) -> bytes:
    """The `size` bytes or fewer that a zlib stream holds if it is whole; else nothing."""
    try:
        raw: bytes = deflate.decompress(data, bufsize=size + 1)
    except (zlib.error, deflate.error):
        return b""
    return raw


def _uncompressed(raw: bytes) -> Iterator[bytes | memoryview]:
    """The pieces of a zlib stream of stored blocks (RFC 1950 and 1951)."""
    yield b"\x78\x01"
    view = memoryview(raw)
    for at in range(0, len(raw), 65535):
        block = view[at : at + 65535]
        yield struct.pack("<BHH", at + 65535 >= len(raw), len(block), len(block) ^ 0xFFFF)
        yield block
    yield struct.pack(">I", deflate.adler32(raw))


def _chunk(kind: bytes, *body: bytes | memoryview) -> Iterator[bytes | memoryview]:
    """The pieces of a chunk."""
    yield struct.pack(">I", sum(map(len, body)))
    yield kind
    yield from body
    yield struct.pack(">I", reduce(lambda crc, piece: deflate.crc32(piece, crc), body, deflate.crc32(kind)))


def encode_grey(image: Pixels) -> bytes:
    """PNG bytes of a (H, W) uint8 image, each row as differences of neighbours: what suits a smooth one."""
    height, width = image.shape
    rows = np.empty((height, width + 1), np.uint8)
    rows[:, 0] = _SUB
    rows[:, 1] = image[:, 0]
    np.subtract(image[:, 1:], image[:, :-1], out=rows[:, 2:])
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    body = deflate.compress(rows, 1)
    return b"".join((_SIGNATURE, *_chunk(b"IHDR", header), *_chunk(b"IDAT", body), *_chunk(b"IEND")))

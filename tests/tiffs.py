"""TIFF files written tag by tag (TIFF 6.0), so that a reader can be held against what was written."""

import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import imagecodecs
import numpy as np
from numpy.typing import NDArray

COMPRESSIONS = {"none": 1, "lzw": 5, "deflate": 8, "packbits": 32773}


@dataclass(frozen=True, kw_only=True)
class Page:
    """One frame: `values` (H, W) or (H, W, C) integers ≥ 0 below 2 ** bits, as they are to stand in the file."""

    values: NDArray[Any]
    bits: int = 8
    photometric: int = 1
    planar: int = 1
    compression: str = "none"
    rows_per_strip: int | None = None
    tags: dict[int, tuple[int, Sequence[int]]] = field(default_factory=dict)


def write_tiff(pages: Sequence[Page], order: str = "<") -> bytes:
    """The bytes of a TIFF of these pages, little (`<`) or big (`>`) endian."""
    out = bytearray(b"II*\0" if order == "<" else b"MM\0*") + b"\0\0\0\0"
    link = 4
    for page in pages:
        starts, counts = [], []
        for strip in _strips(page, order):
            starts.append(len(out))
            counts.append(len(strip))
            out += strip + b"\0" * (len(strip) % 2)
        directory = _directory(page, starts, counts)
        out[link : link + 4] = struct.pack(order + "I", len(out))
        link = _append(out, directory, order)
    return bytes(out)


def _strips(page: Page, order: str) -> list[bytes]:
    values = page.values if page.values.ndim == 3 else page.values[:, :, None]
    planes = [values] if page.planar == 1 else [values[:, :, [c]] for c in range(values.shape[2])]
    step = page.rows_per_strip or len(values)
    return [
        _compressed(_packed(plane[at : at + step], page.bits, order), page.compression)
        for plane in planes
        for at in range(0, len(plane), step)
    ]


def _packed(rows: NDArray[Any], bits: int, order: str) -> bytes:
    flat = rows.reshape(len(rows), -1)
    if bits in {8, 16, 32}:
        return flat.astype(f"{order}u{bits // 8}").tobytes()
    spread = (flat[:, :, None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(spread.reshape(len(rows), -1).astype(np.uint8), axis=1).tobytes()


def _compressed(data: bytes, how: str) -> bytes:
    if how == "deflate":
        return zlib.compress(data)
    if how == "none":
        return data
    return bytes({"lzw": imagecodecs.lzw_encode, "packbits": imagecodecs.packbits_encode}[how](data))


def _directory(page: Page, starts: list[int], counts: list[int]) -> dict[int, tuple[int, Sequence[int]]]:
    height, width = page.values.shape[:2]
    channels = 1 if page.values.ndim == 2 else page.values.shape[2]
    own: dict[int, tuple[int, Sequence[int]]] = {
        256: (4, [width]),
        257: (4, [height]),
        258: (3, [page.bits] * channels),
        259: (3, [COMPRESSIONS[page.compression]]),
        262: (3, [page.photometric]),
        273: (4, starts),
        277: (3, [channels]),
        278: (4, [page.rows_per_strip or height]),
        279: (4, counts),
        284: (3, [page.planar]),
    }
    return dict(sorted({**own, **page.tags}.items()))


def _append(out: bytearray, directory: dict[int, tuple[int, Sequence[int]]], order: str) -> int:
    """Write a directory, then the values that do not fit in it; where the link to the next directory stands."""
    at = len(out)
    after = at + 2 + 12 * len(directory) + 4
    entries, rest = struct.pack(order + "H", len(directory)), b""
    for tag, (kind, values) in directory.items():
        body = struct.pack(order + {3: "H", 4: "I"}[kind] * len(values), *values)
        if len(body) > 4:
            where = after + len(rest)
            rest += body + b"\0" * (len(body) % 2)
            body = struct.pack(order + "I", where)
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + body.ljust(4, b"\0")
    out += entries + b"\0\0\0\0" + rest
    return after - 4

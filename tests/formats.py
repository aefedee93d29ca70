"""The formats that images are sent in, each as a file of any size, and what decoding one takes of memory and time.

`python -m tests.formats WIDTH HEIGHT NAME…` prints a line of JSON for each. Memory is the high-water mark of what the
process holds, as Linux counts it, so that what C libraries allocate counts too.
"""

from __future__ import annotations

import ctypes
import gc
import io
import json
import os
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import process_time
from typing import Any

import cv2
import imagecodecs
import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from backend.base.decoding import decode
from tests.tiffs import Page, write_tiff

Array = NDArray[Any]
ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Form:
    """A kind of file: bytes that a pixel takes in it once decoded, and how to write one from (H, W, 3) RGB uint8."""

    pixel: int
    write: Callable[[Array], bytes]


@dataclass(frozen=True)
class Taken:
    """What decoding a file took: bytes beyond those of the file itself, the result included, and processor seconds.

    `pixels`: bytes of the pixels as the file has them or as they are returned, whichever are more.
    """

    name: str
    pixels: int
    file: int
    peak: int
    seconds: float


def scene(height: int, width: int) -> Array:
    """(H, W, 3) RGB uint8: soft shapes of all colours with a camera's noise."""
    rng = np.random.default_rng(0)
    coarse: Array = cv2.resize(rng.integers(30, 226, (12, 16, 3)).astype(np.float32), (width, height))
    noise = rng.normal(0, 2.5, (512, 512, 3)).astype(np.float32)
    for top in range(0, height, 512):
        for left in range(0, width, 512):
            tile = coarse[top : top + 512, left : left + 512]
            tile += noise[: tile.shape[0], : tile.shape[1]]
    return np.clip(coarse, 0, 255).astype(np.uint8)


def grey(image: Array) -> Array:
    return image[:, :, 1].copy()


def deep(image: Array) -> Array:
    """The values as 16 bits, of which all are used."""
    wide = image.astype(np.uint16) << 8
    wide |= image[::-1]
    return wide


def with_alpha(image: Array) -> Array:
    return np.dstack([image, image[:, :, 0] | 128])


def pillow(form: str, mode: str = "RGB", **options: Any) -> Callable[[Array], bytes]:
    def write(image: Array) -> bytes:
        file = io.BytesIO()
        source = Image.fromarray(with_alpha(image) if mode.endswith("A") else image)
        (source.quantize(64, 2) if mode == "P" else source.convert(mode)).save(file, form, **options)
        return file.getvalue()

    return write


def libpng(make: Callable[[Array], Array], interlaced: bool = False) -> Callable[[Array], bytes]:
    def write(image: Array) -> bytes:
        return interlaced_png(make(image)) if interlaced else bytes(imagecodecs.png_encode(make(image), level=1))

    return write


def interlaced_png(values: Array) -> bytes:
    """A PNG in Adam7's seven passes (PNG specification, section 8.2), its rows unfiltered."""
    height, width = values.shape[:2]
    channels = 1 if values.ndim == 2 else values.shape[2]
    packer, crc = zlib.compressobj(1), zlib.crc32
    body = b""
    for x, y, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        own = values[y::dy, x::dx]
        if own.size:
            rows = own.astype(f">u{values.itemsize}").reshape(len(own), -1).view(np.uint8)
            body += packer.compress(np.pad(rows, ((0, 0), (1, 0))).tobytes())
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 8 * values.itemsize, colour, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", body + packer.flush()), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(own)) + kind + own + struct.pack(">I", crc(kind + own)) for kind, own in chunks
    )


def tiff(make: Callable[[Array], Array], **kind: Any) -> Callable[[Array], bytes]:
    def write(image: Array) -> bytes:
        values, file = make(image), io.BytesIO()
        options = {"photometric": "rgb" if values.ndim == 3 else "minisblack", "rowsperstrip": 64, **kind}
        if options.get("planarconfig") == "separate":
            values = np.moveaxis(values, 2, 0)
        if "tile" in options:
            del options["rowsperstrip"]
        tifffile.imwrite(file, values, **options)
        return file.getvalue()

    return write


def colour(image: Array) -> Array:
    return image


def cmyk(image: Array) -> Array:
    return np.dstack([255 - image, image[:, :, 0] >> 2])


def twelve_bits(image: Array) -> bytes:
    return write_tiff([Page(values=deep(grey(image)) >> 4, bits=12, rows_per_strip=64)])


FORMS: dict[str, Form] = {
    "PNG grey": Form(1, pillow("PNG", "L", compress_level=1)),
    "PNG grey alpha": Form(2, pillow("PNG", "LA", compress_level=1)),
    "PNG RGB": Form(3, pillow("PNG", compress_level=1)),
    "PNG RGBA": Form(4, pillow("PNG", "RGBA", compress_level=1)),
    "PNG palette": Form(1, pillow("PNG", "P", compress_level=1)),
    "PNG 1 bit": Form(1, pillow("PNG", "1", compress_level=1)),
    "PNG grey 16": Form(2, libpng(lambda image: deep(grey(image)))),
    "PNG grey alpha 16": Form(4, libpng(lambda image: deep(with_alpha(image)[:, :, 2:]))),
    "PNG RGB 16": Form(6, libpng(deep)),
    "PNG RGBA 16": Form(8, libpng(lambda image: deep(with_alpha(image)))),
    "PNG grey interlaced": Form(1, libpng(grey, True)),
    "PNG RGB interlaced": Form(3, libpng(colour, True)),
    "PNG RGBA interlaced": Form(4, libpng(with_alpha, True)),
    "PNG RGB 16 interlaced": Form(6, libpng(deep, True)),
    "JPEG": Form(3, pillow("JPEG", quality=90)),
    "JPEG 4:4:4": Form(3, pillow("JPEG", quality=95, subsampling=0)),
    "JPEG grey": Form(1, pillow("JPEG", "L", quality=90)),
    "JPEG progressive": Form(3, pillow("JPEG", quality=90, progressive=True)),
    "JPEG progressive 4:4:4": Form(3, pillow("JPEG", quality=95, progressive=True, subsampling=0)),
    "JPEG progressive grey": Form(1, pillow("JPEG", "L", quality=90, progressive=True)),
    "JPEG CMYK": Form(4, pillow("JPEG", "CMYK", quality=90)),
    "JPEG CMYK progressive": Form(4, pillow("JPEG", "CMYK", quality=90, progressive=True)),
    "WebP": Form(3, pillow("WEBP", quality=90, method=0)),
    "WebP alpha": Form(4, pillow("WEBP", "RGBA", quality=90, method=0)),
    "WebP lossless": Form(4, pillow("WEBP", lossless=True, quality=0, method=0)),
    "WebP lossless alpha": Form(4, pillow("WEBP", "RGBA", lossless=True, quality=0, method=0)),
    "BMP grey": Form(1, pillow("BMP", "L")),
    "BMP RGB": Form(3, pillow("BMP")),
    "BMP RGBA": Form(4, pillow("BMP", "RGBA")),
    "TIFF grey": Form(1, tiff(grey)),
    "TIFF RGB": Form(3, tiff(colour)),
    "TIFF RGB in one strip": Form(3, tiff(colour, rowsperstrip=1 << 20)),
    "TIFF RGBA": Form(4, tiff(with_alpha, extrasamples=["unassalpha"])),
    "TIFF RGB tiles": Form(3, tiff(colour, tile=(256, 256))),
    "TIFF RGB planes": Form(3, tiff(colour, planarconfig="separate")),
    "TIFF RGB Deflate": Form(3, tiff(colour, compression="zlib", compressionargs={"level": 1})),
    "TIFF RGB Deflate in one strip": Form(
        3, tiff(colour, compression="zlib", compressionargs={"level": 1}, rowsperstrip=1 << 20)
    ),
    "TIFF RGB Deflate, predictor": Form(3, tiff(colour, compression="zlib", compressionargs={"level": 1}, predictor=2)),
    "TIFF RGB LZW": Form(3, tiff(colour, compression="lzw")),
    "TIFF RGB LZW, predictor, one strip": Form(3, tiff(colour, compression="lzw", predictor=2, rowsperstrip=1 << 20)),
    "TIFF RGB PackBits": Form(3, tiff(colour, compression="packbits")),
    "TIFF RGB JPEG": Form(3, tiff(colour, compression="jpeg")),
    "TIFF RGB JPEG in one strip": Form(3, tiff(colour, compression="jpeg", rowsperstrip=1 << 20)),
    "TIFF CMYK": Form(4, tiff(cmyk, photometric="separated")),
    "TIFF grey 16": Form(2, tiff(lambda image: deep(grey(image)))),
    "TIFF grey 16 big endian": Form(2, tiff(lambda image: deep(grey(image)), byteorder=">")),
    "TIFF grey 16 signed": Form(2, tiff(lambda image: (deep(grey(image)) ^ 0x8000).view(np.int16))),
    "TIFF RGB 16": Form(6, tiff(deep)),
    "TIFF RGB 16 planes": Form(6, tiff(deep, planarconfig="separate")),
    "TIFF RGB 16 LZW": Form(6, tiff(deep, compression="lzw")),
    "TIFF RGB 16 Deflate, predictor": Form(
        6, tiff(deep, compression="zlib", compressionargs={"level": 1}, predictor=2)
    ),
    "TIFF RGBA 16 tiles": Form(
        8, tiff(lambda image: deep(with_alpha(image)), tile=(256, 256), extrasamples=["unassalpha"])
    ),
    "TIFF grey 32": Form(4, tiff(lambda image: deep(grey(image)).astype(np.uint32) << 16)),
    "TIFF grey 12 bits": Form(2, twelve_bits),
    "TIFF grey 1 bit": Form(1, tiff(lambda image: grey(image) > 100)),
}


def peaks(
    names: Sequence[str], height: int, width: int, *, by_itself: bool = True, timeout: float = 600
) -> dict[str, Taken]:
    """What decoding a file of each of these forms takes, all in one fresh process.

    `by_itself`: every large block is mapped when it is asked for and given back when it is freed, so that memory is
    what decoding asks for and not what the allocator kept. That costs time.
    """
    command = [sys.executable, "-m", "tests.formats", str(width), str(height), *names]
    own = {**os.environ, "OMP_NUM_THREADS": "1"}
    if by_itself:
        own["MALLOC_MMAP_THRESHOLD_"] = str(1 << 16)
    done = subprocess.run(command, env=own, cwd=ROOT, capture_output=True, text=True, timeout=timeout, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr)
    return {one["name"]: Taken(**one) for one in map(json.loads, done.stdout.splitlines())}


def measured(names: Sequence[str], height: int, width: int) -> Iterator[Taken]:
    """As `peaks`, in this process."""
    image, small = scene(height, width), scene(64, 96)
    for name in names:
        form = FORMS[name]
        decode(form.write(small))  # what a first call loads and keeps
        data = form.write(image)
        tidied()
        before, started = resident("VmRSS"), process_time()
        pixels = decode(data).pixels
        seconds, peak = process_time() - started, resident("VmHWM") - before
        assert pixels.shape == image.shape
        yield Taken(name, height * width * max(form.pixel, 3), len(data), peak, round(seconds, 3))
        del pixels, data


def tidied() -> None:
    """Give freed memory back to the system, and let its high-water mark begin from what is held now."""
    gc.collect()
    if hasattr(ctypes.CDLL(None), "malloc_trim"):
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def resident(field: str) -> int:
    """Bytes of this process that Linux counts under `field` (proc(5))."""
    status = Path("/proc/self/status").read_text()
    return int(status[status.index(field) :].split()[1]) * 1024


if __name__ == "__main__":
    for taken in measured(sys.argv[3:] or list(FORMS), int(sys.argv[2]), int(sys.argv[1])):
        print(json.dumps(asdict(taken)), flush=True)

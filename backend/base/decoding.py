"""Pixels out of image files, as the files' headers declare them; what is not understood or not whole is refused.

A header says how many bits a sample has, whether it is signed, what colour it stands for and how many frames there are.
Decoding follows the header and not what a library happens to return:

- A sample of `bits` bits becomes 8 bits by its high byte, whatever its container: a 12-bit TIFF keeps `v >> 4`.
- Values under 4096 in a container of 16 bits are those of a 12-bit camera that does not shift them, unless PIXEL_BITS
  says otherwise: by the high byte they would have 16 levels, all nearly black. A notice says so.
- Signed samples are shifted so that their least value is black, with a notice where none is negative. WhiteIsZero is
  inverted.
- Of several frames the first one of full size is taken, with a notice. A thumbnail is no frame.
- Orientation and colour profiles are ignored for every format: the ROI is canonical as it was sent. Alpha is dropped.
- A file that a library can decode in part only is refused: checksums, lengths and a decoder's warnings all count.
- A JPEG may be decoded smaller than it is, by libjpeg's own scaling (T.81's blocks of 8 × 8 become 4 × 4, 2 × 2 or one
  pixel). Every byte of it is read all the same, and the same files are refused.

Where a format allows it the file is decoded band by band into the picture that is returned, so that decoding takes
little beside it: at most twice the pixels' memory, but for what libjpeg and libwebp need of their own.
"""

from __future__ import annotations

import io
import logging
import re
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from typing import Any

import cv2
import imagecodecs
import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageFile

from backend.base.arrays import blocks
from backend.base.config import Settings
from backend.base.errors import (
    EmptyFile,
    ImageTooLarge,
    ImageTooSmall,
    InspectionError,
    OutOfMemory,
    UndecodableImage,
)
from backend.base.files import is_the_machines
from backend.base.messages import Notice, Phrase
from backend.base.options import filled, option

BGR = NDArray[np.uint8]
Needed = Callable[[int, int], tuple[int, int]]
"""Told a file's height and width: the height and the width that its picture is brought to."""
SHRINKAGES = {8: 3, 4: 3, 2: 2}
"""How many times smaller a JPEG is decoded, and how many times what is needed a side must still have then."""

MIN_SIDE = 28
# Samples that do not reach 1/16 of their range leave the high byte 16 levels.
UNUSED_BITS = 4
BAND = 1 << 16  # pixels that are worked on at once
MOST_FRAMES = 256  # looked at; a file may list millions

deflate: Any = import_module("isal.isal_zlib") if find_spec("isal") else zlib

# It logs what it makes the best of; here such a file is refused or the tag does not count.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

_PNG, _JPEG, _BMP, _RIFF = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"RIFF"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_CRITICAL, _ANCILLARY = {b"IHDR", b"PLTE", b"IDAT", b"IEND"}, 0x20  # a PNG's chunks, and the bit that others have
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types
_FED = 1 << 16  # bytes of a PNG's compressed pixels that are inflated at once, and that may be left over
_ALL = slice(None)
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_SPARE = {b"VP8 ": 6, b"VP8L": 4}  # so many of the last bytes of a WebP's coded pixels are not all unused
_ZEROED = re.compile(rb"\0{512}")  # a lost sector; lossless WebP takes zeros for pixels
_BLANK = re.compile(rb"\0{32}")  # more zeros than the coefficients of a JPEG's block can be
# Markers of a JPEG (ITU-T T.81, table B.1) but for those inside a scan: stuffed zeros, restarts, fill bytes.
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_CODES, _SCAN, _END, _JPEG_LS, _PROGRESSIVE, _WHOLE = 0xC4, 0xDA, 0xD9, 0xF7, {0xC2, 0xCA}, (0, 63)
# What TIFFs are compressed with here: each of these says so when its data end early or do not add up.
_NONE, _TIFF_JPEG = 1, 7
_PREDICTED = {5, 8, 32946, 34925, 50000}  # LZW, Deflate, LZMA, Zstandard
_TIFF_COMPRESSIONS = {_NONE, _TIFF_JPEG, 32773, *_PREDICTED}
# What decoders raise on files that are cut off, corrupt or hostile. MemoryError is the machine's and not the file's.
_DECODER_ERRORS = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, OverflowError, NotImplementedError,
    RuntimeError, AttributeError, AssertionError, struct.error, zlib.error, cv2.error, ZeroDivisionError,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class ImageOptions:
    """How image files are read.

    Attributes:
        max_megapixels: of one image at most; its size is read from the header and refused before a pixel is decoded.
        pixel_bits: significant bits of samples in 16-bit containers whose header does not say it, for a camera that
            does not shift its values; None: 12 where no value reaches 4096, else all 16.
        scaled: whether a JPEG is decoded no larger than it is needed. A memory says how its images were, and those that
            are compared with it are read alike.
    """

    max_megapixels: float = option(100.0, "max_image_mp")
    pixel_bits: int | None = option(None, "pixel_bits")
    scaled: bool = option(True, "jpeg_scaled")

    @classmethod
    def of(cls, settings: Settings) -> ImageOptions:
        """As `settings` have it."""
        return cls(**filled(cls, settings))


@dataclass(frozen=True)
class Decoded:
    """The pixels of a file, (H, W, 3) uint8 BGR, C-contiguous, and what is to be said of how they were read.

    `whole`: height and width of the file, where the pixels are fewer.
    """

    pixels: BGR
    notices: tuple[Notice, ...] = ()
    whole: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the file in px."""
        height, width = self.whole or self.pixels.shape[:2]
        return height, width


@dataclass(frozen=True)
class Header:
    """What the header of an image file says.

    Attributes:
        suffix: of its format (`.png`, `.jpg`, …).
        width, height: in px.
        buffered: a JPEG whose coefficients a decoder holds all at once, however small it makes the picture: one that is
            progressive, or has a scan for each colour.
    """

    suffix: str
    width: int
    height: int
    buffered: bool = False

    def shrinkage(self, needed: Needed | None) -> int:
        """1, or how many times smaller the file is decoded."""
        if needed is None or self.suffix != ".jpg":
            return 1
        height, width = needed(self.height, self.width)
        times = min(self.height / height, self.width / width)
        return next((n for n, left in SHRINKAGES.items() if times >= n * left), 1)

    def shrunk(self, n: int) -> Header:
        """That of the picture `n` times smaller, which has a pixel for what is left over at its edges."""
        return replace(self, width=-(-self.width // n), height=-(-self.height // n))


class _Refusal(Exception):
    """A reason why the file is not read; `decode` adds the file's name."""

    def __init__(self, code: str, **values: Any) -> None:
        super().__init__(code)
        self.reason = Phrase(code, values)


def decode(
    data: bytes, *, name: str = "image", options: ImageOptions | None = None, needed: Needed | None = None
) -> Decoded:
    """Decode a PNG, JPEG, BMP, TIFF or WebP by its content.

    Args:
        data: the file.
        name: what errors call it.
        needed: a JPEG that is much larger is decoded to a half, a quarter or an eighth of its size (see SHRINKAGES);
            None: none is.

    Raises:
        EmptyFile, UndecodableImage, ImageTooSmall, ImageTooLarge: with `name` in their text.
        OutOfMemory: the machine's memory does not hold the pixels.
    """
    options = options or ImageOptions()
    reader = _reader(data, name)
    try:
        header = reader.header()
        _check_size(header, name, options.max_megapixels)
        found = reader.decoded(header.shrunk(header.shrinkage(needed)), options.pixel_bits)
        return replace(found, whole=(header.height, header.width))
    except _Refusal as err:
        raise UndecodableImage(name=name, reason=err.reason) from err
    except InspectionError:
        raise
    except _DECODER_ERRORS as err:
        raise _decoder_fault(err, name) from err
    except MemoryError as err:
        raise OutOfMemory(retry_after=5) from err


def read_header(data: bytes, *, name: str = "image") -> Header:
    """What the header of an image file says.

    Raises:
        EmptyFile, UndecodableImage: with `name` in their text.
    """
    reader = _reader(data, name)
    try:
        return reader.header()
    except _Refusal as err:
        raise UndecodableImage(name=name, reason=err.reason) from err
    except _DECODER_ERRORS as err:
        raise UndecodableImage(name=name, reason=_corrupt(err)) from err


def _reader(data: bytes, name: str) -> _Reader:
    if not data:
        raise EmptyFile(name=name)
    start = data[:4]
    kinds: list[tuple[bool, type[_Reader]]] = [
        (data.startswith(_PNG), _Png),
        (start.startswith(_JPEG), _Jpeg),
        (start in _TIFF, _Tiff),
        (start == _RIFF and data[8:12] == b"WEBP", _WebP),
        (start.startswith(_BMP), _Bmp),
    ]
    for fits, kind in kinds:
        if fits:
            return kind(data)
    raise UndecodableImage(name=name, reason=Phrase("format_not_read"))


def _decoder_fault(err: Exception, name: str) -> InspectionError:
    """What a decoder's error says of the file, unless it was the machine that failed."""
    if (isinstance(err, cv2.error) and err.code == cv2.Error.StsNoMem) or is_the_machines(err):
        return OutOfMemory(retry_after=5)
    return UndecodableImage(name=name, reason=_corrupt(err))


def _corrupt(err: Exception) -> Phrase:
    text = " ".join(str(err).split())[:120] or type(err).__name__
    return Phrase("damaged", {"err": text})


def _check_size(header: Header, name: str, max_megapixels: float) -> None:
    width, height = header.width, header.height
    if min(width, height) < MIN_SIDE:
        raise ImageTooSmall(name=name, width=width, height=height, limit=MIN_SIDE)
    if width * height > max_megapixels * 1e6:
        raise ImageTooLarge(name=name, width=width, height=height, limit=f"{max_megapixels:g}")


def _bands(height: int, width: int) -> Iterator[slice]:
    """Rows of a picture of this size, about BAND pixels at once."""
    return blocks(height, max(1, BAND // width))


def _frames_notice(frames: int) -> tuple[Notice, ...]:
    return (Notice("frames_ignored", {"n": frames}),) if frames > 1 else ()


class _Canvas:
    """The picture that is returned, (H, W, 3) uint8 BGR, drawn part by part from samples of any depth.

    Values of a 16-bit container count as a camera's 12 bits until one is beyond them. From then on all 16 count, and
    what was drawn is shifted: `v >> 8` is `(v >> 4) >> 4`.
    """

    def __init__(self, height: int, width: int, pixel_bits: int | None) -> None:
        self.pixels: BGR = np.empty((height, width, 3), np.uint8)
        self._pixel_bits = pixel_bits
        self._declared, self._highest, self._guessed = 8, 0, 16 - UNUSED_BITS

    def draw(self, values: NDArray[Any], bits: int, rows: slice = _ALL, cols: slice = _ALL) -> None:
        """Samples of `bits` declared bits, (h, w) grey or (h, w, C) with C from 1 to 4: grey or RGB, then alpha."""
        self._declared = bits
        own = self._colours(values)
        if bits < 8:
            own = (np.arange(1 << bits) * 255 // ((1 << bits) - 1)).astype(np.uint8)[own]
        elif bits > 8:
            own = (own >> (self._significant(own, bits) - 8)).astype(np.uint8)
        self.pixels[rows, cols] = cv2.cvtColor(own, cv2.COLOR_GRAY2BGR if own.ndim == 2 else cv2.COLOR_RGB2BGR)

    @staticmethod
    def _colours(values: NDArray[Any]) -> NDArray[Any]:
        """Grey (h, w) or RGB (h, w, 3), contiguous, in the machine's byte order."""
        four = values.ndim == 3 and values.shape[2] == 4 and values.dtype.itemsize < 4
        if values.ndim == 3 and not four:
            values = values[:, :, 0] if values.shape[2] < 3 else values[:, :, :3]
        own: NDArray[Any] = np.ascontiguousarray(values, values.dtype.newbyteorder("="))
        return cv2.cvtColor(own, cv2.COLOR_RGBA2RGB) if four else own

    def _significant(self, values: NDArray[Any], bits: int) -> int:
        """How many of the declared bits count."""
        if bits < 16:
            return bits
        self._highest = max(self._highest, int(values.max()))
        if bits > 16:
            return bits
        if self._pixel_bits is not None:
            return self._pixel_bits
        if self._guessed < 16 and self._highest >= 1 << self._guessed:
            self.pixels >>= 16 - self._guessed
            self._guessed = 16
        return self._guessed

    def notices(self) -> tuple[Notice, ...]:
        """What is to be said of the values, once all are drawn. Refuses some that are beyond PIXEL_BITS."""
        bits, said = self._declared, {"highest": self._highest, "most": (1 << self._declared) - 1}
        if bits == 16 and (own := self._pixel_bits) is not None:
            if self._highest >= 1 << own:
                raise _Refusal("beyond_pixel_bits", highest=self._highest, bits=own, most=(1 << own) - 1)
        elif bits >= 16 and self._highest < 1 << (bits - UNUSED_BITS):
            return (Notice("read_as_12_bits" if bits == 16 else "few_levels_used", said),)
        return ()


class _Reader:
    """One file of one format."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def header(self) -> Header:
        """What the file's header says."""
        raise NotImplementedError

    def decoded(self, header: Header, pixel_bits: int | None) -> Decoded:
        """The pixels of the first frame of full size, as many as `header` says."""
        raise NotImplementedError


class _Png(_Reader):
    def header(self) -> Header:
        if self.data[12:16] != b"IHDR" or len(self.data) < 33:
            raise _Refusal("cut_off")
        width, height = struct.unpack_from(">II", self.data, 16)
        return Header(".png", width, height)

    def decoded(self, header: Header, pixel_bits: int | None) -> Decoded:
        chunks, frames, palette = self._whole()
        depth, colour, compression, filtering, interlaced = struct.unpack_from(">BBBBB", self.data, 24)
        channels = _CHANNELS.get(colour)
        if compression or filtering or interlaced > 1:
            raise _Refusal("header_not_valid")
        if channels is None or depth not in {1, 2, 4, 8, 16} or (depth < 8 and channels > 1):
            raise _Refusal("header_not_valid")
        if colour == 3 and not palette:
            raise _Refusal("palette_missing")
        stream = _Inflated(chunks)
        canvas = _Canvas(header.height, header.width, pixel_bits)
        for x, y, dx, dy in _ADAM7 if interlaced else ((0, 0, 1, 1),):
            height, width = -(-(header.height - y) // dy), -(-(header.width - x) // dx)
            if height <= 0 or width <= 0:
                continue
            row = (width * channels * depth + 7) // 8
            above = bytes(row)
            for band in _bands(height, width):
                raw = stream.read((band.stop - band.start) * (1 + row))
                own, above = _unfiltered(raw, above, depth, colour)
                values = _unpacked(own, width, depth) if depth < 8 else own
                values = _looked_up(values, palette) if colour == 3 else values
                rows = slice(y + band.start * dy, y + band.stop * dy, dy)
                canvas.draw(values, 8 if colour == 3 else depth, rows, slice(x, None, dx))
        stream.end()
        return Decoded(canvas.pixels, _frames_notice(frames) + canvas.notices())

    def _whole(self) -> tuple[list[memoryview], int, memoryview]:
        """The compressed pixels, the number of frames, and the palette: every chunk was found whole."""
        idat, frames, palette = [], 1, memoryview(b"")
        for kind, body in self._chunks():
            if kind == b"CgBI":
                raise _Refusal("apples_png")
            if not kind[0] & _ANCILLARY and kind not in _CRITICAL:
                raise _Refusal("chunk_not_read", kind=kind.decode("latin-1"))
            if kind == b"acTL" and len(body) >= 4:
                (frames,) = struct.unpack_from(">I", body)
            if kind == b"PLTE":
                palette = body
            if kind == b"IDAT":
                idat.append(body)
        return idat, frames, palette

    def _chunks(self) -> Iterator[tuple[bytes, memoryview]]:
        """The kind and the body of each chunk, the last one included; refuses one that is not whole."""
        view, kind, at = memoryview(self.data), b"", len(_PNG)
        while kind != b"IEND":
            if at + 12 > len(self.data):
                raise _Refusal("cut_off")
            (length,) = struct.unpack_from(">I", self.data, at)
            end, kind = at + 8 + length, self.data[at + 4 : at + 8]
            if end + 4 > len(self.data):
                raise _Refusal("cut_off")
            if deflate.crc32(view[at + 4 : end]) != struct.unpack_from(">I", self.data, end)[0]:
                raise _Refusal("checksum_wrong", kind=kind.decode("latin-1"))
            yield kind, view[at + 8 : end]
            at = end + 4


class _Inflated:
    """What a zlib stream in several pieces holds, read bit by bit; it is never held whole."""

    def __init__(self, pieces: list[memoryview]) -> None:
        self._inflater = deflate.decompressobj()
        self._fed = (piece[own] for piece in pieces for own in blocks(len(piece), _FED))

    def read(self, size: int) -> bytearray:
        """The next `size` bytes; refuses a stream that is damaged or ends before them."""
        read = bytearray()
        while len(read) < size:
            more = self._more(size - len(read))
            if more is None:
                raise _Refusal("pixels_missing")
            read += more
        return read

    def end(self) -> None:
        """Refuse a stream that does not end here with the right checksum; some bytes left over are let pass."""
        left = 0
        while (more := self._more(_FED)) is not None:
            left += len(more)
            if left > _FED:
                raise _Refusal("pixels_damaged")
        if not self._inflater.eof:
            raise _Refusal("pixels_damaged")

    def _more(self, most: int) -> bytes | None:
        """At most so many bytes that follow, possibly none; None at the end."""
        if self._inflater.eof:
            return None
        given = self._inflater.unconsumed_tail or next(self._fed, b"")
        try:
            more: bytes = self._inflater.decompress(given, most)
        except (zlib.error, deflate.error) as err:
            raise _Refusal("pixels_damaged") from err
        return more if given or more else None


def _unfiltered(raw: bytearray, above: bytes, depth: int, colour: int) -> tuple[NDArray[Any], bytes]:
    """Rows of a PNG, a filter byte before each, as samples (h, W) or (h, W, C), and the bytes of the last row.

    libpng undoes the filters, in a PNG of its own whose first row is the one `above`. Samples that are packed, and
    indices of a palette, are bytes there.
    """
    if depth < 8 or colour == 3:
        depth, colour = 8, 0
    rows, width = len(raw) // (1 + len(above)) + 1, 8 * len(above) // (depth * _CHANNELS[colour])
    ihdr = struct.pack(">IIBBBBB", width, rows, depth, colour, 0, 0, 0)
    values = imagecodecs.png_decode(_stored_png(ihdr, b"\0" + above + raw))[1:]
    return values, values[-1].astype(f">u{depth // 8}").tobytes()


def _unpacked(rows: NDArray[np.uint8], width: int, depth: int) -> NDArray[np.uint8]:
    """Rows of bytes as the samples of fewer bits that they hold: (h, W)."""
    each = (rows[:, :, None] >> np.arange(8 - depth, -1, -depth, dtype=np.uint8)) & np.uint8((1 << depth) - 1)
    values: NDArray[np.uint8] = each.reshape(len(rows), -1)[:, :width]
    return values


def _looked_up(index: NDArray[np.uint8], palette: memoryview) -> NDArray[np.uint8]:
    """Palette indices (h, W) as RGB (h, W, 3)."""
    table = np.frombuffer(palette[: len(palette) // 3 * 3], np.uint8).reshape(-1, 3)
    if int(index.max()) >= len(table):
        raise _Refusal("palette_missing")
    own: NDArray[np.uint8] = table[index]
    return own


def _stored_png(ihdr: bytes, raw: bytes) -> bytes:
    """A PNG of the rows `raw` whose zlib stream holds them as they are (RFC 1950 and 1951)."""
    view = memoryview(raw)
    body: list[bytes | memoryview] = [b"\x78\x01"]
    for at in range(0, len(raw), 65535):
        block = view[at : at + 65535]
        body += [struct.pack("<BHH", at + 65535 >= len(raw), len(block), len(block) ^ 0xFFFF), block]
    body.append(struct.pack(">I", deflate.adler32(raw)))
    return b"".join((_PNG, *_chunk(b"IHDR", ihdr), *_chunk(b"IDAT", *body), *_chunk(b"IEND")))


def _chunk(kind: bytes, *body: bytes | memoryview) -> Iterator[bytes | memoryview]:
    """The pieces of a PNG's chunk."""
    crc = deflate.crc32(kind)
    for piece in body:
        crc = deflate.crc32(piece, crc)
    yield from (struct.pack(">I", sum(map(len, body))), kind, *body, struct.pack(">I", crc))


class _Jpeg(_Reader):
    def header(self) -> Header:
        height, width, *_ = self._about()
        return Header(".jpg", width, height, _buffered(self.data))

    def decoded(self, header: Header, pixel_bits: int | None) -> Decoded:
        *_, colours, _ = self._about()
        four = colours in {"CMYK", "YCCK"}
        least = {"min_height": header.height, "min_width": header.width}
        # A warning of libjpeg's is an error here.
        pixels = simplejpeg.decode_jpeg(self.data, "CMYK" if four else "BGR", **least)
        _check_scans(self.data)
        if four:
            canvas = _Canvas(header.height, header.width, pixel_bits)
            for rows in _bands(header.height, header.width):
                canvas.draw(_without_inks(255 - pixels[rows]), 8, rows)  # stored the other way round, as by Adobe
            pixels = canvas.pixels
        return Decoded(pixels, _frames_notice(self._frames()))

    def _about(self) -> tuple[int, int, str, str]:
        _check_process(self.data)
        return simplejpeg.decode_jpeg_header(self.data)  # type: ignore[no-any-return]

    def _frames(self) -> int:
        """Pictures of a multi-picture file (CIPA DC-007) that are no thumbnails."""
        if b"MPF\0" not in self.data[: 1 << 18]:
            return 1
        try:
            image = Image.open(io.BytesIO(self.data))
        except (Image.DecompressionBombError, *_DECODER_ERRORS):
            return 1
        entries: list[Any] = getattr(image, "mpinfo", {}).get(0xB002, [])
        return max(1, sum("Thumbnail" not in str(entry["Attribute"]["MPType"]) for entry in entries))


def _segments(jpeg: bytes) -> Iterator[tuple[int, bytes, int]]:
    """The markers of a JPEG that have a body, its body, and where that ends, up to the first picture's end."""
    at = 2
    while found := _MARKER.search(jpeg, at):
        marker, at = found[1][0], found.end()
        if marker == _END:
            return
        if marker not in {0x01, 0xD8}:
            (length,) = struct.unpack_from(">H", jpeg, at)
            yield marker, jpeg[at + 2 : at + length], at + length
            at += length


def _check_process(jpeg: bytes) -> None:
    """Refuse in words what only some JPEG decoders know: 12 bits, lossless and hierarchical ones."""
    for marker, body, _ in _segments(jpeg):
        if marker in _FRAMES:
            if body[0] != 8 or marker not in {0xC0, 0xC1, 0xC9, *_PROGRESSIVE}:
                raise _Refusal("jpeg_not_read", bits=body[0], process=f"SOF{marker - 0xC0}")
            if not any(body[1:3]):
                raise _Refusal("jpeg_without_height")
            return
        if marker in {_SCAN, _JPEG_LS}:
            raise _Refusal("jpeg_not_read", bits="?", process="?" if marker == _SCAN else "JPEG-LS")


def _buffered(jpeg: bytes) -> bool:
    """Whether a JPEG's coefficients come in several scans, so that no pixel is known before the last of them."""
    components = 0
    for marker, body, _ in _segments(jpeg):
        if marker in _PROGRESSIVE:
            return True
        if marker in _FRAMES:
            components = body[5]
        elif marker == _SCAN:
            return body[0] < components
    return False


def _check_scans(jpeg: bytes) -> None:
    """Refuse a JPEG with scans missing, which decodes without a warning: coarse, or without some of its colours.

    Each scan gives some coefficients of some components, in a progressive file bit by bit (ITU-T T.81, annex G).
    """
    if _BLANK.search(jpeg):
        _check_zeros(jpeg)
    missing: dict[int, list[bool]] = {}
    progressive = False
    for marker, body, _ in _segments(jpeg):
        if marker in _FRAMES:
            progressive = marker in _PROGRESSIVE
            missing = {body[6 + 3 * n]: [True] * 64 for n in range(body[5])}
        elif marker == _SCAN:
            n = body[0]
            first, last, bits = body[1 + 2 * n : 4 + 2 * n] if progressive else (*_WHOLE, 0)
            for component in body[1 : 1 + 2 * n : 2]:
                missing[component][first : last + 1] = [bits & 15 > 0] * (last + 1 - first)
            if not any(map(any, missing.values())):
                return
    raise _Refusal("cut_off")


def _check_zeros(jpeg: bytes) -> None:
    """Refuse a scan with many zeros in it, as a lost sector leaves them, unless zeros may stand for flat blocks.

    A Huffman code of zeros alone is the first one of its table (ITU-T T.81, annex C). Where it is that of a coefficient
    and not that of a block's end, zeros are blocks of 63 coefficients of -1, which no picture has.
    """
    first, huffman = {0: 0x01}, True  # tables that a file leaves out are those of annex K
    for marker, body, end in _segments(jpeg):
        if marker in _FRAMES:
            huffman = marker < 0xC8
        elif marker == _CODES:
            at = 0
            while at + 17 < len(body):
                if body[at] >> 4:
                    first[body[at] & 15] = body[at + 17]
                at += 17 + sum(body[at + 1 : at + 17])
        elif marker == _SCAN and huffman:
            n = body[0]
            coded = [first.get(which & 15, 0) & 15 for which in body[2 : 2 + 2 * n : 2]]
            following = _MARKER.search(jpeg, end)
            stop = following.start() if following else len(jpeg)
            if body[2 + 2 * n] > 0 and any(coded) and _BLANK.search(jpeg, end, stop):
                raise _Refusal("data_damaged")


class _Bmp(_Reader):
    def header(self) -> Header:
        return Header(".bmp", *self._image().size)

    def decoded(self, header: Header, pixel_bits: int | None) -> Decoded:
        image, canvas = self._image(), _Canvas(header.height, header.width, pixel_bits)
        self._check_size(image)
        for rows in _bands(header.height, header.width):
            canvas.draw(np.asarray(self._band(image, rows).convert("RGB")), 8, rows)
        return Decoded(canvas.pixels)

    def _image(self) -> ImageFile.ImageFile:
        """The file opened by Pillow, whose own limit of the size does not apply."""
        Image.init()
        return Image.OPEN["BMP"][0](io.BytesIO(self.data), "")

    def _check_size(self, image: ImageFile.ImageFile) -> None:
        """Refuse a header that speaks of fewer rows than both the file and its declared size hold.

        A declared size of 0 says nothing, and some programs count a few bytes too few or too many.
        """
        if image.tile and image.tile[0].codec_name == "raw" and struct.unpack_from("<I", self.data, 14)[0] >= 40:
            args: Any = image.tile[0].args
            row, (declared,) = args[1], struct.unpack_from("<I", self.data, 34)
            if min(declared, len(self.data) - image.tile[0].offset) >= row * (image.height + 1):
                raise _Refusal("header_not_valid")

    def _band(self, image: ImageFile.ImageFile, rows: slice) -> Image.Image:
        """Rows of the picture; where they are not packed they are unpacked alone."""
        tile = image.tile[0] if image.tile else None
        if tile is None or tile.codec_name != "raw":
            return image.crop((0, rows.start, image.width, rows.stop))
        args: Any = tile.args
        mode, stride, direction = args
        first = rows.start if direction > 0 else image.height - rows.stop
        at, n = tile.offset + first * stride, rows.stop - rows.start
        own = self.data[at : at + n * stride]
        band = Image.frombytes(image.mode, (image.width, n), own, "raw", mode, stride, direction)
        if image.mode == "P":
            band.putpalette(image.getpalette() or [])
        return band


class _WebP(_Reader):
    def header(self) -> Header:
        kind, body = next(_chunks(self._own(), 12))
        if kind == b"VP8X":
            width, height = _three_bytes(body, 4), _three_bytes(body, 7)
        else:
            width, height = _coded_size(kind, body)
        return Header(".webp", width, height)

    def decoded(self, header: Header, pixel_bits: int | None) -> Decoded:
        """The picture, or the first one of an animation on a black ground; alpha is not looked at."""
        own_data = self._own()
        frames = [body for kind, body in _chunks(own_data, 12) if kind == b"ANMF"]
        first = frames[0] if frames else own_data
        kind, body = next(one for one in _chunks(first, 16 if frames else 12) if one[0] in _SPARE)
        width, height = _coded_size(kind, body)
        left, top = (2 * (_three_bytes(first, at) - 1) for at in (0, 3)) if frames else (0, 0)
        pixels: BGR = np.zeros((header.height, header.width, 3), np.uint8)
        whole = (height, width) == pixels.shape[:2]
        if not whole and (not frames or left + width > header.width or top + height > header.height):
            raise _Refusal("header_not_valid")
        own = pixels if whole else np.empty((height, width, 3), np.uint8)
        _decode_webp(kind, body, own)
        for rows in _bands(height, width):
            pixels[top : top + height, left : left + width][rows] = cv2.cvtColor(own[rows], cv2.COLOR_RGB2BGR)
        return Decoded(pixels, _frames_notice(len(frames)))

    def _own(self) -> memoryview:
        """The file as far as its header says that it goes; what a program left behind it does not count."""
        (size,) = struct.unpack_from("<I", self.data, 4)
        if size + 8 > len(self.data):
            raise _Refusal("cut_off")
        return memoryview(self.data)[: size + 8]


def _three_bytes(body: bytes | memoryview, at: int) -> int:
    """A number of three bytes of WebP's container, where 0 stands for 1."""
    return 1 + int.from_bytes(body[at : at + 3], "little")


def _coded_size(kind: bytes, body: memoryview) -> tuple[int, int]:
    """Width and height in the coded pixels themselves."""
    if kind == b"VP8L":
        bits = int.from_bytes(body[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    width, height = struct.unpack_from("<HH", body, 6)
    return width & 0x3FFF, height & 0x3FFF


def _chunks(data: memoryview, at: int) -> Iterator[tuple[bytes, memoryview]]:
    """The kind and the body of each RIFF chunk from byte `at` on; refuses one that ends beyond the file."""
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        if at + 8 + length > len(data):
            raise _Refusal("cut_off")
        yield bytes(data[at : at + 4]), data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _decode_webp(kind: bytes, body: memoryview, out: NDArray[np.uint8]) -> None:
    """Decode the coded pixels of a WebP to `out`, (H, W, 3) RGB; refuse those that decode without their last bytes too.

    WebP has no checksums, and whatever stands in a chunk decodes to something. But what was damaged takes another
    number of bytes: it ends too early, or the decoder runs out of them.
    """
    if kind == b"VP8L" and _ZEROED.search(body):
        raise _Refusal("data_damaged")
    decode_webp: Any = imagecodecs.webp_decode  # libwebp takes coded pixels without a container, too
    try:
        decode_webp(body[: -_SPARE[kind]], hasalpha=False, out=out)
    except RuntimeError:
        decode_webp(body, hasalpha=False, out=out)
        return
    raise _Refusal("data_damaged")


class _Tiff(_Reader):
    """A TIFF, read by its tags (TIFF 6.0); tifffile unpacks and decompresses."""

    def header(self) -> Header:
        page, _ = self._page()
        return Header(".tif", page.imagewidth, page.imagelength)

    def decoded(self, header: Header, pixel_bits: int | None) -> Decoded:
        page, frames = self._page()
        bits = self._bits(page)
        self._check_segments(page)
        colours = _COLOURS.get(int(page.photometric))
        if colours is None:
            raise _Refusal("colours_not_read", kind=getattr(page.photometric, "name", page.photometric))
        canvas, signed = _Canvas(header.height, header.width, pixel_bits), int(page.sampleformat) == 2
        lowest, kind = 0, np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32
        for rows, cols, own in self._parts(page):
            lowest = min(lowest, int(own.min())) if signed else 0
            values = own.astype(np.int64) + (1 << (bits - 1)) if signed else own
            canvas.draw(*colours(page, values.astype(kind, copy=False), bits), rows, cols)
        one_sided = (Notice("no_value_negative"),) if signed and lowest >= 0 else ()
        return Decoded(canvas.pixels, _frames_notice(frames) + canvas.notices() + one_sided)

    def _parts(self, page: tifffile.TiffPage) -> Iterator[tuple[slice, slice, NDArray[Any]]]:
        """Where rows of a strip or tile belong, and their samples (h, w, C), as far as they lie inside the picture."""
        height, width = page.imagelength, page.imagewidth
        planes, each = _planes(page), self._segments(page)
        for first in range(each):
            own = [self._part(page, first + plane * each) for plane in range(planes)]
            top, left = own[0][0]
            parts = [values[: height - top, : width - left] for _, values in own]
            for rows in _bands(*parts[0].shape[:2]):
                band = parts[0][rows] if planes == 1 else np.concatenate([part[rows] for part in parts], 2)
                yield slice(top + rows.start, top + rows.stop), slice(left, left + band.shape[1]), band

    def _part(self, page: tifffile.TiffPage, n: int) -> tuple[tuple[int, int], NDArray[Any]]:
        """Top and left of the `n`-th strip or tile, and its samples (h, w, C)."""
        at, kind = page.dataoffsets[n], {"jpegtables": page.jpegtables} if int(page.compression) == _TIFF_JPEG else {}
        segment = memoryview(self.data)[at : at + page.databytecounts[n]]
        if kind:
            self._check_jpeg(page, bytes(segment))
        values, (_, _, top, left, _), shape = page.decode(segment, n, **kind)
        if values is None or shape[0] != 1:
            raise _Refusal("not_flat")
        return (top, left), values[0]

    def _page(self) -> tuple[tifffile.TiffPage, int]:
        """The first page of full size that is no thumbnail or mask, and how many such pages there are."""
        tiff = tifffile.TiffFile(io.BytesIO(self.data))
        pages = [page for page in islice(_pages(tiff), MOST_FRAMES) if not int(page.subfiletype) & 0b101]
        largest = max((page.imagewidth * page.imagelength for page in pages), default=0)
        full = [page for page in pages if page.imagewidth * page.imagelength == largest]
        if largest == 0:
            raise _Refusal("no_picture")
        if full[0].imagedepth > 1:
            raise _Refusal("volume")
        return full[0], len(full)

    @staticmethod
    def _bits(page: tifffile.TiffPage) -> int:
        """Bits of each sample. A float, a complex number or samples of different widths have no range to go by."""
        tag = page.tags.get(258)
        declared = {int(b) for b in np.atleast_1d(1 if tag is None else tag.value)}
        if int(page.sampleformat) not in {1, 2, 4}:
            raise _Refusal(
                "samples_not_integers",
            )
        if len(declared) != 1 or not 1 <= (bits := declared.pop()) <= 32:
            raise _Refusal("samples_differ")
        return bits

    def _check_segments(self, page: tifffile.TiffPage) -> None:
        """Refuse what tifffile would fill with black: strips or tiles that are absent or end beyond the file.

        So is a header that speaks of fewer rows of bare pixels than there are.
        """
        kind = int(page.compression)
        if kind not in _TIFF_COMPRESSIONS:
            raise _Refusal("compression_not_read", kind=getattr(page.compression, "name", kind))
        if int(page.predictor) != 1 and kind not in _PREDICTED:
            raise _Refusal("header_not_valid")
        starts, counts = page.dataoffsets, page.databytecounts
        within = all(n > 0 and at > 0 and at + n <= len(self.data) for at, n in zip(starts, counts, strict=True))
        row = least = 0
        if kind == _NONE and not page.is_tiled:
            row = -(-page.imagewidth * self._bits(page) * (page.samplesperpixel // _planes(page)) // 8)
            least = row * page.imagelength * _planes(page)
        if len(starts) < self._segments(page) * _planes(page) or not within or sum(counts) < least:
            raise _Refusal("cut_off")
        if row and sum(counts) >= least + row:
            raise _Refusal("header_not_valid")

    @staticmethod
    def _segments(page: tifffile.TiffPage) -> int:
        """Strips or tiles of the picture, or of each of its planes."""
        if page.is_tiled:
            return -(-page.imagewidth // page.tilewidth) * -(-page.imagelength // page.tilelength)
        return -(-page.imagelength // max(1, min(page.rowsperstrip, page.imagelength)))

    @staticmethod
    def _check_jpeg(page: tifffile.TiffPage, segment: bytes) -> None:
        tables = page.jpegtables
        whole = segment if tables is None else tables[:-2] + segment[2:]
        _check_process(whole)
        *_, colours, _ = simplejpeg.decode_jpeg_header(whole)
        # A warning of libjpeg's is an error here. All of the scans are read for an eighth of the size, too.
        simplejpeg.decode_jpeg(whole, colours if colours == "CMYK" else "GRAY", min_height=1, min_width=1, min_factor=8)
        _check_scans(whole)


def _planes(page: tifffile.TiffPage) -> int:
    """In how many planes the samples stand: one, or one for each colour."""
    return page.samplesperpixel if int(page.planarconfig) == 2 else 1


def _pages(tiff: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
    for page in tiff.pages:
        yield page.aspage()


def _grey(page: tifffile.TiffPage, values: NDArray[Any], bits: int) -> tuple[NDArray[Any], int]:
    _expect(page, 1)
    grey = values[:, :, 0]
    if int(page.photometric) == 0:
        grey = np.asarray((1 << bits) - 1, values.dtype) - grey
    return grey, bits


def _rgb(page: tifffile.TiffPage, values: NDArray[Any], bits: int) -> tuple[NDArray[Any], int]:
    _expect(page, 3)
    return values[:, :, :3], bits


def _palette(page: tifffile.TiffPage, values: NDArray[Any], bits: int) -> tuple[NDArray[Any], int]:
    _expect(page, 1)
    colours = page.colormap
    if colours is None or colours.shape[0] != 3 or colours.shape[1] < 1 << bits:
        raise _Refusal("palette_missing")
    return (colours.T >> 8).astype(np.uint8)[values[:, :, 0]], 8


def _cmyk(page: tifffile.TiffPage, values: NDArray[Any], bits: int) -> tuple[NDArray[Any], int]:
    _expect(page, 4)
    kind = page.tags.get(332)
    if kind is not None and int(kind.value) != 1:
        raise _Refusal("inks_not_cmyk")
    inks = values[:, :, :4]
    high = inks * np.uint16(255) // ((1 << bits) - 1) if bits < 8 else inks >> (bits - 8)
    return _without_inks(high.astype(np.uint8)), 8


def _ycbcr(page: tifffile.TiffPage, values: NDArray[Any], bits: int) -> tuple[NDArray[Any], int]:
    """JPEG's own colours come out as RGB; of others, unsampled ones of 8 bits with BT.601's weights are read."""
    _expect(page, 3)
    if int(page.compression) == _TIFF_JPEG:
        return values[:, :, :3], bits
    weights, subsampling = page.tags.get(529), page.tags.get(530)
    common = weights is None or np.allclose(np.asarray(weights.value, float).reshape(-1, 2)[:, 0], [299, 587, 114])
    full = subsampling is not None and tuple(subsampling.value) == (1, 1)
    if bits != 8 or not full or not common:
        raise _Refusal("ycbcr_not_read")
    return cv2.cvtColor(np.ascontiguousarray(values[:, :, [0, 2, 1]]), cv2.COLOR_YCrCb2RGB), 8


def _without_inks(cmyk: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Cyan, magenta, yellow and black (h, w, 4) as RGB (h, w, 3): R = (1 − C) · (1 − K), and so on; no profile."""
    left = cv2.bitwise_not(np.ascontiguousarray(cmyk))
    black = cv2.cvtColor(cv2.extractChannel(left, 3), cv2.COLOR_GRAY2RGB)
    return cv2.multiply(cv2.cvtColor(left, cv2.COLOR_RGBA2RGB), black, scale=1 / 255).astype(np.uint8, copy=False)


def _expect(page: tifffile.TiffPage, colours: int) -> None:
    """Refuse samples that are neither colours nor declared as extra ones."""
    tag = page.tags.get(338)
    extra = 0 if tag is None else len(np.atleast_1d(tag.value))
    if page.samplesperpixel - extra != colours and not (extra == 0 and page.samplesperpixel == colours + 1):
        raise _Refusal(
            "channels_unexpected",
            n=page.samplesperpixel,
            colours=colours,
        )


_Colours = Callable[[tifffile.TiffPage, NDArray[Any], int], tuple[NDArray[Any], int]]
_COLOURS: dict[int, _Colours] = {0: _grey, 1: _grey, 2: _rgb, 3: _palette, 5: _cmyk, 6: _ycbcr}

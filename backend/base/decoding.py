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
"""

from __future__ import annotations

import io
import logging
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
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
from PIL import Image

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

MIN_SIDE = 28
# Samples that do not reach 1/16 of their range leave the high byte 16 levels.
UNUSED_BITS = 4
BLOCK_ROWS = 64  # of pixels that are worked on at once
MOST_FRAMES = 256  # looked at; a file may list millions

deflate: Any = import_module("isal.isal_zlib") if find_spec("isal") else zlib

# It logs what it makes the best of; here such a file is refused or the tag does not count.
logging.getLogger("tifffile").setLevel(logging.CRITICAL)

_PNG, _JPEG, _BMP, _RIFF = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"RIFF"
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of PNG's colour types
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_SPARE = 16  # bytes that a WebP's coded pixels may have left over
_ZEROED = bytes(512)  # a lost sector; lossless WebP takes zeros for pixels
# Markers of a JPEG (ITU-T T.81, table B.1) but for those inside a scan: stuffed zeros, restarts, fill bytes.
_MARKER = re.compile(rb"\xff([^\x00\xd0-\xd7\xff])", re.DOTALL)
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
_SCAN, _END, _JPEG_LS, _PROGRESSIVE, _WHOLE = 0xDA, 0xD9, 0xF7, {0xC2, 0xCA}, (0, 63)
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
    """

    max_megapixels: float = option(100.0, "max_image_mp")
    pixel_bits: int | None = option(None, "pixel_bits")

    @classmethod
    def of(cls, settings: Settings) -> ImageOptions:
        """As `settings` have it."""
        return cls(**filled(cls, settings))


@dataclass(frozen=True)
class Decoded:
    """The pixels of a file, (H, W, 3) uint8 BGR, C-contiguous, and what is to be said of how they were read."""

    pixels: BGR
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True)
class Header:
    """What the header of an image file says: the suffix of its format (`.png`, `.jpg`, …), width and height in px."""

    suffix: str
    width: int
    height: int


@dataclass(frozen=True)
class _Samples:
    """Samples as a file holds them: (H, W) or (H, W, C) of `bits` declared bits, colours in BGR order."""

    values: NDArray[Any]
    bits: int
    frames: int = 1
    one_sided: bool = False  # signed, and none is negative


class _Refusal(Exception):
    """A reason why the file is not read; `decode` adds the file's name."""

    def __init__(self, code: str, **values: Any) -> None:
        super().__init__(code)
        self.reason = Phrase(code, values)


def decode(data: bytes, *, name: str = "image", options: ImageOptions | None = None) -> Decoded:
    """Decode a PNG, JPEG, BMP, TIFF or WebP by its content.

    Args:
        data: the file.
        name: what errors call it.

    Raises:
        EmptyFile, UndecodableImage, ImageTooSmall, ImageTooLarge: with `name` in their text.
        OutOfMemory: the machine's memory does not hold the pixels.
    """
    options = options or ImageOptions()
    reader = _reader(data, name)
    try:
        header = reader.header()
        _check_size(header, name, options.max_megapixels)
        return _eight_bits(reader.samples(), options.pixel_bits)
    except _Refusal as err:
        raise UndecodableImage(name=name, reason=err.reason) from err
    except Image.DecompressionBombError as err:  # Pillow's own limit, inside its WebP reader
        raise ImageTooLarge(name=name, width="?", height="?", limit=f"{options.max_megapixels:g}") from err
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
    except (Image.DecompressionBombError, *_DECODER_ERRORS) as err:
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


def _eight_bits(samples: _Samples, pixel_bits: int | None) -> Decoded:
    """Samples as 8 bits of three channels, by the bits that were declared, or set for 16-bit containers."""
    values, bits, notices = samples.values, samples.bits, []
    if samples.frames > 1:
        notices.append(Notice("frames_ignored", {"n": samples.frames}))
    if bits == 16 and pixel_bits is not None:
        bits = pixel_bits
        highest = int(values.max())
        if highest >= 1 << bits:
            raise _Refusal(
                "beyond_pixel_bits",
                highest=highest,
                bits=bits,
                most=(1 << bits) - 1,
            )
    elif bits >= 16:
        highest = int(values.max())
        if highest < 1 << (bits - UNUSED_BITS):
            code = "read_as_12_bits" if bits == 16 else "few_levels_used"
            notices.append(Notice(code, {"highest": highest, "most": (1 << bits) - 1}))
            bits = 12 if bits == 16 else bits
    if samples.one_sided:
        notices.append(Notice("no_value_negative"))
    if bits > 8:
        values = _high_bytes(values, bits)
    elif bits < 8:
        values = (values.astype(np.uint16) * 255 // ((1 << bits) - 1)).astype(np.uint8)
    if values.ndim == 2:
        values = cv2.cvtColor(np.ascontiguousarray(values, np.uint8), cv2.COLOR_GRAY2BGR)
    return Decoded(np.ascontiguousarray(values, np.uint8), tuple(notices))


def _high_bytes(values: NDArray[Any], bits: int) -> NDArray[np.uint8]:
    """The upper 8 of the `bits` of each sample, block by block: a whole array of shifted samples would take room."""
    high = np.empty(values.shape, np.uint8)
    for rows in blocks(len(values), BLOCK_ROWS):
        high[rows] = values[rows] >> (bits - 8)
    return high


class _Reader:
    """One file of one format."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def header(self) -> Header:
        """What the file's header says."""
        raise NotImplementedError

    def samples(self) -> _Samples:
        """The samples of the first frame of full size."""
        raise NotImplementedError

    def with_pillow(self, plugin: str) -> Image.Image:
        """The file opened by Pillow, whose own limit of the size does not apply."""
        Image.init()
        return Image.OPEN[plugin][0](io.BytesIO(self.data), "")


def _rgb_of(image: Image.Image, frames: int = 1) -> _Samples:
    image.load()
    image.info.pop("transparency", None)
    return _Samples(np.asarray(image if image.mode == "RGB" else image.convert("RGB"))[:, :, ::-1], 8, frames)


class _Png(_Reader):
    def header(self) -> Header:
        if self.data[12:16] != b"IHDR" or len(self.data) < 33:
            raise _Refusal("cut_off")
        width, height = struct.unpack_from(">II", self.data, 16)
        return Header(".png", width, height)

    def samples(self) -> _Samples:
        idat, frames, palette = self._whole()
        width, height, depth, colour, _, _, interlaced = struct.unpack_from(">IIBBBBB", self.data, 16)
        if colour not in _CHANNELS or depth not in {1, 2, 4, 8, 16}:
            raise _Refusal("header_not_valid")
        if colour == 3 and not palette:
            raise _Refusal("palette_missing")
        plain = depth == 8 and colour in {0, 2, 6} and not interlaced and frames == 1
        raw = self._inflated(idat, _png_bytes(width, height, depth * _CHANNELS[colour], bool(interlaced)))
        del idat  # it goes before the next copy of the pixels comes
        if plain:
            # OpenCV copies what ISA-L has inflated in half of the time that its own zlib takes.
            stored = _stored_png(self.data[8:33], raw)
            del raw
            return _Samples(_required(cv2.imdecode(np.frombuffer(stored, np.uint8), cv2.IMREAD_COLOR)), 8)
        del raw
        if depth == 16:
            return _Samples(self._sixteen_bits(), 16, frames)
        return _rgb_of(self.with_pillow("PNG"), frames)

    def _sixteen_bits(self) -> NDArray[Any]:
        flags = cv2.IMREAD_UNCHANGED | cv2.IMREAD_IGNORE_ORIENTATION
        image = _required(cv2.imdecode(np.frombuffer(self.data, np.uint8), flags))
        return image[:, :, :3] if image.ndim == 3 else image

    def _whole(self) -> tuple[bytes, int, bool]:
        """The compressed pixels, the number of frames, and whether there is a palette: every chunk was found whole."""
        idat, frames, palette, at, view = [], 1, False, len(_PNG), memoryview(self.data)
        while True:
            if at + 12 > len(self.data):
                raise _Refusal("cut_off")
            (length,) = struct.unpack_from(">I", self.data, at)
            end, kind = at + 8 + length, self.data[at + 4 : at + 8]
            if end + 4 > len(self.data):
                raise _Refusal("cut_off")
            if deflate.crc32(view[at + 4 : end]) != struct.unpack_from(">I", self.data, end)[0]:
                raise _Refusal(
                    "checksum_wrong",
                    kind=kind.decode("latin-1"),
                )
            if kind == b"CgBI":
                raise _Refusal("apples_png")
            if kind == b"acTL" and length >= 4:
                (frames,) = struct.unpack_from(">I", self.data, at + 8)
            palette |= kind == b"PLTE"
            if kind == b"IDAT":
                idat.append(self.data[at + 8 : end])
            if kind == b"IEND":
                return b"".join(idat), frames, palette
            at = end + 4

    @staticmethod
    def _inflated(idat: bytes, size: int) -> bytes:
        try:
            raw: bytes = deflate.decompress(idat, bufsize=size + 1)
        except (zlib.error, deflate.error) as err:
            raise _Refusal("pixels_damaged") from err
        if len(raw) < size:
            raise _Refusal("pixels_missing")
        return raw[:size]


def _png_bytes(width: int, height: int, bits: int, interlaced: bool) -> int:
    """Bytes of the rows of a PNG, each with its filter byte, of pixels of so many bits."""
    passes = [(-(-(width - x) // dx), -(-(height - y) // dy)) for x, y, dx, dy in _ADAM7]
    sizes = passes if interlaced else [(width, height)]
    return sum(rows * (1 + (cols * bits + 7) // 8) for cols, rows in sizes if cols > 0 and rows > 0)


def _stored_png(ihdr: bytes, raw: bytes) -> bytes:
    """A PNG of the rows `raw` whose zlib stream holds them as they are (RFC 1950 and 1951); `ihdr` is a whole chunk."""
    view = memoryview(raw)
    body: list[bytes | memoryview] = [b"\x78\x01"]
    for at in range(0, len(raw), 65535):
        block = view[at : at + 65535]
        body += [struct.pack("<BHH", at + 65535 >= len(raw), len(block), len(block) ^ 0xFFFF), block]
    body.append(struct.pack(">I", deflate.adler32(raw)))
    length, crc = 0, deflate.crc32(b"IDAT")
    for piece in body:
        length, crc = length + len(piece), deflate.crc32(piece, crc)
    end = b"\0\0\0\0IEND\xaeB`\x82"
    return b"".join((_PNG, ihdr, struct.pack(">I", length), b"IDAT", *body, struct.pack(">I", crc), end))


def _required(image: NDArray[Any] | None) -> NDArray[Any]:
    if image is None:
        raise _Refusal("pixels_not_understood")
    return image


class _Jpeg(_Reader):
    def header(self) -> Header:
        height, width, *_ = self._about()
        return Header(".jpg", width, height)

    def samples(self) -> _Samples:
        *_, colours, _ = self._about()
        four = colours in {"CMYK", "YCCK"}
        pixels = simplejpeg.decode_jpeg(self.data, "CMYK" if four else "BGR")  # a warning of libjpeg's is an error here
        _check_scans(self.data)
        if not four:
            return _Samples(pixels, 8, self._frames())
        del pixels
        return _rgb_of(self.with_pillow("JPEG"), self._frames())  # inverted or not as Adobe's marker says

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


def _segments(jpeg: bytes) -> Iterator[tuple[int, bytes]]:
    """The markers of a JPEG that have a body, with its body, up to the first picture's end."""
    at = 2
    while found := _MARKER.search(jpeg, at):
        marker, at = found[1][0], found.end()
        if marker == _END:
            return
        if marker not in {0x01, 0xD8}:
            (length,) = struct.unpack_from(">H", jpeg, at)
            yield marker, jpeg[at + 2 : at + length]
            at += length


def _check_process(jpeg: bytes) -> None:
    """Refuse in words what only some JPEG decoders know: 12 bits, lossless and hierarchical ones."""
    for marker, body in _segments(jpeg):
        if marker in _FRAMES:
            if body[0] != 8 or marker not in {0xC0, 0xC1, 0xC9, *_PROGRESSIVE}:
                raise _Refusal("jpeg_not_read", bits=body[0], process=f"SOF{marker - 0xC0}")
            return
        if marker in {_SCAN, _JPEG_LS}:
            raise _Refusal("jpeg_not_read", bits="?", process="?" if marker == _SCAN else "JPEG-LS")


def _check_scans(jpeg: bytes) -> None:
    """Refuse a JPEG with scans missing, which decodes without a warning: coarse, or without some of its colours.

    Each scan gives some coefficients of some components, in a progressive file bit by bit (ITU-T T.81, annex G).
    """
    missing: dict[int, list[bool]] = {}
    progressive = False
    for marker, body in _segments(jpeg):
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


class _Bmp(_Reader):
    def header(self) -> Header:
        return Header(".bmp", *self.with_pillow("BMP").size)

    def samples(self) -> _Samples:
        return _rgb_of(self.with_pillow("BMP"))


class _WebP(_Reader):
    def header(self) -> Header:
        (size,) = struct.unpack_from("<I", self.data, 4)
        if size + 8 > len(self.data):
            raise _Refusal("cut_off")
        kind, body = next(_chunks(self.data, 12))
        if kind == b"VP8X":
            width, height = (1 + int.from_bytes(body[at : at + 3], "little") for at in (4, 7))
        elif kind == b"VP8L":
            bits = int.from_bytes(body[1:5], "little")
            width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        else:
            width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", body, 6))
        return Header(".webp", width, height)

    def samples(self) -> _Samples:
        chunks = dict(reversed(list(_chunks(self.data, 12))))
        animated = b"ANMF" in chunks
        _check_used_up(dict(_chunks(chunks[b"ANMF"], 16)) if animated else chunks)
        if not animated:
            flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
            return _Samples(_required(cv2.imdecode(np.frombuffer(self.data, np.uint8), flags)), 8)
        image: Any = self.with_pillow("WEBP")
        return _rgb_of(image, int(getattr(image, "n_frames", 1)))


def _chunks(data: bytes, at: int) -> Iterator[tuple[bytes, bytes]]:
    """The kind and the body of each RIFF chunk from byte `at` on."""
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        yield data[at : at + 4], data[at + 8 : at + 8 + length]
        at += 8 + length + length % 2


def _check_used_up(chunks: Mapping[bytes, bytes]) -> None:
    """Refuse coded pixels that decode without their last bytes too.

    WebP has no checksums, and whatever stands in a chunk decodes to something. But what was damaged takes another
    number of bytes: it ends too early, or the decoder runs out of them.
    """
    kind = next(kind for kind in (b"VP8 ", b"VP8L") if kind in chunks)
    if kind == b"VP8L" and _ZEROED in chunks[kind]:
        raise _Refusal("data_damaged")
    body = chunks[kind][:-_SPARE]
    padded = body + b"\0" * (len(body) % 2)
    riff = b"WEBP" + kind + struct.pack("<I", len(body)) + padded
    try:
        imagecodecs.webp_decode(_RIFF + struct.pack("<I", len(riff)) + riff)
    except RuntimeError:
        return
    raise _Refusal("data_damaged")


class _Tiff(_Reader):
    """A TIFF, read by its tags (TIFF 6.0); tifffile unpacks and decompresses."""

    def header(self) -> Header:
        page, _ = self._page()
        return Header(".tif", page.imagewidth, page.imagelength)

    def samples(self) -> _Samples:
        page, frames = self._page()
        bits = self._bits(page)
        self._check_segments(page)
        colours = _COLOURS.get(int(page.photometric))
        if colours is None:
            raise _Refusal("colours_not_read",
                kind=getattr(page.photometric, "name", page.photometric),
            )  # fmt: skip
        values = page.asarray()
        values = np.moveaxis(values, 0, 2) if int(page.planarconfig) == 2 and values.ndim == 3 else values
        if values.shape[:2] != (page.imagelength, page.imagewidth) or values.ndim > 3:
            raise _Refusal("not_flat")
        one_sided = int(page.sampleformat) == 2 and int(values.min()) >= 0
        if int(page.sampleformat) == 2:
            values = values.astype(np.int64) + (1 << (bits - 1))
        values = values.astype(np.uint8 if bits <= 8 else np.uint16 if bits <= 16 else np.uint32, copy=False)
        return _Samples(*colours(page, values, bits), frames, one_sided)

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
        """Refuse what tifffile would fill with black: strips or tiles that are absent or end beyond the file."""
        per_plane = page.samplesperpixel if int(page.planarconfig) == 2 else 1
        if page.is_tiled:
            across, down = -(-page.imagewidth // page.tilewidth), -(-page.imagelength // page.tilelength)
            expected = across * down * per_plane
        else:
            expected = -(-page.imagelength // max(1, min(page.rowsperstrip, page.imagelength))) * per_plane
        kind = int(page.compression)
        if kind not in _TIFF_COMPRESSIONS:
            raise _Refusal("compression_not_read", kind=getattr(page.compression, "name", kind))
        if int(page.predictor) != 1 and kind not in _PREDICTED:
            raise _Refusal("header_not_valid")
        starts, counts = page.dataoffsets, page.databytecounts
        within = all(n > 0 and at > 0 and at + n <= len(self.data) for at, n in zip(starts, counts, strict=True))
        least = 0
        if kind == _NONE and not page.is_tiled:
            row = -(-page.imagewidth * self._bits(page) * (page.samplesperpixel // per_plane) // 8)
            least = row * page.imagelength * per_plane
        if len(starts) < expected or not within or sum(counts) < least:
            raise _Refusal("cut_off")
        if kind == _TIFF_JPEG:
            for at, n in zip(starts, counts, strict=True):
                self._check_jpeg(page, self.data[at : at + n])

    @staticmethod
    def _check_jpeg(page: tifffile.TiffPage, segment: bytes) -> None:
        tables = page.jpegtables
        whole = segment if tables is None else tables[:-2] + segment[2:]
        _check_process(whole)
        *_, colours, _ = simplejpeg.decode_jpeg_header(whole)
        simplejpeg.decode_jpeg(whole, colours if colours == "CMYK" else "GRAY")
        _check_scans(whole)


def _pages(tiff: tifffile.TiffFile) -> Iterator[tifffile.TiffPage]:
    for page in tiff.pages:
        yield page.aspage()


def _grey(page: tifffile.TiffPage, values: NDArray[Any], bits: int) -> tuple[NDArray[Any], int]:
    _expect(page, 1)
    grey = values if values.ndim == 2 else values[:, :, 0]
    if int(page.photometric) == 0:
        grey = np.asarray((1 << bits) - 1, values.dtype) - grey
    return grey, bits


def _rgb(page: tifffile.TiffPage, values: NDArray[Any], bits: int) -> tuple[NDArray[Any], int]:
    _expect(page, 3)
    return values[:, :, 2::-1], bits


def _palette(page: tifffile.TiffPage, values: NDArray[Any], bits: int) -> tuple[NDArray[Any], int]:
    _expect(page, 1)
    colours = page.colormap
    if colours is None or colours.shape[0] != 3 or colours.shape[1] < 1 << bits:
        raise _Refusal("palette_missing")
    index = values if values.ndim == 2 else values[:, :, 0]
    return (colours[::-1].T >> 8).astype(np.uint8)[index], 8


def _cmyk(page: tifffile.TiffPage, values: NDArray[Any], bits: int) -> tuple[NDArray[Any], int]:
    """Cyan, magenta, yellow, black: R = (1 − C) · (1 − K), and so on; no colour profile."""
    _expect(page, 4)
    inks = page.tags.get(332)
    if inks is not None and int(inks.value) != 1:
        raise _Refusal("inks_not_cmyk")
    bgr = np.empty((*values.shape[:2], 3), np.uint8)
    for rows in blocks(len(values), BLOCK_ROWS):
        own: NDArray[Any] = values[rows, :, :4]
        high = own * np.uint16(255) // ((1 << bits) - 1) if bits < 8 else own >> (bits - 8)
        left = 255 - high.astype(np.uint16)
        bgr[rows] = ((left[:, :, 2::-1] * left[:, :, 3:] + 127) // 255).astype(np.uint8)
    return bgr, 8


def _ycbcr(page: tifffile.TiffPage, values: NDArray[Any], bits: int) -> tuple[NDArray[Any], int]:
    """JPEG's own colours come out as RGB; of others, unsampled ones of 8 bits with BT.601's weights are read."""
    _expect(page, 3)
    if int(page.compression) == _TIFF_JPEG:
        return values[:, :, 2::-1], bits
    weights, subsampling = page.tags.get(529), page.tags.get(530)
    common = weights is None or np.allclose(np.asarray(weights.value, float).reshape(-1, 2)[:, 0], [299, 587, 114])
    full = subsampling is not None and tuple(subsampling.value) == (1, 1)
    if bits != 8 or not full or not common:
        raise _Refusal("ycbcr_not_read")
    return cv2.cvtColor(np.ascontiguousarray(values[:, :, [0, 2, 1]]), cv2.COLOR_YCrCb2BGR), 8


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

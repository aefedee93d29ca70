"""One file of several parts that goes from one machine to another: written whole, and checked whole before it is used.

It is a zip whose entries are not compressed: `manifest.json`, and the parts that it lists with their sizes and SHA-256.
The zip's comment is the SHA-256 of all that comes before it, so every changed byte is found. Nothing is unpacked by
name: parts are read into memory, each under a name that its reader asks for. A file that comes from elsewhere
therefore has no way out of a folder, and no part is larger than the file.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import stat
import struct
import tokenize
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import IO, Any, Literal

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from backend.base.arrays import reading_arrays
from backend.base.errors import BundleRefused
from backend.base.messages import Message, Phrase

Kind = Literal["bdix", "bdim"]

FORMAT = 1
MANIFEST = "manifest.json"
_SEAL = b"sha256:"
_SEALED = len(_SEAL) + 64
_NAME = re.compile(r"[a-z][a-z0-9_]{0,40}\.[a-z0-9]{1,8}")
_MOST_PARTS = 100
_MOST_JSON = 16 << 20
_MOST_OBJECTS = 250_000  # lists and objects of a JSON part: three bytes of text become a list of sixty
_DEEPEST = 32
_MOST_HEADER = 4096
_END = struct.Struct("<4s4H2LH")
# What zipfile, json, struct and NumPy's reader of headers raise on bytes that somebody changed with care.
_READ_ERRORS = (
    ValueError, LookupError, TypeError, EOFError, OSError, NotImplementedError, RuntimeError, MemoryError,
    OverflowError, RecursionError, SyntaxError, struct.error, tokenize.TokenError, zipfile.BadZipFile,
)  # fmt: skip


@dataclass(frozen=True)
class Bundle:
    """What a file held.

    Attributes:
        name: the file's name, for sentences.
        about: the manifest, without what is said of the parts.
        parts: the bytes of each part.
    """

    name: str
    about: dict[str, Any]
    parts: Mapping[str, bytes]

    def array(self, part: str) -> NDArray[Any]:
        """A part `*.npy` as an array of numbers, whose size is that of its bytes. Raises BundleRefused."""
        try:
            return _array(self.parts[part])
        except _READ_ERRORS as err:
            raise self.refused(Phrase("part_not_valid", {"part": part})) from err

    def json(self, part: str) -> dict[str, Any]:
        """A part `*.json`, which must be an object. Raises BundleRefused."""
        try:
            return _object(self.parts[part])
        except _READ_ERRORS as err:
            raise self.refused(Phrase("part_not_valid", {"part": part})) from err

    def refused(self, reason: Message) -> BundleRefused:
        """The error that says why this file is not taken."""
        return BundleRefused(name=self.name, reason=reason)


def write_bundle(file: IO[bytes], kind: Kind, about: Mapping[str, Any], parts: Mapping[str, bytes]) -> None:
    """Write the parts and their manifest. The same content gives the same bytes.

    Args:
        file: open for reading and writing.
        about: JSON values; what the reader is told beside the parts.
        parts: by name, such as `network.xml`.
    """
    listed = {name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in parts.items()}
    manifest = {**about, "kind": kind, "format": FORMAT, "parts": listed}
    whole = {MANIFEST: json.dumps(manifest, ensure_ascii=False, indent=2, allow_nan=False).encode(), **parts}
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as packed:
        for name, data in whole.items():
            packed.writestr(zipfile.ZipInfo(name), data)
        packed.comment = b"\0" * _SEALED
    end = file.seek(-_SEALED, io.SEEK_END)
    file.seek(0)
    digest = hashlib.sha256()
    while end > 0:
        piece = file.read(min(end, 1 << 20))
        digest.update(piece)
        end -= len(piece)
    file.write(_SEAL + digest.hexdigest().encode())


def read_bundle(data: bytes, kind: Kind, name: str) -> Bundle:
    """Check a file whole and read it.

    Args:
        name: the file's name, for sentences.

    Raises:
        BundleRefused: it is none of this kind, is newer than this version reads, is damaged, or was tampered with.
    """
    try:
        found = _read(data, kind)
        reason = found if isinstance(found, Message) else _contradiction(found, kind)
    except _READ_ERRORS as err:
        raise BundleRefused(name=name, reason=Phrase("bundle_damaged")) from err
    if reason is not None or isinstance(found, Message):
        raise BundleRefused(name=name, reason=reason)
    parts = {part: content for part, content in found.items() if part != MANIFEST}
    about = {field: value for field, value in _object(found[MANIFEST]).items() if field != "parts"}
    return Bundle(name, about, parts)


def npy_bytes(array: NDArray[Any]) -> bytes:
    """An array as the bytes of a .npy file."""
    file = io.BytesIO()
    npy.write_array(file, np.ascontiguousarray(array), allow_pickle=False)
    return file.getvalue()


def _read(data: bytes, kind: Kind) -> Message | dict[str, bytes]:
    """The bytes of each entry, or why the file is not taken."""
    if not data.startswith(b"PK\x03\x04"):
        return Phrase("not_a_bundle", {"kind": kind})
    if data[-_SEALED:] != _SEAL + hashlib.sha256(memoryview(data)[:-_SEALED]).hexdigest().encode():
        return Phrase("bundle_damaged")
    with zipfile.ZipFile(io.BytesIO(data)) as packed:
        entries = packed.infolist()
        if not _ends(data, len(entries)):
            return Phrase("bundle_damaged")
        reason = _tampered(entries, len(data))
        return reason or {entry.filename: packed.read(entry) for entry in entries}


def _ends(data: bytes, entries: int) -> bool:
    """Whether the zip's end says how many entries there are, and that its directory lies right before it."""
    at = len(data) - _SEALED - _END.size
    signature, *disks, on_disk, in_all, size, offset, comment = _END.unpack_from(data, at)
    whole = (signature, disks, comment) == (b"PK\x05\x06", [0, 0], _SEALED)
    return whole and on_disk == in_all == entries and offset + size == at


def _tampered(entries: list[zipfile.ZipInfo], size: int) -> Message | None:
    """What about the entries of a zip of `size` bytes this program would not have written, if anything."""
    names: set[str] = set()
    left = size
    for entry in entries:
        name, left = entry.filename, left - entry.file_size
        if not _NAME.fullmatch(name) or len(names) >= _MOST_PARTS:
            return Phrase("part_name_refused", {"part": _shown(name)})
        if name in names:
            return Phrase("part_twice", {"part": name})
        if stat.S_IFMT(entry.external_attr >> 16) not in {0, stat.S_IFREG}:
            return Phrase("part_no_file", {"part": name})
        stored = entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size
        if not stored or left < 0 or entry.flag_bits & 1:
            return Phrase("part_size_refused", {"part": name})
        names.add(name)
    return None


def _shown(name: str) -> str:
    """A name from elsewhere as a sentence may show it."""
    return name[:60].encode("unicode_escape").decode() or '""'


def _contradiction(found: Mapping[str, bytes], kind: Kind) -> Message | None:
    """What about the manifest and the parts does not fit each other, if anything."""
    if MANIFEST not in found:
        return Phrase("not_a_bundle", {"kind": kind})
    manifest = _object(found[MANIFEST])
    if manifest.get("kind") != kind:
        return Phrase("not_a_bundle", {"kind": kind})
    if manifest.get("format") != FORMAT:
        return Phrase("bundle_newer", {"format": str(manifest.get("format"))[:20]})
    listed = manifest["parts"]
    for name in sorted({*listed, *found} - {MANIFEST}):
        if name not in found or name not in listed:
            return Phrase("part_not_listed", {"part": _shown(name)})
        expected, data = listed[name], found[name]
        if expected["bytes"] != len(data) or expected["sha256"] != hashlib.sha256(data).hexdigest():
            return Phrase("part_not_valid", {"part": name})
    return None


def _object(data: bytes) -> dict[str, Any]:
    if len(data) > _MOST_JSON or data.count(b"[") + data.count(b"{") > _MOST_OBJECTS:
        raise ValueError("it holds more than a part of this kind can")
    value = json.loads(data.decode("utf-8"), parse_constant=_no_number)
    if not isinstance(value, dict) or _deeper(value, _DEEPEST):
        raise ValueError("it is no JSON object, or one that is nested deeply")
    return value


def _deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects lie in each other on more than so many levels."""
    if not isinstance(value, dict | list):
        return False
    return levels == 0 or any(
        _deeper(one, levels - 1) for one in (value.values() if isinstance(value, dict) else value)
    )


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def _array(data: bytes) -> NDArray[Any]:
    """The array of a .npy file. Raises ValueError unless it holds numbers and is as long as its shape says."""
    file = io.BytesIO(data)
    if npy.read_magic(file) != (1, 0):
        raise ValueError("it is no .npy file of version 1.0")
    with reading_arrays():
        shape, by_columns, dtype = npy.read_array_header_1_0(file, max_header_size=_MOST_HEADER)
    count = 1
    for side in shape:
        count *= side
    if by_columns or dtype.kind not in "fiub" or min(shape, default=0) < 0:
        raise ValueError(f"it holds {dtype}, which are no plain numbers")
    if count * dtype.itemsize != len(data) - file.tell():
        raise ValueError("its size is not what its shape says")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape).copy()

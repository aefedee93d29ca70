"""Files of a model or of an extractor that somebody damaged, by accident or with care: none of them may be taken."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.base.bundle import Kind, npy_bytes, read_bundle, write_bundle

TERABYTES = 7 << 40
TWENTY_MB = b"[" + b"[]," * (20 << 18) + b"0]"
ODD_NAMES = (
    b"../x.npy", b"../../../../tmp/x.npy", b"/etc/passwd", b"/tmp/x.npy", b"C:\\x.npy", b"C:/x.npy", b"\\\\host\\x.npy",
    b"a\\..\\x.npy", b"a/../../x.npy", b"x.npy\0.txt", b"\0", b"", b".", b"..", b"NUL", b"con.npy", b"x.npy:stream",
    b"a/", b"~/x.npy", b"x\n.npy", b"%2e%2e%2fx.npy", b"X.NPY", "ｘ.npy".encode(), "../ñ.npy".encode("latin-1"),
    b"a" * 60_000 + b".npy", b"calibration.json/x",
)  # fmt: skip


def entry(name: bytes, data: bytes, at: int, **own: Any) -> tuple[bytes, bytes]:
    """A stored entry of a zip at offset `at`, and its line in the directory, which may say what is not so.

    `own`: `method`, `flags`, `mode`, `claimed` (its size), `zip64` (its size, in the extra field), `crc`, `offset`.
    """
    claimed = own.get("claimed", len(data))
    extra = b"" if "zip64" not in own else struct.pack("<HHQQ", 1, 16, own["zip64"], own["zip64"])
    sizes = (claimed, claimed) if "zip64" not in own else (0xFFFFFFFF, 0xFFFFFFFF)
    crc = own.get("crc", zlib.crc32(data))
    what = (45, own.get("flags", 0), own.get("method", 0), 0, 33, crc, *sizes, len(name), len(extra))
    head = struct.pack("<4s5H3L2H", b"PK\x03\x04", *what)
    attributes = own.get("mode", 0o600) << 16
    line = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 45, *what, 0, 0, 0, attributes, own.get("offset", at))
    return head + name + extra + data, line + name + extra


def zipped(entries: list[tuple[bytes, bytes, dict[str, Any]]], *, count: int | None = None) -> bytes:
    """A zip of these entries with the seal that its bytes ask for."""
    body, lines = b"", b""
    for name, data, own in entries:
        here, line = entry(name, data, len(body), **own)
        body, lines = body + here, lines + line
    n = len(entries) if count is None else count
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, n, n, len(lines), len(body), 71)
    return sealed(body + lines + end)


def sealed(data: bytes) -> bytes:
    """`data`, which lacks its comment, with the seal that it asks for, as somebody who tampers would write it."""
    return data + b"sha256:" + hashlib.sha256(data).hexdigest().encode()


class Whole:
    """A file that is taken, from which the mutations come."""

    def __init__(self, data: bytes, kind: Kind) -> None:
        bundle = read_bundle(data, kind, "whole")
        self.data, self.kind = data, kind
        self.about = {name: value for name, value in bundle.about.items() if name not in {"kind", "format"}}
        self.parts = dict(bundle.parts)

    def bundled(self, about: Mapping[str, Any] | None = None, parts: Mapping[str, bytes] | None = None) -> bytes:
        """The file with other fields and parts, and whole in every other way."""
        file = io.BytesIO()
        write_bundle(file, self.kind, self.about if about is None else about, {**self.parts, **(parts or {})})
        return file.getvalue()

    def entries(self, manifest: bytes | None = None) -> list[tuple[bytes, bytes, dict[str, Any]]]:
        """The entries of the zip, for `zipped`."""
        listed = {
            name: {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()} for name, data in self.parts.items()
        }
        own = json.dumps({**self.about, "kind": self.kind, "format": 1, "parts": listed}).encode()
        whole = {"manifest.json": own if manifest is None else manifest, **self.parts}
        return [(name.encode(), data, {}) for name, data in whole.items()]

    def manifest(self, **changes: Any) -> bytes:
        return json.dumps({**json.loads(self.entries()[0][1]), **changes}).encode()


def mutations(whole: Whole, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    """What was done, and the file that it gave."""
    yield from _accidents(whole.data, rng)
    yield from _containers(whole)
    yield from _manifests(whole)
    for part in sorted(whole.parts):
        yield from _parts(whole, part)


def each(whole: Whole, step: int) -> Iterator[tuple[str, bytes]]:
    """Every `step`-th of the mutations, of which there are more than 200."""
    return islice(mutations(whole, np.random.default_rng(0)), 0, None, step)


def _accidents(data: bytes, rng: np.random.Generator) -> Iterator[tuple[str, bytes]]:
    for at in rng.integers(len(data), size=30):
        changed = bytearray(data)
        changed[at] ^= 1 << int(rng.integers(8))
        yield f"bit of byte {at}", bytes(changed)
        yield f"cut at {at}", data[:at]
    for at, size in zip(rng.integers(len(data), size=6), (1, 7, 100, 1000, 4096, 5000), strict=True):
        yield f"{size} zeros at {at}", data[:at] + bytes(size) + data[at + size :] + b"\0"
        yield f"{size} bytes missing at {at}", data[: at - size] + data[at:]
    yield from (("nothing", b""), ("its head", data[:4]), ("twice", data + data), ("a byte more", data + b"\0"))


def _containers(whole: Whole) -> Iterator[tuple[str, bytes]]:
    """Zips whose seal fits, and whose entries this program would not have written."""
    own, last = whole.entries(), len(whole.parts)

    def other(at: int, name: bytes | None = None, data: bytes | None = None, **said: Any) -> bytes:
        kept = own[at]
        renamed = (kept[0] if name is None else name, kept[1] if data is None else data, said)
        return zipped([*own[:at], renamed, *own[at + 1 :]])

    for name in ODD_NAMES:
        yield f"an entry more named {name[:20]!r}", zipped([*own, (name, b"x", {})])
    for name in ODD_NAMES[:8]:
        yield f"an entry renamed to {name!r}", other(last, name)
    for size in (1 << 31, 0xFFFFFFF0, len(own[last][1]) + 1, len(own[last][1]) - 1, 0):
        yield f"an entry of {size} bytes, it says", other(last, claimed=size)
    for size in (TERABYTES, 1 << 63, (1 << 64) - 1, 0):
        yield f"an entry of {size} bytes, it says in zip64", other(last, zip64=size)
    for mode in (0o120777, 0o040755, 0o020666, 0o060660, 0o010644, 0o140777):
        yield f"an entry of mode {mode:o}", other(last, mode=mode)
    yield "a link to the passwords", other(last, data=b"/etc/passwd", mode=0o120777)
    for method in (8, 9, 12, 14, 93, 99):
        yield f"an entry of method {method}", other(last, method=method)
    bomb = zlib.compress(bytes(1 << 22), 9)[2:-4]
    yield "a bomb", other(last, data=bomb, method=8, claimed=1 << 22)
    for flags in (1, 0x41, 0x2001):
        yield f"an entry with flags {flags:x}", other(last, flags=flags)
    yield "a wrong checksum", other(last, crc=1)
    yield "entries that overlap", other(last, offset=0)
    yield "an entry beyond the end", other(last, offset=0xFFFFFF00)
    for at in range(min(3, last + 1)):
        yield f"entry {at} twice", zipped([*own, own[at]])
        yield f"entry {at} missing", zipped(own[:at] + own[at + 1 :])
    yield "no entries", zipped([])
    yield "a thousand entries", zipped([*own, *((f"x{n}.npy".encode(), b"", {}) for n in range(1000))])
    yield "a claim of 65,535 entries", zipped(own, count=65_535)


def _manifests(whole: Whole) -> Iterator[tuple[str, bytes]]:
    """A seal that fits, and a manifest that does not."""
    text, first = whole.manifest(), next(iter(whole.parts))
    listed = json.loads(text)["parts"]

    def part(**said: Any) -> bytes:
        return whole.manifest(parts={**listed, first: {**listed[first], **said}})

    def with_more(value: bytes) -> bytes:
        return text[:-1] + b', "x": ' + value + b"}"

    texts = {
        "nothing": b"",
        "a list": b"[]",
        "a number": b"7",
        "no JSON": b"{",
        "two bytes a letter": text.decode().encode("utf-16"),
        "deep lists": b"[" * 100_000,
        "deep objects": b'{"a":' * 100_000,
        "600 objects in each other": with_more(json.dumps(nested(600)).encode()),
        "NaN": with_more(b"NaN"),
        "Infinity": with_more(b"-Infinity"),
        "a number of 5,000 digits": with_more(b"9" * 5000),
        "20 MB of lists": with_more(TWENTY_MB),
        "another kind": whole.manifest(kind="bdix" if whole.kind == "bdim" else "bdim"),
        "a newer format": whole.manifest(format=2),
        "the format as text": whole.manifest(format="1"),
        "no parts": whole.manifest(parts={}),
        "parts in a list": whole.manifest(parts=[*listed]),
        "a part's size as text": part(bytes="9"),
        "a part of terabytes": part(bytes=TERABYTES),
        "a part outside": whole.manifest(parts={**listed, "../x.npy": listed[first]}),
    }
    for said, other in texts.items():
        yield f"a manifest of {said}", zipped(whole.entries(other))
    odd_values: tuple[Any, ...] = (None, [[]], 1e308, -1, "", nested(600))
    for name in whole.about:
        kept = {field: value for field, value in whole.about.items() if field != name}
        yield f"{name} missing", whole.bundled(kept)
        for odd in odd_values:
            yield f"{name} of {str(odd)[:9]}", whole.bundled({**kept, name: odd})


def nested(depth: int) -> dict[str, Any]:
    """An object in an object in an object…"""
    value: dict[str, Any] = {}
    for _ in range(depth):
        value = {"a": value}
    return value


def npy(shape: str, kind: str = "<f4", data: bytes = bytes(64), version: bytes = b"\x01\x00") -> bytes:
    """A .npy file whose header says so."""
    header = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY" + version + struct.pack("<H", len(header)) + header + data


class _Run:
    """What a pickle would run."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, ("touch pickled",)


def _parts(whole: Whole, part: str) -> Iterator[tuple[str, bytes]]:
    """A part that is listed with its own digest, and is not what it should be."""
    data = whole.parts[part]
    made = {"nothing": b"", "rubbish": b"\xff" * 99, "a pickle": pickle.dumps(_Run()), "half": data[: len(data) // 2]}
    if part.endswith(".npy"):
        made |= _arrays(np.load(io.BytesIO(data)))
    if part.endswith(".json"):
        made |= {
            "a list": b"[]",
            "deep objects": b'{"a":' * 100_000,
            "600 objects in each other": json.dumps({**json.loads(data), "more": nested(600)}).encode(),
            "NaN": b'{"threshold": NaN}',
            "20 MB of lists": b'{"threshold": 1, "x": ' + TWENTY_MB + b"}",
            "no UTF-8": b'{"threshold": "\xff"}',
        }
    if part == "network.xml":
        made |= _networks(data)
    if part == "network.bin":
        made |= {"zeros": bytes(len(data)), "NaN": b"\xff" * len(data)}
    for said, other in made.items():
        yield f"{part} of {said}", whole.bundled(parts={part: other})


def _networks(xml: bytes) -> dict[str, bytes]:
    """OpenVINO's description of the network, changed."""
    changes = {
        "weights beyond the file": (rb'offset="\d+"', b'offset="%d"' % TERABYTES),
        "weights of terabytes": (rb' size="\d+"', b' size="%d"' % TERABYTES),
        "negative weights": (rb'offset="\d+"', b'offset="-5"'),
        "unknown layers": (rb'type="[A-Z]\w+"', b'type="Run"'),
        "a newer version": (rb'version="\d+"', b'version="99"'),
        "edges to nowhere": (rb'to-layer="\d+"', b'to-layer="77"'),
        "edges in a circle": (rb'from-layer="\d+"', b'from-layer="3"'),
        "no layers": (rb"<layer .*</layer>", b""),
    }
    made = {said: re.sub(pattern, new, xml, flags=re.DOTALL) for said, (pattern, new) in changes.items()}
    return {**made, "tags": b"<a>" * 100_000, "an entity": b'<!DOCTYPE a [<!ENTITY b "b">]><a>&b;</a>'}


def _arrays(array: NDArray[Any]) -> dict[str, bytes]:
    objects, archive = io.BytesIO(), io.BytesIO()
    np.save(objects, np.array([_Run()], dtype=object), allow_pickle=True)
    np.savez(archive, emb=array)
    made = {
        "pickled objects": objects.getvalue(),
        "an npz": archive.getvalue(),
        "texts": npy_bytes(np.array(["a", "b"])),
        "times": npy_bytes(np.array(["2020"], "M8[s]")),
        "complex numbers": npy_bytes(np.ones(8, complex)),
        "a row less": npy_bytes(array[:-1]),
        "no rows": npy_bytes(array[:0]),
        "a dimension more": npy_bytes(array[None]),
        "terabytes": npy(f"({TERABYTES},)"),
        "a negative shape": npy("(-1, -16)"),
        "nothing many times": npy(f"(0, {TERABYTES})", data=b""),
        "a program": npy("__import__('os').system('touch run')"),
        "another version": npy("(16,)", version=b"\x03\x00"),
        "raw bytes": npy("(16,)", "|V4"),
        "brackets": npy("(" * 60),
    }
    if array.dtype.kind == "f":
        for value in (np.nan, np.inf):
            changed = array.copy()
            changed.flat[0] = value
            made[f"a {value}"] = npy_bytes(changed)
    return made

"""Files of one machine on another: each damaged, tampered or newer one is refused in words."""

import hashlib
import io
import json
import re
import struct
import warnings
import zipfile

import numpy as np
import pytest

from backend.api.catalogue import sentence
from backend.base.bundle import npy_bytes, read_bundle, write_bundle
from backend.base.errors import BundleRefused

MUTATIONS = 200
PARTS = {"emb.npy": npy_bytes(np.arange(600, dtype=np.float32)), "calibration.json": b'{"threshold": 0.5}'}


def whole() -> bytes:
    file = io.BytesIO()
    write_bundle(file, "bdim", {"model": {"role_id": "A"}}, PARTS)
    return file.getvalue()


def sealed(data: bytes) -> bytes:
    """The file with the seal that its bytes ask for, as somebody who tampers would write it."""
    body = data[:-64]
    return body + hashlib.sha256(body[:-7]).hexdigest().encode()


def rewritten(entries: list[tuple[str, bytes]], method: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", method) as packed, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the duplicate name that is meant here
        for name, data in entries:
            packed.writestr(zipfile.ZipInfo(name), data, compress_type=method)
        packed.comment = b"sha256:" + b"0" * 64
    return sealed(file.getvalue())


def manifest(**changes: object) -> bytes:
    with zipfile.ZipFile(io.BytesIO(whole())) as packed:
        return json.dumps({**json.loads(packed.read("manifest.json")), **changes}).encode()


def entries(**changes: object) -> list[tuple[str, bytes]]:
    return [("manifest.json", manifest(**changes)), *PARTS.items()]


def claiming(size: int) -> bytes:
    """The file whose central directory says that its second entry has so many bytes (4 GB at most without zip64)."""
    data = bytearray(whole())
    at = [found.start() for found in re.finditer(b"PK\x01\x02", data)][1]
    struct.pack_into("<2L", data, at + 20, size, size)
    return sealed(bytes(data))


def refusal(data: bytes) -> str:
    with pytest.raises(BundleRefused) as caught:
        read_bundle(data, "bdim", "line.bdim")
    for language in ("es", "en"):
        said = sentence(caught.value, language)
        assert "line.bdim" in said and "?" not in said
    return sentence(caught.value, "en")


def test_a_whole_file_gives_its_parts_back_and_is_the_same_each_time() -> None:
    bundle = read_bundle(whole(), "bdim", "line.bdim")
    assert bundle.about["model"] == {"role_id": "A"}
    np.testing.assert_array_equal(bundle.array("emb.npy"), np.arange(600, dtype=np.float32))
    assert bundle.json("calibration.json") == {"threshold": 0.5}
    assert whole() == whole()


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "no .bdim file"),
        (b"PK\x03\x04", "damaged"),
        (rewritten([*entries(), ("../x.npy", b"x")]), "may be named ../x.npy"),
        (rewritten([*entries(), ("/etc/x.npy", b"x")]), "may be named /etc/x.npy"),
        (rewritten([*entries(), ("a\\x.npy", b"x")]), "may be named"),
        (rewritten([*entries(), ("emb.npy", PARTS["emb.npy"])]), "two of its parts are named emb.npy"),
        (rewritten([*entries(), ("more.npy", b"x")]), "more.npy is missing or not in its manifest"),
        (rewritten(entries()[:-1]), "calibration.json is missing or not in its manifest"),
        (rewritten([*entries()[:-1], ("calibration.json", b"{}")]), "calibration.json is not valid"),
        (rewritten(entries(), zipfile.ZIP_DEFLATED), "is not what it says"),
        (rewritten(entries(format=2)), "format 2"),
        (rewritten(entries(kind="bdix")), "no .bdim file"),
        (rewritten(entries(parts=[])), "is missing or not"),
        (rewritten([("manifest.json", b"[" * 5000), *PARTS.items()]), "damaged"),
        (claiming(0xFFFFFFF0), "is not what it says"),
        (claiming(10), "damaged"),
    ],
)  # fmt: skip
def test_what_was_tampered_with_is_refused_although_its_seal_fits(data: bytes, said: str) -> None:
    assert said in refusal(data)


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776,)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-600,)}",
        "{'descr': '|O', 'fortran_order': False, 'shape': (300,)}",
        "{'descr': '<U600', 'fortran_order': False, 'shape': (1,)}",
        "__import__('os').abort()",
    ],
)
def test_an_array_is_numbers_as_many_as_its_bytes(header: str) -> None:
    text = header.encode().ljust(117) + b"\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(2400)
    file = io.BytesIO()
    write_bundle(file, "bdim", {}, {"emb.npy": data})
    bundle = read_bundle(file.getvalue(), "bdim", "line.bdim")
    with pytest.raises(BundleRefused):
        bundle.array("emb.npy")


def test_every_flipped_bit_and_every_cut_is_noticed() -> None:
    rng, data = np.random.default_rng(0), whole()
    for number in range(MUTATIONS):
        changed = bytearray(data)
        at = int(rng.integers(len(data)))
        changed[at] ^= 1 << int(rng.integers(8))
        assert refusal(bytes(changed)), number
        assert refusal(data[:at]), number

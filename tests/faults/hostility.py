"""Requests that mean no good, as the bytes that go over the wire."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import numpy as np
from PIL import Image

from tests.parts import encoded, part

Rng = np.random.Generator
GOOD = encoded(part(5))
FORMS = [encoded(part(5), form) for form in ("PNG", "JPEG", "BMP", "TIFF", "WEBP")]
IDS = [
    "",
    " ",
    "..",
    "../../etc/passwd",
    "a/b",
    "a\\b",
    "C:\\x",
    "CON",
    "nul.txt",
    "a\0b",
    "a\nb",
    "x" * 70,
    "x" * 5000,
    "recipes",
    "datasets",
    "盤",
    "é",
    "🙂",
    "a\u202eb",
    "%2e%2e",
    "${HOME}",
    "'; drop table",
    "Master1",
    ".hidden",
    "trailing.",
    "\ud7ff",
]
SHAPES = [
    "{",
    "[]",
    "null",
    "1",
    '"circle"',
    '{"kind":"circle"}',
    '{"kind":"circle","cx":1e400,"cy":0,"r":1}',
    "[" * 20_000,
    '{"kind":"rect","x":-1e18,"y":-1e18,"w":1e19,"h":1e19}',
    '{"kind":"circle","cx":NaN,"cy":0,"r":5}',
    '{"kind":"blob"}',
    '{"kind":"annulus","cx":5,"cy":5,"r":1,"r_inner":9}',
    '{"kind":"rect","x":"0","y":[],"w":{},"h":null}',
    '{"kind":{"a":1}}',
    '{"kind":"circle","cx":1e308,"cy":-1e308,"r":1e308}',
    '{"kind":"rect","x":0,"y":0,"w":1e-300,"h":5}',
    "\ufeff{}",
]
NUMBERS = ["0", "-1", "nan", "inf", "1e400", "1e-400", "", "0x10", "1_000", "٣", "9" * 400, "0,2", "null", "0.2", "1e6"]
JUNK_JSON = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"\xff\xfe",
    b"[" * 100_000,
    b'{"a":' * 5_000,
    b'{"role_id":' + b"9" * 5_000 + b"}",
    b'{"role_id":"\\ud800","roi_id":"\\udfff","mm_per_px":1,"ok_scores":[1]}',
    b"\0" * 64,
    b"\xef\xbb\xbf{}",
    b'{"role_id":NaN}',
    b'{"role_id":"a","roi_id":"b","mm_per_px":1,"ok_scores":[1e999]}',
    b'{"role_id":"a","roi_id":"b","mm_per_px":"1","ok_scores":[' + b"1," * 9_000 + b"1]}",
    b'{"role_id":"a","roi_id":"b","mm_per_px":1,"ok_scores":[-1]}',
    b'{"role_id":"a","roi_id":"b","mm_per_px":1,"ok_scores":{"0":1}}',
]
ROUTES = [
    "/infer",
    "/fit_ok",
    "/calibrate_ng",
    "/health",
    "/livez",
    "/readyz",
    "/metrics",
    "/docs",
    "/openapi.json",
    "/",
]


def request(method: str, path: str, body: bytes = b"", *headers: str, length: int | None = None) -> bytes:
    """An HTTP/1.1 request; `length` lies about the body's."""
    head = [f"{method} {path} HTTP/1.1", "Host: localhost", "Connection: close", *headers]
    if body or length is not None:
        head.append(f"Content-Length: {len(body) if length is None else length}")
    return "\r\n".join(head).encode("utf-8", "surrogatepass") + b"\r\n\r\n" + body


def multipart(parts: list[tuple[str, str | None, bytes]]) -> bytes:
    """A form body with the boundary `x`; a part with a file name is a file."""
    lines = []
    for name, filename, data in parts:
        named = f'Content-Disposition: form-data; name="{name}"' + (f'; filename="{filename}"' if filename else "")
        lines.append(b"--x\r\n" + named.encode("utf-8", "surrogatepass") + b"\r\n\r\n" + data + b"\r\n")
    return b"".join(lines) + b"--x--\r\n"


MULTIPART = "Content-Type: multipart/form-data; boundary=x"


def form(
    image: bytes = GOOD, *, role: str = "Master1", shape: str | None = None, mm: str = "0.2", name: str = "image"
) -> bytes:
    parts: list[tuple[str, str | None, bytes]] = [
        ("role_id", None, role.encode("utf-8", "surrogatepass")),
        ("roi_id", None, b"hostile"),
        ("mm_per_px", None, mm.encode()),
        (name, "part.png", image),
    ]
    return multipart(parts + ([("shape", None, shape.encode())] if shape is not None else []))


def mutated(rng: Rng, data: bytes) -> bytes:
    """`data` with bytes flipped, cut out, doubled or put in, or cut off."""
    out = bytearray(data)
    for _ in range(int(rng.integers(1, 12))):
        if not out:
            break
        at, size = int(rng.integers(len(out))), int(rng.integers(1, 64))
        kind = int(rng.integers(5))
        if kind == 0:
            out[at] = int(rng.integers(256))
        elif kind == 1:
            del out[at : at + size]
        elif kind == 2:
            out[at:at] = out[at : at + size]
        elif kind == 3:
            out[at:at] = rng.bytes(size)
        else:
            del out[at:]
    return bytes(out)


def png_of(width: int, height: int, data: bytes) -> bytes:
    """A PNG whose header says (width, height), grey, with `data` for pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bomb(side: int) -> bytes:
    """A black square PNG of `side`² pixels in a few kilobytes."""
    buffer = io.BytesIO()
    Image.new("L", (side, side)).save(buffer, "PNG", compress_level=9)
    return buffer.getvalue()


HEAVY = {
    "bomb": bomb(7_000),
    "parts": multipart([("a", None, b"")] * 100_000),
    "files": multipart([("images", "a", b"")] * 20_000),
}


def choose(rng: Rng, options: list[str]) -> str:
    return options[int(rng.integers(len(options)))]


def noise(rng: Rng) -> bytes:
    return rng.bytes(int(rng.integers(1, 2_000))) + b"\r\n\r\n"


def junk_path(rng: Rng) -> bytes:
    path = (
        "/" + quote(rng.bytes(int(rng.integers(0, 60))))
        if rng.random() < 0.5
        else quote(choose(rng, IDS).encode("utf-8", "replace"))
    )
    return request(
        choose(rng, ["GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PROPFIND", "X" * 30]), "/" + path.lstrip("/")
    )


def junk_method(rng: Rng) -> bytes:
    return request(choose(rng, ["BREW", "TRACE", "CONNECT", "PATCH", "G" * 40]), choose(rng, ROUTES), rng.bytes(20))


def header_flood(rng: Rng) -> bytes:
    count, size = ((300, 500), (5_000, 8), (1, 200_000))[int(rng.integers(3))]
    return request("GET", "/health", b"", *[f"X-{n}: {'a' * size}" for n in range(count)])


def odd_headers(rng: Rng) -> bytes:
    values = [
        "Accept-Language: " + choose(rng, ["*;q=9", "es;q=x", ",,,", "en;q=1e999", "x" * 4_000]),
        "X-Request-Id: " + choose(rng, ["a b", "\x7f", "é", "x" * 4_000]),
        "X-Recipe-Id: " + choose(rng, ["last", "../x", "Ñ", "x" * 500, ""]),
        "Authorization: Bearer",
        "Origin: null",
        "Transfer-Encoding: identity",
        "Content-Type: application/json; charset=utf-99",
        "Content-Type: multipart/form-data",
        "Content-Type: multipart/form-data; boundary=",
        "Range: bytes=-1",
        "Upgrade: websocket",
        "Expect: 100-continue",
        "Cookie: " + "a=b;" * 500,
        "Forwarded: for=;;;",
        "Content-Encoding: gzip",
        "Connection: upgrade",
        "Accept: " + "," * 500,
    ]
    chosen = [choose(rng, values) for _ in range(3)]
    return request(choose(rng, ["GET", "POST"]), choose(rng, ROUTES), form(), *chosen)


def junk_json(rng: Rng) -> bytes:
    body = JUNK_JSON[int(rng.integers(len(JUNK_JSON)))]
    return request("POST", "/calibrate_ng", body, "Content-Type: application/json")


def odd_json(rng: Rng) -> bytes:
    odd: list[Any] = [
        None,
        True,
        -1,
        0,
        1e308,
        10**30,
        "x",
        "",
        [],
        {},
        [[]],
        ["a"],
        [None],
        [1e-320],
        {"a": {"b": []}},
        "9" * 300,
    ]
    names = [
        "role_id",
        "roi_id",
        "mm_per_px",
        "ok_scores",
        "ng_scores",
        "area_mm2_thr",
        "score_percentile",
        "recipe_id",
    ]
    given = {"role_id": "Master1", "roi_id": "hostile", "mm_per_px": 0.2, "ok_scores": [0.2]}
    given |= {choose(rng, names): odd[int(rng.integers(len(odd)))] for _ in range(2)}
    return request("POST", "/calibrate_ng", json.dumps(given).encode(), "Content-Type: application/json")


def odd_form(rng: Rng) -> bytes:
    body = form(
        FORMS[int(rng.integers(len(FORMS)))],
        role=choose(rng, IDS),
        shape=choose(rng, SHAPES) if rng.random() < 0.5 else None,
        mm=choose(rng, NUMBERS),
    )
    return request("POST", "/infer", body, MULTIPART)


def odd_shape(rng: Rng) -> bytes:
    return request(
        "POST", "/infer", form(role="Honest", shape=choose(rng, SHAPES)).replace(b"hostile", b"part"), MULTIPART
    )


def broken_form(rng: Rng) -> bytes:
    return request("POST", choose(rng, ["/infer", "/fit_ok"]), mutated(rng, form()), MULTIPART)


def broken_image(rng: Rng) -> bytes:
    image = mutated(rng, FORMS[int(rng.integers(len(FORMS)))])
    if rng.random() < 0.5:
        return request("POST", "/infer", form(image, role="Honest").replace(b"hostile", b"part"), MULTIPART)
    return request("POST", "/fit_ok", form(image, name="images"), MULTIPART)


def huge_image(rng: Rng) -> bytes:
    width, height = ((60_000, 60_000), (2**31 - 1, 2**31 - 1), (1, 2**30), (0, 0), (100_000, 30))[int(rng.integers(5))]
    image = png_of(width, height, zlib.compress(b"\0" * 10_000))
    return request("POST", "/infer", form(image, role="Honest").replace(b"hostile", b"part"), MULTIPART)


def lying_length(rng: Rng) -> bytes:
    body = form()
    length = (len(body) + 500, max(1, len(body) - 500), 10**15, 0)[int(rng.integers(4))]
    return request("POST", "/infer", body, MULTIPART, length=length)


def smuggled(rng: Rng) -> bytes:
    odd = [
        "Content-Length: 5\r\nContent-Length: 6",
        "Transfer-Encoding: chunked\r\nContent-Length: 5",
        "Content-Length: -5",
        "Content-Length: 5x",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
        "Content-Length:\t5",
        "Content-Length: 99999999999999999999",
    ]
    body = (b"5\r\nhello\r\n0\r\n\r\n", b"FFFFFFFF\r\nx", b"-1\r\n\r\n", b"hello", rng.bytes(40))[int(rng.integers(5))]
    head = f"POST /infer HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{MULTIPART}\r\n{choose(rng, odd)}\r\n\r\n"
    return head.encode() + body


def other_kinds(rng: Rng) -> bytes:
    kinds = ["application/x-www-form-urlencoded", "text/plain", "application/xml", "multipart/mixed; boundary=x"]
    kind = choose(rng, [*kinds, 'a/b; c="d'])
    body = (b"role_id=a&roi_id=b&mm_per_px=1&image=x", b"a=1&" * 5_000, b"%ff%zz=%", rng.bytes(300))[
        int(rng.integers(4))
    ]
    return request("POST", choose(rng, ["/infer", "/fit_ok", "/calibrate_ng"]), body, f"Content-Type: {kind}")


def big_field(rng: Rng) -> bytes:
    parts: list[tuple[str, str | None, bytes]] = [("role_id", None, b"a" * int(rng.integers(1, 3 * 2**20)))]
    return request("POST", "/infer", multipart(parts), MULTIPART)


def heavy(rng: Rng) -> bytes:
    kind = choose(rng, ["bomb", "parts", "files"])
    if kind == "bomb":
        return request("POST", "/infer", form(HEAVY["bomb"], role="Honest").replace(b"hostile", b"part"), MULTIPART)
    return request("POST", "/fit_ok", HEAVY[kind], MULTIPART)


KINDS: dict[Callable[[Rng], bytes], float] = {
    noise: 4,
    junk_path: 8,
    junk_method: 3,
    header_flood: 2,
    odd_headers: 8,
    junk_json: 6,
    odd_json: 8,
    odd_form: 10,
    odd_shape: 8,
    broken_form: 12,
    broken_image: 16,
    huge_image: 4,
    lying_length: 0.5,
    smuggled: 2,
    other_kinds: 5,
    big_field: 0.4,
    heavy: 0.05,
}


def hostile(rng: Rng) -> tuple[str, bytes]:
    """One request and what kind it is."""
    weights = np.array(list(KINDS.values()))
    make = list(KINDS)[int(rng.choice(len(KINDS), p=weights / weights.sum()))]
    return make.__name__, make(rng)

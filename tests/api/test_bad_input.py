import json
import re
import socket
import struct
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from backend.app import create_app
from backend.extractors.texture import TextureFeatures
from tests.api.service import FORM, GOOD, IDS, calibrate, client_of, fit, infer, served
from tests.parts import encoded, part, quick_settings, tree

ERROR_FIELDS = {"error", "trace", "code", "request_id", "detail"}
MB = 2**20


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def huge_png(side: int = 30_000) -> bytes:
    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(10_000))) + chunk(b"IEND", b"")
    )


IMAGES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "empty_file"),
    "text": (b"this is no image", "unreadable_image"),
    "truncated png": (GOOD[: len(GOOD) // 2], "unreadable_image"),
    "truncated jpeg": (encoded(part(1), "JPEG")[:900], "unreadable_image"),
    "1x1": (encoded(np.zeros((1, 1), np.uint8)), "image_too_small"),
    "30000x30000": (huge_png(), "image_too_large"),
    "gif": (encoded(part(1), "GIF"), "unreadable_image"),
}
SHAPES = {
    "not json": ("{kind: circle}", "shape_not_json"),
    "a list": ("[]", "shape_not_json"),
    "deep": ("[" * 50_000, "shape_not_json"),
    "unknown kind": ('{"kind":"star"}', "shape_unknown_kind"),
    "outside": ('{"kind":"rect","x":500,"y":500,"w":9,"h":9}', "mask_empty"),
    "covers nothing": ('{"kind":"circle","cx":5.5,"cy":5.5,"r":0.1}', "mask_empty"),
    "inverted annulus": ('{"kind":"annulus","cx":48,"cy":48,"r":10,"r_inner":10}', "shape_inverted"),
    "nan": ('{"kind":"circle","cx":NaN,"cy":1,"r":1}', "shape_bad_number"),
    "missing r": ('{"kind":"circle","cx":1,"cy":1}', "shape_bad_number"),
}
BAD_IDS = ["../x", "..", "CON", "x" * 300, "a\0b", "a/b", "a\\b", "recipes", ".hidden", "a:b"]
BAD_SCALES = ["0", "-1", "nan", "NaN", "inf", "abc", "1e999", "0,2"]
BAD_SCORES: dict[str, dict[str, Any]] = {
    "no ok": {"ok_scores": []},
    "ok missing": {"ok_scores": None},
    "ok text": {"ok_scores": ["a"]},
    "ok negative": {"ok_scores": [-1]},
    "percentile 0": {"score_percentile": 0},
    "percentile 101": {"score_percentile": 101},
    "mm_per_px 0": {"mm_per_px": 0},
    "mm_per_px negative": {"mm_per_px": -0.1},
    "mm_per_px text": {"mm_per_px": "wide"},
    "area negative": {"area_mm2_thr": -1},
    "role a number": {"role_id": 7},
    "role a surrogate": {"role_id": "\ud800"},
    "role up a folder": {"role_id": "../x"},
    "roi a device": {"roi_id": "NUL"},
    "roi with nul": {"roi_id": "a\0b"},
    "recipe reserved": {"recipe_id": "last"},
    "ng not a list": {"ng_scores": 0.5},
}


def refused(answer: Any, code: str | None = None, status: int | None = None) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(answer.text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert 400 <= answer.status_code < 500, body
    assert status in (None, answer.status_code)
    assert body.keys() == ERROR_FIELDS and body["trace"] is None
    assert code in (None, body["code"])
    assert body["error"] and len(body["error"]) < 1500
    return body


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_that_cannot_be_used(unchanged: TestClient, kind: str) -> None:
    data, code = IMAGES[kind]
    refused(infer(unchanged, data), code, 400)
    files = [("images", ("good.png", GOOD)), ("images", ("culprit.png", data))]
    body = refused(unchanged.post("/fit_ok", data=FORM, files=files), code, 400)
    assert "culprit.png" in body["error"]


def test_zero_images(unchanged: TestClient) -> None:
    refused(unchanged.post("/fit_ok", data=FORM, files={"other": b"x"}), "no_images", 400)
    refused(unchanged.post("/fit_ok", data=FORM), "no_images", 400)
    refused(unchanged.post("/infer", data=FORM, files={"images": GOOD}), "validation_error", 422)


def test_two_grids_in_one_fit(unchanged: TestClient) -> None:
    files = [("images", ("a.png", GOOD)), ("images", ("wide.png", encoded(part(1, height=96, width=200))))]
    body = refused(unchanged.post("/fit_ok", data=FORM, files=files), "token_grid_mismatch", 400)
    assert "Token grid mismatch: got (5, 12), expected (8, 8)" in body["error"] and "wide.png" in body["error"]


@pytest.mark.parametrize("value", BAD_SCALES)
def test_a_scale_that_is_no_positive_number(unchanged: TestClient, value: str) -> None:
    for answer in (fit(unchanged, mm_per_px=value), infer(unchanged, mm_per_px=value)):
        body = refused(answer, "validation_error", 422)
        assert body["detail"][0]["loc"] == ["body", "mm_per_px"] and "mm_per_px" in body["error"]


@pytest.mark.parametrize("kind", SHAPES)
def test_a_shape_that_makes_no_sense(unchanged: TestClient, kind: str) -> None:
    shape, code = SHAPES[kind]
    refused(infer(unchanged, shape=shape), code, 400)


@pytest.mark.parametrize("value", BAD_IDS)
def test_an_id_that_is_no_name(unchanged: TestClient, value: str) -> None:
    choices: list[dict[str, Any]] = [{"role_id": value}, {"roi_id": value}]
    for ids in choices:
        for answer in (fit(unchanged, **ids), infer(unchanged, **ids), calibrate(unchanged, **ids)):
            body = refused(answer, "invalid_id", 400)
            assert next(iter(ids)) in body["error"]


@pytest.mark.parametrize("kind", BAD_SCORES)
def test_scores_that_make_no_sense(unchanged: TestClient, kind: str) -> None:
    body = {**IDS, "mm_per_px": 0.2, "ok_scores": [0.2], **BAD_SCORES[kind]}
    refused(unchanged.post("/calibrate_ng", content=json.dumps(body), headers={"Content-Type": "application/json"}))


RAW_JSON = {
    "nan": '{"role_id":"Master1","roi_id":"Pattern","mm_per_px":0.2,"ok_scores":[NaN]}',
    "infinity": '{"role_id":"Master1","roi_id":"Pattern","mm_per_px":Infinity,"ok_scores":[0.1]}',
    "too large": '{"role_id":"Master1","roi_id":"Pattern","mm_per_px":1,"ok_scores":[1e999]}',
    "many digits": '{"role_id":"Master1","roi_id":"Pattern","mm_per_px":' + "9" * 5000 + ',"ok_scores":[1]}',
    "cut off": '{"role_id": "Master1",',
    "deep": "[" * 200_000,
    "deep object": '{"ok_scores":' * 100_000,
    "text": "hello",
    "list": "[1]",
    "null": "null",
    "nothing": "",
    "binary": "\x00\x01",
}


@pytest.mark.parametrize("kind", RAW_JSON)
def test_json_that_is_none_or_no_calibration(unchanged: TestClient, kind: str) -> None:
    headers = {"Content-Type": "application/json"}
    refused(unchanged.post("/calibrate_ng", content=RAW_JSON[kind].encode(), headers=headers))


SAID = [
    ('{"role_id": "Master1",', "no es JSON", "is not JSON"),
    ("hello", "no es JSON", "is not JSON"),
    ("[1]", "debe ser un objeto JSON", "must be a JSON object"),
    ("null", "debe ser un objeto JSON", "must be a JSON object"),
    ('{"role_id": "Master1"}', "roi_id: falta", "roi_id: is missing"),
    ('{"role_id": 7}', "role_id: debe ser un texto", "role_id: must be text"),
    ('{"mm_per_px": 0}', "mm_per_px: debe ser mayor que 0", "mm_per_px: must be greater than 0"),
    ('{"mm_per_px": "x"}', "mm_per_px: debe ser un número", "mm_per_px: must be a number"),
    ('{"ok_scores": [NaN]}', "ok_scores[0]: debe ser un número finito", "ok_scores[0]: must be a finite number"),
    ('{"ok_scores": []}', "ok_scores: debe tener 1 o más valores", "ok_scores: must have 1 or more values"),
    ('{"ng_scores": 3}', "ng_scores: debe ser una lista", "ng_scores: must be a list"),
    ('{"score_percentile": 101}', "score_percentile: debe ser 100 o menos", "score_percentile: must be 100 or less"),
]


@pytest.mark.parametrize(("content", "spanish", "english"), SAID)
def test_what_is_wrong_with_a_calibration_is_said_in_either_language(
    unchanged: TestClient, content: str, spanish: str, english: str
) -> None:
    for language, words in (("es", spanish), ("en", english)):
        headers = {"Content-Type": "application/json", "Accept-Language": language}
        body = refused(unchanged.post("/calibrate_ng", content=content, headers=headers), "validation_error", 422)
        assert words in body["error"]
        assert not re.search("Input should|Field required|List should|decode error", body["error"])


@pytest.mark.parametrize("content_type", ["", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"])
def test_json_under_another_name_is_told_what_its_name_is(unchanged: TestClient, content_type: str) -> None:
    content = json.dumps({**IDS, "mm_per_px": 0.2, "ok_scores": [0.2]})
    headers = {"Content-Type": content_type} if content_type else {}
    body = refused(unchanged.post("/calibrate_ng", content=content, headers=headers), "validation_error", 422)
    assert "Content-Type: application/json" in body["error"]


FORMS: list[tuple[dict[str, str], str]] = [
    ({"mm_per_px": "-1"}, "mm_per_px: debe ser mayor que 0"),
    ({"mm_per_px": "nan"}, "mm_per_px: debe ser un número finito"),
    ({"memory_fit": "perhaps"}, "memory_fit: debe ser true o false"),
    ({"images": "roi.png"}, "images[0]: debe ser un fichero"),
]


@pytest.mark.parametrize(("form", "words"), FORMS)
def test_what_is_wrong_with_a_form_is_said_in_spanish(unchanged: TestClient, form: dict[str, str], words: str) -> None:
    answer = unchanged.post("/fit_ok", data={**FORM, **form}, files={"x": b""})
    assert words in refused(answer, "validation_error", 422)["error"]


def test_not_a_number_is_a_422_with_a_valid_body(unchanged: TestClient) -> None:
    answer = unchanged.post("/calibrate_ng", content=RAW_JSON["nan"], headers={"Content-Type": "application/json"})
    body = refused(answer, "validation_error", 422)
    assert body["detail"][0]["loc"] == ["body", "ok_scores", 0]


def test_json_in_another_encoding_is_refused(unchanged: TestClient) -> None:
    for content in ('{"role_id": "ñ"}'.encode("latin-1"), b"\xff\xfe\xfa"):
        refused(unchanged.post("/calibrate_ng", content=content, headers={"Content-Type": "application/json"}))


BODIES: dict[str, tuple[str, bytes]] = {
    "no type": ("", b"x"),
    "text": ("text/plain", b"role_id=Master1"),
    "json": ("application/json", json.dumps({**IDS, "mm_per_px": 1}).encode()),
    "no boundary": ("multipart/form-data", b"--x\r\n\r\n--x--"),
    "empty boundary": ("multipart/form-data; boundary=", b"--\r\n"),
    "wrong boundary": (
        "multipart/form-data; boundary=other",
        b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n1\r\n--x--",
    ),
    "cut off": ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data; name=role_id\r\n\r\nMas"),
    "no name": ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\n1\r\n--x--\r\n"),
    "no disposition": ("multipart/form-data; boundary=x", b"--x\r\n\r\n1\r\n--x--\r\n"),
    "empty": ("multipart/form-data; boundary=x", b""),
    "urlencoded": ("application/x-www-form-urlencoded", b"role_id=Master1&roi_id=Pattern&mm_per_px=1&image=abc"),
    "urlencoded images": (
        "application/x-www-form-urlencoded",
        b"role_id=Master1&roi_id=Pattern&mm_per_px=1&images=abc",
    ),
    "strange charset": (
        "multipart/form-data; boundary=x; charset=klingon",
        b"--x\r\nContent-Disposition: form-data; name=role_id\r\n\r\n\xff\r\n--x--\r\n",
    ),
    "another multipart": ("multipart/mixed; boundary=x", b"--x--"),
}


@pytest.mark.parametrize("kind", BODIES)
@pytest.mark.parametrize("path", ["/infer", "/fit_ok"])
def test_a_body_that_is_no_form(unchanged: TestClient, path: str, kind: str) -> None:
    content_type, body = BODIES[kind]
    refused(unchanged.post(path, content=body, headers={"Content-Type": content_type} if content_type else {}))


def test_an_image_sent_as_text(unchanged: TestClient) -> None:
    refused(unchanged.post("/infer", data={**FORM, "image": "roi.png"}, files={"x": b""}), "validation_error", 422)
    refused(unchanged.post("/fit_ok", data={**FORM, "images": "roi.png"}, files={"x": b""}), "validation_error", 422)


def test_a_file_sent_where_text_belongs(unchanged: TestClient) -> None:
    files = [("role_id", ("a.txt", b"Master1")), ("image", ("a.png", GOOD))]
    refused(
        unchanged.post("/infer", data={"roi_id": "Pattern", "mm_per_px": "1"}, files=files), "validation_error", 422
    )


def test_missing_fields_are_named(unchanged: TestClient) -> None:
    for field in FORM:
        form = {name: value for name, value in FORM.items() if name != field}
        body = refused(unchanged.post("/infer", data=form, files={"image": GOOD}), "validation_error", 422)
        assert field in body["error"] and [e["loc"][-1] for e in body["detail"]] == [field]
    body = refused(unchanged.post("/infer", data={}, files={"image": GOOD}), "validation_error", 422)
    assert all(field in body["error"] for field in FORM)


def test_an_image_without_a_name_is_still_an_image_or_refused(fitted: TestClient) -> None:
    answer = fitted.post("/infer", data=FORM, files={"image": ("", GOOD)})
    assert answer.status_code in (200, 422)
    assert answer.json()


def test_a_field_sent_twice_is_refused(fitted: TestClient) -> None:
    body = b"".join(
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in [*FORM.items(), ("role_id", "../x")]
    )
    body += b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + GOOD + b"\r\n--x--\r\n"
    answer = fitted.post("/infer", content=body, headers={"Content-Type": "multipart/form-data; boundary=x"})
    refused(answer, "field_twice")


def test_a_field_too_long_to_be_one(unchanged: TestClient) -> None:
    answer = unchanged.post("/infer", data={**FORM, "shape": "x" * (2 * MB)}, files={"image": GOOD})
    refused(answer, status=400 if answer.status_code == 400 else 413)
    answer = unchanged.post("/fit_ok", data={f"f{n}": "1" for n in range(3000)}, files={"images": GOOD})
    refused(answer, "bad_request", 400)


def test_a_heatmap_that_does_not_exist(unchanged: TestClient) -> None:
    assert "relative" in refused(infer(unchanged, heatmap="rainbow"), "invalid_value", 400)["error"]


def test_infer_before_fit(client: TestClient, tmp_path: Path) -> None:
    refused(infer(client), "memory_not_found", 400)
    refused(calibrate(client), "memory_not_found", 400)
    assert tree(tmp_path) == {}


def test_infer_with_another_grid(unchanged: TestClient) -> None:
    refused(infer(unchanged, encoded(part(1, height=96, width=200))), "token_grid_mismatch", 400)


def test_infer_with_another_extractor(fitted: TestClient, tmp_path: Path) -> None:
    other = TextureFeatures(112)
    other.fingerprint = "other"
    before = tree(tmp_path)
    with client_of(create_app(quick_settings(tmp_path), other)) as client:
        refused(infer(client), "extractor_mismatch", 400)
        refused(calibrate(client), "extractor_mismatch", 400)
    assert tree(tmp_path) == before


def test_a_damaged_file_is_a_500_that_names_it(fitted: TestClient, tmp_path: Path) -> None:
    path = tmp_path / "models" / "Master1" / "Pattern" / "memory.npz"
    path.write_bytes(path.read_bytes()[:-100])
    answer = infer(fitted, headers={"Accept-Language": "en"})
    assert answer.status_code == 500 and answer.json()["code"] == "artifact_damaged"
    assert "models/Master1/Pattern/memory.npz" in answer.json()["error"] and "the learning" in answer.json()["error"]
    assert fit(fitted).status_code == 200 and infer(fitted).status_code == 200


@pytest.mark.parametrize("text", ["", "{", '{"threshold": null}', '{"threshold": -1}', '{"threshold": NaN}'])
@pytest.mark.parametrize("path", ["/calibrate_ng", "/calibrate_dataset"])
def test_a_damaged_calibration_is_named_until_a_new_one_replaces_it(
    fitted: TestClient, tmp_path: Path, path: str, text: str
) -> None:
    (tmp_path / "models" / "Master1" / "Pattern" / "calib.json").write_text(text, "utf-8")
    answer = infer(fitted)
    assert answer.status_code == 500 and answer.json()["code"] == "artifact_damaged"
    assert "models/Master1/Pattern/calib.json" in answer.json()["error"]
    assert "repite la calibración" in answer.json()["error"]
    body = {**IDS, "mm_per_px": 0.2, "ok_scores": [0.2, 0.21]} if path == "/calibrate_ng" else IDS
    answer = fitted.post(path, json=body)
    assert answer.status_code == 200 and answer.json()["threshold"] > 0
    assert infer(fitted).json()["threshold"] == answer.json()["threshold"]


def test_a_memory_whose_extra_arrays_do_not_fit_is_a_500_that_names_it(fitted: TestClient, tmp_path: Path) -> None:
    path = tmp_path / "models" / "Master1" / "Pattern" / "memory.npz"
    with np.load(path) as npz:
        arrays = dict(npz)
    for extra in (
        {"whiten": np.eye(3, dtype=np.float32)},
        {"widths": np.array([1, 2])},
        {"emb": arrays["emb"].astype(str)},
    ):
        np.savez(path, **{**arrays, **extra})
        answer = infer(fitted)
        assert answer.status_code == 500 and answer.json()["code"] == "artifact_damaged"
        assert "memory.npz" in answer.json()["error"]


# --- sizes; MAX_UPLOAD_MB is 1 and MAX_REQUEST_MB 4 in the app of these tests


def test_a_file_over_the_limit(unchanged: TestClient) -> None:
    big = GOOD + bytes(MB)
    body = refused(infer(unchanged, big), "file_too_large", 413)
    assert "roi.png" in body["error"] and "MAX_UPLOAD_MB" in body["error"]
    files = [("images", ("good.png", GOOD)), ("images", ("big.png", big))]
    assert "big.png" in refused(unchanged.post("/fit_ok", data=FORM, files=files), "file_too_large", 413)["error"]


def test_a_request_over_the_limit(unchanged: TestClient) -> None:
    files = [("images", (f"{n}.png", GOOD + bytes(MB - 50_000))) for n in range(6)]
    body = refused(unchanged.post("/fit_ok", data=FORM, files=files), "request_too_large", 413)
    assert "MAX_REQUEST_MB" in body["error"]


def test_a_json_body_over_the_limit(unchanged: TestClient) -> None:
    body = {**IDS, "mm_per_px": 1, "ok_scores": [0.5] * 1_500_000}
    refused(unchanged.post("/calibrate_ng", json=body), "request_too_large", 413)


def chunked(port: int, path: str, head: bytes, total_mb: float) -> tuple[bytes, float]:
    """Send a chunked multipart body of `total_mb` as long as the service reads it: its answer, and the MB taken."""
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(
            f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nTransfer-Encoding: chunked\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode()
        )
        blob = bytes(64 * 1024)
        try:
            connection.sendall(f"{len(head):x}\r\n".encode() + head + b"\r\n")
            while sent < total_mb * MB:
                connection.sendall(f"{len(blob):x}\r\n".encode() + blob + b"\r\n")
                sent += len(blob)
        except (BrokenPipeError, ConnectionResetError):
            pass
        else:
            connection.sendall(b"0\r\n\r\n")
        answer = b""
        try:
            while part_of := connection.recv(65_536):
                answer += part_of
                if answer.partition(b"\r\n\r\n")[2].count(b"}"):
                    break
        except ConnectionResetError:
            pass
    return answer, sent / MB


FILE_PART = (
    b"--x\r\nContent-Disposition: form-data; name=role_id\r\n\r\nMaster1\r\n"
    b"--x\r\nContent-Disposition: form-data; name=image; filename=big.png\r\n\r\n"
)


def test_an_oversized_chunked_upload_is_refused_while_it_streams_and_not_stored(
    app: FastAPI, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    real = tempfile.SpooledTemporaryFile.write

    def counted(self: Any, data: bytes) -> int:
        written.append(len(data))
        return int(real(self, data))

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "write", counted)
    with served(app) as port:
        answer, _ = chunked(port, "/infer", FILE_PART, 20)
        assert answer.startswith(b"HTTP/1.1 413") and b"file_too_large" in answer
        assert sum(written) <= 1.1 * MB
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    assert tree(tmp_path) == {}


def test_an_endless_upload_is_cut_off(app: FastAPI) -> None:
    with served(app) as port:
        _, sent = chunked(port, "/infer", FILE_PART, 400)
        assert sent < 150
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200


def test_who_asks_before_sending_too_much_is_told_at_once(app: FastAPI) -> None:
    with served(app) as port, socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(
            f"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: {5 * MB}\r\nExpect: 100-continue\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode()
        )
        assert connection.recv(4096).startswith(b"HTTP/1.1 413")


def test_who_asks_before_sending_something_fitting_is_answered(app: FastAPI) -> None:
    with served(app) as port, socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        body = FILE_PART + b"\r\n--x--\r\n"
        connection.sendall(
            f"POST /infer HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\nExpect: 100-continue\r\n"
            "Content-Type: multipart/form-data; boundary=x\r\n\r\n".encode()
        )
        assert connection.recv(25) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(body)
        assert connection.recv(4096).startswith(b"HTTP/1.1 422")


def test_no_temporary_file_outlives_its_request(
    fitted: TestClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Any] = []
    real = tempfile.SpooledTemporaryFile.__init__

    def remembered(self: Any, *args: Any, **kwargs: Any) -> None:
        opened.append(self)
        real(self, *args, **kwargs)

    monkeypatch.setattr(tempfile.SpooledTemporaryFile, "__init__", remembered)
    calls: list[Callable[[], Any]] = [
        lambda: infer(fitted),
        lambda: infer(fitted, b"junk"),
        lambda: infer(fitted, GOOD + bytes(MB)),
        lambda: fit(fitted),
        lambda: infer(fitted, role_id="../x"),
        lambda: fitted.post("/infer", data={}, files={"image": GOOD}),
        lambda: fitted.post(
            "/fit_ok", content=FILE_PART + b"cut off", headers={"Content-Type": "multipart/form-data; boundary=x"}
        ),
    ]
    for call in calls:
        call()
    assert len(opened) >= 9 and all(file.closed for file in opened)

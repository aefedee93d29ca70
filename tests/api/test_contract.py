import base64
import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from backend.app import create_app
from backend.extractors.texture import TextureFeatures
from backend.extractors.weights import torch_installed
from tests.api.service import BAD, FORM, GOOD, IDS, Client, calibrate, client_of, fit, infer, served, until_ready
from tests.parts import EXTRACTOR, FormPart, dotnet, encoded, part, picture_part, quick_settings, text_parts

FIELDS = text_parts(FORM)
ERROR_FIELDS = {"error", "trace", "code", "request_id", "detail"}


def send(client: Client, path: str, parts: Sequence[FormPart]) -> Any:
    headers, body = dotnet(parts)
    return client.post(path, content=body, headers=headers)


def test_the_stations_requests_work_byte_for_byte(either: Client) -> None:
    fitted = send(either, "/fit_ok", [*FIELDS, *(picture_part("images", n) for n in range(3))])
    assert fitted.status_code == 200, fitted.text
    assert fitted.json()["n_images"] == 3 and fitted.json()["n_embeddings"] == 192
    scores = [infer(either, encoded(part(n))).json()["score"] for n in range(20, 24)]
    calibration = calibrate(either, ok_scores=scores, ng_scores=None).json()
    shape = text_parts({"shape": '{"kind":"circle","cx":48,"cy":48,"r":46}'})
    answer = send(either, "/infer", [*FIELDS, picture_part("image", 41, defect=True), *shape])
    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert said["decision"] == "ng" and said["score"] > said["threshold"] == calibration["threshold"]
    assert said["regions"] and said["heatmap_png_base64"].startswith("iVBORw0K")
    good = send(either, "/infer", [*FIELDS, picture_part("image", 20)]).json()
    assert good["score"] == scores[0] and good["score"] < said["score"]


def test_the_request_is_what_the_design_says_it_is() -> None:
    headers, body = dotnet([*text_parts({"role_id": "Master1"}), picture_part("images", 1)])
    assert headers["Content-Type"] == 'multipart/form-data; boundary="00000000-0000-0000-0000-000000000007"'
    assert body.startswith(
        b"--00000000-0000-0000-0000-000000000007\r\nContent-Type: text/plain; charset=utf-8\r\n"
        b"Content-Disposition: form-data; name=role_id\r\n\r\nMaster1\r\n--"
    )
    assert b"form-data; name=images; filename=SAMPLE_1.png; filename*=utf-8''SAMPLE_1.png\r\n" in body


@pytest.mark.parametrize(
    ("filename", "star"),
    [
        ("pieza.png", "pieza%20n%C2%BA1.png"),
        ('"=?utf-8?B?cGllw6dhLnBuZw==?="', "pie%C3%A7a.png"),
        ('"with space.png"', "with%20space.png"),
        ('"a;b.png"', "a%3Bb.png"),
    ],
)
def test_file_names_of_any_language_arrive(client: TestClient, filename: str, star: str) -> None:
    image = FormPart("images", GOOD, "image/png", filename, star)
    answer = send(client, "/fit_ok", [*FIELDS, image])
    assert answer.status_code == 200 and answer.json()["n_images"] == 1


def test_a_file_named_only_by_the_extended_name_is_a_file(client: TestClient) -> None:
    send(client, "/fit_ok", [*FIELDS, picture_part("images", 1)])
    headers, body = dotnet([*FIELDS, FormPart("image", b"no image", "image/png", "PLAIN", "pie%C3%A7a.png")])
    body = body.replace(b"; filename=PLAIN", b"")
    assert b"; filename=" not in body and b"; filename*=utf-8''" in body
    headers["Content-Length"] = str(len(body))
    answer = client.post("/infer", content=body, headers=headers)
    assert answer.json()["code"] == "unreadable_image" and "pieça.png" in answer.json()["error"]


def test_ids_of_any_script_arrive_as_utf8(client: TestClient) -> None:
    fields = text_parts({"role_id": "Máster ñ", "roi_id": "盤", "mm_per_px": "0.2"})
    assert send(client, "/fit_ok", [*fields, picture_part("images", 1)]).json()["roi_id"] == "盤"
    assert send(client, "/infer", [*fields, picture_part("image", 1)]).json()["role_id"] == "Máster ñ"


def number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def string(value: Any) -> bool:
    return isinstance(value, str)


def texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(string, value))


def pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(integer, value))


def numbers(value: Any) -> bool:
    return isinstance(value, dict) and all(map(number, value.values()))


WHOSE = {"role_id": string, "roi_id": string, "recipe_id": string, "request_id": string}


def has_types(body: dict[str, Any], types: dict[str, Any]) -> None:
    assert body.keys() == types.keys()
    wrong = {name: body[name] for name, fits in types.items() if not fits(body[name])}
    assert wrong == {}


def test_health_has_its_fields(client: TestClient) -> None:
    types = dict.fromkeys(
        ["status", "device", "model", "version", "runtime", "precision", "request_id", "recipe_id"], string
    )
    of_the_resnet18_api = {"img_size": integer, "knn_k": integer, "threshold": number, "ignore_border_pct": number}
    until_ready(client)
    body = client.get("/health").json()
    assert body.pop("roi_path") is None
    assert body.pop("may_change") is True
    has_types(body, {**types, **of_the_resnet18_api})
    assert body["model"] == EXTRACTOR["model_name"]


def test_fit_ok_has_its_fields(client: TestClient) -> None:
    has_types(
        fit(client).json(),
        {
            **WHOSE,
            "n_embeddings": integer,
            "coreset_size": integer,
            "token_shape": pair,
            "coreset_rate_requested": number,
            "coreset_rate_applied": number,
            "n_images": integer,
            "radius": number,
            "model_version": string,
            "generation": string,
            "suspects": lambda v: v == [],
            "timings_ms": numbers,
            "warnings": texts,
        },
    )


CALIBRATION = {
    **WHOSE,
    **dict.fromkeys(["threshold", "p99_ok", "mm_per_px", "area_mm2_thr", "ok_mean"], number),
    "score_percentile": integer,
    "n_ok": integer,
    "n_ng": integer,
    "rule": string,
    "false_reject": lambda v: isinstance(v, dict),
    "warnings": texts,
}


@pytest.mark.parametrize("ng", [{}, {"ng_scores": None}, {"ng_scores": []}])
def test_calibrate_ng_without_bad_parts_leaves_their_mean_out(client: TestClient, ng: dict[str, Any]) -> None:
    fit(client)
    has_types(calibrate(client, **ng).json(), {**CALIBRATION, "p5_ng": lambda value: value is None})


def test_calibrate_ng_with_bad_parts_has_all_its_fields(client: TestClient) -> None:
    fit(client)
    body = calibrate(client, ok_scores=[0.1, 0.2], ng_scores=[0.5], area_mm2_thr=3, score_percentile=95).json()
    has_types(body, {**CALIBRATION, "p5_ng": number, "ng_mean": number, "misses": numbers})
    assert (body["area_mm2_thr"], body["score_percentile"], body["p5_ng"], body["n_ng"]) == (3, 95, 0.5, 1)
    assert body["threshold"] == pytest.approx((0.195 + 0.5) / 2)


INFERENCE = {
    **WHOSE,
    "inspection_id": string,
    "score": number,
    "heatmap_png_base64": string,
    "heatmap_range": lambda v: len(v) == 2 and all(map(number, v)),
    "regions": lambda v: isinstance(v, list),
    "area_resolution_mm2": number,
    "token_shape": pair,
    "stats": numbers,
    "inference_ms": number,
    "timings_ms": numbers,
    "params": lambda v: isinstance(v, dict),
    "warnings": texts,
}
AREAS = ["area_px", "area_mm2", "area_mm2_estimate"]
RARITY = {"p_value": number, "ok_as_high": integer, "n_ok": integer}
PARAMS = {
    **dict.fromkeys(["extractor", "score_method", "model_version", "device", "runtime"], string),
    **dict.fromkeys(["input_size", "patch_size", "k"], integer),
    **dict.fromkeys(
        ["coreset_rate", "coreset_rate_applied", "score_percentile", "blur_sigma", "mm_per_px", "area_mm2_thr"], number
    ),
}


def test_infer_before_calibration_has_a_null_threshold_and_no_decision(client: TestClient) -> None:
    fit(client)
    body = infer(client).json()
    has_types(body, {**INFERENCE, "threshold": lambda v: v is None, "is_anomaly": lambda v: v is None})
    has_types(body["params"], PARAMS)


def test_infer_after_calibration_has_a_verdict_and_regions(fitted: TestClient) -> None:
    body = infer(fitted, BAD).json()
    is_bool = lambda value: isinstance(value, bool)  # noqa: E731
    has_types(body, {**INFERENCE, "threshold": number, "is_anomaly": is_bool, "decision": string, **RARITY})
    assert (body["is_anomaly"], body["decision"]) == (True, "ng")
    outline = {**dict.fromkeys(["x", "y", "w", "h"], integer), **dict.fromkeys(AREAS, number)}
    for region in body["regions"]:
        has_types(
            region,
            {
                **outline,
                "bbox": lambda v: len(v) == 4 and all(map(integer, v)),
                "contour": lambda v: len(v) > 0 and all(map(pair, v)),
            },
        )
        assert region["bbox"] == [region[name] for name in "xywh"]
    areas = [region["area_px"] for region in body["regions"]]
    assert areas == sorted(areas, reverse=True)
    assert infer(fitted, encoded(part(0))).json()["decision"] == "ok"


@pytest.mark.parametrize(
    ("scale", "shape"), [("", (96, 96)), ("relative", (96, 96)), ("ABSOLUTE ", (96, 96)), ("color", (96, 96, 3))]
)
def test_the_heatmap_is_a_png_of_the_rois_size(fitted: TestClient, scale: str, shape: tuple[int, ...]) -> None:
    body = infer(fitted, BAD, heatmap=scale).json()
    png = np.frombuffer(base64.b64decode(body["heatmap_png_base64"]), np.uint8)
    image: Any = cv2.imdecode(png, cv2.IMREAD_UNCHANGED)
    assert image.shape == shape and image.dtype == np.uint8
    assert infer(fitted, heatmap="none").json()["heatmap_png_base64"] == ""


def test_a_fit_again_is_a_newer_version(client: TestClient) -> None:
    first, second = fit(client).json(), fit(client).json()
    assert first["generation"] != second["generation"]
    assert first["model_version"].split(".")[1] == "1" and second["model_version"].split(".")[1] == "2"


@pytest.mark.parametrize(
    ("accept", "language"),
    [
        (None, "es"),
        ("en", "en"),
        ("en-GB,en;q=0.9", "en"),
        ("es-ES, en; q=0.8", "es"),
        ("fr-FR, en; q=0.5", "en"),
        ("fr", "es"),
        ("*", "es"),
        ("en;q=0", "es"),
        ("en;q=0.2,es;q=0.9", "es"),
        ("en;q=nan", "es"),
        ("en;q=x", "es"),
        (";;,,q=", "es"),
        ("EN-us", "en"),
    ],
)
def test_sentences_are_in_the_language_asked_for(client: TestClient, accept: str | None, language: str) -> None:
    headers = {} if accept is None else {"Accept-Language": accept}
    answer = infer(client, headers=headers)
    phrase = {"es": "Memoria no encontrada", "en": "Memory not found"}[language]
    assert phrase in answer.json()["error"] and answer.headers["content-language"] == language
    fit(client)
    (warning,) = infer(client, headers=headers).json()["warnings"]
    assert warning.startswith({"es": "Sin calibrar", "en": "Not calibrated"}[language])


def test_the_station_recognises_a_model_that_was_not_fitted(client: TestClient) -> None:
    answer = infer(client)
    assert answer.status_code == 400 and answer.json().keys() == ERROR_FIELDS
    assert "Memoria no encontrada" in answer.json()["error"]
    assert answer.json()["trace"] is None and answer.json()["detail"] == answer.json()["error"]


def test_ids_of_a_request_are_accepted_and_returned(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    logging.getLogger("backend").propagate = True
    with caplog.at_level(logging.INFO, "backend.access"):
        answer = client.get("/health", headers={"X-Correlation-Id": "corr-1", "X-Request-Id": "req-1"})
    assert (answer.headers["x-correlation-id"], answer.headers["x-request-id"]) == ("corr-1", "req-1")
    assert answer.json()["request_id"] == "req-1"
    assert "GET /health -> 200" in caplog.text
    only = client.get("/health", headers={"X-Correlation-Id": "corr-2"})
    assert only.headers["x-request-id"] == only.headers["x-correlation-id"] == "corr-2"


@pytest.mark.parametrize("value", ["a b", "Line 7; part 3", "x" * 256, "<script>", "a;b", '{"a": "b"}', "~!#%"])
@pytest.mark.parametrize("header", ["X-Request-Id", "X-Correlation-Id"])
def test_an_id_of_printable_characters_comes_back_as_it_was_sent(client: TestClient, header: str, value: str) -> None:
    answer = client.get("/health", headers={header: value})
    assert answer.headers[header] == value == answer.json()["request_id"]


@pytest.mark.parametrize(
    "value", [b"", b" ", b"x" * 257, b"a\tb", b"a\x0bb", b"a\x1b[31mb", b"a\x7fb", "ñ".encode(), b"a\xa0b"]
)
@pytest.mark.parametrize("header", ["X-Request-Id", "X-Correlation-Id"])
def test_an_unfit_request_id_is_replaced(client: TestClient, header: str, value: bytes) -> None:
    answer = client.get("/health", headers=[(header.encode(), value)])
    assert (
        re.fullmatch("[0-9a-f]{32}", answer.headers[header]) and answer.headers[header] == answer.json()["request_id"]
    )


def test_errors_carry_the_request_id(client: TestClient) -> None:
    answer = infer(client, headers={"X-Request-Id": "mine"})
    assert answer.json()["request_id"] == answer.headers["x-request-id"] == "mine"
    assert client.get("/nowhere", headers={"X-Request-Id": "mine"}).json()["request_id"] == "mine"


@pytest.mark.parametrize("path", ["/health", "/fit_ok", "/calibrate_ng", "/infer"])
def test_options_tells_that_a_route_exists(client: TestClient, path: str) -> None:
    answer = client.options(path)
    assert answer.status_code not in (404, 500)
    if answer.status_code == 405:
        assert answer.json().keys() == ERROR_FIELDS and answer.headers["allow"]


def test_unknown_paths_and_methods_have_the_error_body(client: TestClient) -> None:
    missing = client.get("/nowhere", headers={"Accept-Language": "en"})
    assert (
        missing.status_code == 404 and missing.json()["code"] == "not_found" and "/nowhere" in missing.json()["error"]
    )
    wrong = client.get("/infer")
    assert (
        wrong.status_code == 405 and wrong.json()["code"] == "method_not_allowed" and wrong.headers["allow"] == "POST"
    )
    assert client.options("/nowhere").status_code == 404


def test_recipes_come_as_a_field_or_a_header(client: TestClient) -> None:
    assert fit(client, recipe_id="Night").json()["recipe_id"] == "night"
    assert infer(client, recipe_id="night").status_code == 200
    assert infer(client, headers={"X-Recipe-Id": "night"}).json()["recipe_id"] == "night"
    assert infer(client).json()["code"] == "memory_not_found"
    assert calibrate(client, recipe_id="night").json()["recipe_id"] == "night"
    assert client.get("/health", headers={"X-Recipe-Id": "NIGHT"}).json()["recipe_id"] == "night"
    for answer in (infer(client, recipe_id="last"), client.get("/health", headers={"X-Recipe-Id": "a b"})):
        assert answer.status_code == 400 and answer.json()["code"] == "invalid_recipe"


def test_the_stations_extra_fields_are_let_through(client: TestClient) -> None:
    assert fit(client, model_key="Pattern", memory_fit="false", use_dataset="false", unknown="x").status_code == 200
    assert infer(client, model_key="Pattern").status_code == 200
    assert calibrate(client, model_key="Pattern", unknown=1).status_code == 200


STRANGERS = [
    (("192.168.0.7", 1), {}),
    (("::2", 1), {}),
    (("127.0.0.1", 1), {"X-Forwarded-For": "127.0.0.1"}),
    (("127.0.0.1", 1), {"X-Forwarded-Host": "a"}),
    (("127.0.0.1", 1), {"Forwarded": "for=127.0.0.1"}),
    (("127.0.0.1", 1), {"X-Real-IP": "10.0.0.1"}),
    (("127.0.0.1", 1), {"Via": "1.1 proxy"}),
]
NEIGHBOURS = [("127.0.0.1", 1), ("127.8.9.1", 1), ("::1", 1), ("::ffff:127.0.0.1", 1)]


@pytest.mark.parametrize(("address", "headers"), STRANGERS)
def test_without_keys_strangers_are_refused(app: FastAPI, address: tuple[str, int], headers: dict[str, str]) -> None:
    with client_of(app, address) as client:
        answer = client.get("/health", headers=headers)
    assert answer.status_code == 403 and answer.json()["code"] == "loopback_only"
    assert answer.json().keys() == ERROR_FIELDS and answer.headers["x-request-id"]


@pytest.mark.parametrize("address", NEIGHBOURS)
def test_without_keys_this_machine_is_served(app: FastAPI, address: tuple[str, int]) -> None:
    with client_of(app, address) as client:
        assert client.get("/health").status_code == 200


def test_strangers_are_served_when_that_is_allowed(tmp_path: Path) -> None:
    with client_of(create_app(quick_settings(tmp_path, allow_insecure=True)), ("10.0.0.9", 1)) as client:
        assert client.get("/health", headers={"X-Forwarded-For": "1.2.3.4"}).status_code == 200


def test_keys_are_asked_of_everybody_once_there_are_any(tmp_path: Path) -> None:
    digest = "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b"  # of "secret"
    settings = quick_settings(tmp_path, api_keys=("plain", f"sha256:{digest}"))
    for address in (("127.0.0.1", 1), ("10.0.0.9", 1)):
        with client_of(create_app(settings), address) as client:
            for headers in (
                {},
                {"X-API-Key": "wrong"},
                {"X-API-Key": digest},
                {"Authorization": "Basic plain"},
                {"X-API-Key": ""},
            ):
                answer = client.get("/health", headers=headers)
                assert answer.status_code == 401 and answer.json()["code"] == "unauthorized"
                assert answer.headers["www-authenticate"] == "Bearer"
            for headers in (
                {"X-API-Key": "plain"},
                {"X-API-Key": "secret"},
                {"Authorization": "Bearer secret"},
                {"Authorization": "bearer plain"},
            ):
                assert client.get("/health", headers=headers).status_code == 200


def test_other_web_pages_may_not_call_unless_named(tmp_path: Path) -> None:
    with client_of(create_app(quick_settings(tmp_path))) as client:
        assert client.get("/health", headers={"Origin": "http://testserver"}).status_code == 200
        refused = client.get("/health", headers={"Origin": "https://evil.example"})
        assert refused.status_code == 403 and refused.json()["code"] == "origin_refused"
    with client_of(create_app(quick_settings(tmp_path, cors_origins=("https://line.example",)))) as client:
        answer = client.get("/health", headers={"Origin": "https://line.example"})
        assert answer.headers["access-control-allow-origin"] == "https://line.example"
        assert client.get("/health", headers={"Origin": "https://evil.example"}).status_code == 403


class Broken(TextureFeatures):
    def extract(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        if images[0].any():
            raise RuntimeError("a secret path")
        return super().extract(images)


def test_what_nobody_foresaw_is_a_500_with_a_trace_for_this_machine_only(tmp_path: Path) -> None:
    for given, address, traced in (
        ({}, ("127.0.0.1", 1), True),
        ({"allow_insecure": True}, ("10.0.0.9", 1), False),
        ({"allow_insecure": True, "expose_traces": True}, ("10.0.0.9", 1), True),
    ):
        app = create_app(quick_settings(tmp_path, **given), Broken(112))
        with client_of(app, address) as client:
            answer = fit(client)
            assert answer.status_code == 500 and answer.json()["code"] == "internal_error"
            assert answer.json().keys() == ERROR_FIELDS
            assert answer.json()["request_id"] in answer.json()["error"]
            assert ("a secret path" in (answer.json()["trace"] or "")) is traced
            assert "a secret path" not in answer.json()["error"]
            assert client.get("/health").status_code == 200


def test_contract_only_leaves_the_four_routes_and_docs(tmp_path: Path) -> None:
    with client_of(create_app(quick_settings(tmp_path, contract_only=True))) as client:
        paths = client.get("/openapi.json").json()["paths"]
        assert set(paths) == {"/health", "/fit_ok", "/calibrate_ng", "/infer"}
        assert client.get("/docs").status_code == 200
        for path in ("/metrics", "/", "/redoc", "/web/app.js", "/livez", "/state"):
            assert client.get(path).status_code == 404, path
        assert fit(client).status_code == 200


def test_the_service_works_without_its_lifespan(app: FastAPI) -> None:
    client = TestClient(app, client=("127.0.0.1", 1))
    assert fit(client).status_code == 200 and infer(client).status_code == 200
    app.state.inspector.close()


DINO = "vit_small_patch14_dinov2.lvd142m"
STAND_IN, ABSENT = ("lite", "absent.pth") if torch_installed() else ("texture", "absent.bdix")


@pytest.fixture(scope="module")
def degraded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    """A service whose weights are not where its settings say."""
    root = tmp_path_factory.mktemp("degraded")
    runtime = "torch" if torch_installed() else "auto"  # torch starts the stand-in sooner than OpenVINO converts it
    settings = quick_settings(root, model_name=DINO, weights=str(root / ABSENT), runtime=runtime)
    with client_of(create_app(settings)) as client:
        until_ready(client)
        yield client


def test_a_degraded_service_says_so_everywhere(degraded: TestClient) -> None:
    english = {"Accept-Language": "en"}
    warned = [fit(degraded).json(), calibrate(degraded).json(), infer(degraded, headers=english).json()]
    assert all(ABSENT in answer["warnings"][0] for answer in warned)
    health = degraded.get("/health").json()
    assert health["status"] == "degraded" and ABSENT in health["reason"] and health["model"] == STAND_IN


@pytest.mark.parametrize(
    ("accept", "words"),
    [(None, "no existe el fichero"), ("es", "no existe el fichero"), ("en", "there is no file")],
)
def test_why_it_is_degraded_is_said_in_the_language_asked_for(
    degraded: TestClient, accept: str | None, words: str
) -> None:
    headers = {} if accept is None else {"Accept-Language": accept}
    reason = degraded.get("/health", headers=headers).json()["reason"]
    assert words in reason and ("Servicio degradado" in reason) is (accept != "en")


class Held(TextureFeatures):
    """The weight-free extractor, which stops at the first picture that is not blank until it is let go."""

    def __init__(self) -> None:
        super().__init__(112)
        self.gate, self.entered, self.done = threading.Event(), threading.Event(), 0

    def extract(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        if images[0].any():
            self.entered.set()
            assert self.gate.wait(60)
            self.done += 1
        return super().extract(images)


def raw(port: int, parts: Sequence[FormPart]) -> socket.socket:
    """A connection that has sent an /infer request and does not read the answer."""
    headers, body = dotnet(parts)
    head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    connection = socket.create_connection(("127.0.0.1", port))
    connection.sendall(f"POST /infer HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n{head}\r\n".encode() + body)
    return connection


def until(condition: Any) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come true")


@pytest.fixture
def held(tmp_path: Path) -> Any:
    """An app with a fitted model whose extractor is held, at most three requests deep."""
    extractor = Held()
    extractor.gate.set()
    app = create_app(quick_settings(tmp_path, max_queue=3), extractor)
    with client_of(app) as client:
        fit(client)
    extractor.gate.clear()
    extractor.entered.clear()
    extractor.done = 0
    app = create_app(quick_settings(tmp_path, max_queue=3), extractor)
    app.state.extractor = extractor
    return app


def test_a_client_that_leaves_while_it_waits_leaves_the_queue(held: FastAPI) -> None:
    extractor = held.state.extractor
    request = [*FIELDS, picture_part("image", 1)]
    with served(held) as port:
        queue = held.state.inspector.host.queue()
        first = raw(port, request)
        assert extractor.entered.wait(60)
        second, third = raw(port, request), raw(port, request)
        until(lambda: queue.depth == 3)
        until(lambda: len(queue._urgent) == 2)
        second.close()
        until(lambda: queue.depth == 2)
        extractor.gate.set()
        for connection in (first, third):
            assert connection.recv(12) == b"HTTP/1.1 200"
            connection.close()
        until(lambda: queue.depth == 0)
    assert extractor.done == 2


def test_a_full_queue_answers_503_and_when_to_come_back(held: FastAPI) -> None:
    request = [*FIELDS, picture_part("image", 1)]
    with served(held) as port:
        queue = held.state.inspector.host.queue()
        waiting = [raw(port, request) for _ in range(3)]
        until(lambda: queue.depth == 3)
        answer = httpx.post(f"http://127.0.0.1:{port}/infer", data=FORM, files={"image": GOOD})
        assert answer.status_code == 503 and answer.json()["code"] == "queue_full"
        assert int(answer.headers["retry-after"]) >= 1
        assert httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
        held.state.extractor.gate.set()
        for connection in waiting:
            assert connection.recv(12) == b"HTTP/1.1 200"
            connection.close()


def test_calibrate_bodies_of_any_number_format(client: TestClient) -> None:
    fit(client)
    body = json.dumps({**IDS, "mm_per_px": 1, "ok_scores": [1, 2e-1], "score_percentile": 99.0})
    answer = client.post("/calibrate_ng", content=body, headers={"Content-Type": "application/json; charset=utf-8"})
    assert answer.status_code == 200 and answer.json()["score_percentile"] == 99


def test_a_method_that_is_not_allowed_is_told_all_that_are(client: TestClient) -> None:
    answer = client.patch("/datasets/file")
    assert answer.status_code == 405
    assert answer.headers["allow"] == "DELETE, GET"

"""Strangers stay outside, readers change nothing, and nobody takes more than a share."""

import io
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from backend.api import security
from backend.api.telemetry import JsonFormatter
from backend.app import create_app
from backend.base.keys import ModelKey
from tests.api.service import FORM, GOOD, IDS, calibrate, client_of, fit, infer
from tests.parts import quick_settings

ADMIN = "admin-key-2f9c"
READER = "reader-key-77ab"
PUBLIC = {"/livez"}


@pytest.fixture
def locked(tmp_path: Path) -> FastAPI:
    return create_app(quick_settings(tmp_path, coreset_rate=0.5, api_keys=ADMIN, api_keys_read=READER))


@pytest.fixture
def outside(locked: FastAPI) -> Iterator[TestClient]:
    with client_of(locked, ("203.0.113.9", 4444)) as client:
        yield client


def routes(app: FastAPI) -> Iterator[tuple[str, str]]:
    """Every method and path there is: those of the OpenAPI document, and those that it leaves out."""
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            yield method.upper(), path.replace("{", "").replace("}", "")
    for path in ("/openapi.json", "/docs", "/redoc", "/nowhere", "/livez/../health", "/%2Fhealth", "/Livez"):
        yield "GET", path


def test_with_keys_every_route_but_the_public_ones_refuses_a_stranger(locked: FastAPI, outside: TestClient) -> None:
    asked = list(routes(locked))
    assert {("POST", "/infer"), ("POST", "/fit_ok"), ("GET", "/metrics"), ("GET", "/docs")} <= set(asked)
    for method, path in asked:
        for headers in (
            {},
            {"X-API-Key": "wrong"},
            {"Authorization": "Bearer wrong"},
            {"X-Forwarded-For": "127.0.0.1"},
        ):
            answer = outside.request(method, path, headers=headers, follow_redirects=False)
            assert answer.status_code == (200 if path in PUBLIC else 401), (method, path, headers)
            if path not in PUBLIC:
                assert answer.json()["code"] == "unauthorized"
                assert answer.headers["www-authenticate"] == "Bearer"
                assert answer.json()["trace"] is None


def test_even_this_machine_needs_a_key_when_there_are_keys(locked: FastAPI) -> None:
    with client_of(locked) as client:
        assert client.get("/health").status_code == 401
        assert client.get("/health", headers={"X-API-Key": ADMIN}).status_code == 200


def test_a_reader_inspects_and_reads_and_changes_nothing(locked: FastAPI, outside: TestClient) -> None:
    outside.headers["X-API-Key"] = ADMIN
    assert fit(outside).status_code == 200
    assert calibrate(outside).status_code == 200
    outside.headers["X-API-Key"] = READER
    assert infer(outside).status_code == 200
    assert outside.get("/metrics").status_code == 200
    writing = [
        (m, p) for m, p in routes(locked) if m not in security.READING_METHODS and p not in security.READING_POSTS
    ]
    assert {("POST", "/fit_ok"), ("POST", "/calibrate_ng")} <= set(writing)
    for method, path in writing:
        answer = outside.request(method, path)
        assert (answer.status_code, answer.json()["code"]) == (403, "read_only_key"), path


def test_a_replica_refuses_whatever_writes(tmp_path: Path) -> None:
    app = create_app(quick_settings(tmp_path, read_only=True))
    with client_of(app) as replica:
        writing = [
            (m, p) for m, p in routes(app) if m not in security.READING_METHODS and p not in security.READING_POSTS
        ]
        assert ("POST", "/send_ng") in writing
        for method, path in writing:
            answer = replica.request(method, path)
            assert (answer.status_code, answer.json()["code"]) == (403, "read_only_replica"), (method, path)
    assert not list(tmp_path.rglob("*.png"))


def test_a_replica_infers_and_never_writes(tmp_path: Path) -> None:
    with client_of(create_app(quick_settings(tmp_path, coreset_rate=0.5))) as main:
        fit(main)
        calibrate(main)
    models = tmp_path / "models"
    (models / "Master1" / "Pattern" / "index.faiss").unlink()
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in models.rglob("*") if p.name != ".lock"}
    with client_of(create_app(quick_settings(tmp_path, read_only=True))) as replica:
        assert infer(replica).json()["threshold"] > 0
        for answer in (fit(replica), calibrate(replica)):
            assert (answer.status_code, answer.json()["code"]) == (403, "read_only_replica")
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in models.rglob("*") if p.name != ".lock"} == before


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://127.0.0.1:9", "http://localhost.evil.example"]
)
def test_foreign_pages_are_refused_whatever_their_key(locked: FastAPI, origin: str) -> None:
    with client_of(locked) as client:
        answer = client.get("/health", headers={"Origin": origin, "X-API-Key": ADMIN})
        assert (answer.status_code, answer.json()["code"]) == (403, "origin_refused")
        assert "access-control-allow-origin" not in answer.headers


def test_cors_is_closed_and_opens_for_the_origins_that_are_named(tmp_path: Path) -> None:
    ask = {"Origin": "https://console.example", "Access-Control-Request-Method": "POST"}
    with client_of(create_app(quick_settings(tmp_path))) as client:
        assert "access-control-allow-origin" not in client.options("/infer", headers=ask).headers
    with client_of(create_app(quick_settings(tmp_path, cors_origins="https://console.example"))) as client:
        assert client.options("/infer", headers=ask).headers["access-control-allow-origin"] == ask["Origin"]
        assert client.get("/health", headers={"Origin": ask["Origin"]}).status_code == 200


def test_a_page_whose_name_was_made_to_point_here_is_refused(client: TestClient) -> None:
    rebound = {"Host": "rebound.example:8000", "Origin": "http://rebound.example:8000"}
    assert client.get("/health", headers={"Host": rebound["Host"]}).json()["code"] == "host_refused"
    assert client.post("/infer", headers=rebound).json()["code"] == "host_refused"


@pytest.mark.parametrize("path", ["/health", "/nowhere", "/docs", "/metrics"])
def test_every_answer_keeps_browsers_careful(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["referrer-policy"] == "no-referrer"


@pytest.fixture
def log(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """Every line that the service logs, in both forms, at the most talkative level."""
    request.getfixturevalue("outside" if "outside" in request.fixturenames else "client")
    text, logger = io.StringIO(), logging.getLogger("backend")
    handlers = [logging.StreamHandler(text) for _ in range(2)]
    handlers[0].setFormatter(logging.Formatter("%(message)s"))
    handlers[1].setFormatter(JsonFormatter())
    level = logger.level
    logger.setLevel(logging.DEBUG)
    for handler in handlers:
        logger.addHandler(handler)
    yield text
    logger.setLevel(level)
    for handler in handlers:
        logger.removeHandler(handler)


def test_nothing_secret_is_in_logs_answers_or_docs(
    outside: TestClient, log: io.StringIO, capfd: pytest.CaptureFixture[str]
) -> None:
    said = []
    for key in (ADMIN, READER, "guessed-key-4711"):
        headers = {"X-API-Key": key, "Authorization": f"Bearer {key}"}
        files = {"image": (r"C:\Users\maria\secret-folder\part.png", b"no image", "image/png")}
        for method, path, options in (
            ("GET", f"/health?api_key={key}", {}),
            ("GET", "/docs", {}),
            ("GET", "/openapi.json", {}),
            ("GET", "/metrics", {}),
            ("POST", "/infer", {"data": FORM, "files": files}),
            ("POST", "/infer", {"data": {**FORM, "mm_per_px": key}}),
            ("POST", "/calibrate_ng", {"json": {**IDS, "mm_per_px": key}}),
            ("GET", "/nowhere", {}),
        ):
            answer = outside.request(method, path, headers=headers, **options)
            said.append(answer.text)
    text = "".join(said) + log.getvalue() + "".join(capfd.readouterr())
    assert log.getvalue().count("POST /infer") == 12
    for secret in (ADMIN, READER, "guessed-key-4711", "secret-folder", "maria"):
        assert secret not in text, secret


def test_a_path_writes_no_lines_of_its_own_into_the_log(client: TestClient, log: io.StringIO) -> None:
    client.get("/a%0d%0a2026-01-01 INFO forged%1b[31m")
    assert "/a??2026-01-01 INFO forged?[31m -> 404" in log.getvalue()


def test_an_inspection_that_takes_too_long_is_given_up(tmp_path: Path, held: Any) -> None:
    app = create_app(quick_settings(tmp_path, coreset_rate=0.5, request_timeout_s=2), held)
    with client_of(app) as client:
        assert fit(client).status_code == 200
        held.gate.clear()
        answer = infer(client)
        held.gate.set()
        assert (answer.status_code, answer.json()["code"]) == (503, "timed_out")
        assert answer.headers["retry-after"] == "1"
        deadline = time.monotonic() + 60
        while app.state.inspector.host.depth and time.monotonic() < deadline:
            time.sleep(0.01)
        assert infer(client).status_code == 200
        assert app.state.inspector.host.depth == 0


@pytest.fixture
def held() -> Any:
    """The weight-free extractor, which waits while its gate is shut."""
    from backend.extractors.texture import TextureFeatures

    class Held(TextureFeatures):
        gate = threading.Event()

        def extract(self, images: Any) -> Any:
            assert self.gate.wait(60)
            return super().extract(images)

    Held.gate.set()
    return Held(112)


def test_readiness_follows_the_extractor(tmp_path: Path, held: Any) -> None:
    held.gate.clear()
    with client_of(create_app(quick_settings(tmp_path), held)) as client:
        early = client.get("/readyz")
        assert (early.status_code, early.json()["code"]) == (503, "not_ready")
        assert client.get("/livez").json() == {"status": "alive"}
        held.gate.set()
        for _ in range(6000):
            late = client.get("/readyz")
            if late.status_code == 200:
                break
            time.sleep(0.01)
        assert late.json() == {"status": "ready", "state": "ok", "golden": {}}


def test_a_contract_service_has_no_other_routes(tmp_path: Path) -> None:
    with client_of(create_app(quick_settings(tmp_path, contract_only=True))) as client:
        assert [client.get(path).status_code for path in ("/livez", "/readyz", "/metrics")] == [404] * 3


def test_a_full_disk_answers_507_and_leaves_the_old_model(tmp_path: Path) -> None:
    with client_of(create_app(quick_settings(tmp_path, coreset_rate=0.5))) as client:
        fit(client)
        score = infer(client).json()["score"]
    with client_of(create_app(quick_settings(tmp_path, coreset_rate=0.5, min_free_mb=1e9))) as client:
        for answer in (fit(client, count=1), calibrate(client)):
            assert (answer.status_code, answer.json()["code"]) == (507, "disk_full")
        assert infer(client, GOOD).json()["score"] == score
        assert cast("Any", client.app).state.inspector.store.load_calibration(ModelKey.of(*IDS.values())) is None

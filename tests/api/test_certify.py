"""Certificates over HTTP: made with progress, kept, read as JSON and as a page."""

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.app import create_app
from tests.api.service import BAD, FORM, IDS, client_of, fit
from tests.parts import encoded, part, quick_settings

QUICK = {**IDS, "trials": 3, "parts": 10}


@pytest.fixture
def ready(client: TestClient) -> TestClient:
    """A client of a service with a model, good parts that it has not seen, and a calibration."""
    fit(client, 8)
    good = [("images", (f"{n}.png", encoded(part(50 + n)), "image/png")) for n in range(10)]
    client.post("/datasets/ok/upload", data=FORM, files=good)
    client.post("/send_ng", data=FORM, files=[("images", ("bad.png", BAD, "image/png"))])
    assert client.post("/calibrate_dataset", json=IDS).status_code == 200
    return client


def test_a_certificate_is_made_kept_and_read_again(ready: TestClient, tmp_path: Path) -> None:
    answer = ready.post("/certify", json=QUICK)
    assert answer.status_code == 200
    made: dict[str, Any] = answer.json()
    assert made.items() >= IDS.items() and made["parts"]["n"] == 10 and made["request_id"]
    kept = ready.get("/certificate", params=IDS).json()
    assert kept["current"] and kept["detection"] == made["detection"]
    assert (tmp_path / "models" / "Master1" / "Pattern" / "certificate.json").is_file()


@pytest.mark.parametrize(
    ("ask", "language", "title"),
    [
        ({}, "es", "Certificado de inspección"),
        ({}, "en", "Inspection certificate"),
        ({"lang": "es"}, "en", "Certificado de inspección"),
    ],
)
def test_the_page_is_in_the_language_asked_for(
    ready: TestClient, ask: dict[str, str], language: str, title: str
) -> None:
    ready.post("/certify", json=QUICK)
    page = ready.get("/certificate", params={**IDS, "format": "html", **ask}, headers={"Accept-Language": language})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert f"<h1>{title}</h1>" in page.text and "Master1/Pattern" in page.text


def test_a_certificate_of_another_memory_or_calibration_is_not_current(ready: TestClient) -> None:
    ready.post("/certify", json=QUICK)
    ready.post("/calibrate_dataset", json=IDS)
    assert ready.get("/certificate", params=IDS).json()["current"] is False
    ready.post("/certify", json=QUICK)
    fit(ready, 9)
    assert ready.get("/certificate", params=IDS).json()["current"] is False


def test_how_far_it_is_can_be_followed(ready: TestClient) -> None:
    stages: list[str] = []

    def follow() -> None:
        for _ in range(2000):
            answer = ready.get("/progress/cert-1").json()
            if answer.get("state") == "done":
                return
            if answer.get("stage") not in {None, "", *stages}:
                stages.append(answer["stage"])
            time.sleep(0.005)

    follower = threading.Thread(target=follow)
    follower.start()
    ready.post("/certify", json={**QUICK, "trials": 6}, headers={"X-Request-Id": "cert-1"})
    follower.join(30)
    assert "detection" in stages


def test_what_is_missing_is_said_at_once(client: TestClient) -> None:
    assert client.post("/certify", json=QUICK).json()["code"] == "memory_not_found"
    assert client.get("/certificate", params=IDS).json()["code"] == "certificate_not_found"
    fit(client, 8)
    assert client.post("/certify", json=QUICK).json()["code"] == "calibration_needed"
    client.post("/calibrate_dataset", json=IDS)
    client.request("DELETE", "/datasets/clear", params=IDS)
    assert client.post("/certify", json=QUICK).json()["code"] == "not_enough_samples"


@pytest.mark.parametrize("wrong", [{"parts": 4}, {"trials": 2}, {"trials": 5000}, {"seed": -1}])
def test_what_cannot_be_meant_is_refused(client: TestClient, wrong: dict[str, int]) -> None:
    assert client.post("/certify", json={**QUICK, **wrong}).status_code == 422


def test_a_spoiled_certificate_is_damage_that_says_what_to_do(ready: TestClient, tmp_path: Path) -> None:
    path = tmp_path / "models" / "Master1" / "Pattern" / "certificate.json"
    path.write_text("[", "utf-8")
    answer = ready.get("/certificate", params=IDS)
    assert answer.status_code == 500 and "/certify" in answer.json()["error"]


def test_a_replica_reads_certificates_and_makes_none(ready: TestClient, tmp_path: Path) -> None:
    ready.post("/certify", json=QUICK)
    with client_of(create_app(quick_settings(tmp_path, coreset_rate=0.5, read_only=True))) as replica:
        assert replica.get("/certificate", params=IDS).status_code == 200
        assert replica.post("/certify", json=QUICK).json()["code"] == "read_only_replica"


def test_a_deleted_model_takes_its_certificate_along(ready: TestClient, tmp_path: Path) -> None:
    ready.post("/certify", json=QUICK)
    ready.delete("/models/Master1/Pattern")
    assert ready.get("/certificate", params=IDS).json()["code"] == "certificate_not_found"
    assert list((tmp_path / "models" / ".trash").rglob("certificate.json"))

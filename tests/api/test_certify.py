"""Certificates over HTTP: made with progress, kept, read as JSON and as a page."""

import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.app import create_app
from tests.api.service import BAD, FORM, IDS, client_of, fit
from tests.parts import encoded, part, quick_settings

QUICK = {**IDS, "trials": 3, "parts": 5}
FILE = Path("models", "Master1", "Pattern", "certificate.json")


@pytest.fixture(scope="module")
def certified(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """The folder of a service whose model is certified, and what /certify answered."""
    root = tmp_path_factory.mktemp("certified")
    with client_of(create_app(quick_settings(root, coreset_rate=0.5, results_db="none"))) as client:
        fit(client, 8)
        good = [("images", (f"{n}.png", encoded(part(50 + n)), "image/png")) for n in range(10)]
        client.post("/datasets/ok/upload", data=FORM, files=good)
        client.post("/send_ng", data=FORM, files=[("images", ("bad.png", BAD, "image/png"))])
        client.post("/calibrate_dataset", json=IDS)
        answer = client.post("/certify", json=QUICK)
        assert answer.status_code == 200
        return root, answer.json()


@pytest.fixture
def ready(certified: tuple[Path, dict[str, Any]], tmp_path: Path) -> Iterator[TestClient]:
    """A client of such a service in a folder of its own."""
    for name in ("models", "datasets"):
        shutil.copytree(certified[0] / name, tmp_path / name)
    with client_of(create_app(quick_settings(tmp_path, coreset_rate=0.5, results_db="none"))) as client:
        yield client


def test_a_certificate_is_made_kept_and_read_again(ready: TestClient, certified: tuple[Path, dict[str, Any]]) -> None:
    made = certified[1]
    assert made.items() >= IDS.items() and made["parts"]["n"] == 5 and made["request_id"]
    kept = ready.get("/certificate", params=IDS).json()
    assert kept["current"] and kept["detection"] == made["detection"]


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
    page = ready.get("/certificate", params={**IDS, "format": "html", **ask}, headers={"Accept-Language": language})
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert f"<h1>{title}</h1>" in page.text and "Master1/Pattern" in page.text


def test_a_certificate_of_another_calibration_or_memory_is_not_current(ready: TestClient) -> None:
    before = ready.get("/certificate", params=IDS).json()["calibration"]["created_utc"]
    ready.post("/calibrate_dataset", json=IDS)
    answer = ready.get("/certificate", params=IDS).json()
    assert answer["current"] is False and answer["calibration"]["created_utc"] == before
    fit(ready, 9)
    assert ready.get("/certificate", params=IDS).json()["current"] is False


@pytest.mark.slow
def test_two_at_once_are_both_answered_with_progress(ready: TestClient) -> None:
    stages: list[str] = []
    answers: list[Any] = []

    def follow() -> None:
        while len(answers) < 2:
            stage = ready.get("/progress/cert-1").json().get("stage")
            if stage not in {None, "", *stages}:
                stages.append(stage)
            time.sleep(0.005)

    def certify(name: str) -> None:
        answers.append(ready.post("/certify", json=QUICK, headers={"X-Request-Id": name}))

    threads = [threading.Thread(target=follow), *(threading.Thread(target=certify, args=[n]) for n in ("cert-1", "2"))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [answer.status_code for answer in answers] == [200, 200]
    assert {"detection", "stability"} <= set(stages)
    first, second = (answer.json() for answer in answers)
    assert first["detection"] == second["detection"]


def test_what_is_missing_is_said_at_once(client: TestClient) -> None:
    assert client.post("/certify", json=QUICK).json()["code"] == "memory_not_found"
    assert client.get("/certificate", params=IDS).json()["code"] == "certificate_not_found"
    fit(client, 8)
    assert client.post("/certify", json=QUICK).json()["code"] == "calibration_needed"
    client.post("/calibrate_dataset", json={**IDS, "threshold": 0})
    rejected = client.post("/certify", json=QUICK).json()
    assert rejected["code"] == "good_parts_rejected" and "deja pasar: 0;" in rejected["error"]
    client.request("DELETE", "/datasets/clear", params=IDS)
    assert client.post("/certify", json=QUICK).json()["code"] == "not_enough_samples"


@pytest.mark.parametrize("wrong", [{"parts": 4}, {"trials": 2}, {"trials": 5000}, {"seed": -1}])
def test_what_cannot_be_meant_is_refused(client: TestClient, wrong: dict[str, int]) -> None:
    assert client.post("/certify", json={**QUICK, **wrong}).status_code == 422


def test_a_spoiled_certificate_is_damage_that_says_what_to_do(ready: TestClient, tmp_path: Path) -> None:
    (tmp_path / FILE).write_text("[", "utf-8")
    answer = ready.get("/certificate", params=IDS)
    assert answer.status_code == 500 and "certific" in answer.json()["error"]


def test_a_replica_reads_certificates_and_makes_none(ready: TestClient, tmp_path: Path) -> None:
    settings = quick_settings(tmp_path, coreset_rate=0.5, results_db="none", read_only=True)
    with client_of(create_app(settings)) as replica:
        assert replica.get("/certificate", params=IDS).status_code == 200
        assert replica.post("/certify", json=QUICK).json()["code"] == "read_only_replica"


def test_a_deleted_model_takes_its_certificate_along(ready: TestClient, tmp_path: Path) -> None:
    ready.delete("/models/Master1/Pattern")
    assert ready.get("/certificate", params=IDS).json()["code"] == "certificate_not_found"
    assert list((tmp_path / "models" / ".trash").rglob("certificate.json"))

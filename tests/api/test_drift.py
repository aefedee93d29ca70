"""GET /drift, and what /infer, the record and /metrics say of a drift."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from backend.app import create_app
from backend.assurance.drift import Chart, Finding
from backend.assurance.watch import DriftWatch
from backend.base.keys import ModelKey
from tests.api.service import GOOD, IDS, calibrate, client_of, fit, infer
from tests.parts import quick_settings

KEY = ModelKey.of(IDS["role_id"], IDS["roi_id"])


@pytest.fixture
def fitted(tmp_path: Path, url: str) -> Iterator[TestClient]:
    """A client of a service with a calibrated model, whose record is in either database."""
    own = {"coreset_rate": 0.5, "results_db": url, "images_dir": tmp_path / "images"}
    with client_of(create_app(quick_settings(tmp_path, **own))) as opened:
        assert fit(opened).status_code == 200
        assert calibrate(opened).status_code == 200
        yield opened


def test_a_model_learns_first_and_every_inspection_counts(fitted: TestClient) -> None:
    assert infer(fitted, GOOD).status_code == 200
    answer = fitted.get("/drift", params=IDS)
    assert answer.status_code == 200
    said = answer.json()
    assert (said["state"], said["learnt"], said["wanted"]) == ("learning", 1, 100)
    assert "cause" not in said and said["evidence"] == {}
    assert {name: said[name] for name in ("role_id", "roi_id", "recipe_id")} == {**IDS, "recipe_id": "default"}


def test_of_a_model_that_is_not_there_nothing_is_said(client: TestClient) -> None:
    answer = client.get("/drift", params=IDS)
    assert (answer.status_code, answer.json()["code"]) == (400, "memory_not_found")


def test_a_drift_is_told_in_words_and_reaches_every_answer_and_the_record(fitted: TestClient) -> None:
    watch: DriftWatch = fitted.app.state.drift  # type: ignore[attr-defined]
    assert infer(fitted, GOOD).status_code == 200
    watch.take_in()
    kept = watch.drifts.load(KEY)
    assert kept is not None
    drifting = {**kept.__dict__, "state": "drift", "cause": "dirt", "since_us": 1_790_000_000_000_000}
    assert watch.drifts.save(KEY, kept.__class__(**drifting))
    line = 'bdi_drift{cause="dirt",recipe_id="default",roi_id="Pattern",role_id="Master1"} 1.0'
    assert line in fitted.get("/metrics").text  # before another part is taken in
    watch._known[KEY] = Finding("drift", "dirt", (0.2, 0.2), 1_790_000_000_000_000)
    answer = infer(fitted, GOOD).json()
    assert any(
        text.startswith("Las piezas ya no se ven como al principio desde el 2026-09-21T") for text in answer["warnings"]
    )
    recorded = fitted.get(f"/inspections/{answer['inspection_id']}").json()
    assert "drift" in recorded["warnings"]


def test_cause_place_and_advice_are_in_the_language_that_was_asked_for(fitted: TestClient) -> None:
    watch: DriftWatch = fitted.app.state.drift  # type: ignore[attr-defined]
    found = Finding("drift", "dirt", (0.2, 0.5), 1_790_000_000_000_000, {"charts": 2.0})
    watch.finding = lambda key: found  # type: ignore[method-assign]
    spanish, english = (
        fitted.get("/drift", params=IDS, headers={"Accept-Language": language}).json() for language in ("es", "en")
    )
    assert (spanish["cause"], spanish["where"], spanish["at"]) == ("dirt", "a media altura a la izquierda", [0.2, 0.5])
    assert (english["where"], english["since"]) == ("middle left", "2026-09-21T14:13:20Z")
    assert spanish["advice"].startswith("Limpia la lente")
    assert english["advice"].startswith("Clean the lens")


def test_a_chart_is_as_long_as_it_says() -> None:
    assert len(Chart().to_bytes()) < 8000

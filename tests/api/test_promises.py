"""What calibrations promise over HTTP, and what /infer says of it."""

import json
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.app import create_app
from tests.api.service import BAD, IDS, calibrate, client_of, fit, infer
from tests.parts import encoded, part, quick_settings

TWENTY = [0.2 + 0.001 * n for n in range(20)]


@pytest.fixture
def unjudged(client: TestClient) -> TestClient:
    assert fit(client).status_code == 200
    return client


def test_every_calibration_says_what_its_threshold_promises(unjudged: TestClient) -> None:
    answer = calibrate(unjudged, ok_scores=TWENTY, ng_scores=[0.9, 0.95]).json()
    promise = answer["false_reject"]
    assert answer["rule"] == "percentile" and promise["basis"] == "given"
    assert (promise["estimate"], promise["confidence"], promise["n_ok"], promise["n_ok_needed"]) == (0, 0.95, 20, 299)
    assert promise["upper_bound"] == pytest.approx(1 - 0.05 ** (1 / 20))
    assert answer["misses"]["n_ng"] == 2 and answer["misses"]["upper_bound"] == pytest.approx(1 - 0.025**0.5)


def test_without_bad_parts_misses_and_note_are_left_out(unjudged: TestClient) -> None:
    assert not {"misses", "note"} & calibrate(unjudged, ok_scores=TWENTY).json().keys()


def test_a_rate_that_is_asked_for_is_promised(unjudged: TestClient) -> None:
    answer = calibrate(unjudged, ok_scores=TWENTY, max_false_reject=0.14).json()
    assert (answer["rule"], answer["threshold"]) == ("promised", TWENTY[-1])
    assert answer["false_reject"]["upper_bound"] <= 0.14 and answer["p99_ok"] < answer["threshold"]
    looser = calibrate(unjudged, ok_scores=TWENTY, max_false_reject=0.14, confidence=0.5).json()
    assert looser["threshold"] < answer["threshold"] and looser["false_reject"]["confidence"] == 0.5


@pytest.mark.parametrize(
    ("language", "sentence"),
    [
        ("en", "To promise that at most 1 % of good parts are rejected"),
        ("es", "Para prometer que se rechaza como mucho el 1 % de las piezas buenas"),
    ],
)
def test_too_few_good_parts_for_a_promise_are_told_how_many_more_it_takes(
    unjudged: TestClient, language: str, sentence: str
) -> None:
    body = {**IDS, "mm_per_px": 0.2, "ok_scores": TWENTY, "max_false_reject": 0.01}
    answer = unjudged.post("/calibrate_ng", json=body, headers={"Accept-Language": language}).json()
    assert answer["rule"] == "percentile" and answer["threshold"] == answer["p99_ok"]
    assert answer["false_reject"]["n_ok_needed"] == 299
    assert any(sentence in warning and ": 279." in warning for warning in answer["warnings"])


def test_a_rate_of_nothing_is_never_promised(unjudged: TestClient) -> None:
    answer = calibrate(unjudged, ok_scores=TWENTY, max_false_reject=0).json()
    assert answer["rule"] == "percentile" and "n_ok_needed" not in answer["false_reject"]
    assert any("Ninguna cantidad" in warning for warning in answer["warnings"])


def test_a_chosen_threshold_and_its_note_are_kept(unjudged: TestClient, tmp_path: Path) -> None:
    answer = calibrate(unjudged, ok_scores=TWENTY, ng_scores=[0.9, 0.2], threshold=0.5, note="dragged by Ana").json()
    assert (answer["rule"], answer["threshold"], answer["note"]) == ("chosen", 0.5, "dragged by Ana")
    assert answer["misses"]["estimate"] == 0.5
    assert infer(unjudged).json()["threshold"] == 0.5
    written = json.loads((tmp_path / "models" / "Master1" / "Pattern" / "calib.json").read_text("utf-8"))
    assert written["note"] == "dragged by Ana" and written["good_scores"]["values"] == TWENTY
    shown = unjudged.get("/manifest", params=IDS).json()["calibration"]
    assert shown["false_reject"] == answer["false_reject"] and "good_scores" not in shown


@pytest.mark.parametrize(
    ("asked", "status", "code"),
    [
        ({"threshold": 0.3, "max_false_reject": 0.1}, 400, "threshold_and_promise"),
        ({"max_false_reject": 0.6}, 422, "validation_error"),
        ({"max_false_reject": -0.1}, 422, "validation_error"),
        ({"max_false_reject": "NaN"}, 422, "validation_error"),
        ({"confidence": 1}, 422, "validation_error"),
        ({"threshold": -1}, 422, "validation_error"),
        ({"note": "x" * 2001}, 422, "validation_error"),
    ],
)
def test_what_cannot_be_meant_is_refused(unjudged: TestClient, asked: dict[str, Any], status: int, code: str) -> None:
    answer = calibrate(unjudged, ok_scores=TWENTY, **asked)
    assert (answer.status_code, answer.json()["code"]) == (status, code)


@pytest.mark.parametrize(("threshold", "words"), [(0, "ninguna pieza pasará"), (1e8, "toda pieza pasará")])
def test_a_chosen_threshold_that_passes_all_or_none_is_pointed_out(
    unjudged: TestClient, threshold: float, words: str
) -> None:
    answer = calibrate(unjudged, ok_scores=TWENTY, threshold=threshold).json()
    assert answer["threshold"] == threshold and any(words in warning for warning in answer["warnings"])


def test_infer_says_how_unusual_a_part_is(unjudged: TestClient) -> None:
    assert not {"p_value", "ok_as_high", "n_ok"} & infer(unjudged).json().keys()
    score = infer(unjudged).json()["score"]
    calibrate(unjudged, ok_scores=[score, score + 0.1, score + 0.2, score / 2])
    answer = infer(unjudged).json()
    assert (answer["ok_as_high"], answer["n_ok"], answer["p_value"]) == (3, 4, 0.8)


def test_a_calibration_without_its_good_scores_has_no_p_value(fitted: TestClient, tmp_path: Path) -> None:
    path = tmp_path / "models" / "Master1" / "Pattern" / "calib.json"
    values = json.loads(path.read_text("utf-8"))
    del values["good_scores"]
    path.write_text(json.dumps(values), "utf-8")
    answer = infer(fitted).json()
    assert answer["threshold"] is not None and "p_value" not in answer


def test_good_scores_that_were_spoiled_are_damage(fitted: TestClient, tmp_path: Path) -> None:
    path = tmp_path / "models" / "Master1" / "Pattern" / "calib.json"
    values = json.loads(path.read_text("utf-8"))
    values["good_scores"]["values"].append("high")
    path.write_text(json.dumps(values), "utf-8")
    answer = infer(fitted)
    assert (answer.status_code, answer.json()["code"]) == (500, "artifact_damaged")


def test_infer_says_what_area_its_grid_resolves_and_how_large_a_defect_is(fitted: TestClient) -> None:
    answer = infer(fitted, BAD).json()
    rows, columns = answer["token_shape"]
    height, width = part(0).shape[:2]
    cell = height * width / (rows * columns) * 0.2**2
    assert answer["area_resolution_mm2"] == pytest.approx(9 * cell)  # texture's widest neighbourhood is 3 × 3 tokens
    assert answer["regions"] and all(region["area_mm2_estimate"] > 0 for region in answer["regions"])


def test_a_verdict_and_regions_that_disagree_are_pointed_out(unjudged: TestClient) -> None:
    found = infer(unjudged, BAD).json()
    between = (found["score"] + found["stats"]["max"]) / 2
    calibrate(unjudged, ok_scores=TWENTY, threshold=between, area_mm2_thr=0)
    ok = infer(unjudged, BAD).json()
    assert ok["decision"] == "ok" and ok["regions"]
    assert any("no supera el umbral y una región" in warning for warning in ok["warnings"])
    calibrate(unjudged, ok_scores=TWENTY, threshold=found["score"] * 0.99, area_mm2_thr=1e6)
    ng = infer(unjudged, BAD).json()
    assert ng["decision"] == "ng" and ng["regions"] == []
    assert any("supera el umbral y ninguna región" in warning for warning in ng["warnings"])


def test_scored_by_area_verdict_and_regions_agree_at_any_threshold(tmp_path: Path) -> None:
    settings = quick_settings(tmp_path, coreset_rate=0.5, score_method="area", area_mm2_thr=2.0)
    with client_of(create_app(settings)) as client:
        fit(client)
        score = infer(client, BAD).json()["score"]
        for threshold in (score, score * 0.999, score * 1.001, 0.0, 2.0):
            assert calibrate(client, ok_scores=TWENTY, threshold=threshold).status_code == 200
            answer = infer(client, BAD).json()
            assert answer["score"] == score
            assert (answer["decision"] == "ng") == bool(answer["regions"]) == (score >= threshold)
        moved = calibrate(client, ok_scores=TWENTY, area_mm2_thr=5.0).json()
        assert any("regiones de 2 mm²" in warning and "5 mm²" in warning for warning in moved["warnings"])
        assert infer(client, BAD).json()["score"] < score


def test_an_area_of_its_own_is_the_smallest_region_too(tmp_path: Path) -> None:
    settings = quick_settings(tmp_path, coreset_rate=0.5, score_method="area", score_area_mm2=3.0, area_mm2_thr=0.1)
    with client_of(create_app(settings)) as client:
        fit(client)
        calibrate(client, ok_scores=TWENTY, threshold=infer(client, BAD).json()["score"], area_mm2_thr=0.1)
        answer = infer(client, BAD).json()
        assert answer["decision"] == "ng" and min(region["area_mm2"] for region in answer["regions"]) >= 3.0
        assert answer["params"]["area_mm2_thr"] == 3.0


@pytest.mark.parametrize("fitted_on", [True, False])
def test_a_calibration_of_samples_says_what_its_scores_rest_on(client: TestClient, fitted_on: bool) -> None:
    images = [("images", (f"{n}.png", encoded(part(n)), "image/png")) for n in range(6)]
    fit(client) if not fitted_on else client.post("/fit_ok", data={**IDS, "mm_per_px": "0.2"}, files=images)
    if not fitted_on:
        client.delete("/datasets/clear", params=IDS)
        others = [("images", (f"{n}.png", encoded(part(10 + n)), "image/png")) for n in range(6)]
        client.post("/datasets/ok/upload", data={**IDS, "mm_per_px": "0.2"}, files=others)
    client.post("/send_ng", data={**IDS, "mm_per_px": "0.2"}, files=[("images", ("b.png", BAD, "image/png"))])
    body = {**IDS, "max_false_reject": 0.4, "note": "from samples"}
    answer = client.post("/calibrate_dataset", json=body).json()
    assert answer["false_reject"]["basis"] == ("leave_one_out" if fitted_on else "held_out")
    assert (answer["rule"], answer["note"], answer["n_ok"]) == ("promised", "from samples", 6)
    assert answer["misses"]["n_ng"] == 1
    item = client.post("/infer_dataset", json={**IDS, "labels": ["ng"]}).json()["items"][0]
    assert item["p_value"] == (1 + item["ok_as_high"]) / 7


def test_a_form_may_leave_what_it_does_not_ask_for_blank(fitted: TestClient) -> None:
    form = {**IDS, "max_false_reject": "", "threshold": "", "confidence": " ", "note": ""}
    answer = fitted.post("/calibrate_dataset", data=form)
    assert answer.status_code == 200 and answer.json()["rule"] == "percentile"

"""A model that goes back, is compared with what it was, and is held against its golden samples."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from sqlalchemy import text

from backend.app import create_app
from backend.assurance.golden import GoldenSet
from backend.base.keys import ModelKey
from backend.records.ledger import Ledger
from tests.api.routes.calls import FIT, IDS, fit, upload
from tests.parts import encoded, part, quick_settings, tree

KEY = ModelKey.of("Master1", "Pattern")
ALL = tuple(range(20))


def serving(root: Path, **given: Any) -> TestClient:
    own = {"coreset_rate": 0.5, "min_free_mb": 0, "results_db": f"sqlite:///{root / 'inspections.db'}"}
    client = TestClient(create_app(quick_settings(root, **{**own, **given})))
    client.headers["Accept-Language"] = "en"
    return client


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """A model of 20 parts, calibrated with what is stored, one good and one bad part of which are golden."""
    with serving(tmp_path) as opened:
        prepare(opened)
        yield opened


def prepare(client: TestClient) -> dict[str, str]:
    fit(client, *ALL)
    upload(client, 50, 51, 52, label="ng")
    assert client.post("/calibrate_dataset", json=IDS).status_code == 200
    stored = client.get("/datasets/list", params=IDS).json()["classes"]
    names = {label: stored[label]["files"][0] for label in ("ok", "ng")}
    for name in names.values():
        assert client.post("/datasets/golden", json={**IDS, "filename": name}).json()["warnings"] == []
    return names


def infer(client: TestClient, seed: int = 90, **form: str) -> Any:
    files = {"image": ("roi.png", encoded(part(seed, defect=True)), "image/png")}
    return client.post("/infer", data={**FIT, **form}, files=files)


def golden_scores(client: TestClient) -> dict[str, float]:
    return {one["filename"]: one["score"] for one in client.post("/golden/run", json=IDS).json()["items"]}


def model_files(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in tree(root / "models").items() if "versions" not in name}


@pytest.mark.parametrize("bound", [{"model_versions": 1}, {"versions_max_gb": 1e-6}])
def test_the_oldest_version_comes_back_where_there_is_room_for_no_other(tmp_path: Path, bound: dict[str, Any]) -> None:
    with serving(tmp_path) as client:
        first = fit(client, 0, 1, 2)["generation"]
        before, score = model_files(tmp_path), infer(client).json()["score"]
        for seeds in ((3, 4), (5, 6)):
            fit(client, *seeds)
    with serving(tmp_path, **bound) as client:
        oldest = client.get("/versions", params=IDS).json()["versions"][-1]["version"]
        answer = client.post(f"/versions/{oldest}/restore", json=IDS)
        assert answer.status_code == 200 and answer.json()["generation"] == first, answer.text
        assert model_files(tmp_path) == before and infer(client).json()["score"] == score


def test_a_fit_of_three_images_over_twenty_is_taken_back_with_one_call(client: TestClient, tmp_path: Path) -> None:
    before, scores = model_files(tmp_path), golden_scores(client)
    generation = client.get("/versions", params=IDS).json()["current"]["generation"]
    fit(client, 0, 1, 2, note="night shift", author="Eva")
    assert golden_scores(client) != scores
    answer = client.post(f"/versions/{generation}/restore", json={**IDS, "author": "Ana", "note": "back"})
    assert answer.status_code == 200, answer.text
    assert answer.json()["generation"] == generation
    assert golden_scores(client) == scores
    assert model_files(tmp_path) == before
    listed = client.get("/versions", params=IDS).json()
    assert listed["current"]["generation"] == generation
    undone = listed["versions"][0]
    assert (undone["author"], undone["note"]) == ("Eva", "night shift")
    assert undone["replaced_by"] == {"event": "restore", "author": "Ana", "note": "back"}
    again = client.post(f"/versions/{undone['version']}/restore", json=IDS).json()
    assert again["generation"] == undone["generation"]


def test_a_calibration_is_taken_back_too(client: TestClient) -> None:
    former = client.get("/versions", params=IDS).json()["current"]["calibration"]["threshold"]
    body = {**IDS, "mm_per_px": 0.2, "ok_scores": [0.9]}
    assert client.post("/calibrate_ng", json={**body, "author": "Eva"}).status_code == 200
    kept = client.get("/versions", params=IDS).json()["versions"][0]
    assert kept["calibration"]["threshold"] == former
    client.post(f"/versions/{kept['version']}/restore", json=IDS)
    assert infer(client).json()["threshold"] == former


def test_versions_are_compared_part_by_part(client: TestClient) -> None:
    client.post("/calibrate_ng", json={**IDS, "mm_per_px": 0.2, "ok_scores": [0.9]})
    kept = client.get("/versions", params=IDS).json()["versions"][0]["version"]
    found = client.get("/versions/compare", params={**IDS, "one": kept}).json()
    assert found["n_total"] == 23 and found["n_scores_differ"] == 0
    bad = [item for item in found["differ"] if item["label"] == "ng"]
    assert len(bad) == 3
    assert all((one["one"]["decision"], one["other"]["decision"]) == ("ng", "ok") for one in bad)


def test_a_golden_sample_that_loses_its_verdict_is_named_everywhere(client: TestClient) -> None:
    answer = client.post("/calibrate_ng", json={**IDS, "mm_per_px": 0.2, "ok_scores": [0.9]}).json()
    flips = client.post("/golden/run", json=IDS).json()["flips"]
    assert len(flips) == 1 and flips[0]["score"] == flips[0]["former_score"]
    assert any(flips[0]["filename"] in warning for warning in answer["warnings"])
    assert client.get("/readyz").json()["golden"] == {str(KEY): [flips[0]["filename"]]}
    shown = client.get("/metrics").text
    assert 'bdi_golden_flips{recipe_id="default",roi_id="Pattern",role_id="Master1"} 1.0' in shown


def test_with_golden_blocks_a_change_is_refused_before_it_takes_effect(tmp_path: Path) -> None:
    with serving(tmp_path, golden_blocks=True) as client:
        names = prepare(client)
        before = tree(tmp_path / "models")
        refused = client.post("/calibrate_ng", json={**IDS, "mm_per_px": 0.2, "ok_scores": [0.9]})
        assert (refused.status_code, refused.json()["code"]) == (409, "golden_flipped")
        assert names["ng"] in refused.json()["error"]
        assert tree(tmp_path / "models") == before
        assert infer(client).status_code == 200
    with serving(tmp_path, golden_blocks=True, input_size=96, score_method="max") as client:
        stopped = infer(client)
        assert (stopped.status_code, stopped.json()["code"]) == (503, "golden_stopped")
        for name in names.values():
            client.post("/datasets/golden", json={**IDS, "filename": name, "golden": False})
        assert stopped.json()["error"].count("unmark them") == 1
        assert infer(client).status_code != 503


def test_a_row_of_the_memory_or_a_threshold_that_was_swapped_on_the_disk_is_noticed(tmp_path: Path) -> None:
    with serving(tmp_path, golden_blocks=True) as client:
        prepare(client)
        store = client.app.state.inspector.store  # type: ignore[attr-defined]
        threshold = store.load_calibration(KEY)["threshold"]
        path = store.folder(KEY) / "calib.json"
        path.write_text(path.read_text().replace(str(threshold), "0.99"))
        assert infer(client).json()["code"] == "golden_stopped"
        for stream in (False, True):
            scored = client.post("/infer_dataset", json={**IDS, "stream": stream})
            assert (scored.status_code, scored.json()["code"]) == (503, "golden_stopped")


def test_an_unchanged_model_has_no_flip_in_thirty_runs(client: TestClient) -> None:
    golden: GoldenSet = client.app.state.golden  # type: ignore[attr-defined]
    assert not any(golden.run(KEY).flips for _ in range(30))


def test_what_cannot_be_restored_or_marked_is_said_in_a_sentence(client: TestClient) -> None:
    unknown = client.post("/versions/nothing/restore", json=IDS)
    assert (unknown.status_code, unknown.json()["code"]) == (404, "version_not_found")
    missing = client.post("/datasets/golden", json={**IDS, "filename": "none.png"})
    assert missing.json()["code"] == "sample_not_found"
    client.request("DELETE", "/datasets/clear", params={**IDS, "label": "ng"})
    gone = client.post("/golden/run", json=IDS).json()["flips"]
    assert len(gone) == 1 and "no longer stored" in gone[0]["error"]


def test_a_version_of_another_extractor_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path) as client:
        fit(client, 0, 1, 2)
        fit(client, 0, 1)
        kept = client.get("/versions", params=IDS).json()["versions"][0]["version"]
    with serving(tmp_path, input_size=96, patchcore_patch_size=3) as client:
        listed = client.get("/versions", params=IDS).json()["versions"]
        answer = client.post(f"/versions/{kept}/restore", json=IDS)
        assert answer.json()["code"] == "version_unusable" and listed[0]["restorable"] is False


def test_a_model_keeps_the_shape_that_it_was_fitted_with(tmp_path: Path) -> None:
    shape = '{"kind":"circle","cx":48,"cy":48,"r":30}'
    with serving(tmp_path) as client:
        fit(client, 0, 1, 2, shape=shape)
        plain, own = infer(client).json(), infer(client, shape=shape).json()
        assert plain["score"] == own["score"]
        assert any("that of the model" in warning for warning in plain["warnings"])
        assert not any("that of the model" in warning for warning in own["warnings"])
        whole = infer(client, shape='{"kind":"rect","x":0,"y":0,"w":96,"h":96}').json()
        assert whole["score"] != own["score"]


@pytest.fixture
def recorded(tmp_path: Path, url: str) -> Iterator[TestClient]:
    """The same, in either database."""
    with serving(tmp_path, results_db=url, images_dir=tmp_path / "images") as opened:
        prepare(opened)
        yield opened


def test_a_flip_is_in_the_record_with_both_scores(recorded: TestClient) -> None:
    recorded.post("/calibrate_ng", json={**IDS, "mm_per_px": 0.2, "ok_scores": [0.9]})
    (flip,) = recorded.post("/golden/run", json=IDS).json()["flips"]
    ledger: Ledger = recorded.app.state.ledger  # type: ignore[attr-defined]
    with ledger.reading() as connection:
        events = list(connection.execute(text("SELECT body FROM events WHERE kind = 'golden'")).scalars())
    told = [json.loads(one) for one in events]
    assert [one["flips"] for one in told] == len(told) * [
        [
            {
                "filename": flip["filename"],
                "expected": "ng",
                "former_score": flip["former_score"],
                "score": flip["score"],
            }
        ]
    ]
    assert len(told) == 2


def test_parts_to_review_come_nearest_to_the_threshold_first(recorded: TestClient) -> None:
    client = recorded
    for seed in (90, 91, 92):
        infer(client, seed)
    page = client.get("/inspections", params={**IDS, "order": "informative", "limit": 2}).json()
    rest = client.get("/inspections", params={"order": "informative", "cursor": page["next_cursor"]}).json()
    found = [*page["items"], *rest["items"]]
    distances = [abs(one["score"] - one["threshold"]) for one in found]
    assert len(found) == 3 and distances == sorted(distances)
    client.post(f"/inspections/{found[0]['inspection_id']}/review", json={"verdict": "bad"})
    left = client.get("/inspections", params={"order": "informative"}).json()["items"]
    assert [one["inspection_id"] for one in left] == [one["inspection_id"] for one in found[1:]]

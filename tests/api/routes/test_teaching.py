"""False alarms are taught to a model after it is shown what that changes, and taken back bit for bit."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import pytest
from fastapi.testclient import TestClient

from tests.api.routes.calls import FIT, IDS, fit, fit_and_calibrate, upload
from tests.api.routes.test_versions import model_files, serving
from tests.parts import encoded, part, tree


def stained(seed: int) -> bytes:
    """A good part with a stain that no part of the fit has."""
    image = part(seed)
    cv2.circle(image, (30, 62), 9, (90, 90, 90), -1)
    return encoded(image)


@pytest.fixture
def client(tmp_path: Path, url: str) -> Iterator[TestClient]:
    """A model of 12 parts, calibrated with what is stored; images of all verdicts are kept."""
    with serving(tmp_path, keep_images="all", results_db=url, images_dir=tmp_path / "images") as opened:
        fit_and_calibrate(opened)
        yield opened


def infer(client: TestClient, image: bytes) -> dict[str, Any]:
    answer = client.post("/infer", data=FIT, files={"image": ("seen.png", image, "image/png")})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def review(client: TestClient, seen: dict[str, Any], verdict: str) -> None:
    assert client.post(f"/inspections/{seen['inspection_id']}/review", json={"verdict": verdict}).status_code == 200


def samples(client: TestClient, label: str) -> list[str]:
    names: list[str] = client.get("/datasets/list", params=IDS).json()["classes"][label]["files"]
    return names


def teach(client: TestClient, *seen: dict[str, Any], **body: Any) -> Any:
    ids = [one["inspection_id"] for one in seen]
    return client.post("/teach", json={**IDS, "inspection_ids": ids, **body})


def test_a_dry_run_says_what_would_pass_and_changes_nothing(client: TestClient, tmp_path: Path) -> None:
    alarm = infer(client, stained(70))
    assert alarm["is_anomaly"]
    before = tree(tmp_path / "models"), tree(tmp_path / "datasets")
    told = teach(client, alarm, dry_run=True).json()
    assert (told["allowed"], told["n_taught"], told["n_would_pass"], told["changes"]) == (True, 1, 1, [])
    (one,) = told["taught"]
    assert (one["decision"], one["decision_after"], one["score"]) == ("ng", "ok", alarm["score"])
    assert told["before"]["threshold"] == told["after"]["threshold"] == alarm["threshold"]
    assert told["before"]["misses"]["estimate"] == told["after"]["misses"]["estimate"] == 0
    assert (tree(tmp_path / "models"), tree(tmp_path / "datasets")) == before


def test_what_is_taught_passes_and_a_restore_takes_it_back_bit_for_bit(client: TestClient, tmp_path: Path) -> None:
    alarm, before = infer(client, stained(70)), model_files(tmp_path)
    generation = client.get("/versions", params=IDS).json()["current"]["generation"]
    done = teach(client, alarm, author="Eva", note="new supplier", recalibrate=True).json()
    assert len(done["stored"]) == 1 and done["generation"] != generation
    assert not infer(client, stained(70))["is_anomaly"]
    kept = client.get("/versions", params=IDS).json()["versions"][0]
    assert kept["replaced_by"] == {"event": "teach", "author": "Eva", "note": "new supplier"}
    assert kept["generation"] == generation
    back = client.post(f"/versions/{generation}/restore", json=IDS).json()
    assert any("taken_back" in one for one in back["warnings"])
    assert model_files(tmp_path) == before
    again = infer(client, stained(70))
    assert (again["score"], again["threshold"]) == (alarm["score"], alarm["threshold"])
    assert done["stored"][0] not in samples(client, "ok")
    client.post(f"/versions/{done['generation']}/restore", json=IDS)
    assert done["stored"][0] in samples(client, "ok")
    assert not infer(client, stained(70))["is_anomaly"]


def test_a_lesson_that_costs_a_known_part_its_verdict_is_refused_unless_forced(client: TestClient) -> None:
    defect = infer(client, encoded(part(90, defect=True)))
    seen = infer(client, encoded(part(91, defect=True)))
    review(client, seen, "bad")
    told = teach(client, defect, dry_run=True).json()
    assert not told["allowed"]
    lost = {one.get("filename", one.get("inspection_id")) for one in told["changes"] if one["lost"]}
    assert seen["inspection_id"] in lost and len(lost) == 4
    refused = teach(client, defect)
    assert (refused.status_code, refused.json()["code"]) == (409, "teaching_refused")
    assert any(name in refused.json()["error"] for name in lost)
    assert infer(client, encoded(part(90, defect=True)))["is_anomaly"]
    assert teach(client, defect, force=True).status_code == 200
    assert not infer(client, encoded(part(90, defect=True)))["is_anomaly"]


def test_a_part_that_looks_like_bad_ones_is_an_objection_though_no_verdict_is_lost(client: TestClient) -> None:
    image = part(70)
    cv2.line(image, (60, 30), (64, 66), (255, 60, 20), 2)
    defect = infer(client, encoded(image))
    told = teach(client, defect, dry_run=True).json()
    (one,) = told["taught"]
    assert one["like_bad"] > 0.5 and one["like_bad_name"] in samples(client, "ng")
    assert not told["allowed"] and any(defect["inspection_id"] in text for text in told["objections"])
    assert teach(client, defect).json()["code"] == "teaching_refused"
    alarm = teach(client, infer(client, stained(70)), dry_run=True).json()
    assert "like_bad" not in alarm["taught"][0] and alarm["objections"] == []


def test_with_few_known_bad_parts_the_dry_run_says_that_it_overlooks_more(client: TestClient) -> None:
    alarm = infer(client, stained(70))
    (told,) = [one for one in teach(client, alarm, dry_run=True).json()["warnings"] if "This proof" in one]
    assert told.startswith("Known bad parts that are rejected: 3.") and "fewer than 20" in told
    upload(client, *range(200, 217), label="ng")
    warnings = teach(client, alarm, dry_run=True).json()["warnings"]
    assert not any("This proof" in one for one in warnings)


def test_a_missed_defect_becomes_a_golden_ng_sample(client: TestClient) -> None:
    missed = infer(client, encoded(part(40)))
    assert not missed["is_anomaly"]
    review(client, missed, "bad")
    done = teach(client, missed, infer(client, stained(70))).json()
    (golden,) = client.get("/golden", params=IDS).json()["samples"]
    assert (golden["filename"], golden["expected"]) == (done["golden"][0], "ng")
    assert golden["filename"] in samples(client, "ng")
    assert [one["inspection_id"] for one in done["missed"]] == [missed["inspection_id"]]


def test_what_cannot_be_taught_is_said_in_a_sentence(client: TestClient, tmp_path: Path) -> None:
    bad = samples(client, "ng")[0]
    stored = client.post("/teach", json={**IDS, "filenames": [bad]})
    assert (stored.status_code, stored.json()["code"]) == (409, "taught_is_bad")
    assert "stored as NG" in stored.json()["error"]
    same = teach(client, infer(client, encoded(part(50, defect=True))))
    assert "stored as NG" in same.json()["error"]
    rejected = infer(client, encoded(part(90, defect=True)))
    review(client, rejected, "bad")
    assert "review says" in teach(client, rejected).json()["error"]
    assert client.post("/teach", json=IDS).json()["code"] == "nothing_to_teach"
    other = client.post(
        "/teach", json={"role_id": "Master1", "roi_id": "Other", "inspection_ids": [rejected["inspection_id"]]}
    )
    assert other.json()["code"] == "taught_elsewhere"
    assert client.post("/teach", json={**IDS, "filenames": ["none.png"]}).json()["code"] == "sample_not_found"
    again = samples(client, "ok")[0]
    known = client.post("/teach", json={**IDS, "filenames": [again]}).json()
    assert known["n_taught"] == 0 and any("in the memory already" in one for one in known["warnings"])


def test_a_replica_teaches_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, keep_images="all") as client:
        fit(client, 0, 1, 2)
    with serving(tmp_path, read_only=True) as client:
        assert client.post("/teach", json={**IDS, "filenames": ["a.png"]}).json()["code"] == "read_only_replica"


def test_with_golden_blocks_a_forced_lesson_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, keep_images="all", golden_blocks=True) as client:
        fit(client, *range(6))
        upload(client, 50, label="ng")
        client.post("/calibrate_dataset", json=IDS)
        client.post("/datasets/golden", json={**IDS, "filename": samples(client, "ng")[0]})
        defect, stored = infer(client, encoded(part(90, defect=True))), samples(client, "ok")
        assert teach(client, defect, force=True).json()["code"] == "golden_flipped"
        assert samples(client, "ok") == stored
        assert infer(client, encoded(part(90, defect=True)))["score"] == defect["score"]

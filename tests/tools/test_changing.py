"""The command line teaches, lists versions and restores as the service does, on the same models."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient
from typer.testing import CliRunner, Result

from backend.base.errors import (
    MemoryNotFound,
    ReadOnlyReplica,
    TaughtIsBad,
    TeachingRefused,
    VersionNotFound,
    VersionUnusable,
)
from backend.tools.cli import app
from tests.api.routes.calls import IDS, fit, fit_and_calibrate, upload
from tests.api.routes.test_teaching import infer, review, samples, stained, teach
from tests.api.routes.test_versions import model_files, serving
from tests.parts import encoded, part, tree

MODEL = ("--role", IDS["role_id"], "--roi", IDS["roi_id"])


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folders of the service below, as the command line's own settings name them."""
    own = {
        "MODEL_NAME": "texture",
        "INPUT_SIZE": "112",
        "CORESET_RATE": "0.5",
        "MODELS_DIR": str(tmp_path / "models"),
        "BDI_DATASETS_DIR": str(tmp_path / "datasets"),
        "BDI_RESULTS_DB": f"sqlite:///{tmp_path / 'inspections.db'}",
        "KEEP_IMAGES": "all",
        "MIN_FREE_MB": "0",
    }
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture
def client(desk: Path) -> Iterator[TestClient]:
    """A running service with a calibrated model."""
    with serving(desk, keep_images="all") as opened:
        fit_and_calibrate(opened)
        yield opened


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "250"})


def told(*words: object, exit_code: int = 0) -> dict[str, Any]:
    result = run(*words, *MODEL, "--json")
    assert result.exit_code == exit_code, result.output
    said: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    return said


def test_a_dry_run_says_what_the_route_says_and_changes_nothing(client: TestClient, desk: Path) -> None:
    alarm = infer(client, stained(70))
    before = tree(desk / "models"), tree(desk / "datasets")
    said, route = told("teach", alarm["inspection_id"], "--dry-run"), teach(client, alarm, dry_run=True).json()
    assert said == {name: route[name] for name in said}
    assert said["allowed"] and said["n_would_pass"] == 1
    result = run("teach", alarm["inspection_id"], "--dry-run", *MODEL)
    assert result.exit_code == 0 and "nothing was changed" in result.output
    assert alarm["inspection_id"] in result.stdout and f"{alarm['score']:.4f}" in result.stdout
    assert (tree(desk / "models"), tree(desk / "datasets")) == before


def test_a_lesson_is_taught_listed_and_taken_back_bit_for_bit_while_the_service_runs(
    client: TestClient, desk: Path
) -> None:
    alarm, before = infer(client, stained(70)), model_files(desk)
    done = told("teach", alarm["inspection_id"], "--recalibrate", "--author", "Eva", "--note", "new supplier")
    assert len(done["stored"]) == 1 and done["stored"][0] in samples(client, "ok")
    assert not infer(client, stained(70))["is_anomaly"]
    listed = told("versions")
    route = client.get("/versions", params=IDS).json()
    assert listed == {name: route[name] for name in listed}
    assert listed["current"]["generation"] == done["generation"]
    kept = listed["versions"][0]
    assert kept["replaced_by"] == {"event": "teach", "author": "Eva", "note": "new supplier"}
    table = run("versions", *MODEL).stdout
    assert kept["version"] in table and "new supplier" in table and "in use" in table
    back = told("restore", kept["version"], "--author", "Ana")
    assert back["generation"] == kept["generation"] and any("taken_back" in one for one in back["warnings"])
    assert model_files(desk) == before
    again = infer(client, stained(70))
    assert (again["score"], again["threshold"]) == (alarm["score"], alarm["threshold"])
    assert done["stored"][0] not in samples(client, "ok")


def test_what_speaks_against_a_lesson_ends_it_unless_it_is_forced(client: TestClient) -> None:
    defect = infer(client, encoded(part(90, defect=True)))
    dry = run("teach", defect["inspection_id"], "--dry-run", *MODEL)
    assert dry.exit_code == 1 and "objection: " in dry.output
    refused = run("teach", defect["inspection_id"], *MODEL)
    assert isinstance(refused.exception, TeachingRefused)
    assert infer(client, encoded(part(90, defect=True)))["is_anomaly"]
    assert told("teach", defect["inspection_id"], "--force")["n_taught"] == 1
    assert not infer(client, encoded(part(90, defect=True)))["is_anomaly"]


def test_a_missed_defect_becomes_golden_and_a_restore_that_costs_it_its_verdict_is_said(client: TestClient) -> None:
    missed = infer(client, encoded(part(40)))
    review(client, missed, "bad")
    done = told("teach", missed["inspection_id"])
    assert [one["filename"] for one in client.get("/golden", params=IDS).json()["samples"]] == done["golden"]
    bad = samples(client, "ng")[0]
    client.post("/datasets/golden", json={**IDS, "filename": bad})
    client.post("/calibrate_ng", json={**IDS, "mm_per_px": 0.2, "ok_scores": [0.9]})
    mild = client.get("/versions", params=IDS).json()["versions"][0]["version"]
    told("restore", mild)
    severe = client.get("/versions", params=IDS).json()["versions"][0]["version"]
    assert any(bad in warning for warning in told("restore", severe)["warnings"])
    events = client.get("/readyz").json()["golden"]
    assert bad in events["Master1/Pattern"]


def test_a_stored_good_part_is_taught_by_its_name_and_a_bad_one_is_refused(client: TestClient) -> None:
    upload(client, 60)
    fresh = samples(client, "ok")[-1]
    assert told("teach", "--sample", fresh)["n_taught"] == 1
    assert isinstance(run("teach", "--sample", samples(client, "ng")[0], *MODEL).exception, TaughtIsBad)


def test_what_cannot_be_done_is_said(client: TestClient, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(run("restore", "nothing", *MODEL).exception, VersionNotFound)
    assert isinstance(run("versions", "--roi", "Nothing").exception, MemoryNotFound)
    assert run("teach", "a", "--threshold", "0.5", *MODEL).exit_code == 2
    fit(client, 0, 1)
    kept = told("versions")["versions"][0]
    assert kept["restorable"]
    monkeypatch.setenv("READ_ONLY", "1")
    for words in (("restore", kept["version"]), ("teach", "--sample", samples(client, "ok")[0])):
        assert isinstance(run(*words, *MODEL).exception, ReadOnlyReplica)
    monkeypatch.delenv("READ_ONLY")
    monkeypatch.setenv("PATCHCORE_PATCH_SIZE", "3")
    assert not told("versions")["versions"][0]["restorable"]
    before = tree(desk / "models")
    assert isinstance(run("restore", kept["version"], *MODEL).exception, VersionUnusable)
    assert tree(desk / "models") == before

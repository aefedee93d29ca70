"""The command line's inspections are recorded; its commands verify, export and prune the record."""

import csv
import io
import json
from pathlib import Path

import pytest
from sqlalchemy import text
from typer.testing import CliRunner, Result

from backend.api.catalogue import sentence
from backend.base.errors import InspectionError, InvalidValue, RecordsOff, RecordsRefused, RecordsUnavailable
from backend.records.database import Database
from backend.tools.cli import app
from tests.parts import encoded, part


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fitted model, and three inspections of the command line on record."""
    (tmp_path / "good").mkdir()
    for seed in range(3):
        (tmp_path / "good" / f"{seed}.png").write_bytes(encoded(part(seed)))
    own = {
        "MODEL_NAME": "texture",
        "INPUT_SIZE": "112",
        "MODELS_DIR": str(tmp_path / "models"),
        "BDI_RESULTS_DB": f"sqlite:///{tmp_path / 'inspections.db'}",
        "KEEP_IMAGES": "all",
    }
    for name, value in own.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert run("fit", "good").exit_code == 0
    return tmp_path


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "250"})


def inspect(*words: object) -> list[str]:
    """The names of three recorded inspections."""
    result = run("infer", "good", "--json", *words)
    assert result.exit_code == 0, result.output
    return [json.loads(line)["inspection_id"] for line in result.stdout.splitlines()]


def test_inspections_are_recorded_and_exported_with_who_and_what(desk: Path) -> None:
    names = inspect("--part-id", "P 1", "--batch-id", "L2", "--station-id", "desk", "--operator", "Ana")
    result = run("records", "export")
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert [row["inspection_id"] for row in rows] == names
    assert {(row["part_id"], row["batch_id"], row["station_id"], row["operator"]) for row in rows} == {
        ("P 1", "L2", "desk", "Ana")
    }
    assert {row["source"] for row in rows} == {"cli"}
    assert run("records", "export", "--out", desk / "out.csv", "--until", "2020-01-01").exit_code == 0
    assert len((desk / "out.csv").read_text().splitlines()) == 1


def test_a_kept_image_inspected_again_scores_the_same_to_the_last_bit(desk: Path) -> None:
    (desk / "seen").mkdir()
    image = part(9, defect=True)
    (desk / "seen" / "part.jpg").write_bytes(encoded(image, "JPEG"))
    (desk / "seen" / "deep.tif").write_bytes(encoded(image[:, :, 1].astype("uint16") * 257, "TIFF"))
    how = ("--json", "--shape", '{"kind": "circle", "cx": 48, "cy": 48, "r": 30}', "--mm-per-px", 0.05)
    scores = {row["score"] for row in map(json.loads, run("infer", "seen", *how).stdout.splitlines())}
    again = run("infer", *sorted(Path("inspections.images").glob("??/*")), *how)
    assert {row["score"] for row in map(json.loads, again.stdout.splitlines())} == scores
    assert len(scores) == 2


def test_ids_are_checked_before_anything_is_inspected(desk: Path) -> None:
    result = run("infer", "good", "--operator", "x" * 129)
    assert isinstance(result.exception, InvalidValue)
    assert list((desk / "overlays").glob("*")) == []


def test_verify_says_that_all_is_whole_or_names_what_is_not(desk: Path) -> None:
    names = inspect()
    result = run("records", "verify")
    assert result.exit_code == 0 and "3 inspections" in result.output and "whole" in result.output
    database = Database(f"sqlite:///{desk / 'inspections.db'}")
    with database.writing() as connection:
        connection.execute(
            text("UPDATE inspections SET score = score - 0.01 WHERE id = (SELECT max(id) FROM inspections)")
        )
    database.close()
    result = run("records", "verify", "--no-images", "--head", f"{names[0]}=00")
    assert result.exit_code == 1
    assert f"{names[2]}: it was changed" in result.output and f"{names[0]}: the service's log" in result.output


def test_prune_says_what_would_go_and_lets_it_go(desk: Path) -> None:
    inspect()
    assert "3 inspections" in run("records", "prune", "--days", 0, "--dry-run").output
    assert "0 inspections" in run("records", "prune", "--before", "2020-01-01").output
    assert "3 inspections" in run("records", "prune", "--days", 0).output
    assert run("records", "verify").exit_code == 0
    assert list((desk / "inspections.images").glob("??/*")) == []


@pytest.mark.parametrize("words", [(), ("--days", 1, "--before", "2026-01-01"), ("--before", "soon")])
def test_prune_wants_to_know_how_old(desk: Path, words: tuple[object, ...]) -> None:
    assert run("records", "prune", *words).exit_code != 0


def test_without_a_record_inspections_go_on_and_commands_say_so(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDI_RESULTS_DB", "none")
    row = json.loads(run("infer", "good/0.png", "--json").stdout)
    assert "inspection_id" not in row
    for command in (("verify",), ("export",), ("prune", "--days", 1)):
        result = run("records", *command)
        assert isinstance(result.exception, RecordsOff | InspectionError)


def test_a_record_that_is_not_there_is_not_said_to_be_whole(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BDI_RESULTS_DB", f"sqlite:///{desk / 'elsewhere' / 'x.db'}")
    for command in (("verify",), ("export",), ("prune", "--days", 1)):
        result = run("records", *command)
        assert isinstance(result.exception, RecordsRefused)
        assert "there is no file" in sentence(result.exception, "en")
    assert not (desk / "elsewhere").exists()


@pytest.mark.parametrize(
    "words",
    [("export", "--decision", "maybe"), ("prune", "--days", "inf"), ("prune", "--days", "1e300")],
)
def test_an_option_that_cannot_be_meant_is_refused(desk: Path, words: tuple[str, ...]) -> None:
    inspect()
    assert run("records", *words).exit_code == 2


@pytest.mark.parametrize("change", ["DROP TABLE facets", "ALTER TABLE inspections RENAME COLUMN hash TO other"])
def test_tables_that_somebody_changed_are_told_in_a_sentence(desk: Path, change: str) -> None:
    inspect()
    database = Database(f"sqlite:///{desk / 'inspections.db'}")
    with database.writing() as connection:
        connection.execute(text(change))
    database.close()
    assert isinstance(run("records", "verify").exception, RecordsUnavailable)

"""`python -m backend demo`, as a newcomer runs it."""

import json
from pathlib import Path
from typing import Any

import cv2
import pytest
from typer.testing import CliRunner

from backend.tools import demo
from backend.tools.cli import app
from backend.tools.demo import print_report


def shown(tmp_path: Path, *options: str) -> dict[str, Any]:
    """The rows of the demo's report by part, once it has run and left a picture of each."""
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo"), *options])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "demo" / "report.json").read_text("utf-8"))
    rows = {row["part"]: row for row in report["parts"]}
    assert report["threshold"] > 0
    for name in ("sheet", "parts", *(f"{part}_overlay" for part in rows)):
        assert cv2.imread(str(tmp_path / "demo" / f"{name}.png")) is not None
    return rows


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_NAME", "texture")
    monkeypatch.setenv("MODELS_DIR", str(tmp_path / "of the service"))


def test_a_small_demo_finds_the_rust_and_leaves_the_services_models_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "DEFECTS", ("rust",))
    monkeypatch.setattr(demo, "CALIBRATION_PARTS", 3)
    monkeypatch.setattr(demo, "FRESH_PARTS", 1)
    rows = shown(tmp_path, "--good", "4")
    assert set(rows) == {"unseen_good_00", "rust"}
    assert rows["rust"]["decision"] == "ng" and rows["rust"]["regions_on_the_defect"] >= 1
    assert not (tmp_path / "of the service").exists()


@pytest.mark.slow
def test_without_weights_the_demo_runs_on_lite_and_finds_every_defect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MODEL_NAME")
    monkeypatch.setenv("WEIGHTS", str(tmp_path / "absent.pth"))
    rows = shown(tmp_path)
    assert set(demo.DEFECTS) < set(rows)
    for defect in demo.DEFECTS:
        assert rows[defect]["decision"] == "ng" and rows[defect]["regions_on_the_defect"] >= 1, defect
    assert {row["decision"] for name, row in rows.items() if name not in demo.DEFECTS} == {"ok"}
    report = json.loads((tmp_path / "demo" / "report.json").read_text("utf-8"))
    assert report["health"]["model"] == "lite" and report["health"]["status"] == "degraded"


@pytest.mark.parametrize(("given", "rate"), [({}, 0.1), ({"coreset_rate": 0.02}, 0.02)])
def test_a_memory_of_few_parts_keeps_more_rows_unless_somebody_chose(given: dict[str, float], rate: float) -> None:
    assert demo._settings(**given).coreset_rate == rate


def report(*decisions: tuple[str, str | None, str], score_method: str = "percentile", status: str = "degraded") -> Any:
    rows: list[dict[str, Any]] = [
        {"part": part, "defect": defect, "score": 0.5, "decision": decision, "area_mm2": 0.0, "regions": 0,
         "regions_on_the_defect": 0}
        for part, defect, decision in decisions
    ]  # fmt: skip
    return {
        "health": {"status": status, "model": "lite"},
        "score_method": score_method,
        "threshold": 0.4,
        "parts": rows,
    }


def test_a_defective_part_that_passes_is_named_with_what_the_setting_is_blind_to(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_report(report(("unseen_good_00", None, "ok"), ("crack", "crack", "ng"), ("scratch", "scratch", "ok")))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "passed although defective" in line]
    assert "scratch" in line and "crack" not in line and "unseen" not in line
    assert "less than 1 %" in line and "SCORE_METHOD=max" in line and "lite" in line and "WEIGHTS" in line


def test_no_remedy_is_named_that_is_in_use_already(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report(("scratch", "scratch", "ok"), score_method="max", status="ok"))
    text = capsys.readouterr().err
    assert "passed although defective: scratch" in text
    assert "SCORE_METHOD" not in text and "WEIGHTS" not in text


def test_when_every_defect_is_found_nothing_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report(("unseen_good_00", None, "ok"), ("scratch", "scratch", "ng")))
    text = capsys.readouterr().err
    assert "threshold: 0.4" in text and "passed" not in text

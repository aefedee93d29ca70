"""`python -m backend demo`, as a newcomer runs it."""

import json
from pathlib import Path
from typing import Any

import cv2
import pytest
from typer.testing import CliRunner

from backend.tools.cli import app
from backend.tools.demo import DEFECTS, print_report


def test_the_demo_leaves_pictures_and_a_report_of_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_NAME", "texture")
    monkeypatch.setenv("MODELS_DIR", str(tmp_path / "of the service"))
    result = CliRunner().invoke(app, ["demo", "--out", str(tmp_path / "demo")])
    assert result.exit_code == 0, result.output
    report = json.loads((tmp_path / "demo" / "report.json").read_text("utf-8"))
    rows = {row["part"]: row for row in report["parts"]}
    assert set(DEFECTS) < set(rows)
    assert report["threshold"] > 0
    # The weight-free extractor and the 99th percentile are sure of the large defects alone.
    for defect in ("crack", "rust"):
        assert rows[defect]["decision"] == "ng" and rows[defect]["regions_on_the_defect"] >= 1
    assert {row["decision"] for name, row in rows.items() if name not in DEFECTS} == {"ok"}
    for name in ("sheet", "parts", *(f"{part}_overlay" for part in rows)):
        assert cv2.imread(str(tmp_path / "demo" / f"{name}.png")) is not None
    assert not (tmp_path / "of the service").exists()


def report(*decisions: tuple[str, str | None, str], score_method: str = "percentile", status: str = "degraded") -> Any:
    rows: list[dict[str, Any]] = [
        {"part": part, "defect": defect, "score": 0.5, "decision": decision, "area_mm2": 0.0, "regions": 0,
         "regions_on_the_defect": 0}
        for part, defect, decision in decisions
    ]  # fmt: skip
    return {"health": {"status": status}, "score_method": score_method, "threshold": 0.4, "parts": rows}


def test_a_defective_part_that_passes_is_named_with_what_the_setting_is_blind_to(
    capsys: pytest.CaptureFixture[str],
) -> None:
    print_report(report(("unseen_good_00", None, "ok"), ("crack", "crack", "ng"), ("scratch", "scratch", "ok")))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "passed although defective" in line]
    assert "scratch" in line and "crack" not in line and "unseen" not in line
    assert "less than 1 %" in line and "SCORE_METHOD=max" in line and "WEIGHTS" in line


def test_no_remedy_is_named_that_is_in_use_already(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report(("scratch", "scratch", "ok"), score_method="max", status="ok"))
    text = capsys.readouterr().err
    assert "passed although defective: scratch" in text
    assert "SCORE_METHOD" not in text and "WEIGHTS" not in text


def test_when_every_defect_is_found_nothing_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(report(("unseen_good_00", None, "ok"), ("scratch", "scratch", "ng")))
    text = capsys.readouterr().err
    assert "threshold: 0.4" in text and "passed" not in text

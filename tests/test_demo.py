"""`python -m backend demo`, as a newcomer runs it."""

import json
from pathlib import Path

import cv2
import pytest
from typer.testing import CliRunner

from backend.cli import app
from backend.demo import DEFECTS


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

"""python -m backend evaluate: what it leaves behind, and that one bad set does not cost the others."""

import json
import os
import sys
from html import unescape
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner, Result

from backend.api.catalogue import sentence
from backend.base.errors import SetNotUnderstood
from backend.evaluation.perturb import PERTURBATIONS
from backend.evaluation.runner import Evaluator
from backend.evaluation.sets import InspectionSet
from backend.tools.cli import app


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("MODEL_NAME", "texture"), ("INPUT_SIZE", "112")):
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)


def plates(root: Path) -> Path:
    """A set of striped plates, some with a spot."""
    rng = np.random.default_rng(3)
    for kind, (n, spot) in {"train/good": (4, 0), "test/good": (12, 0), "test/dirt [1]": (4, 14)}.items():
        (root / kind).mkdir(parents=True)
        for number in range(n):
            y, x = np.mgrid[:90, :120]
            image = 120 + 30 * np.sin(x / 7 + rng.uniform(0, 6)) + rng.normal(0, 4, (90, 120))
            image[(x - 60) ** 2 + (y - 45) ** 2 < spot**2] += 80
            cv2.imwrite(str(root / kind / f"{number:02}.png"), np.clip(image, 0, 255).astype(np.uint8))
    return root


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["evaluate", *map(str, words)])


def test_tables_a_report_and_json_are_left(tmp_path: Path) -> None:
    given = plates(tmp_path / "plates")
    result = run(given, "--shots", "1,2", "--seeds", "1", "--perturb", "--report", "out/r.html", "--json", "out/r.json")
    assert result.exit_code == 0, result.output
    for words in ("plates", "image AUROC", "what a calibration would do", "with few good parts", "10 OK, 3 NG",
                  "2 (1 draws)", "under changes", "turn +5°", "dirt [1]"):  # fmt: skip
        assert words in result.stdout
    (figures,) = json.loads(Path("out/r.json").read_text("utf-8"))
    assert [few["shots"] for few in figures["few"]] == [1, 2]
    assert len(figures["images"]) == 16 and "warnings" not in figures
    assert figures["settings"]["INPUT_SIZE"] == 112
    assert figures["changed"][0]["change"] == "none" and len(figures["changed"]) == len(PERTURBATIONS) + 1
    assert Path("out/r.html").read_text("utf-8").startswith("<!doctype html>")


def test_json_on_standard_output_stands_alone(tmp_path: Path) -> None:
    result = run(plates(tmp_path / "placas Ñ"), "--json", "-")
    (figures,) = json.loads(result.stdout)
    assert figures["set_name"] == "placas Ñ" and result.stdout.isascii()
    assert "summary" in result.stderr and Path("evaluation.html").is_file()


def test_what_looks_wrong_with_a_set_is_said_everywhere(tmp_path: Path) -> None:
    given = plates(tmp_path / "plates")
    (given / "test" / "good" / "copy.png").write_bytes((given / "train" / "good" / "00.png").read_bytes())
    result = run(given, "--json", "r.json")
    assert result.exit_code == 0
    (warning,) = json.loads(Path("r.json").read_text("utf-8"))[0]["warnings"]
    assert "test/good/copy.png" in warning
    assert f"warning: plates: {warning}" in result.stderr
    assert warning in unescape(Path("evaluation.html").read_text("utf-8"))


def test_a_set_with_a_broken_image_is_named_and_the_others_are_reported(tmp_path: Path) -> None:
    broken, whole = plates(tmp_path / "broken"), plates(tmp_path / "whole")
    (broken / "test" / "good" / "03.png").write_bytes(b"no image")
    result = run(broken, whole, "--json", "r.json")
    assert result.exit_code == 1
    assert "error: broken: test/good/03.png" in result.stderr
    assert [figures["set_name"] for figures in json.loads(Path("r.json").read_text("utf-8"))] == ["whole"]


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_set_with_a_link_that_leads_nowhere_is_named_and_the_others_are_reported(tmp_path: Path) -> None:
    broken, whole = plates(tmp_path / "broken"), plates(tmp_path / "whole")
    (broken / "test" / "good" / "gone.png").symlink_to("nowhere.png")
    result = run(broken, whole, "--json", "r.json")
    assert result.exit_code == 1
    assert "error: broken: " in result.stderr and "gone.png: No such file" in result.stderr
    assert [figures["set_name"] for figures in json.loads(Path("r.json").read_text("utf-8"))] == ["whole"]


def test_a_model_without_weights_is_named_and_the_others_are_measured(tmp_path: Path) -> None:
    given = plates(tmp_path / "plates")
    result = run(given, "--model", f"resnet18={tmp_path / 'absent.safetensors'}", "--model", "texture")
    assert result.exit_code == 1
    assert "error: resnet18: " in result.stderr and "absent.safetensors" in result.stderr
    assert "plates · texture: classes" in result.stdout


def test_a_folder_that_is_no_set_is_explained_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty" / "train" / "good").mkdir(parents=True)
    monkeypatch.setattr(Evaluator, "run", lambda *_: pytest.fail("it must not start"))
    result = run(plates(tmp_path / "plates"), tmp_path / "empty")
    assert isinstance(result.exception, SetNotUnderstood)
    assert "train/good and test/<class>" in sentence(result.exception, "en")


def test_what_was_measured_is_kept_when_somebody_stops_the_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = Evaluator.run

    def stopped_at_the_second(self: Evaluator, given: InspectionSet, **more: object) -> object:
        if given.name == "second":
            raise KeyboardInterrupt
        return measure(self, given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Evaluator, "run", stopped_at_the_second)
    result = run(plates(tmp_path / "first"), plates(tmp_path / "second"), "--json", "r.json")
    assert result.exit_code != 0
    assert [figures["set_name"] for figures in json.loads(Path("r.json").read_text("utf-8"))] == ["first"]


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes there alone")
def test_names_that_are_no_text_come_back_as_they_were(tmp_path: Path) -> None:
    given = plates(tmp_path / "plates")
    odd = os.fsdecode(os.fsencode(given / "test" / "good") + b"/caf\xe9.png")
    (given / "test" / "good" / "03.png").rename(odd)
    result = run(given, "--json", "r.json")
    assert result.exit_code == 0, result.output
    (figures,) = json.loads(Path("r.json").read_text("utf-8"))
    assert odd in [image["file"] for image in figures["images"]]
    assert Path("evaluation.html").read_text("utf-8").startswith("<!doctype html>")

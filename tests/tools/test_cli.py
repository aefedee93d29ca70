"""The command line, command by command, as a person types it."""

import json
from pathlib import Path

import cv2
import pytest
from typer.testing import CliRunner, Result

from backend.base.config import load_settings
from backend.base.keys import ModelKey
from backend.samples.collector import Collector
from backend.service.images import ImageFile
from backend.storage import ModelStore
from backend.tools.cli import app
from tests.parts import encoded, part


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with twelve good parts and one bad one; models and samples are kept beside them."""
    for folder, seeds, bad in (("good", range(12), False), ("bad", range(50, 51), True)):
        (tmp_path / folder).mkdir()
        for seed in seeds:
            picture = part(seed)
            if bad:
                cv2.circle(picture, (60, 60), 30, (0, 0, 255), -1)
            (tmp_path / folder / f"{seed:02d}.png").write_bytes(encoded(picture, "PNG"))
    own = {"MODEL_NAME": "texture", "INPUT_SIZE": "112", "MODELS_DIR": "models", "DATASETS_DIR": "datasets"}
    for name, value in own.items():
        monkeypatch.setenv(name, str(tmp_path / value) if name.endswith("_DIR") else value)
    return tmp_path


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def test_a_fit_may_be_told_what_the_part_is(desk: Path) -> None:
    rows = []
    for shape in ([], ["--shape", '{"kind": "circle", "cx": 56, "cy": 56, "r": 20}']):
        assert run("fit", desk / "good", "--roi", "Disc", *shape).exit_code == 0
        rows.append(json.loads(next(desk.rglob("manifest.json")).read_text())["n_embeddings"])
    assert 0 < rows[1] < rows[0] / 2


def test_a_folder_is_fitted_and_its_model_is_on_disk(desk: Path) -> None:
    result = run("fit", desk / "good", "--role", "Line", "--roi", "Disc", "--recipe", "r2", "--mm-per-px", 0.2)
    assert result.exit_code == 0, result.output
    assert "12 images" in result.output
    stored = ModelStore(desk / "models").load_memory(ModelKey.of("Line", "Disc", "r2"))
    assert stored.metadata["n_images"] == 12 and stored.metadata["mm_per_px"] == 0.2


def test_inspections_leave_an_overlay_each_and_a_line_of_json(desk: Path) -> None:
    assert run("fit", desk / "good").exit_code == 0
    result = run("infer", desk / "good" / "03.png", desk / "bad", "--out", desk / "overlays", "--json")
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("{")]
    assert [Path(row["file"]).name for row in rows] == ["03.png", "50.png"]
    assert rows[1]["score"] > rows[0]["score"]
    for row in rows:
        assert cv2.imread(row["overlay"]) is not None
        assert row["threshold"] is None and row["decision"] is None


def test_without_json_a_table_shows_score_and_picture(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "250")
    assert run("fit", desk / "good").exit_code == 0
    shape = json.dumps({"kind": "circle", "cx": 60, "cy": 60, "r": 50})
    result = run("infer", desk / "bad", "--out", desk / "overlays", "--shape", shape)
    assert result.exit_code == 0, result.output
    assert "bad_50_overlay.png" in result.output and "score" in result.output


def test_a_folder_without_images_is_refused_by_name(desk: Path) -> None:
    (desk / "empty").mkdir()
    result = run("fit", desk / "empty")
    assert result.exit_code == 2 and "there is no image" in result.output
    assert not (desk / "models").exists() or not list((desk / "models").rglob("memory.npz"))


def test_a_lost_model_is_rebuilt_from_its_samples(desk: Path) -> None:
    nothing = run("rebuild")
    assert nothing.exit_code == 0, nothing.output
    collector = Collector(load_settings())
    collector.inspector.start()
    key = ModelKey.of("Line", "Disc")
    files = [ImageFile.named(p.name, p.read_bytes) for p in sorted((desk / "good").iterdir())]
    collector.fit(key, files, mm_per_px=0.2)
    before = collector.inspector.cache.model(key).stored.emb
    collector.inspector.close()
    ModelStore(desk / "models").folder(key).joinpath("memory.npz").unlink()
    other = run("rebuild", "--role", "Other")
    assert other.exit_code == 0 and "Line" not in other.output
    result = run("rebuild")
    assert result.exit_code == 0 and "Line/Disc" in result.output, result.output
    assert (ModelStore(desk / "models").load_memory(key).emb == before).all()


def test_settings_are_printed_as_the_documents_have_them() -> None:
    result = run("settings")
    assert result.exit_code == 0
    assert "| `CORESET_RATE` | `0.02` |" in result.output


def test_the_bank_wants_a_recipe_that_exists(desk: Path) -> None:
    result = run("bank", desk / "good", "--embedding-version", "nonsense")
    assert result.exit_code == 2 and "known versions are" in result.output

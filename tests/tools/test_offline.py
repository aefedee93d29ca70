"""Fit, calibrate, inspect, rebuild from files: nothing is lost, and each file is told apart."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from backend.api.catalogue import sentence
from backend.assurance.golden import GoldenSet
from backend.assurance.reference import FEWEST
from backend.assurance.watch import FILE
from backend.base.config import PROJECT_ROOT, load_settings
from backend.base.errors import GoldenFlipped, GoldenStopped, NotEnoughSamples
from backend.base.keys import ModelKey
from backend.samples.collector import Collector
from backend.samples.store import Draft
from backend.service.images import ImageFile
from backend.storage import ModelStore
from backend.tools.cli import app, main
from tests.parts import encoded, part

GOOD, BAD = encoded(part(60)), encoded(part(50, defect=True))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with four good parts and a bad one; models and samples are kept beside them, and it is the cwd."""
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
    for seed in range(4):
        (tmp_path / "good" / f"{seed:02d}.png").write_bytes(encoded(part(seed)))
    (tmp_path / "bad" / "50.png").write_bytes(BAD)
    own = {"MODEL_NAME": "texture", "INPUT_SIZE": "112", "MODELS_DIR": "models", "BDI_DATASETS_DIR": "datasets"}
    for name, value in own.items():
        monkeypatch.setenv(name, str(tmp_path / value) if name.endswith("_DIR") else value)
    monkeypatch.setenv("BDI_RESULTS_DB", f"sqlite:///{tmp_path / 'inspections.db'}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A models folder with cli/default fitted on ten good parts."""
    root = tmp_path_factory.mktemp("models")
    (root / "parts").mkdir()
    for seed in range(10):
        (root / "parts" / f"{seed:02d}.png").write_bytes(encoded(part(seed)))
    env = {"MODEL_NAME": "texture", "INPUT_SIZE": "112", "MODELS_DIR": str(root / "models")}
    result = CliRunner(env=env).invoke(app, ["fit", str(root / "parts"), "--mm-per-px", "0.2"])
    assert result.exit_code == 0, result.output
    return root / "models"


@pytest.fixture
def fitted(desk: Path, models: Path) -> Path:
    """The desk, with that model on it."""
    shutil.copytree(models, desk / "models")
    return desk


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "250"})


def rows(*words: object, exit_code: int = 0) -> list[dict[str, Any]]:
    """The rows of `infer … --json`."""
    result = run("infer", *words, "--json", "--out", "overlays")
    assert result.exit_code == exit_code, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def put(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def test_a_fit_may_be_told_what_the_part_is(desk: Path) -> None:
    counts = []
    for shape in ([], ["--shape", '{"kind": "circle", "cx": 56, "cy": 56, "r": 20}']):
        assert run("fit", desk / "good", "--roi", "Disc", *shape).exit_code == 0
        counts.append(json.loads(next(desk.rglob("manifest.json")).read_text())["n_embeddings"])
    assert 0 < counts[1] < counts[0] / 2


def test_a_folder_is_fitted_and_its_model_is_on_disk(desk: Path) -> None:
    result = run("fit", desk / "good", "--role", "Line", "--roi", "Disc", "--recipe", "r2", "--mm-per-px", 0.2)
    assert result.exit_code == 0, result.output
    assert "4 images" in result.output
    stored = ModelStore(desk / "models").load_memory(ModelKey.of("Line", "Disc", "r2"))
    assert stored.metadata["n_images"] == 4 and stored.metadata["mm_per_px"] == 0.2


@pytest.mark.parametrize("extra", ["._00.PNG", ".hidden.png", "Thumbs.db", "notes.txt"])
def test_what_is_no_image_is_in_nobodys_way(desk: Path, extra: str) -> None:
    put(desk / "good" / extra, b"\0\5\x16\7")
    (desk / "good" / "sub.png").mkdir()
    result = run("fit", desk / "good")
    assert result.exit_code == 0 and "4 images" in result.output, result.output


def test_a_broken_image_stops_a_fit_with_its_name(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(desk / "good" / "01[cut].png", GOOD[:300])
    monkeypatch.setattr(sys, "argv", ["backend", "fit", str(desk / "good")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "01[cut].png" in capsys.readouterr().err
    assert not list(desk.rglob("memory.npz"))


def test_a_folder_without_images_is_refused_by_name(desk: Path) -> None:
    (desk / "empty").mkdir()
    result = run("fit", desk / "empty")
    assert result.exit_code == 2 and "there is no image" in result.output and "empty" in result.output
    assert not list(desk.rglob("memory.npz"))


def test_inspections_leave_an_overlay_each_and_a_line_of_json(fitted: Path) -> None:
    found = rows(fitted / "good" / "03.png", fitted / "bad")
    assert [Path(row["file"]).name for row in found] == ["03.png", "50.png"]
    assert found[1]["score"] > found[0]["score"]
    for row in found:
        assert cv2.imread(row["overlay"]) is not None
        assert row["threshold"] is None and row["decision"] is None
        assert any("Not calibrated" in warning for warning in row["warnings"])


def test_the_models_own_scale_holds_unless_another_is_given(fitted: Path) -> None:
    (own,), (other,) = rows(fitted / "bad"), rows(fitted / "bad", "--mm-per-px", "0.5")
    assert not any("mm_per_px" in warning for warning in own["warnings"])
    assert any("mm_per_px" in warning for warning in other["warnings"])


BROKEN = {
    "cut": BAD[: len(BAD) // 2],
    "empty": b"",
    "text": b"this is no picture",
    "a header alone": BAD[:33],
    "tiny": encoded(np.zeros((8, 8, 3), np.uint8)),
    "another shape": encoded(part(1, height=64, width=256)),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_file_that_cannot_be_used_has_a_row_and_the_others_go_on(fitted: Path, kind: str) -> None:
    put(fitted / "mix" / "a.png", GOOD)
    put(fitted / "mix" / "b[1].png", BROKEN[kind])
    put(fitted / "mix" / "c.png", BAD)
    first, broken, last = rows("mix", exit_code=1)
    assert "score" in first and "score" in last and "score" not in broken
    assert broken["file"] == "mix/b[1].png" and "b[1].png" in broken["error"]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="everything can be read here")
def test_a_file_that_may_not_be_read_has_a_row_too(fitted: Path) -> None:
    put(fitted / "mix" / "a.png", GOOD).chmod(0)
    put(fitted / "mix" / "b.png", GOOD)
    locked, other = rows("mix", exit_code=1)
    assert "Permission" in locked["error"] and "score" in other


@pytest.mark.skipif(os.name == "nt", reason="links need a privilege there")
def test_a_link_that_leads_nowhere_has_a_row_too(fitted: Path) -> None:
    put(fitted / "mix" / "b.png", GOOD)
    (fitted / "mix" / "a.png").symlink_to(fitted / "gone.png")
    lost, other = rows("mix", exit_code=1)
    assert lost["file"] == "mix/a.png" and "No such file" in lost["error"] and "score" in other


def test_without_json_a_table_shows_each_file_and_what_became_of_it(fitted: Path) -> None:
    put(fitted / "pieza[roja] con un nombre bastante largo, lote 17.png", GOOD)
    put(fitted / "foto[bad].png", b"xx")
    shape = json.dumps({"kind": "circle", "cx": 48, "cy": 48, "r": 40})
    given = ["pieza[roja] con un nombre bastante largo, lote 17.png", "foto[bad].png", "--shape", shape]
    result = run("infer", *given, "--out", "o")
    assert result.exit_code == 1
    for name in given[:2]:
        assert name in result.stdout
    assert "error: foto[bad].png" in result.stderr
    assert "pieza[roja] con un nombre bastante largo, lote 17_overlay.png" in result.stdout


# Sets of inputs whose overlays could be taken for one another.
TWINS = {
    "endings": ["mix/p.png", "mix/p.jpg", "mix/p.bmp"],
    "folders of one name": ["lotA/good/p.png", "lotB/good/p.png"],
    "names that join alike": ["a/b_c.png", "a_b/c.png"],
    "a number that is taken": ["mix/p.png", "mix/p-2.png", "mix/p.jpg"],
    "cases": ["mix/P.png", "mix/p.PNG"],
    "the same file twice": ["mix/p.png", "mix/p.png"],
}


@pytest.mark.parametrize("kind", TWINS)
def test_every_input_has_a_picture_of_its_own(fitted: Path, kind: str) -> None:
    for number, name in enumerate(dict.fromkeys(TWINS[kind])):
        form = {".jpg": "JPEG", ".bmp": "BMP"}.get(Path(name).suffix, "PNG")
        put(fitted / name, encoded(part(70 + number, defect=number % 2 == 1), form))
    found = rows(*TWINS[kind])
    pictures = [row["overlay"] for row in found]
    assert [row["file"] for row in found] == TWINS[kind]
    assert len({os.path.normcase(name) for name in pictures}) == len(pictures)
    shown = [Path(name).read_bytes() for name in pictures]
    assert len(set(shown)) == len(set(TWINS[kind]))


@pytest.mark.slow
def test_an_overlay_is_drawn_of_an_image_as_large_as_the_setting_allows(
    fitted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MAX_IMAGE_MP counts in both places that decode: for the verdict, and for its picture."""
    large = io.BytesIO()
    Image.new("1", (10_100, 10_100), 1).save(large, "PNG")
    put(fitted / "large" / "a.png", large.getvalue())
    assert "100" in rows("large", exit_code=1)[0]["error"]
    monkeypatch.setenv("MAX_IMAGE_MP", "110")
    (row,) = rows("large")
    assert cv2.imread(row["overlay"]) is not None


def test_a_later_run_replaces_no_picture(fitted: Path) -> None:
    put(fitted / "lotA" / "good" / "p.png", GOOD)
    put(fitted / "lotB" / "good" / "p.png", BAD)
    (first,) = rows("lotA/good")
    before = Path(first["overlay"]).read_bytes()
    (second,) = rows("lotB/good")
    assert first["overlay"] != second["overlay"]
    assert Path(first["overlay"]).read_bytes() == before != Path(second["overlay"]).read_bytes()


def test_a_name_as_long_as_the_disk_allows_still_gets_a_picture(fitted: Path) -> None:
    put(fitted / "mix" / f"{'ñ' * 120}.png", GOOD)
    (row,) = rows("mix")
    assert Path(row["overlay"]).is_file()


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes there alone")
def test_a_name_that_is_no_text_is_inspected_and_shown_on_any_terminal(fitted: Path) -> None:
    path = os.fsdecode(os.fsencode(fitted / "mix") + b"/caf\xe9.png")
    put(Path(path), GOOD)
    (row,) = rows("mix")
    assert row["file"] == "mix/caf\udce9.png" and Path(row["overlay"]).is_file()
    result = run("infer", "mix", "--out", "o")
    assert result.exit_code == 0 and r"caf\udce9.png" in result.stdout


@pytest.mark.skipif(sys.platform != "linux", reason="names are bytes there alone")
@pytest.mark.parametrize(
    "env",
    [
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "C"},
        {"PYTHONIOENCODING": "ascii"},
        {"PYTHONIOENCODING": "cp1252"},
    ],
)
def test_names_in_other_scripts_are_inspected_whatever_the_terminal_and_the_system_speak(
    fitted: Path, env: dict[str, str]
) -> None:
    for name in ("ñandú 日本.png", "p[1].png"):
        put(fitted / "br[ack]" / name, GOOD)
    words = [sys.executable, "-m", "backend", "infer", "br[ack]", "--out", "o"]
    path = {"PYTHONPATH": str(PROJECT_ROOT)}
    done = subprocess.run(words, env={**os.environ, **path, **env}, capture_output=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert b"br[ack]/p[1].png" in done.stdout
    assert sorted(path.name for path in (fitted / "o").iterdir()) == [
        "br[ack]_p[1]_overlay.png",
        "br[ack]_ñandú 日本_overlay.png",
    ]


SIDECARS: dict[str, bytes] = {
    "0.json": b'\xef\xbb\xbf{"mm_per_px": "0.5"}',
    "1.json": '{"mm_per_px": "0,05"}'.encode("utf-16"),
    "2.png.json": b'{"shape": {"kind": "polygon", "points": [[0, 0]]}}',
    "3.json": b'{"shape_json": "{\\"kind\\": \\"circle\\", \\"cx\\": 48, \\"cy\\": 48, \\"r\\": 20}"}',
}


@pytest.fixture
def told(fitted: Path) -> Path:
    """Good parts whose .json say something of them, and something that is not understood."""
    for n in range(4):
        put(fitted / "told" / f"{n}.png", encoded(part(n)))
    for name, data in SIDECARS.items():
        put(fitted / "told" / name, data)
    return fitted / "told"


def test_what_lies_beside_an_image_is_read_by_every_command_and_what_is_not_understood_is_said(told: Path) -> None:
    result = run("fit", told, "--roi", "Told")
    assert result.exit_code == 0, result.output
    manifest = json.loads(next((told.parent / "models").rglob("Told/manifest.json")).read_text())
    assert manifest["mm_per_px"] == 0.5
    calibrated = run("calibrate", told, "--json")
    assert calibrated.exit_code == 0, calibrated.output
    for text in (result.output, *json.loads(calibrated.stdout.splitlines()[-1])["warnings"][-2:]):
        assert "polygon" in text or "(0,05)" in text
    assert "polygon" in result.output and "(0,05)" in result.output
    found = rows(told)
    assert ["polygon" in " ".join(row["warnings"]) for row in found] == [False, False, True, False]
    assert ["(0,05)" in " ".join(row["warnings"]) for row in found] == [False, True, False, False]
    assert any("mm_per_px is 0.5" in text for text in found[0]["warnings"]), found[0]
    table = run("infer", told, "--out", "o")
    assert re.search(r"warning: \S*told/2\.png: .*polygon", table.stderr)


def test_an_option_counts_for_more_than_what_lies_beside_an_image(told: Path) -> None:
    assert not any("mm_per_px is 0.5" in text for text in rows(told, "--mm-per-px", 0.2)[0]["warnings"])


def test_a_sidecar_that_is_no_json_is_named_and_the_others_go_on(told: Path) -> None:
    put(told / "3.json", b"[1")
    found = rows(told, exit_code=1)
    assert [("error" in row) for row in found] == [False, False, False, True]
    assert "3.json" in found[3]["error"]
    assert "3.json" in run("calibrate", told).stderr


@pytest.mark.slow
def test_a_certificate_names_the_image_that_could_not_be_used_on_its_page_too(fitted: Path) -> None:
    for seed in range(20, 27):
        put(fitted / "more" / f"{seed}.png", encoded(part(seed)))
    assert run("calibrate", "more").exit_code == 0
    put(fitted / "more" / "half.png", GOOD[:300])
    words = ("certify", "more", "--parts", 8, "--trials", 3, "--lang", "en")
    result = run(*words)
    assert result.exit_code == 1, result.output
    why = "half.png: the image could not be decoded (it is cut off)"
    assert why in result.stderr and why in unescape(Path("certificate/certificate.html").read_text("utf-8"))
    for seed in range(20, 24):
        (fitted / "more" / f"{seed}.png").unlink()
    put(fitted / "more" / "other.png", b"x")
    refused = run(*words)
    assert isinstance(refused.exception, NotEnoughSamples) and why in sentence(refused.exception, "en")


def test_the_images_notices_are_said_in_a_calibration_too(fitted: Path) -> None:
    put(fitted / "dark" / "a.png", encoded(part(61)[:, :, 0].astype(np.uint16) * 8))
    put(fitted / "dark" / "b.png", GOOD)
    result = run("calibrate", "dark", "--json")
    assert any("12 bits" in text for text in json.loads(result.stdout)["warnings"]), result.output


def test_an_empty_folder_among_others_is_named(fitted: Path) -> None:
    (fitted / "empty").mkdir()
    result = run("infer", "bad", "empty", "--out", "o")
    assert result.exit_code == 0 and "there is no image in empty" in result.stderr


def test_a_model_that_is_not_there_ends_an_inspection_at_once(
    desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["backend", "infer", "bad", "good", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    out, err = capsys.readouterr()
    assert out == "" and err.count("error") == 1 and "cli/default" in err


def test_rows_so_far_are_there_when_somebody_stops_the_program(fitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(fitted / "mix" / "a.png", GOOD)
    put(fitted / "mix" / "b.png", GOOD)
    out = io.StringIO()
    seen: list[str] = []

    class Stopping(io.StringIO):
        def write(self, text: str) -> int:
            seen.append(text)
            if text.startswith("{"):
                out.write(text)
                raise KeyboardInterrupt
            return len(text)

    monkeypatch.setattr(sys, "stdout", Stopping())
    monkeypatch.setattr(sys, "argv", ["backend", "infer", "mix", "--json"])
    with pytest.raises(SystemExit):
        main()
    assert json.loads(out.getvalue())["file"] == "mix/a.png"


def values(*words: object, exit_code: int = 0) -> dict[str, Any]:
    """The calibration that `calibrate … --json` prints."""
    result = run("calibrate", *words, "--json")
    assert result.exit_code == exit_code, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_a_folder_of_good_parts_gives_a_threshold_that_inspections_use(fitted: Path) -> None:
    for seed in range(100, 106):
        put(fitted / "more" / f"{seed}.png", encoded(part(seed)))
    found = values("more", "--area-mm2-thr", "0.5")
    assert found["n_ok"] == 6 and found["n_ng"] == 0 and found["mm_per_px"] == 0.2 and found["area_mm2_thr"] == 0.5
    scores = [row["score"] for row in rows("more")]
    assert found["threshold"] == pytest.approx(np.percentile(scores, 99))
    (bad,) = rows("bad")
    assert bad["threshold"] == found["threshold"] and bad["decision"] == "ng"


def test_bad_parts_move_the_threshold_between(fitted: Path) -> None:
    found = values("good", "--ng", "bad")
    assert found["n_ok"] == 4 and found["n_ng"] == 1
    assert found["p99_ok"] < found["threshold"] < found["p5_ng"]


def test_a_part_that_was_learnt_is_compared_with_the_others_alone(fitted: Path) -> None:
    mine = [row["score"] for row in rows("good")]
    assert values("good")["ok_mean"] > 1.1 * max(mine)


def test_scores_may_be_given_in_place_of_folders(fitted: Path) -> None:
    found = values("--ok-scores", "0.2, 0.3 2.5e-1", "--ng-scores", "0.9", "--score-percentile", "100")
    assert (found["n_ok"], found["n_ng"], found["p99_ok"]) == (3, 1, 0.3)
    assert found["threshold"] == pytest.approx(0.6)


def test_a_broken_image_is_left_out_of_a_calibration_and_named(fitted: Path) -> None:
    put(fitted / "good" / "cut.png", GOOD[:200])
    result = run("calibrate", "good")
    assert result.exit_code == 1
    assert "good/cut.png" in result.stderr and "from 4 OK" in result.stderr


def test_a_calibration_without_a_usable_image_is_refused(fitted: Path) -> None:
    put(fitted / "none" / "cut.png", GOOD[:200])
    result = run("calibrate", "none")
    assert result.exit_code == 2 and "could be scored" in result.output
    assert not list(fitted.rglob("calib.json"))


def test_a_lost_model_is_rebuilt_from_its_samples(desk: Path) -> None:
    nothing = run("rebuild")
    assert nothing.exit_code == 0 and "no memory is lost" in nothing.stderr, nothing.output
    collector = Collector(load_settings())
    collector.inspector.start()
    key, broken = ModelKey.of("Line", "Disc"), ModelKey.of("Line", "Broken")
    files = [ImageFile.named(p.name, p.read_bytes) for p in sorted((desk / "good").iterdir())]
    for one in (key, broken):
        collector.fit(one, files, mm_per_px=0.2)
    before = collector.inspector.cache.model(key).stored.emb
    collector.inspector.close()
    store = ModelStore(desk / "models")
    for one in (key, broken):
        store.folder(one).joinpath("memory.npz").unlink()
    for image in collector.samples.folder(broken, "ok").glob("*.png"):
        image.write_bytes(b"no image any more")
    other = run("rebuild", "--role", "Other")
    assert other.exit_code == 0 and "Line" not in other.output
    result = run("rebuild")
    assert result.exit_code == 1 and "Line/Disc: 4 images" in result.stderr and "error: Line/Broken" in result.stderr
    assert (store.load_memory(key).emb == before).all()


def test_the_bank_names_the_image_that_is_broken(
    desk: Path, shared_data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    put(desk / "good" / "00cut.png", GOOD[:300])
    monkeypatch.setenv("IMG_SIZE", "64")
    monkeypatch.setenv("RESNET_WEIGHTS", str(shared_data / "weights" / "resnet18_layers1-3.safetensors"))
    monkeypatch.setenv("ARTIFACTS_DIR", str(desk / "bank"))
    monkeypatch.setenv("RUNTIME", "torch")
    monkeypatch.setattr(sys, "argv", ["backend", "bank", str(desk / "good")])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert "00cut.png" in capsys.readouterr().err


def test_a_golden_sample_that_lost_its_verdict_stops_verdicts(fitted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collector = Collector(load_settings())
    key = ModelKey.of("cli", "default")
    (kept,) = collector.samples.add(key, "ng", [Draft("bad.png", lambda: BAD, "upload", 0.2)])
    assert run("calibrate", "--ok-scores", "0.2 0.21").exit_code == 0
    golden = GoldenSet(collector.inspector, collector.samples)
    golden.mark(key, kept.name, "ng", golden=True)
    monkeypatch.setenv("GOLDEN_BLOCKS", "1")
    assert len(rows("bad")) == 1
    refused = run("calibrate", "--ok-scores", "0.9 0.91")
    assert isinstance(refused.exception, GoldenFlipped)
    path = collector.inspector.store.folder(key) / "calib.json"
    path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), "threshold": 0.95}), "utf-8")
    stopped = run("infer", "bad", "--json", "--out", "overlays")
    assert isinstance(stopped.exception, GoldenStopped) and '"score"' not in stopped.stdout


def test_a_fit_leaves_what_its_images_look_like(desk: Path) -> None:
    for seed in range(4, FEWEST):
        put(desk / "good" / f"{seed:02d}.png", encoded(part(seed)))
    assert run("fit", "good").exit_code == 0
    assert (desk / "models/cli/default" / FILE).exists()

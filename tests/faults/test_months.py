"""What may go wrong with a model over months, injected: each is a sentence that says what to do."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi.testclient import TestClient

from backend.assurance.reference import VERSION
from backend.assurance.watch import DriftWatch
from backend.base.keys import ModelKey
from backend.samples.store import TAKEN_BACK, SampleStore
from backend.tools.cli import main
from tests.api.routes.calls import IDS, fit, fit_and_calibrate
from tests.api.routes.test_teaching import infer, samples, stained
from tests.api.routes.test_versions import model_files, serving
from tests.faults.service import (
    ROOT,
    Running,
    environment,
    free_port,
    post_calibration,
    post_fit,
    post_infer,
    running,
    wait_until_ready,
)
from tests.parts import encoded, part, tree

KEY = ModelKey.of(IDS["role_id"], IDS["roi_id"])
LANGUAGES = ("es", "en")


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    """A model of 12 parts with three known bad ones, calibrated; images are kept."""
    with serving(tmp_path, keep_images="all") as opened:
        fit_and_calibrate(opened)
        yield opened


def said(ask: Callable[[dict[str, str]], Any], status: int, code: str) -> dict[str, str]:
    """The sentences of a refusal, by language."""
    found = {}
    for language in LANGUAGES:
        answer = ask({"Accept-Language": language})
        assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
        found[language] = answer.json()["error"]
        assert found[language].endswith(".")
    return found


def test_a_version_of_another_extractor_is_not_restored_and_says_how_it_could_be(
    client: TestClient, tmp_path: Path
) -> None:
    fit(client, 0, 1)
    kept = client.get("/versions", params=IDS).json()["versions"][0]["version"]
    client.__exit__()
    before = tree(tmp_path / "models")
    with serving(tmp_path, patchcore_patch_size=3) as other:
        words = said(
            lambda head: other.post(f"/versions/{kept}/restore", json=IDS, headers=head), 409, "version_unusable"
        )
        compared = said(
            lambda head: other.get("/versions/compare", params={**IDS, "one": kept}, headers=head),
            409,
            "version_unusable",
        )
    assert "arranca el servicio con aquel (MODEL_NAME, WEIGHTS)" in words["es"] and kept in words["es"]
    assert "MODEL_NAME, WEIGHTS" in words["en"] and words == compared
    assert tree(tmp_path / "models") == before


def test_a_golden_sample_whose_image_is_gone_is_named_everywhere_and_says_what_mends_it(
    client: TestClient, tmp_path: Path
) -> None:
    name = samples(client, "ng")[0]
    assert client.post("/datasets/golden", json={**IDS, "filename": name}).json()["flips"] == []
    (tmp_path / "datasets" / KEY.path / "ng" / name).unlink()
    answer = client.post("/golden/run", json=IDS)
    (flip,) = answer.json()["flips"]
    assert flip["filename"] == name and flip["error"].endswith("upload it again, or unmark it.")
    assert client.get("/readyz").json()["golden"] == {str(KEY): [name]}
    calibrated = client.post("/calibrate_dataset", json=IDS)
    assert calibrated.status_code == 200 and any(name in one for one in calibrated.json()["warnings"])
    assert client.post("/datasets/golden", json={**IDS, "filename": name, "golden": False}).status_code == 200
    assert client.get("/readyz").json()["golden"] == {}


def test_with_golden_blocks_a_golden_sample_without_image_stops_verdicts_until_it_is_back(
    client: TestClient, tmp_path: Path
) -> None:
    name, image = samples(client, "ng")[0], encoded(part(50, defect=True))
    client.post("/datasets/golden", json={**IDS, "filename": name})
    client.__exit__()
    path = tmp_path / "datasets" / KEY.path / "ng" / name
    data = path.read_bytes()
    path.unlink()
    with serving(tmp_path, golden_blocks=True) as blocking:
        form = {**IDS, "mm_per_px": "0.2"}
        files = {"image": ("seen.png", image, "image/png")}
        words = said(lambda head: blocking.post("/infer", data=form, files=files, headers=head), 503, "golden_stopped")
        assert all(name in one for one in words.values())
        assert "vuelve a subirla o desmárcala" in words["es"]
    path.write_bytes(data)
    with serving(tmp_path, golden_blocks=True) as blocking:
        assert blocking.post("/infer", data=form, files=files).status_code == 200


def test_a_part_that_is_stored_as_ng_is_not_taught_by_name_or_by_picture(client: TestClient, tmp_path: Path) -> None:
    bad = samples(client, "ng")[0]
    seen = infer(client, encoded(part(50, defect=True)))
    before = tree(tmp_path / "models"), tree(tmp_path / "datasets")
    for body in ({"filenames": [bad]}, {"inspection_ids": [seen["inspection_id"]]}):
        for force in (False, True):
            lesson = {**IDS, **body, "force": force}
            words = said(lambda head: client.post("/teach", json=lesson, headers=head), 409, "taught_is_bad")  # noqa: B023
            assert "Corrige eso primero si la pieza es buena." in words["es"]
            assert "stored as NG" in words["en"]
    assert (tree(tmp_path / "models"), tree(tmp_path / "datasets")) == before


ONE_APPRAISER = "part,appraiser,rating,reference\n" + "".join(
    f"P{n},Ana,{'ok' if n < 6 else 'ng'},{'ok' if n < 6 else 'ng'}\n" * 2 for n in range(10)
)


def msa(
    path: Path, text: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[object, str]:
    """The exit code of `msa` and what it prints."""
    path.write_text(text)
    monkeypatch.setattr(sys, "argv", ["backend", "msa", str(path), "--out", str(path.parent / "msa")])
    with pytest.raises(SystemExit) as ended:
        main()
    return ended.value.code, capsys.readouterr().err


def test_a_study_with_one_appraiser_says_that_another_is_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    code, shown = msa(tmp_path / "study.csv", ONE_APPRAISER, monkeypatch, capsys)
    assert code == 0 and "have another person look at the same parts." in shown
    assert "haz que otra persona mire las mismas piezas" in (tmp_path / "msa" / "msa.html").read_text("utf-8")
    alone = ONE_APPRAISER.replace(",reference", "").replace(",ok\n", "\n").replace(",ng\n", "\n")
    code, shown = msa(tmp_path / "alone.csv", alone, monkeypatch, capsys)
    assert code == 1 and "alone.csv" in shown
    assert "add another one, or the column reference" in shown


def test_a_drift_state_of_a_newer_version_says_so_and_parts_are_inspected_still(tmp_path: Path, url: str) -> None:
    with serving(tmp_path, results_db=url, images_dir=tmp_path / "images") as client:
        fit(client, *range(4))
        infer(client, encoded(part(40)))
        watch: DriftWatch = client.app.state.drift  # type: ignore[attr-defined]
        watch.take_in()
        kept = watch.drifts.load(KEY)
        assert kept is not None
        newer = kept.__class__(**{**kept.__dict__, "version": VERSION + 1})
        assert watch.drifts.save(KEY, newer)
        words = said(lambda head: client.get("/drift", params=IDS, headers=head), 409, "drift_newer")
        assert words["es"].endswith("actualiza este servicio.") and words["en"].endswith("update this service.")
        infer(client, encoded(part(41)))
        watch.take_in()
        assert any("update this service" in one for one in infer(client, encoded(part(42)))["warnings"])
        assert client.get("/metrics").status_code == 200
        now = watch.drifts.load(KEY)
        assert now is not None and (now.version, now.chart, now.learnt) == (VERSION + 1, newer.chart, newer.learnt)


DYING = """
import os, runpy, signal, sys
from backend.service.fitting import Fitter
Fitter.commit = lambda *given, **named: os.kill(os.getpid(), signal.SIGKILL)
runpy.run_module("backend", run_name="__main__", alter_sys=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is a matter of POSIX")
def test_a_lesson_that_is_killed_before_the_model_learnt_it_leaves_no_sample_behind(tmp_path: Path) -> None:
    """The process dies between storing what is taught and the commit; the next one takes it back and teaches it."""
    given: dict[str, Any] = {"KEEP_IMAGES": "all"}
    image, store = stained(70), SampleStore(tmp_path / "datasets", max_gb=1)
    with running(tmp_path, workers=1, **given) as service, httpx.Client(base_url=service.url, timeout=60) as client:
        assert post_fit(client, IDS["roi_id"], tuple(encoded(part(seed)) for seed in range(6))).status_code == 200
        assert post_calibration(client, IDS["roi_id"], 0.3).status_code == 200
        seen = post_infer(client, IDS["roi_id"], image).json()
    lesson = {**IDS, "inspection_ids": [seen["inspection_id"]], "force": True}
    before, known = model_files(tmp_path), store.names(KEY, "ok")
    port = free_port()
    command = [sys.executable, "-c", DYING, "serve", "--port", str(port)]
    process = subprocess.Popen(command, env=environment(tmp_path, **given), cwd=ROOT)
    wait_until_ready(Running(process, port))
    with pytest.raises(httpx.TransportError):
        httpx.post(f"http://127.0.0.1:{port}/teach", json=lesson, timeout=60)
    assert process.wait(30) == -9
    assert len(store.names(KEY, "ok")) == len(known) + 1
    with running(tmp_path, workers=1, **given) as service, httpx.Client(base_url=service.url, timeout=60) as client:
        give_up = time.monotonic() + 30
        while store.names(KEY, "ok") != known and time.monotonic() < give_up:
            time.sleep(0.05)
        assert store.names(KEY, "ok") == known
        assert len(store.names(KEY, TAKEN_BACK)) == 1
        assert model_files(tmp_path) == before
        assert post_infer(client, IDS["roi_id"], image).json()["score"] == seen["score"]
        assert client.post("/teach", json=lesson).status_code == 200
        assert len(store.names(KEY, "ok")) == len(known) + 1
    with running(tmp_path, workers=1, **given) as service:
        time.sleep(2)  # what was learnt stays
        assert len(store.names(KEY, "ok")) == len(known) + 1

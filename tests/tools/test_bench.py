"""`python -m backend bench`, quickly: what it measures is real, what it writes can be read."""

import json
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import numpy as np
import psutil
import pytest
from typer.testing import CliRunner

from backend.base.config import load_settings
from backend.extractors.protocol import RGB
from backend.extractors.texture import TextureFeatures
from backend.tools.bench import Others, Plan, Request, _busy_seconds, answered, connect, fitted, run_bench, served
from backend.tools.bench_stages import Bench, encoded, pictures
from backend.tools.cli import app

STAGES = {"decode", "resize", "forward", "knn", "post", "png", "json", "end to end"}


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_NAME", "texture")
    monkeypatch.setenv("INPUT_SIZE", "112")
    monkeypatch.setenv("THREADS", "1")
    monkeypatch.setenv("MODELS_DIR", str(tmp_path / "models"))


@pytest.mark.slow
def test_the_service_is_timed_over_http_beside_torch_and_leaves_no_model_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "bench.json"
    plan = Plan(fits=(2,), sides=(448,), jpegs=(1000,), clients=(1, 2), requests=4, repeats=3, reference=True)
    run_bench(plan, out=out)
    report = json.loads(out.read_text("utf-8"))
    assert set(report["stages"]["448²"]) == set(report["stages"]["1000² jpg"]) == STAGES
    assert [row["images"] for row in report["fits"]] == [2] and report["fits"][0]["rows"] > 0
    rows = {(row["service"], f"{row['side']} {row['form']}", row["clients"]): row for row in report["infers"]}
    alone = {(service, roi, 1) for service in ("as set", "torch fp32") for roi in ("448 png", "1000 jpg")}
    assert set(rows) == {*alone, ("as set", "448 png", 2)}
    for row in rows.values():
        assert 0 < row["p50"] <= row["p95"] <= row["p99"] and row["per_s"] > 0 and row["bare"] > 0
    low, middle, high = rows["torch fp32", "448 png", 1]["of ours"]
    assert 0 < low <= middle <= high
    assert rows["as set", "448 png", 1]["of the first side"] == [1, 1, 1]
    assert rows["as set", "1000 jpg", 1]["of the first side"][1] > 0
    assert 0 <= report["others"] <= 1 and report["busy"] == (report["others"] > 0.1)
    assert report["machine"]["extractor"] == "texture" and report["machine"]["cores"] >= 1
    shown = capsys.readouterr().out
    assert "POST /infer" in shown and "POST /fit_ok" in shown
    assert not (tmp_path / "models").exists()


def test_what_others_take_of_the_processor_is_told_from_what_we_take() -> None:
    others, all_before, started = Others(), _busy_seconds(), perf_counter()
    stop = process_time() + 0.4
    while process_time() < stop:
        pass
    seconds = others.share() * (perf_counter() - started) * (psutil.cpu_count() or 1)
    assert seconds <= max(0.0, _busy_seconds() - all_before - 0.3)


@pytest.mark.slow
def test_a_request_is_encoded_once_and_the_service_reads_it(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    with served(load_settings(models_dir=tmp_path / "models", datasets_dir=tmp_path / "datasets")) as (url, pid):
        answer, spent = fitted(url, 2, "png", rng)
        request = Request.of("image", [encoded(pictures(1, 112, rng)[0], "jpg")])
        with connect(url) as connection:
            first, second = (answered(request.post(connection, "/infer")) for _ in range(2))
            with pytest.raises(RuntimeError, match="/fit_ok answered 4"):
                answered(request.post(connection, "/fit_ok"))
    assert answer["n_images"] == 2 and spent > 0 and pid > 0
    assert first["score"] == second["score"] > 0


def test_images_are_prepared_as_the_service_has_them_prepared() -> None:
    class Watched(TextureFeatures):
        prepared = 0

        def prepare(self, image: Any, grid: Any, size: Any = None) -> RGB:
            self.prepared += 1
            return super().prepare(image, grid, size)

    extractor = Watched(112)
    bench = Bench.of(extractor, np.random.default_rng(0), images=1)
    assert extractor.prepared == 1
    bench.stages(112, 1)
    assert extractor.prepared == 1 + 1 + 2 + 2  # once for all stages, twice each in `resize` and `end to end`


def test_stages_alone_need_no_service(tmp_path: Path) -> None:
    out = tmp_path / "stages.json"
    result = CliRunner().invoke(app, ["bench", "--stages", "--sides", "112", "--jpeg", "--out", str(out)])
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text("utf-8"))
    assert set(report["stages"]["112²"]) == STAGES
    assert report["infers"] == [] and report["fits"] == []


@pytest.mark.slow
def test_a_service_that_cannot_start_is_said_at_once(tmp_path: Path) -> None:
    settings = load_settings(model_name="resnet18", weights=str(tmp_path / "absent.pth"), require_pretrained=True)
    with pytest.raises(RuntimeError, match="did not start"), served(settings):
        pytest.fail("it must not start")

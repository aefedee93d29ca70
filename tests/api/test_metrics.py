"""What Prometheus is told: by one process, and by several that share a folder."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from backend.api.metrics import Metrics
from backend.app import create_app
from tests.api.service import BAD, calibrate, client_of, fit, infer
from tests.parts import quick_settings

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
def fitted(tmp_path: Path) -> Iterator[TestClient]:
    with client_of(create_app(quick_settings(tmp_path, coreset_rate=0.5))) as client:
        assert fit(client).status_code == 200
        assert calibrate(client, ok_scores=[0.25]).status_code == 200
        yield client


def samples(text: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    return {
        (s.name, frozenset(s.labels.items())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def read(client: TestClient, name: str, **labels: str) -> float:
    found = samples(client.get("/metrics").text)
    return sum(v for (n, own), v in found.items() if n == name and labels.items() <= dict(own).items())


MODEL = {"role_id": "Master1", "roi_id": "Pattern", "recipe_id": "default"}


def test_verdicts_and_scores_are_counted_by_model(fitted: TestClient) -> None:
    answers = [infer(fitted).json(), infer(fitted, BAD).json()]
    expected = [a["decision"] for a in answers]
    for verdict in ("ok", "ng"):
        assert read(fitted, "bdi_verdicts_total", **MODEL, verdict=verdict) == expected.count(verdict)
    assert read(fitted, "bdi_score_sum", **MODEL) == pytest.approx(sum(a["score"] for a in answers))
    assert read(fitted, "bdi_fits_total", **MODEL) == 1


def test_requests_are_timed_by_route_and_by_stage(fitted: TestClient) -> None:
    answer = infer(fitted).json()
    assert read(fitted, "bdi_requests_total", method="POST", route="/infer", status="200") == 1
    assert read(fitted, "bdi_request_seconds_count", route="/infer") == 1
    assert read(fitted, "bdi_stage_seconds_sum", route="/infer", stage="knn") * 1000 == pytest.approx(
        answer["timings_ms"]["knn"]
    )
    assert read(fitted, "bdi_stage_seconds_count", route="/fit_ok", stage="coreset") == 1


def test_queue_cache_and_degraded_state_are_told(fitted: TestClient) -> None:
    assert read(fitted, "bdi_cache_bytes") > 0
    assert read(fitted, "bdi_queue_depth") == 0
    assert read(fitted, "bdi_degraded") == 0


def test_strangers_make_no_labels(fitted: TestClient) -> None:
    for number in range(20):
        fitted.get(f"/made-up-{number}")
        fitted.request(f"MADEUP{number}", "/health")
        infer(fitted, role_id=f"Nobody{number}")
    text = fitted.get("/metrics").text
    assert "made-up" not in text and "MADEUP" not in text and "Nobody" not in text
    assert read(fitted, "bdi_requests_total", route="other", status="404") == 20


WORKER = """
import sys
from pathlib import Path
from backend.app import create_app
from backend.api.metrics import Metrics
metrics = Metrics(Path(sys.argv[1]))
metrics.fits.labels("a", "b", "default").inc(int(sys.argv[2]))
metrics.queue.set(5)
print(metrics.render().decode())
"""


def worker(folder: Path, count: int) -> str:
    return subprocess.run(
        [sys.executable, "-c", WORKER, str(folder), str(count)],
        env={"PROMETHEUS_MULTIPROC_DIR": str(folder), "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    ).stdout


@pytest.mark.skipif(sys.platform == "win32", reason="the environment of the worker is spelled for POSIX")
def test_workers_add_up_and_a_dead_one_leaves_its_counts_but_no_queue(tmp_path: Path) -> None:
    worker(tmp_path, 2)
    said = samples(worker(tmp_path, 3))
    assert sum(v for (n, _), v in said.items() if n == "bdi_fits_total") == 5
    assert sum(v for (n, _), v in said.items() if n == "bdi_queue_depth") == 5


def test_a_folder_that_came_too_late_is_said_and_not_believed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("backend"), "propagate", True)
    metrics = Metrics(tmp_path)
    metrics.fits.labels("a", "b", "default").inc()
    labels = frozenset({"role_id": "a", "roi_id": "b", "recipe_id": "default"}.items())
    assert samples(metrics.render().decode())["bdi_fits_total", labels] == 1
    assert "PROMETHEUS_MULTIPROC_DIR" in caplog.text


def test_the_dashboard_asks_for_metrics_that_exist(fitted: TestClient) -> None:
    infer(fitted)
    known = {name for name, _ in samples(fitted.get("/metrics").text)}
    board = json.loads((ROOT / "docs" / "grafana.json").read_text("utf-8"))
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    asked = {name for query in queries for name in re.findall(r"\bbdi_\w+", query)}
    assert len(queries) >= 8
    assert asked <= known, asked - known
    assert {"bdi_verdicts_total", "bdi_queue_depth", "bdi_degraded", "bdi_request_seconds_bucket"} <= asked


def test_the_reference_names_every_metric(fitted: TestClient) -> None:
    infer(fitted)
    text = (ROOT / "docs" / "API_REFERENCE.md").read_text("utf-8")
    families = text_string_to_metric_families(fitted.get("/metrics").text)
    for family in (f for f in families if not f.name.endswith("_created")):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        assert f"`{name}`" in text


def test_a_growth_that_finds_nothing_new_is_no_fit(fitted: TestClient) -> None:
    before = fitted.get("/manifest", params={"role_id": "Master1", "roi_id": "Pattern"}).json()["memory"]
    answer = fit(fitted, memory_fit="true")
    assert answer.status_code == 200 and answer.json()["generation"] == before["generation"]
    assert answer.json()["model_version"] == before["model_version"]
    assert read(fitted, "bdi_fits_total", **MODEL) == 1

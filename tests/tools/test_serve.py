"""The service as an operator starts it: another process, its output and its exit code."""

import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from backend.base.arrays import available_cores
from backend.base.config import Settings
from backend.tools.cli import app
from backend.tools.serve import number_of_workers
from tests.api.service import calibrate, fit, infer
from tests.faults.service import ROOT, environment, free_port, running


def test_uvicorn_finds_the_app_by_name(tmp_path: Path) -> None:
    started = running(tmp_path, command="uvicorn backend.app:app")
    with started as service, httpx.Client(base_url=service.url, timeout=60) as client:
        assert fit(client).status_code == 200
        assert infer(client).json()["threshold"] is None
    assert service.process.returncode in (0, -15)


def test_two_workers_share_their_models(tmp_path: Path) -> None:
    with running(tmp_path, workers=2) as service, httpx.Client(base_url=service.url, timeout=60) as client:
        fresh = {"Connection": "close"}
        versions = {fit(client).json()["model_version"] for _ in range(4)}
        assert len(versions) == 4
        assert calibrate(client, ok_scores=[0.25]).status_code == 200
        answers = [infer(client, headers=fresh).json() for _ in range(12)]
        assert len({answer["score"] for answer in answers}) == 1
        assert {answer["threshold"] for answer in answers} == {0.25}
        fit(client, count=1)
        again = [infer(client, headers=fresh).json() for _ in range(12)]
        assert len({answer["score"] for answer in again}) == 1 and again[0]["score"] != answers[0]["score"]


@pytest.mark.parametrize("asked", ["0", "-1", "1.5", "many", ""])
def test_a_number_of_workers_is_a_number_or_auto(asked: str) -> None:
    with pytest.raises(ValueError, match="neither"):
        number_of_workers(asked, Settings())
    shown = CliRunner().invoke(app, ["serve", "--workers", asked])
    assert shown.exit_code == 2 and "auto" in shown.output


def test_on_a_cpu_one_worker_is_as_many_as_pay() -> None:
    assert number_of_workers("auto", Settings(device="cpu")) == 1
    assert number_of_workers("3", Settings(device="cpu")) == 3


@pytest.mark.gpu
def test_on_a_gpu_several_workers_pay() -> None:
    assert number_of_workers("auto", Settings()) == min(8, available_cores() // 2)


def ended(env: Mapping[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, env=dict(env), timeout=300,
        capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(("backend", "serve"), marks=pytest.mark.slow),
        ("backend", "serve", "--workers", "2"),
        pytest.param(("uvicorn", "backend.app:app"), marks=pytest.mark.slow),
    ],
)
def test_required_weights_that_are_missing_end_it_with_what_to_do(tmp_path: Path, command: tuple[str, ...]) -> None:
    env = environment(
        tmp_path,
        MODEL_NAME="vit_small_patch14_dinov2.lvd142m",
        WEIGHTS=str(tmp_path / "no.pth"),
        REQUIRE_PRETRAINED="1",
    )
    result = ended(env, *command, "--port", str(free_port()))
    assert result.returncode != 0
    said = [line for line in result.stderr.splitlines() if "no.pth" in line]
    assert len(said) == 1 and "set WEIGHTS to its path" in said[0]
    assert "Traceback" not in result.stderr and len(result.stderr.splitlines()) < 8


def test_a_port_in_use_ends_it_with_what_to_do(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = ended(environment(tmp_path), "backend", "serve", "--port", port)
    assert result.returncode == 1
    assert f"127.0.0.1:{port}" in result.stderr and "another PORT" in result.stderr.replace("\n", " ")
    assert "Traceback" not in result.stderr and len(result.stderr.splitlines()) < 4


def test_a_bad_setting_ends_it_with_a_sentence(tmp_path: Path) -> None:
    result = ended(environment(tmp_path, CORESET_RATE="7"), "backend", "serve")
    assert result.returncode == 1
    assert "CORESET_RATE" in result.stderr and "Traceback" not in result.stderr


def test_a_bad_setting_is_a_sentence_for_whoever_imports_the_app(tmp_path: Path) -> None:
    result = ended(environment(tmp_path, CORESET_RATE="7"), "uvicorn", "backend.app:app", "--port", str(free_port()))
    assert result.returncode != 0
    assert "The settings are not valid: CORESET_RATE: must be 1 or less" in result.stderr.splitlines()


def test_importing_the_app_builds_no_model(tmp_path: Path) -> None:
    code = "import sys, backend.app; sys.exit(any(m in sys.modules for m in ('torch', 'timm', 'faiss', 'sklearn')))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment(tmp_path), check=False)
    assert result.returncode == 0

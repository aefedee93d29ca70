"""One fault at a time, injected: the old model is served, or the error has a name."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from numpy.typing import NDArray

from backend.app import create_app
from backend.base.errors import DeviceOutOfMemory
from backend.base.keys import ModelKey
from backend.extractors.texture import TextureFeatures
from backend.service.host import ExtractorHost
from backend.service.queue import InferenceQueue
from backend.storage import next_version
from tests.api.service import BAD, IDS, calibrate, client_of, fit, infer
from tests.faults.service import Running, free_port, wait_until_ready
from tests.faults.service import environment as service_environment
from tests.parts import encoded, part, quick_settings

KEY = ModelKey.of(*IDS.values())


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    return create_app(quick_settings(tmp_path, coreset_rate=0.5, min_free_mb=0))


@pytest.fixture
def fitted(app: FastAPI) -> Iterator[TestClient]:
    with client_of(app) as client:
        assert fit(client).status_code == 200
        assert calibrate(client, ok_scores=[0.25]).status_code == 200
        yield client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "models" / "Master1" / "Pattern"


def other(client: TestClient) -> None:
    """Fit another model, of other parts, in the same store."""
    files = [("images", (f"{n}.png", encoded(part(60 + n, defect=n == 0)))) for n in range(2)]
    answer = client.post("/fit_ok", data={**IDS, "roi_id": "Other", "mm_per_px": "0.2"}, files=files)
    assert answer.status_code == 200


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
def test_a_truncated_memory_is_named_and_a_fit_mends_it(fitted: TestClient, folder: Path, share: float) -> None:
    whole = (folder / "memory.npz").read_bytes()
    (folder / "memory.npz").write_bytes(whole[: int(len(whole) * share)])
    for answer in (infer(fitted), calibrate(fitted)):
        assert (answer.status_code, answer.json()["code"]) == (500, "artifact_damaged")
        assert "memory.npz" in answer.json()["error"] and "el aprendizaje" in answer.json()["error"]
    assert fit(fitted).status_code == 200
    assert infer(fitted).json()["decision"] in {"ok", "ng"}


@pytest.mark.parametrize("text", ["", "{", '{"threshold": NaN}', '{"threshold": "high"}', "\0" * 200])
def test_a_corrupt_calibration_gives_no_verdict_and_calibrating_mends_it(
    fitted: TestClient, folder: Path, text: str
) -> None:
    (folder / "calib.json").write_text(text)
    answer = infer(fitted)
    assert (answer.status_code, answer.json()["code"]) == (500, "artifact_damaged")
    assert "calib.json" in answer.json()["error"] and "la calibración" in answer.json()["error"]
    assert calibrate(fitted, ok_scores=[0.3]).status_code == 200
    assert infer(fitted).json()["threshold"] == 0.3


def test_an_index_of_another_memory_changes_no_score_and_is_rebuilt(
    fitted: TestClient, folder: Path, tmp_path: Path
) -> None:
    score = infer(fitted, BAD).json()["score"]
    other(fitted)
    shutil.copy(folder.parent / "Other" / "index.faiss", folder / "index.faiss")
    with client_of(create_app(quick_settings(tmp_path, min_free_mb=0))) as fresh:
        assert infer(fresh, BAD).json()["score"] == score
    generation = json.loads((folder / "manifest.json").read_text())["generation"]
    assert (folder / "index.faiss").read_bytes().endswith(generation.encode())


def test_a_memory_of_another_model_is_served_with_a_warning(fitted: TestClient, folder: Path) -> None:
    other(fitted)
    shutil.copy(folder.parent / "Other" / "memory.npz", folder / "memory.npz")
    answer = infer(fitted, headers={"Accept-Language": "en"}).json()
    assert any("made for Master1/Other" in warning for warning in answer["warnings"])
    assert any("former memory" in warning for warning in answer["warnings"])


def test_a_calibration_of_another_model_is_told_apart(fitted: TestClient, folder: Path) -> None:
    other(fitted)
    shutil.copy(folder / "calib.json", folder.parent / "Other" / "calib.json")
    answer = infer(fitted, headers={"Accept-Language": "en"}, roi_id="Other").json()
    assert any("former memory" in warning for warning in answer["warnings"])


def test_a_clock_set_back_takes_no_version_back_and_hides_no_memory(fitted: TestClient, folder: Path) -> None:
    assert next_version("2999.7") == "2999.8"
    old = (folder / "memory.npz").stat()
    first = infer(fitted, BAD).json()["score"]
    assert fit(fitted, count=1).status_code == 200
    os.utime(folder / "memory.npz", ns=(old.st_atime_ns - 10**12, old.st_mtime_ns - 10**12))
    assert infer(fitted, BAD).json()["score"] != first


class Refusing:
    """Write access, taken away: by permission, or from root by not being root for a while."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def __enter__(self) -> None:
        for path in (self.root, *self.root.rglob("*")):
            path.chmod(0o555 if path.is_dir() else 0o444)
        if os.geteuid() == 0:
            os.seteuid(65_534)

    def __exit__(self, *_: object) -> None:
        if os.getuid() == 0:
            os.seteuid(0)
        for path in (self.root, *self.root.rglob("*")):
            path.chmod(0o755 if path.is_dir() else 0o644)


@pytest.mark.skipif(sys.platform == "win32", reason="folders have no mode there")
def test_a_folder_that_became_read_only_is_named_and_still_served() -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        root.chmod(0o755)
        with client_of(create_app(quick_settings(root, coreset_rate=0.5, min_free_mb=0))) as client:
            fit(client)
            score = infer(client, BAD).json()["score"]
            with Refusing(root / "models"):
                for answer in (fit(client, count=1), fit(client, roi_id="New"), calibrate(client)):
                    assert (answer.status_code, answer.json()["code"]) == (503, "store_read_only"), answer.text
                assert infer(client, BAD).json()["score"] == score
            assert fit(client, count=1).status_code == 200


LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv[1:2] = []
runpy.run_module("backend", run_name="__main__", alter_sys=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit on the size of files")
def test_a_disk_that_takes_no_more_answers_507_and_the_old_model_serves(tmp_path: Path) -> None:
    """The write fails half-way through memory.npz, in a real process: its files may not grow over 64 kB."""
    with client_of(create_app(quick_settings(tmp_path, coreset_rate=0.5, min_free_mb=0))) as client:
        fit(client)
        score = infer(client, BAD).json()["score"]
    before = (tmp_path / "models" / "Master1" / "Pattern" / "memory.npz").read_bytes()
    assert len(before) > 2**15
    port = free_port()
    env = service_environment(tmp_path, CORESET_RATE="0.5")
    process = subprocess.Popen(
        [sys.executable, "-c", LIMITED, str(2**15), "serve", "--port", str(port)],
        env=env,
        cwd=Path(__file__).parents[2],
    )
    try:
        wait_until_ready(Running(process, port))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as limited:
            answer = fit(limited, count=5)
            assert (answer.status_code, answer.json()["code"]) == (507, "disk_full")
            assert infer(limited, BAD).json()["score"] == score
    finally:
        process.terminate()
        process.wait(30)
    folder = tmp_path / "models" / "Master1" / "Pattern"
    assert (folder / "memory.npz").read_bytes() == before
    assert not list(folder.glob("*.tmp")) and not list(folder.glob(".*.tmp"))


@pytest.fixture
def tiny_disk() -> Iterator[Path]:
    if sys.platform == "win32" or os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    with tempfile.TemporaryDirectory() as folder:
        mount = ["mount", "-t", "tmpfs", "-o", "size=1200k", "tmpfs", folder]
        if not shutil.which("mount") or subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("this machine lets nobody mount a small disk")
        yield Path(folder)
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk_loses_nothing(tiny_disk: Path) -> None:
    with client_of(create_app(quick_settings(tiny_disk, coreset_rate=0.5, min_free_mb=0))) as client:
        fit(client)
        score = infer(client, BAD).json()["score"]
        (tiny_disk / "filler").write_bytes(b"\0" * (shutil.disk_usage(tiny_disk).free - 2**14))
        refused = fit(client, count=12)
        assert (refused.status_code, refused.json()["code"]) == (507, "disk_full")
        assert infer(client, BAD).json()["score"] == score
        (tiny_disk / "filler").unlink()
        assert fit(client, count=3).status_code == 200


class Card(TextureFeatures):
    """A device whose memory holds `room` images at a time."""

    device = "cuda"

    def __init__(self, room: int) -> None:
        super().__init__(112)
        self.room = room
        self.batches: list[int] = []

    def extract(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.batches.append(len(images))
        if len(images) > self.room:
            raise DeviceOutOfMemory(retry_after=5)
        return super().extract(images)


def embeddings(queue: InferenceQueue, count: int) -> list[Any]:
    pictures = [np.full((28, 28, 3), n, np.uint8) for n in range(count)]
    waiting: list[Future[NDArray[np.float32]]] = [queue.submit(picture) for picture in pictures]
    return [future.result(timeout=30) for future in waiting]


def test_batches_that_a_device_does_not_hold_become_smaller_for_good() -> None:
    card = Card(room=3)
    queue = InferenceQueue(card, max_batch=16)
    try:
        pictures = [np.full((28, 28, 3), n, np.uint8) for n in range(16)]
        with queue._ready:  # so that all of them wait together
            waiting = [queue.submit(picture) for picture in pictures]
        found = [future.result(timeout=30) for future in waiting]
        expected = TextureFeatures(112).extract(pictures)
        assert np.array_equal(np.stack(found), expected)
        assert queue.max_batch <= 3
        card.batches.clear()
        embeddings(queue, 12)
        assert max(card.batches) <= 3
    finally:
        queue.close()


def test_a_device_that_holds_no_image_is_left_for_the_cpu_and_said_aloud(tmp_path: Path) -> None:
    app = create_app(quick_settings(tmp_path, coreset_rate=0.5), Card(room=0))
    with client_of(app) as client:
        assert fit(client).status_code == 200
        answer = infer(client, headers={"Accept-Language": "en"})
        assert answer.status_code == 200
        assert any("ran out of memory" in warning for warning in answer.json()["warnings"])
        health = client.get("/health").json()
        assert health["status"] == "degraded" and health["device"] == "cpu" and "GPU" in health["reason"]
        assert 'bdi_degraded 1.0' in client.get("/metrics").text  # fmt: skip
    with client_of(create_app(quick_settings(tmp_path, coreset_rate=0.5))) as healthy:
        assert infer(healthy).json()["score"] == answer.json()["score"]


def test_without_the_same_network_on_the_cpu_the_error_has_a_name(tmp_path: Path) -> None:
    card = Card(room=0)
    card.fingerprint = "another network"
    with client_of(create_app(quick_settings(tmp_path), card)) as client:
        answer = fit(client)
        assert (answer.status_code, answer.json()["code"]) == (503, "device_out_of_memory")
    host = ExtractorHost(quick_settings(tmp_path), TextureFeatures(112))
    host.start()
    assert host.queue()._fallback is None, "what runs on the CPU has nowhere to go"
    host.close()

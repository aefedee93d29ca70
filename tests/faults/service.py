"""A service in processes of its own, and models whose right answers are known beforehand."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray

from backend.base.keys import ModelKey
from backend.service.fitting import Fitter
from backend.service.images import ImageFile
from backend.service.inspection import Inspector
from tests.parts import encoded, part, quick_settings

ROOT = Path(__file__).resolve().parent.parent.parent
CORESET = 0.25
PROBE = encoded(part(77, defect=True))


@dataclass(frozen=True)
class Variant:
    """A memory that a fit may leave: its images, its rows, and the score that it gives PROBE."""

    images: tuple[bytes, ...]
    emb: NDArray[np.float32]
    score: float


def variant(root: Path, seed: int, count: int) -> Variant:
    """Fit `count` parts in a store of its own and see what comes out."""
    images = tuple(encoded(part(100 * seed + n)) for n in range(count))
    inspector = Inspector(quick_settings(root / f"expected-{seed}-{count}", coreset_rate=CORESET, min_free_mb=0))
    inspector.start()
    try:
        key = ModelKey.of("Expected", str(seed))
        Fitter(inspector).fit(key, [_file(n, data) for n, data in enumerate(images)], mm_per_px=0.2)
        found = inspector.infer(key, _file(0, PROBE), mm_per_px=0.2, heatmap="none")
        return Variant(images, inspector.store.load_memory(key).emb, found.inspection.score)
    finally:
        inspector.close()


def _file(number: int, data: bytes) -> ImageFile:
    return ImageFile.named(f"{number}.png", lambda: data)


def form(roi: str) -> dict[str, str]:
    return {"role_id": "Master1", "roi_id": roi, "mm_per_px": "0.2"}


def post_fit(client: httpx.Client, roi: str, images: tuple[bytes, ...]) -> httpx.Response:
    return client.post(
        "/fit_ok", data=form(roi), files=[("images", (f"{n}.png", data)) for n, data in enumerate(images)]
    )


def post_infer(client: httpx.Client, roi: str, image: bytes = PROBE) -> httpx.Response:
    return client.post("/infer", data={**form(roi), "heatmap": "none"}, files={"image": ("probe.png", image)})


def post_calibration(client: httpx.Client, roi: str, score: float) -> httpx.Response:
    body: dict[str, Any] = {"role_id": "Master1", "roi_id": roi, "mm_per_px": 0.2, "ok_scores": [score]}
    return client.post("/calibrate_ng", json=body)


def environment(root: Path, **given: str) -> dict[str, str]:
    own = {
        "MODEL_NAME": "texture",
        "INPUT_SIZE": "112",
        "CORESET_RATE": str(CORESET),
        "MODELS_DIR": str(root / "models"),
        "BDI_DATASETS_DIR": str(root / "datasets"),
        "BDI_RESULTS_DB": f"sqlite:///{root / 'inspections.db'}",
        "MIN_FREE_MB": "0",
        "LOG_LEVEL": "WARNING",
        "OMP_NUM_THREADS": "1",
        "PYTHONUTF8": "1",
    }
    return {**os.environ, **own, **given}


@dataclass(frozen=True)
class Running:
    """The service and what is seen of it from outside."""

    process: subprocess.Popen[bytes]
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def workers(self) -> list[psutil.Process]:
        """The processes that serve, eldest first: the children of the supervisor, or the only process."""
        parent = psutil.Process(self.process.pid)
        children = [c for c in parent.children() if "spawn_main" in " ".join(_command(c))]
        return sorted(children, key=lambda c: c.create_time()) or [parent]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def running(root: Path, *, workers: int = 1, command: str = "backend serve", **given: str) -> Iterator[Running]:
    """The service, started by `python -m command` and ready to answer, at a free port."""
    with running_at(free_port(), root, workers=workers, command=command, **given) as service:
        yield service


@contextmanager
def running_at(
    port: int, root: Path, *, workers: int = 1, command: str = "backend serve", **given: str
) -> Iterator[Running]:
    """The same at a port of one's own."""
    process = subprocess.Popen(
        [sys.executable, "-m", *command.split(), "--port", str(port), "--workers", str(workers)],
        cwd=ROOT,
        env=environment(root, **given),
        stdout=subprocess.DEVNULL,
    )
    service = Running(process, port)
    try:
        wait_until_ready(service)
        yield service
    finally:
        process.terminate()
        process.wait(timeout=60)


def wait_until_ready(service: Running, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert service.process.poll() is None, "the service ended"
        try:
            if httpx.get(f"{service.url}/readyz", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the service did not become ready")

"""A station's installation beside the full one: python tests/benchmarks/bench_station.py PYTHON SET… --model NAME=….

PYTHON is the station's, and a model NAME=WEIGHTS=BDIX. Each is served by this Python with its weights, and by the
station's with what was exported of it (start to ready and resident memory, in turn). Each service learns good parts of
each set and scores its test images; the station also scores them with the memory of the full installation, as two
machines that share a model.
"""

from __future__ import annotations

import argparse
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter, sleep
from typing import NamedTuple

import httpx
import numpy as np
import psutil
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from backend.evaluation.sets import InspectionSet, read_set

ROOT = Path(__file__).resolve().parents[2]
READY_WITHIN_S = 300


class Installation(NamedTuple):
    """A Python, and the settings that its service gets."""

    python: str
    settings: Mapping[str, str]


class Service(NamedTuple):
    """A service that is ready: how long that took, and the resident bytes of its process by then."""

    client: httpx.Client
    seconds: float
    process: psutil.Process

    @property
    def megabytes(self) -> float:
        """What it keeps in memory now."""
        return sum(one.memory_info().rss for one in (self.process, *self.process.children(recursive=True))) / 1e6


@contextmanager
def serving(own: Installation, folder: Path) -> Iterator[Service]:
    """The service of an installation on a free port, with its models in `folder`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BDI_")}
    here = {"MODELS_DIR": str(folder / "models"), "DATASETS_DIR": str(folder / "datasets"), "RESULTS_DB": "none"}
    settings = {"HF_HUB_OFFLINE": "1", "LOG_LEVEL": "ERROR", "REQUIRE_PRETRAINED": "1", "PORT": str(port), **here}
    started = perf_counter()
    command = [own.python, "-m", "backend", "serve"]
    process = subprocess.Popen(command, cwd=ROOT, env={**inherited, **settings, **own.settings})
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
            wait_until_ready(client, process)
            yield Service(client, perf_counter() - started, psutil.Process(process.pid))
    finally:
        process.terminate()
        process.wait(30)


def wait_until_ready(client: httpx.Client, process: subprocess.Popen[bytes]) -> None:
    end = perf_counter() + READY_WITHIN_S
    while perf_counter() < end and process.poll() is None:
        try:
            if client.get("/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        sleep(0.02)
    raise SystemExit("the service did not become ready")


def fit(service: Service, role: str, paths: Sequence[Path]) -> None:
    files = [("images", (path.name, path.read_bytes(), "image/png")) for path in paths]
    form = {"role_id": role, "roi_id": "Part", "mm_per_px": "0.1"}
    service.client.post("/fit_ok", data=form, files=files).raise_for_status()


def scores(service: Service, role: str, paths: Sequence[Path]) -> NDArray[np.float64]:
    form = {"role_id": role, "roi_id": "Part", "mm_per_px": "0.1"}
    found = []
    for path in paths:
        files = {"image": (path.name, path.read_bytes(), "image/png")}
        found.append(service.client.post("/infer", data=form, files=files).raise_for_status().json()["score"])
    return np.array(found)


def spread(paths: Sequence[Path], most: int) -> list[Path]:
    """So many of them, evenly from first to last."""
    return [paths[at] for at in np.unique(np.linspace(0, len(paths) - 1, most).astype(int))]


def compare_starts(full: Installation, station: Installation, repeats: int, scratch: Path) -> None:
    taken: dict[str, list[tuple[float, float]]] = {"full": [], "station": []}
    for number in range(repeats):
        for name, own in (("full", full), ("station", station)):
            with serving(own, scratch / f"{name}{number}") as service:
                taken[name].append((service.seconds, service.megabytes))
    seconds = {name: median(one for one, _ in found) for name, found in taken.items()}
    memory = {name: median(one for _, one in found) for name, found in taken.items()}
    share, less = seconds["station"] / seconds["full"], memory["full"] - memory["station"]
    print(f"  ready after {seconds['full']:.1f} s and {seconds['station']:.1f} s ({share:.2f} of it)", flush=True)
    print(f"  resident {memory['full']:.0f} MB and {memory['station']:.0f} MB ({less:.0f} less)", flush=True)


def compare_scores(
    full: Installation, station: Installation, sets: Sequence[InspectionSet], most: int, scratch: Path
) -> None:
    known: dict[str, NDArray[np.float64]] = {}
    with serving(full, scratch / "full") as service:
        for one in sets:
            fit(service, one.name, spread([image.path for image in one.train], most))
            known[one.name] = scores(service, one.name, spread([image.path for image in one.test], most))
    shutil.copytree(scratch / "full" / "models", scratch / "shared" / "models")
    for folder, said in (("shared", "with the same memory"), ("own", "with its own fit")):
        with serving(station, scratch / folder) as service:
            for one in sets:
                if folder == "own":
                    fit(service, one.name, spread([image.path for image in one.train], most))
                found = scores(service, one.name, spread([image.path for image in one.test], most))
                gap = np.abs(found - known[one.name]).max()
                print(f"  {one.name}, {said}: {len(found)} scores within {gap:.1e}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", help="the Python of the station's installation")
    parser.add_argument("sets", type=Path, nargs="*")
    parser.add_argument("--model", action="append", required=True, help="NAME=WEIGHTS=BDIX")
    parser.add_argument("--repeats", type=int, default=5, help="starts of each; 0: none")
    parser.add_argument("--images", type=int, default=40, help="images of a set to learn, and to score, at most")
    parser.add_argument("--precision", default="fp32", help="PRECISION of the services that score")
    given = parser.parse_args()
    sets = [read_set(folder) for folder in given.sets]
    for model in given.model:
        name, weights, exported = model.split("=")
        own = {"MODEL_NAME": name}
        full = Installation(sys.executable, {**own, "WEIGHTS": weights})
        station = Installation(given.python, {**own, "WEIGHTS": exported})
        print(name, flush=True)
        with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
            if given.repeats:
                compare_starts(full, station, given.repeats, Path(scratch))
            same = {"PRECISION": given.precision}
            full, station = (one._replace(settings={**one.settings, **same}) for one in (full, station))
            if sets:
                compare_scores(full, station, sets, given.images, Path(scratch))


if __name__ == "__main__":
    main()

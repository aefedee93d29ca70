"""Answers per second of /infer over the number of worker processes, and what one client waits by size of ROI.

Run python tests/benchmarks/bench_workers.py [--workers 1 2 4 8] [--clients 32] [--seconds 10] [--sides 448 1448 2000].
The processes share the machine's GPU, if it has one, or its cores. Where there are no weights they are drawn at random.
"""

from __future__ import annotations

import argparse
import http.client
import json
import multiprocessing
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, perf_counter, sleep
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from backend.base.config import load_settings
from backend.extractors.weights import write_random_weights
from backend.tools.bench import FORM, Request, answered, connect, fitted
from backend.tools.bench_stages import encoded, pictures

ROOT = Path(__file__).resolve().parents[2]
START_S = 300


Note = Callable[[str, Any], None]
Waited = tuple[dict[int, float], float, dict[int, float]]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    add_options(options)
    options.add_argument("--sides", type=int, nargs="*", default=[448, 1448, 2000])
    options.add_argument("--repeats", type=int, default=40)
    options.add_argument("--json", type=Path)
    given = options.parse_args()
    report: dict[str, Any] = {"cores": os.cpu_count()}

    def note(name: str, value: Any) -> None:
        report[name] = value
        print(f"{name}: {json.dumps(value)}", flush=True)
        if given.json:
            given.json.write_text(json.dumps(report, indent=1), "utf-8")

    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
        weights, model = Path(scratch) / "weights.safetensors", load_settings().model_name
        if model != "texture":
            write_random_weights(model, weights, np.random.default_rng(0))
        over_http(Path(scratch), weights, given, note)


def add_options(options: argparse.ArgumentParser) -> None:
    """What `over_http` is asked with, beside `sides` and `repeats`."""
    options.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    options.add_argument("--clients", type=int, default=32)
    options.add_argument("--seconds", type=float, default=10)
    options.add_argument("--fits", type=int, nargs="*", default=[200])


def over_http(scratch: Path, weights: Path, given: argparse.Namespace, note: Note) -> Waited:
    """Note answers per second by the number of processes, what one client waits by size, and what fits take.

    Returns:
        Milliseconds that one client waits, by side of a JPEG, the most answers per second, and the seconds of fits by
        their number of images.
    """
    rng, most = np.random.default_rng(0), 0.0
    waited: dict[int, float] = {}
    fits: dict[int, float] = {}
    for n_workers in given.workers:
        with serving(scratch / str(n_workers), weights, n_workers) as url:
            fitted(url, 34, "jpg", rng)
            calibrate(url)
            for heatmap in ("relative", "none"):
                pace = paced(url, request_of(448, rng, heatmap), given.clients, given.seconds)
                note(f"{n_workers} workers, {given.clients} clients, 448² JPEG, heatmap {heatmap}", pace)
                most = max(most, pace["per s"])
            if n_workers == given.workers[0]:
                for side in given.sides:
                    found = latency(url, request_of(side, rng), given.repeats)
                    note(f"1 client, {side}² JPEG, ms", found)
                    waited[side] = found["p50"]
                for n_images in given.fits:
                    fits[n_images] = round(fitted(url, n_images, "jpg", rng)[1] / 1000, 2)
                    note(f"fit of {n_images} images, s", fits[n_images])
    return waited, most, fits


@contextmanager
def serving(folder: Path, weights: Path, n_workers: int) -> Iterator[str]:
    """`python -m backend serve` with so many workers, ready: its address."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    own = {
        "BDI_WEIGHTS": weights,
        "BDI_MODELS_DIR": folder / "models",
        "BDI_DATASETS_DIR": folder / "datasets",
        "BDI_RESULTS_DB": f"sqlite:///{folder / 'inspections.db'}",
        "BDI_PORT": port,
        "BDI_MAX_QUEUE": 1024,
    }
    folder.mkdir()
    with (folder / "log").open("wb") as log:
        command = [sys.executable, "-m", "backend", "serve", "--workers", str(n_workers)]
        environment = {**{name: str(value) for name, value in own.items()}, **os.environ}
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=environment)
        try:
            wait_until_ready(port, n_workers, process)
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=60)


def wait_until_ready(port: int, n_workers: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until several answers in a row, from whichever worker takes them, say that the extractor is ready."""
    until, ready = monotonic() + START_S, 0
    while ready < 8 * n_workers:
        if process.poll() is not None or monotonic() > until:
            raise RuntimeError("the service did not start; run `python -m backend serve` to see why")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            connection.request("GET", "/readyz")
            ready = ready + 1 if connection.getresponse().status == 200 else 0
            connection.close()
        except OSError:
            ready = 0
        sleep(0.02 if ready else 0.3)


def calibrate(url: str) -> None:
    """A threshold that rendered parts do not reach."""
    with connect(url) as connection:
        answered(connection.post("/calibrate_ng", json={**FORM, "mm_per_px": 0.2, "ok_scores": [0.9, 1.0, 1.1]}))


def request_of(side: int, rng: np.random.Generator, heatmap: str = "relative") -> Request:
    """One /infer of a rendered part as a JPEG."""
    return Request.of("image", [encoded(pictures(1, side, rng)[0], "jpg")], heatmap=heatmap)


def latency(url: str, request: Request, repeats: int) -> dict[str, float]:
    """Milliseconds from sending to the whole answer, one client, and of the stages that the answers name."""
    waited, stages = [], []
    with connect(url) as connection:
        for _ in range(repeats):
            started = perf_counter()
            response = request.post(connection, "/infer")
            waited.append(1000 * (perf_counter() - started))
            stages.append(answered(response)["timings_ms"])
    middle = {name: round(float(np.median([stage[name] for stage in stages])), 2) for name in stages[0]}
    return {"p50": round(float(np.median(waited)), 2), "p95": round(float(np.percentile(waited, 95)), 2), **middle}


def paced(url: str, request: Request, n_clients: int, seconds: float) -> dict[str, Any]:
    """Answers per second to clients in processes of their own, each of which sends as soon as it is answered."""
    context = multiprocessing.get_context("spawn")
    port = int(url.rsplit(":", 1)[1])
    with context.Pool(n_clients) as pool:
        pool.starmap(closed_loop, [(port, request, 1.0)] * n_clients)  # each worker's first answers are slower
        found: Sequence[tuple[int, int]] = pool.starmap(closed_loop, [(port, request, seconds)] * n_clients)
    answers, others = (sum(counts) for counts in zip(*found, strict=True))
    return {"per s": round(answers / seconds, 1), "not 200": others}


def closed_loop(port: int, request: Request, seconds: float) -> tuple[int, int]:
    """How many answers were 200 and how many were not."""
    connection, counts = http.client.HTTPConnection("127.0.0.1", port, timeout=60), [0, 0]
    until = perf_counter() + seconds
    while perf_counter() < until:
        connection.request("POST", "/infer", request.body, request.headers)
        response = connection.getresponse()
        response.read()
        counts[response.status != 200] += 1
    connection.close()
    return counts[0], counts[1]


if __name__ == "__main__":
    main()

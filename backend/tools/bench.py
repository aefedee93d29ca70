"""python -m backend bench: what an inspection costs on this machine, stage by stage and over HTTP."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import uvicorn
from rich.console import Console
from rich.table import Table

from backend.app import create_app
from backend.base.config import Settings, load_settings
from backend.base.errors import WeightsUnavailable
from backend.extractors.weights import find_weights, write_random_weights
from backend.service.host import WEIGHTS_DIR, extractor_for
from backend.tools.bench_stages import Bench, Spread, encoded, machine, pictures

START_WAIT_S = 600.0
BOUNDARY = "----bench-boundary"
FORM = {"role_id": "Bench", "roi_id": "Disc", "mm_per_px": "0.1"}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured."""

    fits: Sequence[int] = (10, 34, 200)
    sides: Sequence[int] = (448, 1600)
    clients: Sequence[int] = (1, 4, 16)
    requests: int = 60
    repeats: int = 15
    form: str = "png"
    http: bool = True
    reference: bool = False


@dataclass
class Report:
    """All that was measured, as it is written to JSON. Durations are in milliseconds."""

    machine: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    forward: Spread | None = None
    stages: dict[str, dict[str, Spread]] = field(default_factory=dict)
    fits: list[dict[str, Any]] = field(default_factory=list)
    infers: list[dict[str, Any]] = field(default_factory=list)
    reference: dict[str, Any] = field(default_factory=dict)


def run_bench(plan: Plan, *, out: Path | None, console: Console) -> Report:
    """Measure, print tables to `console` and write the report to `out` (JSON)."""
    rng, report = np.random.default_rng(0), Report()
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
        settings, report.weights = own_settings(Path(scratch), rng)
        bench = _measure_stages(settings, plan, report, rng, console)
        if plan.http:
            with served(settings) as (port, _):
                _measure_fits(port, plan, report, bench, console)
                _measure_infers(port, plan, report, bench, console)
        if plan.reference:
            slow = settings.model_copy(update={"runtime": "torch", "precision": "fp32"})
            with served(slow) as (port, _):
                report.reference = _reference(port, plan, report, bench)
    _print(report, console)
    if out is not None:
        out.write_text(json.dumps(asdict(report), indent=2), "utf-8")
    return report


def own_settings(scratch: Path, rng: np.random.Generator) -> tuple[Settings, str]:
    """The service's settings with a folder of models of its own, and with random weights where it has none."""
    settings = load_settings(
        models_dir=scratch / "models",
        datasets_dir=scratch / "datasets",
        results_db=None,  # what is timed is not what a plant inspected
        log_level="ERROR",
    )
    if settings.model_name == "texture":
        return settings, "none"
    try:
        return settings, str(find_weights(settings.model_name, settings.weights, WEIGHTS_DIR).name)
    except WeightsUnavailable:
        path = write_random_weights(settings.model_name, scratch / "random.safetensors", rng)
        return settings.model_copy(update={"weights": str(path)}), "random, seeded: speed does not depend on them"


def _measure_stages(
    settings: Settings, plan: Plan, report: Report, rng: np.random.Generator, console: Console
) -> Bench:
    console.print("stages …")
    extractor = extractor_for(settings)
    report.machine = machine(extractor)
    bench = Bench.of(extractor, rng)
    for side in plan.sides:
        report.stages[f"{side}²"] = bench.stages(side, plan.repeats, plan.form)
    report.forward = bench.forward(settings.input_size, plan.repeats)
    return bench


def _measure_fits(port: int, plan: Plan, report: Report, bench: Bench, console: Console) -> None:
    for n in plan.fits:
        console.print(f"fit of {n} …")
        before = bench.forward(448, 5).p50
        answer, spent = fitted(port, n, plan.form, bench.rng)
        bare = (before + bench.forward(448, 5).p50) / 2
        row = {"images": n, "total": spent, "bare": bare, "rows": answer["coreset_size"]}
        report.fits.append({**row, **answer["timings_ms"]})


def _measure_infers(port: int, plan: Plan, report: Report, bench: Bench, console: Console) -> None:
    for side in plan.sides:
        body = multipart("image", [encoded(pictures(1, side, bench.rng)[0], plan.form)])
        for clients in plan.clients:
            console.print(f"infer {side}², {clients} clients …")
            found = _closed_loop(port, body, clients, plan.requests, bench)
            report.infers.append({"side": side, "clients": clients, **found})


def _reference(port: int, plan: Plan, report: Report, bench: Bench) -> dict[str, Any]:
    """One client at 448² against torch in fp32, and what we take beside it, both in bare passes of the same minute."""
    fitted(port, 10, plan.form, bench.rng)
    body = multipart("image", [encoded(pictures(1, 448, bench.rng)[0], plan.form)])
    found = _closed_loop(port, body, 1, max(10, plan.requests // 3), bench)
    ours = next((row for row in report.infers if (row["side"], row["clients"]) == (448, 1)), None)
    if ours is None:
        return found
    return {**found, "ours / reference": round(ours["p50"] / ours["bare"] / (found["p50"] / found["bare"]), 3)}


def _closed_loop(port: int, body: bytes, clients: int, requests: int, bench: Bench) -> dict[str, Any]:
    """Each client sends its next request when the last is answered.

    Returns:
        Durations, answers per second, and `bare`: a bare forward pass meanwhile. One client alternates with it, so that
        whatever else the machine does weighs on both; with several it is timed before and after.
    """
    spent: list[float] = []
    bare: list[float] = []

    def client(n: int) -> None:
        with connect(port) as connection:
            for _ in range(n):
                started = perf_counter()
                _post(connection, "/infer", body)
                spent.append(1000 * (perf_counter() - started))
                if clients == 1:
                    bare.append(bench.forward_once())

    client(3)
    del spent[:], bare[:]
    if clients == 1:
        client(requests)
        pace = 1000 / float(np.mean(spent))
    else:
        bare += [bench.forward_once() for _ in range(8)]
        pace = _together(client, clients, max(2, requests // clients))
        bare += [bench.forward_once() for _ in range(8)]
    return {**asdict(Spread.of(spent)), "per_s": round(pace, 2), "bare": Spread.of(bare).p50}


def _together(client: Callable[[int], None], clients: int, each: int) -> float:
    """Answers per second while `clients` threads send `each` requests."""
    threads = [threading.Thread(target=client, args=(each,)) for _ in range(clients)]
    started = perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return clients * each / (perf_counter() - started)


def fitted(port: int, n: int, form: str, rng: np.random.Generator) -> tuple[dict[str, Any], float]:
    """Fit on `n` rendered parts of 448²: the answer, and the milliseconds that it took."""
    body = multipart("images", [encoded(image, form) for image in pictures(n, 448, rng)])
    started = perf_counter()
    with connect(port) as connection:
        answer = _post(connection, "/fit_ok", body)
    return answer, 1000 * (perf_counter() - started)


def multipart(field_name: str, files: Sequence[bytes]) -> bytes:
    """A request's body: the form's fields, and the files under one name."""
    fields = [(f'name="{name}"', "", value.encode()) for name, value in FORM.items()]
    images = [
        (f'name="{field_name}"; filename="{i}.png"', "Content-Type: image/png\r\n", f) for i, f in enumerate(files)
    ]
    parts = [
        f"--{BOUNDARY}\r\nContent-Disposition: form-data; {head}\r\n{kind}\r\n".encode() + value + b"\r\n"
        for head, kind, value in (*fields, *images)
    ]
    return b"".join((*parts, f"--{BOUNDARY}--\r\n".encode()))


def connect(port: int) -> closing[http.client.HTTPConnection]:
    """A connection that stays open from one request to the next, until its `with` ends."""
    return closing(http.client.HTTPConnection("127.0.0.1", port, timeout=3600))


def _post(connection: http.client.HTTPConnection, path: str, body: bytes) -> dict[str, Any]:
    connection.request("POST", path, body, {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"})
    response = connection.getresponse()
    answer: dict[str, Any] = json.loads(response.read())
    if response.status != 200:
        raise RuntimeError(f"{path} answered {response.status}: {answer.get('error')}")
    return answer


@contextmanager
def served(settings: Settings) -> Iterator[tuple[int, int]]:
    """The service in a process of its own, ready: its port and the process's number."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(settings.model_dump(), theirs), daemon=True)
    process.start()
    try:
        if not ours.poll(START_WAIT_S):
            raise TimeoutError("the service did not start; run `python -m backend serve` to see why")
        port: int = ours.recv()
        _wait_until_warm(port)
        yield port, process.pid or 0
    finally:
        process.terminate()
        process.join(timeout=30)


def _wait_until_warm(port: int) -> None:
    waiting = threading.Event()
    for _ in range(int(START_WAIT_S * 10)):
        with connect(port) as connection:
            connection.request("GET", "/health")
            if json.loads(connection.getresponse().read())["status"] != "warming":
                return
        waiting.wait(0.1)
    raise TimeoutError("the service did not warm up")


def _serve(given: dict[str, Any], pipe: Connection) -> None:
    server = uvicorn.Server(uvicorn.Config(create_app(load_settings(**given)), port=0, log_config=None))

    def tell() -> None:
        waiting = threading.Event()
        while not server.started:
            waiting.wait(0.05)
        pipe.send(server.servers[0].sockets[0].getsockname()[1])

    threading.Thread(target=tell, daemon=True).start()
    server.run()


def _print(report: Report, console: Console) -> None:
    console.print_json(data={**report.machine, "weights": report.weights})
    stages = Table("stage", *(f"{side} ms" for side in report.stages), title="stages, p50")
    for name in next(iter(report.stages.values()), {}):
        stages.add_row(name, *(f"{found[name].p50:.1f}" for found in report.stages.values()))
    fits = Table("images", "total ms", "ms / image", "forwards", "rows", title="POST /fit_ok")
    for row in report.fits:
        each = row["total"] / row["images"]
        numbers = [f"{row['total']:.0f}", f"{each:.1f}", f"{each / row['bare']:.2f}", str(row["rows"])]
        fits.add_row(str(row["images"]), *numbers)
    infers = Table("side", "clients", "p50", "p95", "p99", "forwards", "per s", "pace / bare", title="POST /infer")
    for row in report.infers:
        latency = [f"{row[q]:.1f}" for q in ("p50", "p95", "p99")]
        ratios = [f"{row['p50'] / row['bare']:.2f}", f"{row['per_s']:.2f}", f"{row['per_s'] * row['bare'] / 1000:.2f}"]
        infers.add_row(f"{row['side']}²", str(row["clients"]), *latency, *ratios)
    for table in (stages, fits, infers):
        if table.row_count:
            console.print(table)
    if report.reference:
        console.print("torch fp32, one client at 448²:", report.reference)

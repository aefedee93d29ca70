"""python -m backend bench: what an inspection costs on this machine, stage by stage and over HTTP."""

from __future__ import annotations

import json
import multiprocessing
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter, sleep
from typing import Any

import httpx
import numpy as np
import uvicorn

from backend.app import create_app
from backend.base.config import Settings, load_settings
from backend.base.errors import WeightsUnavailable
from backend.extractors.weights import WEIGHTS_DIR, find_weights, write_random_weights
from backend.service.host import extractor_for
from backend.tools.bench_stages import Bench, Spread, encoded, machine, pictures
from backend.tools.terminal import print_table, say

START_WAIT_S = 600.0
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


def run_bench(plan: Plan, *, out: Path | None) -> Report:
    """Measure, print tables and write the report to `out` (JSON)."""
    rng, report = np.random.default_rng(0), Report()
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
        settings, report.weights = own_settings(Path(scratch), rng)
        bench = _measure_stages(settings, plan, report, rng)
        if plan.http:
            with served(settings) as (url, _):
                _measure_fits(url, plan, report, bench)
                _measure_infers(url, plan, report, bench)
        if plan.reference:
            slow = settings.model_copy(update={"runtime": "torch", "precision": "fp32"})
            with served(slow) as (url, _):
                report.reference = _reference(url, plan, report, bench)
    _print(report)
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


def _measure_stages(settings: Settings, plan: Plan, report: Report, rng: np.random.Generator) -> Bench:
    say("bench", "stages")
    extractor = extractor_for(settings)
    report.machine = machine(extractor)
    bench = Bench.of(extractor, rng)
    for side in plan.sides:
        report.stages[f"{side}²"] = bench.stages(side, plan.repeats, plan.form)
    report.forward = bench.forward(settings.input_size, plan.repeats)
    return bench


def _measure_fits(url: str, plan: Plan, report: Report, bench: Bench) -> None:
    for n in plan.fits:
        say("bench", f"fit of {n}")
        before = bench.forward(448, 5).p50
        answer, spent = fitted(url, n, plan.form, bench.rng)
        bare = (before + bench.forward(448, 5).p50) / 2
        row = {"images": n, "total": spent, "bare": bare, "rows": answer["coreset_size"]}
        report.fits.append({**row, **answer["timings_ms"]})


def _measure_infers(url: str, plan: Plan, report: Report, bench: Bench) -> None:
    for side in plan.sides:
        request = Request.of("image", [encoded(pictures(1, side, bench.rng)[0], plan.form)])
        for clients in plan.clients:
            say("bench", f"infer {side}², {clients} clients")
            found = _closed_loop(url, request, clients, plan.requests, bench)
            report.infers.append({"side": side, "clients": clients, **found})


def _reference(url: str, plan: Plan, report: Report, bench: Bench) -> dict[str, Any]:
    """One client at 448² against torch in fp32, and what we take beside it, both in bare passes of the same minute."""
    fitted(url, 10, plan.form, bench.rng)
    request = Request.of("image", [encoded(pictures(1, 448, bench.rng)[0], plan.form)])
    found = _closed_loop(url, request, 1, max(10, plan.requests // 3), bench)
    ours = next((row for row in report.infers if (row["side"], row["clients"]) == (448, 1)), None)
    if ours is None:
        return found
    return {**found, "ours / reference": round(ours["p50"] / ours["bare"] / (found["p50"] / found["bare"]), 3)}


def _closed_loop(url: str, request: Request, clients: int, requests: int, bench: Bench) -> dict[str, Any]:
    """Each client sends its next request when the last is answered.

    Returns:
        Durations, answers per second, and `bare`: a bare forward pass meanwhile. One client alternates with it, so that
        whatever else the machine does weighs on both; with several it is timed before and after.
    """
    spent: list[float] = []
    bare: list[float] = []

    def client(n: int) -> None:
        with connect(url) as connection:
            for _ in range(n):
                started = perf_counter()
                answered(request.post(connection, "/infer"))
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


def fitted(url: str, n: int, form: str, rng: np.random.Generator) -> tuple[dict[str, Any], float]:
    """Fit on `n` rendered parts of 448²: the answer, and the milliseconds that it took."""
    request = Request.of("images", [encoded(image, form) for image in pictures(n, 448, rng)])
    with connect(url) as connection:
        started = perf_counter()
        response = request.post(connection, "/fit_ok")
        return answered(response), 1000 * (perf_counter() - started)


@dataclass(frozen=True)
class Request:
    """A multipart body that is encoded once and sent as often as one likes, so that what is timed is the service."""

    body: bytes
    headers: dict[str, str]

    @classmethod
    def of(cls, field_name: str, files: Sequence[bytes], **fields: str) -> Request:
        """The model's ids, other `fields`, and `files`, all under `field_name`."""
        parts = [(field_name, (f"{number}.png", file, "image/png")) for number, file in enumerate(files)]
        made = httpx.Request("POST", "http://localhost", data={**FORM, **fields}, files=parts)
        return cls(made.read(), {"Content-Type": made.headers["Content-Type"]})

    def post(self, connection: httpx.Client, path: str) -> httpx.Response:
        """Send it to `path` of the service."""
        return connection.post(path, content=self.body, headers=self.headers)


def connect(url: str) -> httpx.Client:
    """A client whose connection stays open from one request to the next, until its `with` ends."""
    return httpx.Client(base_url=url, timeout=3600, trust_env=False)


def answered(response: httpx.Response) -> dict[str, Any]:
    """The JSON of an answer. Raises RuntimeError, with the service's own sentence, unless it is a 200."""
    answer: dict[str, Any] = response.json()
    if response.status_code != 200:
        raise RuntimeError(f"{response.request.url.path} answered {response.status_code}: {answer.get('error')}")
    return answer


@contextmanager
def served(settings: Settings) -> Iterator[tuple[str, int]]:
    """The service in a process of its own, ready: its address and the process's number.

    Raises:
        RuntimeError: it did not start, or did not warm up.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(settings.model_dump(), theirs), daemon=True)
    process.start()
    theirs.close()  # so that a process which ends without a word ends the wait for its port
    try:
        try:
            url = f"http://127.0.0.1:{ours.recv()}"
            _wait_until_warm(url)
        except (EOFError, httpx.TransportError) as err:
            raise RuntimeError("the service did not start; run `python -m backend serve` to see why") from err
        yield url, process.pid or 0
    finally:
        process.terminate()
        process.join(timeout=30)


def _wait_until_warm(url: str) -> None:
    with connect(url) as connection:
        for _ in range(int(START_WAIT_S * 10)):
            if answered(connection.get("/health"))["status"] != "warming":
                return
            sleep(0.1)
    raise RuntimeError("the service did not warm up")


def _serve(given: dict[str, Any], pipe: Connection) -> None:
    """Serve on a free port and tell it; who connects at once is answered once the service is up."""
    server = uvicorn.Server(uvicorn.Config(create_app(load_settings(**given)), log_config=None))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        pipe.send(listening.getsockname()[1])
        server.run(sockets=[listening])


def _print(report: Report) -> None:
    about = {**report.machine, "weights": report.weights}
    libraries = about.pop("libraries", {})
    rows = [(name, str(value)) for name, value in (*about.items(), *libraries.items())]
    print_table(["machine", ""], rows)
    header = ["stage", *(f"{side} ms" for side in report.stages)]
    names = next(iter(report.stages.values()), {})
    rows_of_stages = [[name, *(f"{found[name].p50:.1f}" for found in report.stages.values())] for name in names]
    print_table(header, rows_of_stages, title="stages, p50")
    if report.fits:
        header = ["images", "total ms", "ms / image", "forwards", "rows"]
        print_table(header, [_fit_row(row) for row in report.fits], title="POST /fit_ok")
    if report.infers:
        header = ["side", "clients", "p50", "p95", "p99", "forwards", "per s", "pace / bare"]
        print_table(header, [_infer_row(row) for row in report.infers], title="POST /infer")
    if report.reference:
        rows = [(name, str(value)) for name, value in report.reference.items()]
        print_table(["torch fp32, one client at 448²", ""], rows)


def _fit_row(row: dict[str, Any]) -> list[str]:
    each = row["total"] / row["images"]
    return [str(row["images"]), f"{row['total']:.0f}", f"{each:.1f}", f"{each / row['bare']:.2f}", str(row["rows"])]


def _infer_row(row: dict[str, Any]) -> list[str]:
    latency = [f"{row[q]:.1f}" for q in ("p50", "p95", "p99")]
    ratios = [f"{row['p50'] / row['bare']:.2f}", f"{row['per_s']:.2f}", f"{row['per_s'] * row['bare'] / 1000:.2f}"]
    return [f"{row['side']}²", str(row["clients"]), *latency, *ratios]

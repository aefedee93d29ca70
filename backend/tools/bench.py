"""python -m backend bench: what an inspection costs on this machine, stage by stage and over HTTP.

Whatever a ratio compares is timed in turn, round by round, so that other work on the machine weighs on both sides. How
much of the processor others took meanwhile is measured too, and said when it is too much to trust the figures.
"""

from __future__ import annotations

import json
import multiprocessing
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter, sleep
from typing import Any, NamedTuple

import httpx
import numpy as np
import psutil
import uvicorn

from backend.app import create_app
from backend.base.config import Settings, load_settings
from backend.base.errors import WeightsUnavailable
from backend.extractors.weights import WEIGHTS_DIR, find_weights, write_random_weights
from backend.service.host import extractor_for
from backend.tools.bench_stages import Bench, Spread, encoded, machine, pictures
from backend.tools.terminal import print_table, say

START_WAIT_S = 600.0
WARM_UP = 3  # requests that do not count
OURS, TORCH = "as set", "torch fp32"
MOST_OF_OTHERS = 0.1  # of the processor, beyond which figures are not to be trusted
SIDE = 448  # of the parts that memories are fitted on, and of the first side of each ratio
FORM = {"role_id": "Bench", "roi_id": "Disc", "mm_per_px": "0.1"}


class Sent(NamedTuple):
    """An ROI of side² pixels as a file of that form (`png`, `jpg`)."""

    side: int
    form: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is measured.

    `sides`: of the ROIs that are sent in `form`, the first of which is what the others are compared with.
    `jpegs`: of ROIs that are sent as JPEG besides, by one client.
    """

    fits: Sequence[int] = (10, 34, 200)
    sides: Sequence[int] = (448, 1600)
    jpegs: Sequence[int] = ()
    clients: Sequence[int] = (1, 4, 16)
    requests: int = 60
    repeats: int = 15
    form: str = "png"
    http: bool = True
    reference: bool = False

    @property
    def sent(self) -> list[Sent]:
        """What is inspected."""
        return [*(Sent(side, self.form) for side in self.sides), *(Sent(side, "jpg") for side in self.jpegs)]


@dataclass
class Report:
    """All that was measured, as it is written to JSON. Durations are in milliseconds."""

    machine: dict[str, Any] = field(default_factory=dict)
    weights: str = ""
    forward: Spread | None = None
    stages: dict[str, dict[str, Spread]] = field(default_factory=dict)
    fits: list[dict[str, Any]] = field(default_factory=list)
    infers: list[dict[str, Any]] = field(default_factory=list)
    others: float = 0.0

    @property
    def busy(self) -> bool:
        """Whether others took too much of the processor."""
        return self.others > MOST_OF_OTHERS


class Others:
    """What others than this process and its children take of the processor, from when it was made."""

    def __init__(self) -> None:
        self._own, self._all, self._started = _own_seconds(), _busy_seconds(), perf_counter()

    def share(self) -> float:
        """From 0 to 1."""
        all_, own = _busy_seconds() - self._all, _own_seconds() - self._own
        return max(0.0, all_ - own) / (perf_counter() - self._started) / (psutil.cpu_count() or 1)


def _own_seconds() -> float:
    """Processor time of this process and of its children, those that ended included."""
    spent = 0.0
    process = psutil.Process()
    for one in (process, *process.children(recursive=True)):
        try:
            times = one.cpu_times()
        except psutil.NoSuchProcess:
            continue
        spent += times.user + times.system + times.children_user + times.children_system
    return spent


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    waiting = times.idle + getattr(times, "iowait", 0.0) + getattr(times, "guest", 0.0)
    return float(sum(times) - waiting - getattr(times, "guest_nice", 0.0))


def run_bench(plan: Plan, *, out: Path | None) -> Report:
    """Measure, print tables and write the report to `out` (JSON)."""
    rng, report, others = np.random.default_rng(0), Report(), Others()
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch, ExitStack() as stack:
        settings, report.weights = own_settings(Path(scratch), rng)
        bench = _measure_stages(settings, plan, report, rng)
        if plan.http:
            urls = {OURS: stack.enter_context(served(settings))[0]}
            if plan.reference:
                slow = settings.model_copy(update={"runtime": "torch", "precision": "fp32"})
                urls[TORCH] = stack.enter_context(served(slow))[0]
            _measure_fits(urls[OURS], plan, report, bench)
            _measure_infers(urls, plan, report, bench)
        report.others = round(others.share(), 3)
    _print(report)
    if out is not None:
        out.write_text(json.dumps(asdict(report) | {"busy": report.busy}, indent=2), "utf-8")
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
    for side, form in plan.sent:
        name = f"{side}²" if form == plan.form else f"{side}² {form}"
        report.stages[name] = bench.stages(side, plan.repeats, form)
    report.forward = bench.forward(settings.input_size, plan.repeats)
    return bench


def _measure_fits(url: str, plan: Plan, report: Report, bench: Bench) -> None:
    for n in plan.fits:
        say("bench", f"fit of {n}")
        before = bench.forward(SIDE, 5).p50
        answer, spent = fitted(url, n, plan.form, bench.rng)
        bare = (before + bench.forward(SIDE, 5).p50) / 2
        row = {"images": n, "total": spent, "bare": bare, "rows": answer["coreset_size"]}
        report.fits.append({**row, **answer["timings_ms"]})


def _measure_infers(urls: Mapping[str, str], plan: Plan, report: Report, bench: Bench) -> None:
    requests = {sent: Request.of("image", [_file(sent, bench)]) for sent in plan.sent}
    for name in urls.keys() - {OURS}:
        fitted(urls[name], 10, plan.form, bench.rng)
    for clients in plan.clients:
        if clients == 1:
            say("bench", "infer, 1 client")
            report.infers += _in_turn(urls, requests, plan.requests, bench)
            continue
        for sent in plan.sent[: len(plan.sides)]:
            say("bench", f"infer {sent.side}² {sent.form}, {clients} clients")
            found = _side_by_side(urls[OURS], requests[sent], clients, plan.requests, bench)
            report.infers.append({"service": OURS, **sent._asdict(), "clients": clients, **found})


def _file(sent: Sent, bench: Bench) -> bytes:
    return encoded(pictures(1, sent.side, bench.rng)[0], sent.form)


def _in_turn(
    urls: Mapping[str, str], requests: Mapping[Sent, Request], rounds: int, bench: Bench
) -> list[dict[str, Any]]:
    """One client that in each round asks every service for every ROI, and makes a bare forward pass.

    Returns:
        A row for each: its durations, and by quartiles what each request took in forwards of its round and in the
        requests of the first ROI in its round.
    """
    asked = [(name, sent) for name in urls for sent in requests]
    spent: dict[tuple[str, Sent], list[float]] = {one: [] for one in asked}
    bare: list[float] = []
    with ExitStack() as stack:
        connections = {name: stack.enter_context(connect(url)) for name, url in urls.items()}
        for number in range(rounds + WARM_UP):
            turned = number % len(asked)
            for name, sent in asked[turned:] + asked[:turned]:
                started = perf_counter()
                answered(requests[sent].post(connections[name], "/infer"))
                spent[name, sent].append(1000 * (perf_counter() - started))
            bare.append(bench.forward_once())
    del bare[:WARM_UP]
    for durations in spent.values():
        del durations[:WARM_UP]
    first = next(iter(requests))
    return [
        {
            "service": name,
            **sent._asdict(),
            "clients": 1,
            **asdict(Spread.of(durations)),
            "per_s": round(1000 / float(np.mean(durations)), 2),
            "bare": Spread.of(bare).p50,
            "in forwards": _quartiles(durations, bare),
            "of the first side": _quartiles(durations, spent[name, first]),
            "of ours": _quartiles(durations, spent[OURS, sent]),
        }
        for (name, sent), durations in spent.items()
    ]


def _quartiles(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    ratios = np.array(ours) / np.array(theirs)
    return [round(float(q), 3) for q in np.quantile(ratios, (0.25, 0.5, 0.75))]


def _side_by_side(url: str, request: Request, clients: int, requests: int, bench: Bench) -> dict[str, Any]:
    """Several clients, each of which sends its next request when the last is answered.

    Returns:
        Durations, answers per second, and `bare`: a bare forward pass before and after.
    """
    spent: list[float] = []

    def client(n: int) -> None:
        with connect(url) as connection:
            for _ in range(n):
                started = perf_counter()
                answered(request.post(connection, "/infer"))
                spent.append(1000 * (perf_counter() - started))

    client(WARM_UP)
    del spent[:]
    bare = [bench.forward_once() for _ in range(8)]
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
    """Fit on `n` rendered parts: the answer, and the milliseconds that it took."""
    request = Request.of("images", [encoded(image, form) for image in pictures(n, SIDE, rng)])
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
        first = "{side}² {form}".format(**report.infers[0])
        header = ["service", "ROI", "clients", "p50", "p95", "forwards", f"of {first}", "of ours", "per s", "of bare"]
        print_table(header, [_infer_row(row) for row in report.infers], title="POST /infer, ms; ratios with quartiles")
    say("bench", f"others took {report.others:.0%} of the processor meanwhile")
    if report.busy:
        say("bench", "the machine was too busy for these figures to be trusted: stop what else runs, and measure again")


def _fit_row(row: dict[str, Any]) -> list[str]:
    each = row["total"] / row["images"]
    return [str(row["images"]), f"{row['total']:.0f}", f"{each:.1f}", f"{each / row['bare']:.2f}", str(row["rows"])]


def _infer_row(row: dict[str, Any]) -> list[str]:
    roi = f"{row['side']}² {row['form']}"
    ratios = [_ratio(row.get(name)) for name in ("in forwards", "of the first side", "of ours")]
    if row["clients"] > 1:
        ratios[0] = f"{row['p50'] / row['bare']:.2f}"
    pace = [f"{row['per_s']:.2f}", f"{row['per_s'] * row['bare'] / 1000:.2f}"]
    return [
        row["service"], roi, str(row["clients"]), f"{row['p50']:.1f}", f"{row['p95']:.1f}", *ratios, *pace
    ]  # fmt: skip


def _ratio(quartiles: Sequence[float] | None) -> str:
    if quartiles is None:
        return ""
    low, middle, high = quartiles
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"

"""What recording costs /infer: python tests/benchmarks/bench_recording.py [--model NAME] [--requests 200].

A service for each kind of record, all running at once, are asked in turn: one client, request by request, for the time
that an answer takes; then 16 clients of one service at a time, round after round, for its pace. Images are of 448²; the
policy is the default one, with one part in twenty NG.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import threading
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter

import httpx
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.faults.service import Running, form, post_calibration, post_fit, running
from tests.parts import encoded, part
from tests.records.postgres import Server

CLIENTS = 16


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--model", default="texture")
    options.add_argument("--input-size", default="448")
    options.add_argument("--requests", type=int, default=200)
    options.add_argument("--seconds", type=float, default=20)
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--without", action="append", default=[], help="a kind of record to leave out, by its name")
    given = options.parse_args()
    images = [encoded(part(n, height=448, width=448, defect=n % 20 == 0)) for n in range(200)]
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch, ExitStack() as stack:
        server = stack.enter_context(Server(safe=True))
        root = Path(scratch)
        kinds: dict[str, dict[str, str]] = {
            "none": {"BDI_RESULTS_DB": "none"},
            "SQLite": {"BDI_RESULTS_DB": f"sqlite:///{root / 'normal.db'}"},
            "SQLite, full": {"BDI_RESULTS_DB": f"sqlite:///{root / 'full.db'}", "RESULTS_SYNC": "full"},
            "PostgreSQL": {"BDI_RESULTS_DB": server.database(), "IMAGES_DIR": str(root / "images")},
        }
        own: dict[str, str] = {"MODEL_NAME": given.model, "INPUT_SIZE": given.input_size, "OMP_NUM_THREADS": "2"}
        services = {
            name: stack.enter_context(running(root / name, workers=1, **{**own, **settings}))
            for name, settings in kinds.items()
            if name not in given.without
        }
        threshold = prepared(services, images)
        print(f"threshold {threshold:.4f}", flush=True)
        spent = in_turn(services, images, given.requests)
        paces: dict[str, list[float]] = {name: [] for name in services}
        for _ in range(given.rounds):
            for name, service in services.items():
                paces[name].append(pace(service, images, given.seconds))
    print("| record | p50 | more than without | answers per second, 16 clients | of those without |")
    print("| --- | --- | --- | --- | --- |")
    for name, times in spent.items():
        p50, base = statistics.median(times), statistics.median(spent["none"])
        more = statistics.median(a - b for a, b in zip(times, spent["none"], strict=True))
        own_pace, base_pace = statistics.median(paces[name]), statistics.median(paces["none"])
        ratio = statistics.median(a / b for a, b in zip(paces[name], paces["none"], strict=True))
        print(
            f"| {name} | {p50:.1f} ms | {p50 - base:+.1f} ms (pairs: {more:+.1f}) | {own_pace:.1f} | "
            f"{own_pace / base_pace:.3f} (pairs: {ratio:.3f}) |"
        )


def prepared(services: dict[str, Running], images: list[bytes]) -> float:
    """Fit each service on good parts and calibrate it so that one part in twenty is NG. Returns the threshold."""
    threshold = 0.0
    for service in services.values():
        with httpx.Client(base_url=service.url, timeout=300) as client:
            assert post_fit(client, "bench", tuple(images[1:11])).status_code == 200
            scores = [infer(client, image).json()["score"] for image in images[:60]]
            threshold = float(np.quantile(scores, 0.95))
            assert post_calibration(client, "bench", threshold).status_code == 200
    return threshold


def infer(client: httpx.Client, image: bytes) -> httpx.Response:
    answer = client.post("/infer", data=form("bench"), files={"image": ("part.png", image)})
    assert answer.status_code == 200, answer.text
    return answer


def in_turn(services: dict[str, Running], images: list[bytes], requests: int) -> dict[str, list[float]]:
    """Milliseconds of each request, one service after the other with each image."""
    spent: dict[str, list[float]] = {name: [] for name in services}
    with ExitStack() as stack:
        clients = {
            name: stack.enter_context(httpx.Client(base_url=one.url, timeout=60)) for name, one in services.items()
        }
        names = list(clients)
        for number in range(requests):
            for name in names[number % len(names) :] + names[: number % len(names)]:
                started = perf_counter()
                infer(clients[name], images[number % len(images)])
                spent[name].append(1000 * (perf_counter() - started))
    return spent


def pace(service: Running, images: list[bytes], seconds: float) -> float:
    """Answers per second that 16 clients get."""
    stop, counts = perf_counter() + seconds, [0] * CLIENTS

    def ask(number: int) -> None:
        with httpx.Client(base_url=service.url, timeout=60) as client:
            while perf_counter() < stop:
                infer(client, images[(number * 7 + counts[number]) % len(images)])
                counts[number] += 1

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(CLIENTS)]
    started = perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (perf_counter() - started)


if __name__ == "__main__":
    main()

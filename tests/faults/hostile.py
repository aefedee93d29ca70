"""Tens of thousands of hostile requests at a real service: no 5xx, no hang, no growth, and honest clients served.

python -m tests.faults.hostile --requests 50000
"""

import argparse
import json
import re
import socket
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tests.faults.hostility import hostile
from tests.faults.service import Running, post_calibration, post_fit, post_infer, running, variant

PATIENCE_S = 30.0
LORIS_CONNECTIONS = 20


def ask(port: int, data: bytes) -> tuple[bytes, bool]:
    """What came back, and whether the connection ended in time."""
    answer = b""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
        try:
            connection.sendall(data)
            while received := connection.recv(65_536):
                answer += received
        except TimeoutError:
            return answer, False
        except OSError:  # the service hung up while it was being talked to
            pass
    return answer, True


@dataclass
class Siege:
    """Attackers, dawdlers and one honest client around a service."""

    service: Running
    score: float
    total: int
    stop: threading.Event = field(default_factory=threading.Event)
    kinds: Counter[str] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    honest_s: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    slowest: dict[str, float] = field(default_factory=dict)
    hung_up: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def attack(self, seed: int, count: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(count):
            kind, data = hostile(rng)
            started = time.monotonic()
            answer, ended = ask(self.service.port, data)
            spent = time.monotonic() - started
            statuses = [s.decode() for s in re.findall(rb"^HTTP/1\.1 (\d{3})", answer)] or ["closed"]
            with self._lock:
                self.kinds[kind] += 1
                self.slowest[kind] = max(self.slowest.get(kind, 0.0), round(spent, 2))
                self.answers[statuses[0]] += 1
            if not ended or statuses[0].startswith("5"):
                self.wrong.append(f"{kind}: {'hung' if not ended else answer[:600]!r} after {data[:200]!r}")

    def dawdle(self) -> None:
        """Send headers, or a body, a byte a second, until the service hangs up."""
        post = b"POST /calibrate_ng HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        heads = (b"GET /health HTTP/1.1\r\nHost: localhost\r\n", post + b"Content-Length: 9000\r\n\r\n")
        for number in range(10_000):
            started, head = time.monotonic(), heads[number % 2]
            with socket.create_connection(("127.0.0.1", self.service.port), timeout=5) as connection:
                try:
                    connection.sendall(head)
                    while not self.stop.wait(1):
                        connection.sendall(b"a")
                except OSError:
                    with self._lock:
                        self.hung_up["in time" if time.monotonic() - started < PATIENCE_S else "late"] += 1
            if self.stop.is_set():
                return

    def be_honest(self) -> None:
        with httpx.Client(base_url=self.service.url, timeout=PATIENCE_S) as client:
            while not self.stop.wait(0.5):
                started = time.monotonic()
                try:
                    answer = post_infer(client, "part")
                except httpx.TransportError as err:
                    self.wrong.append(f"an honest request: {err!r}")
                    continue
                self.honest_s.append(time.monotonic() - started)
                if answer.status_code != 200 or answer.json()["score"] != self.score:
                    self.wrong.append(f"an honest request: {answer.status_code} {answer.text[:300]}")

    def watch(self) -> None:
        (worker,) = self.service.workers()
        while not self.stop.wait(0.5):
            self.rss_mb.append(worker.memory_info().rss / 2**20)


def growth_mb(rss_mb: list[float]) -> float:
    """Growth from the second quarter to the last."""
    quarter = max(1, len(rss_mb) // 4)
    return float(np.median(rss_mb[-quarter:]) - np.median(rss_mb[quarter : 2 * quarter]))


def run(total: int, *, attackers: int = 6, dawdlers: int = LORIS_CONNECTIONS, seed: int = 0) -> dict[str, Any]:
    """Lay siege with `total` requests. Returns what was seen; raises AssertionError with what was wrong."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        honest = variant(root, 1, 3)
        with running(root, BODY_TIMEOUT_S="1", LOG_LEVEL="ERROR") as service:
            with httpx.Client(base_url=service.url, timeout=60) as client:
                for role in ("Master1", "Honest"):
                    files = [("images", (f"{n}.png", data)) for n, data in enumerate(honest.images)]
                    form = {"role_id": role, "roi_id": "part", "mm_per_px": "0.2"}
                    assert client.post("/fit_ok", data=form, files=files).status_code == 200
                assert post_fit(client, "part", honest.images).status_code == 200
                assert post_calibration(client, "part", honest.score / 2).status_code == 200
            siege = Siege(service, honest.score, total)
            jobs = [
                threading.Thread(target=siege.attack, args=(seed + n, total // attackers)) for n in range(attackers)
            ]
            others = [threading.Thread(target=siege.dawdle) for _ in range(dawdlers)]
            others += [threading.Thread(target=siege.be_honest), threading.Thread(target=siege.watch)]
            started = time.monotonic()
            for job in jobs + others:
                job.start()
            for job in jobs:
                job.join()
            seconds = time.monotonic() - started
            siege.stop.set()
            for job in others:
                job.join(60)
        return report(siege, seconds)


def report(siege: Siege, seconds: float) -> dict[str, Any]:
    """What was seen. Raises AssertionError."""
    seen = {
        "requests": sum(siege.kinds.values()),
        "seconds": round(seconds),
        "kinds": dict(siege.kinds),
        "slowest, seconds": siege.slowest,
        "answers": dict(siege.answers),
        "dawdlers hung up on": dict(siege.hung_up),
        "honest requests": len(siege.honest_s),
        "honest seconds, median and worst": [round(float(np.median(siege.honest_s)), 3), round(max(siege.honest_s), 3)],
        "rss, MB": [round(siege.rss_mb[0]), round(max(siege.rss_mb)), round(siege.rss_mb[-1])],
        "growth, MB": round(growth_mb(siege.rss_mb), 1),
    }
    assert not siege.wrong, (len(siege.wrong), siege.wrong[:3], seen)
    assert siege.hung_up["late"] == 0, seen
    assert growth_mb(siege.rss_mb) < 64, seen
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=50_000)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(json.dumps(run(given.requests, seed=given.seed), indent=1))


if __name__ == "__main__":
    main()

"""Mixed load on several workers while they are killed: nothing wrong, nothing lost, memory flat.

    python -m tests.faults.mixed_load                 # 30 minutes
    python -m tests.faults.mixed_load --minutes 3     # as a CI job runs it

Sixteen clients inspect a part on eight models; a fit replaces one of them now and then; a worker is killed with
SIGKILL now and then, the eldest aside, whose memory is watched. Each score must be that of the memory that was
acknowledged, or of one whose fit was under way during the inspection; each answered verdict must be in the record,
once, with its score, and the chains of the record whole.
"""

import argparse
import json
import tempfile
import threading
import time
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from backend.api.catalogue import sentence
from backend.base.keys import ModelKey
from backend.records.database import Database
from backend.records.queries import Filters, Place, page
from backend.records.verifying import verify
from backend.storage import ModelStore
from tests.faults.service import Running, Variant, post_calibration, post_fit, post_infer, running, variant
from tests.records.postgres import Server

ROIS = tuple(f"roi{n}" for n in range(8))
RETRIES = 40


@dataclass
class Model:
    """Which variants an inspection that begins now may be scored with."""

    possible: set[int]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def now(self) -> set[int]:
        with self.lock:
            return set(self.possible)


@dataclass
class Load:
    """The clients, the fits, the kills and what they saw."""

    service: Running
    variants: list[Variant]
    models: dict[str, Model]
    fit_every_s: float
    kill_every_s: float
    pause_s: float
    client: httpx.Client
    stop: threading.Event = field(default_factory=threading.Event)
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    rss_mb: list[float] = field(default_factory=list)
    recorded: dict[str, float] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, name: str) -> None:
        with self._lock:
            self.counts[name] += 1

    def patiently(self, ask: Any, what: str) -> httpx.Response | None:
        """The answer, asking again where a kill cut the connection or the service was busy."""
        for _ in range(RETRIES):
            answer = self._once(ask, what)
            if answer is not None and answer.status_code != 503:
                return answer
            time.sleep(0.2)
        if not self.stop.is_set():
            self.wrong.append(f"{what}: no answer in {RETRIES} attempts")
        return None

    def _once(self, ask: Any, what: str) -> httpx.Response | None:
        try:
            answer: httpx.Response = ask(self.client)
        except httpx.TransportError:
            self.count(f"{what} cut")
            return None
        self.count(f"{what} {answer.status_code}")
        return answer

    def inspect(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not self.stop.is_set():
            roi = str(rng.choice(ROIS))
            before, started = self.models[roi].now(), time.monotonic()
            answer = self.patiently(lambda client, roi=roi: post_infer(client, roi), "infer")
            self.seconds.append(time.monotonic() - started)
            self._judge(roi, answer, before | self.models[roi].now())
            self.stop.wait(self.pause_s)

    def _judge(self, roi: str, answer: httpx.Response | None, possible: set[int]) -> None:
        if answer is None:
            return
        if answer.status_code != 200:
            self.wrong.append(f"infer {roi}: {answer.status_code} {answer.text[:300]}")
            return
        body = answer.json()
        if body["score"] not in {self.variants[v].score for v in possible}:
            self.wrong.append(f"infer {roi}: score {body['score']} is of no memory that it may have")
        with self._lock:
            if "inspection_id" not in body or body["inspection_id"] in self.recorded:
                self.wrong.append(f"infer {roi}: {body.get('inspection_id')} is no name of its own, {body['warnings']}")
            self.recorded[body.get("inspection_id", "")] = body["score"]

    def refit(self) -> None:
        rng = np.random.default_rng(99)
        while not self.stop.wait(self.fit_every_s):
            self.fit(str(rng.choice(ROIS)), int(rng.integers(len(self.variants))))

    def fit(self, roi: str, new: int) -> None:
        model = self.models[roi]
        with model.lock:
            model.possible.add(new)
        answer = self.patiently(lambda client: post_fit(client, roi, self.variants[new].images), "fit")
        if answer is None:
            return
        if answer.status_code != 200:
            self.wrong.append(f"fit {roi}: {answer.status_code} {answer.text[:300]}")
            return
        with model.lock:
            model.possible = {new}
        self.patiently(lambda client: post_calibration(client, roi, self.variants[new].score / 2), "calibrate")

    def kill(self) -> None:
        rng = np.random.default_rng(7)
        while not self.stop.wait(self.kill_every_s):
            young = self.service.workers()[1:]
            if young:
                young[int(rng.integers(len(young)))].kill()
                self.count("kills")

    def watch(self) -> None:
        """The memory of the eldest worker, which is never killed, each second."""
        eldest = self.service.workers()[0]
        while not self.stop.wait(1):
            if not eldest.is_running():
                self.wrong.append("the eldest worker ended by itself")
                return
            self.rss_mb.append(eldest.memory_info().rss / 2**20)


def growth_mb(rss_mb: list[float]) -> float:
    """Growth from the second quarter of the run to the last; the first one fills the caches."""
    quarter = max(1, len(rss_mb) // 4)
    return float(np.median(rss_mb[-quarter:]) - np.median(rss_mb[quarter : 2 * quarter]))


def run(
    minutes: float,
    *,
    workers: int = 4,
    clients: int = 16,
    fit_every_s: float = 20,
    kill_every_s: float = 60,
    pause_s: float = 0.0,
    postgres: bool = False,
) -> dict[str, Any]:
    """Load a service for `minutes`. Returns what was seen; raises AssertionError with what was wrong."""
    with tempfile.TemporaryDirectory() as folder, Server() if postgres else nullcontext() as server:
        root = Path(folder)
        record = server.database() if server else f"sqlite:///{root / 'inspections.db'}"
        variants = [variant(root, seed, count) for seed, count in ((1, 3), (2, 4), (3, 5))]
        # What cannot be recorded is not answered: a busy machine may keep the database locked for longer than a
        # verdict waits for it.
        own = {"RESULTS_REQUIRED": "1", "IMAGES_DIR": str(root / "images")}
        # A connection for each request, so that requests reach every worker.
        apart = httpx.Limits(max_keepalive_connections=0)
        with (
            running(root, workers=workers, BDI_RESULTS_DB=record, **own) as service,
            httpx.Client(base_url=service.url, timeout=60, limits=apart) as to,
        ):
            models = {roi: Model({0}) for roi in ROIS}
            load = Load(service, variants, models, fit_every_s, kill_every_s, pause_s, to)
            for roi in ROIS:
                load.fit(roi, 0)
            jobs = [threading.Thread(target=load.inspect, args=(n,)) for n in range(clients)]
            jobs += [threading.Thread(target=job) for job in (load.refit, load.kill, load.watch)]
            for job in jobs:
                job.start()
            load.stop.wait(60 * minutes)
            load.stop.set()
            for job in jobs:
                job.join(120)
            metrics = httpx.get(f"{service.url}/metrics", timeout=30).text
        load.wrong += unrecorded(record, load)[:5]
        lost = [roi for roi in ROIS if not is_whole(root, roi, models[roi], variants)]
        return report(load, lost, metrics)


def is_whole(root: Path, roi: str, model: Model, variants: list[Variant]) -> bool:
    emb = ModelStore(root / "models").load_memory(ModelKey.of("Master1", roi)).emb
    return any(np.array_equal(variants[v].emb, emb) for v in model.possible)


def unrecorded(url: str, load: Load) -> list[str]:
    """What is wrong with the record of what was answered."""
    database = Database(url)
    found: dict[str, float] = {}
    after: Place | None = None
    while True:
        with database.reading() as connection:
            some = page(connection, Filters(), "oldest", 1000, after)
        found |= {item["inspection_id"]: item["score"] for item in some.items}
        if some.next is None:
            break
        after = some.next
    wrong = [name for name, score in load.recorded.items() if found.get(name) != score]
    load.counts["records"] = len(found)
    wrong += [sentence(one, "en") for one in verify(database).found]
    database.close()
    return wrong


def report(load: Load, lost: list[str], metrics: str) -> dict[str, Any]:
    """What was seen. Raises AssertionError."""
    server_errors = [name for name in load.counts if name.rpartition(" ")[2].startswith("5") and "503" not in name]
    seen = {
        **dict(load.counts),
        "lost models": lost,
        "seconds, median and 99 %": [round(float(np.percentile(load.seconds, q)), 3) for q in (50, 99)],
        "rss of the eldest worker, MB": [round(load.rss_mb[0]), round(max(load.rss_mb)), round(load.rss_mb[-1])],
        "growth, MB": round(growth_mb(load.rss_mb), 1),
    }
    assert not load.wrong, load.wrong[:5]
    assert not server_errors, seen
    assert not lost, seen
    assert load.counts["infer 200"] > 0 and load.counts["fit 200"] >= len(ROIS), seen
    assert "bdi_verdicts_total" in metrics
    limit = max(32.0, 0.1 * float(np.median(load.rss_mb)))
    assert growth_mb(load.rss_mb) < limit, seen
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--fit-every", type=float, default=20)
    parser.add_argument("--kill-every", type=float, default=60)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds that a client waits between inspections")
    parser.add_argument("--postgres", action="store_true", help="with the record in a PostgreSQL server of its own")
    given = parser.parse_args()
    seen = run(
        given.minutes,
        workers=given.workers,
        clients=given.clients,
        fit_every_s=given.fit_every,
        kill_every_s=given.kill_every,
        pause_s=given.pause,
        postgres=given.postgres,
    )
    print(json.dumps(seen, indent=1))


if __name__ == "__main__":
    main()

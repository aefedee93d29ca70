"""Many clients in a closed loop: pace, errors, latency and memory of the service over minutes, every verdict recorded.

Run python tests/benchmarks/bench_load.py [--clients 16] [--seconds 180] [--side 448] [--no-records]. The pace of bare
forward passes is taken before and after in this process, with nothing else under way. Where there are no weights they
are drawn.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import psutil
from sqlalchemy import func, select

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from backend.records.database import Database
from backend.records.tables import inspections
from backend.service.host import extractor_for
from backend.tools.bench import Request, connect, fitted, own_settings, served
from backend.tools.bench_stages import Bench, encoded, pictures


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--clients", type=int, default=16)
    options.add_argument("--seconds", type=float, default=180)
    options.add_argument("--side", type=int, default=448)
    options.add_argument("--images", type=int, default=34, help="of the fit")
    options.add_argument("--no-records", action="store_true", help="the service keeps no verdicts")
    given = options.parse_args()
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
        settings, _ = own_settings(Path(scratch), rng)
        if not given.no_records:
            own = {"results_db": f"sqlite:///{Path(scratch, 'records.db')}", "images_dir": Path(scratch, "images")}
            settings = settings.model_copy(update=own)
        bench = Bench.of(extractor_for(settings), rng)
        bare = [bench.forward_once() for _ in range(20)]
        with served(settings) as (url, pid):
            fitted(url, given.images, "png", rng)
            request = Request.of("image", [encoded(pictures(1, given.side, rng)[0], "png")])
            found = load(url, pid, request, clients=given.clients, seconds=given.seconds)
        found["recorded"] = 0 if settings.results_db is None else recorded(settings.results_db)
        bare += [bench.forward_once() for _ in range(20)]
    found["bare per s"] = round(1000 / float(np.median(bare)), 2)
    found["pace / bare"] = round(found["per s"] / found["bare per s"], 3)
    print(json.dumps(found, indent=1))


def load(url: str, pid: int, request: Request, *, clients: int, seconds: float) -> dict[str, Any]:
    """What `clients` saw that send `request` again as soon as it is answered, and the service's memory meanwhile."""
    statuses: Counter[int] = Counter()
    spent: list[float] = []
    until = perf_counter() + seconds

    def client() -> None:
        with connect(url) as connection:
            while perf_counter() < until:
                started = perf_counter()
                response = request.post(connection, "/infer")
                statuses[response.status_code] += 1
                spent.append(1000 * (perf_counter() - started))

    threads = [threading.Thread(target=client) for _ in range(clients)]
    started = perf_counter()
    for thread in threads:
        thread.start()
    resident = watched(pid, threads)
    took = perf_counter() - started
    settled = resident[len(resident) // 4 :]
    p50, p95, p99 = np.percentile(spent, [50, 95, 99])
    return {
        "clients": clients,
        "seconds": round(took, 1),
        "statuses": dict(statuses),
        "per s": round(statuses[200] / took, 2),
        "p50": round(float(p50)),
        "p95": round(float(p95)),
        "p99": round(float(p99)),
        "resident MB after warm-up": [round(min(settled)), round(max(settled))],
        "memory swing": round((max(settled) - min(settled)) / (2 * float(np.mean(settled))), 4),
    }


def recorded(url: str) -> int:
    """How many verdicts a database has."""
    database = Database(url)
    with database.reading() as connection:
        found = connection.execute(select(func.count()).select_from(inspections)).scalar_one()
    database.close()
    return int(found)


def watched(pid: int, threads: list[threading.Thread]) -> list[float]:
    """Megabytes that a process holds, every half second while `threads` run."""
    process, resident = psutil.Process(pid), []
    for thread in threads:
        while thread.is_alive():
            thread.join(timeout=0.5)
            resident.append(process.memory_info().rss / 2**20)
    return resident


if __name__ == "__main__":
    main()

"""From the start of the process to the tenth request: python tests/benchmarks/bench_start.py.

A model is fitted first, in another process; then the service starts anew and is asked at once.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from time import perf_counter

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from backend.tools.bench import Request, connect, fitted, own_settings, served
from backend.tools.bench_stages import encoded, pictures


def main() -> None:
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as scratch:
        settings, _ = own_settings(Path(scratch), rng)
        with served(settings) as (url, _):
            fitted(url, 10, "png", rng)
        request = Request.of("image", [encoded(pictures(1, 448, rng)[0], "png")])
        started = perf_counter()
        with served(settings) as (url, _):
            warm = perf_counter() - started
            spent = []
            with connect(url) as connection:
                for _ in range(12):
                    started = perf_counter()
                    request.post(connection, "/infer")
                    spent.append(round(1000 * (perf_counter() - started), 1))
    print(json.dumps({"seconds until warm": round(warm, 1), "requests, ms": spent}))


if __name__ == "__main__":
    main()

"""A fit beyond FIT_MEMORY_MB: its memory and time, the search in what it leaves, and what the passes cost.

Run python tests/benchmarks/bench_passes.py [--images 7000] [--width 768] [--budget 4096]. Embeddings are synthetic:
clustered unit rows, 1,024 an image. The same coreset is also made in passes and at once of --compare images, and both
are asked how far other embeddings are from them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

import numpy as np
import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from backend.memory.chunked import Budget
from backend.patchcore import (
    Array,
    PatchCoreMemory,
    covering_radius,
    kcenter_greedy,
    kcenter_greedy_chunked,
    l2_normalize,
)

TOKENS = 1024


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--images", type=int, default=7000)
    options.add_argument("--width", type=int, default=768)
    options.add_argument("--budget", type=float, default=4096, help="FIT_MEMORY_MB")
    options.add_argument("--compare", type=int, default=48, help="images of the comparison")
    given = options.parse_args()
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((400, given.width)).astype(np.float32)
    print(json.dumps({"passes and at once": compared(given.compare, centres, rng)}, indent=1), flush=True)
    print(json.dumps({"fit": scaled(given.images, given.budget, centres, rng)}, indent=1))


def images(n: int, centres: Array, rng: np.random.Generator) -> Iterator[Array]:
    """The embeddings of `n` images, one after another; some tokens are rarer than others."""
    weight = 1 / np.arange(1, len(centres) + 1)
    for _ in range(n):
        at = rng.choice(len(centres), TOKENS, p=weight / weight.sum())
        yield l2_normalize(centres[at] + 0.6 * rng.standard_normal((TOKENS, centres.shape[1]), np.float32))


def compared(n: int, centres: Array, rng: np.random.Generator) -> dict[str, float]:
    """Radius and distances of a coreset of 2 %, made in passes over an eighth each, over those of one made at once."""
    shown = list(images(n, centres, rng))
    rows, others = np.concatenate(shown), np.concatenate(list(images(4, centres, rng)))
    wanted = len(rows) // 50
    once = kcenter_greedy(rows, wanted)
    found = {"radius at once": round(once.radius, 4)}
    for times in (1, 2, 4):
        rate = times * wanted / len(rows)
        passes = kcenter_greedy_chunked(shown, wanted, rate=rate, buffer_rows=len(rows) // 8)
        ratio = distances(passes.rows, others) / distances(rows[once.indices], others)
        found[f"radius, keeping {times}×"] = round(covering_radius(shown, passes.rows), 4)
        found[f"p99 of distances over at once, keeping {times}×"] = round(float(ratio), 4)
    return found


def distances(memory: Array, q: Array) -> float:
    return float(np.percentile(PatchCoreMemory(memory).distances(q), 99))


def scaled(n: int, megabytes: float, centres: Array, rng: np.random.Generator) -> dict[str, float]:
    """Time and memory of a fit of `n` images' embeddings, and of a search in the memory it leaves."""
    process, peak = psutil.Process(), 0

    def watched() -> Iterator[Array]:
        nonlocal peak
        for rows in images(n, centres, rng):
            peak = max(peak, process.memory_info().rss)
            yield rows

    budget = Budget(megabytes=megabytes, rate=0.02, limit=25_600, seed=0)
    started = perf_counter()
    passes = budget.choose(watched(), n * TOKENS)
    took = perf_counter() - started
    peak = max(peak, high_water(process))
    memory = PatchCoreMemory(passes.rows)
    q = next(images(1, centres, rng))
    memory.distances(q)
    started = perf_counter()
    memory.distances(q)
    return {
        "images": n,
        "embeddings, MB": round(n * TOKENS * centres.shape[1] * 4 / 2**20),
        "peak resident MB": round(peak / 2**20),
        "over FIT_MEMORY_MB": round(peak / 2**20 - megabytes),
        "seconds": round(took, 1),
        "rows": len(passes.rows),
        "radius at most": round(passes.radius, 4),
        "search of one image, ms": round(1000 * (perf_counter() - started), 1),
    }


def high_water(process: psutil.Process) -> int:
    """The most bytes that the process ever held, where the system keeps count."""
    if sys.platform == "win32":
        return int(process.memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


if __name__ == "__main__":
    main()

"""K-center greedy and nearest neighbours beside their textbook forms, in one run.

Run python tests/benchmarks/bench_greedy.py. Rows are synthetic and clustered; --images takes those that the service's
extractor, as the environment sets it, makes of a folder of good parts. The textbook's loop costs the same for every
centre, so it may be timed on some of them (--textbook-centres) and scaled up; what it chose is compared.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from backend.patchcore import Array, PatchCoreMemory, kcenter_greedy, l2_normalize


def embeddings(n: int, dim: int, seed: int = 0) -> Array:
    """(n, dim) unit rows about n / 200 middles; variance decays over the directions as it does in a ViT's tokens."""
    rng = np.random.default_rng(seed)
    axis = np.arange(1, dim + 1) * 768 / dim
    scale = (axis**-0.35 * np.exp(-axis / 900)).astype(np.float32)
    middles = rng.standard_normal((max(1, n // 200), dim), np.float32)
    x = np.empty((n, dim), np.float32)
    for start in range(0, n, 65_536):
        rows = slice(start, min(start + 65_536, n))
        size = rows.stop - start
        noise = rng.standard_normal((size, dim), np.float32) * rng.gamma(2.0, 0.4, (size, 1)).astype(np.float32)
        x[rows] = l2_normalize((middles[rng.integers(len(middles), size=size)] + noise) * scale)
    return x


def textbook(x: Array, n: int) -> list[int]:
    """Farthest-first traversal as it is written down: the distance of all rows to each new centre."""
    chosen = [0]
    nearest = np.full(len(x), np.inf, np.float32)
    while len(chosen) < n:
        nearest = np.minimum(nearest, np.linalg.norm(x - x[chosen[-1]], axis=1))
        chosen.append(int(nearest.argmax()))
    return chosen


def seconds(task: Callable[[], object], repeats: int) -> float:
    """The median duration of `repeats` runs."""
    times = []
    for _ in range(repeats):
        start = perf_counter()
        task()
        times.append(perf_counter() - start)
    return float(np.median(times))


def compare_greedy(x: Array, n: int, textbook_centres: int, repeats: int) -> None:
    some = min(n, textbook_centres or n)
    start = perf_counter()
    expected = textbook(x, some)
    plain = (perf_counter() - start) * n / some
    ours = seconds(lambda: kcenter_greedy(x, n), repeats)
    chosen = kcenter_greedy(x, some).indices.tolist()
    same = sum(a == b for a, b in zip(expected, chosen, strict=True))
    scaled = "" if some == n else f" (from {some} centres)"
    print(f"greedy {len(x):,} x {x.shape[1]} -> {n:,}: {ours:.3f} s, textbook {plain:.2f} s{scaled}, ", end="")
    print(f"{plain / ours:.0f} times faster, {same} of {some} indices the same")


def compare_neighbours(q: Array, memory_rows: Array, repeats: int) -> None:
    (rows, dim), queries = memory_rows.shape, len(q)
    start = perf_counter()
    memory = PatchCoreMemory(memory_rows)
    memory.attach_index()
    load = perf_counter() - start
    ours = seconds(lambda: memory.distances(q), repeats)
    product = seconds(lambda: [q @ memory_rows[at : at + 4096].T for at in range(0, rows, 4096)], repeats)
    print(f"neighbours {queries:,} x {rows:,} x {dim} ({memory.backend}): {1000 * ours:.0f} ms, ", end="")
    print(f"{ours / product:.2f} of the bare product ({1000 * product:.0f} ms); set up in {load:.2f} s")


def embedded(folder: Path) -> Array:
    """(N, D) unit rows of the images in `folder`, on the first one's token grid."""
    from backend.base.config import load_settings
    from backend.base.images import list_images
    from backend.service.embedding import embed_images
    from backend.service.host import extractor_for
    from backend.service.images import ImageFile
    from backend.service.inspection import Inspector
    from backend.service.jobs import Job

    settings = load_settings()
    inspector = Inspector(settings, extractor_for(settings))
    files = [ImageFile.named(path.name, path.read_bytes) for path in list_images(folder)]
    rows = embed_images(files, inspector.host.queue(), Job()).emb
    inspector.close()
    return rows


def split(x: Array, queries: int) -> tuple[Array, Array]:
    """Rows of `x` drawn to ask with, and the others."""
    order = np.random.default_rng(2).permutation(len(x))
    return x[order[:queries]], x[order[queries:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=34_992)
    parser.add_argument("--centres", type=int, default=700)
    parser.add_argument("--dims", type=int, nargs="+", default=[384, 768])
    parser.add_argument("--images", type=Path, help="folder of good parts, in place of synthetic rows")
    parser.add_argument("--textbook-centres", type=int, default=0, help="time the textbook on so many (0: all)")
    parser.add_argument("--memory-rows", type=int, nargs="*", default=[700, 25_600])
    parser.add_argument("--queries", type=int, default=1024)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    if args.images:
        x = embedded(args.images)
        compare_greedy(x, args.centres, args.textbook_centres, args.repeats)
        for rows in args.memory_rows:
            q, others = split(x, args.queries)
            compare_neighbours(q, others[kcenter_greedy(others, rows).indices], args.repeats)
        return
    for dim in args.dims:
        compare_greedy(embeddings(args.rows, dim), args.centres, args.textbook_centres, args.repeats)
    for rows in args.memory_rows:
        compare_neighbours(*split(embeddings(rows + args.queries, max(args.dims), seed=1), args.queries), args.repeats)


if __name__ == "__main__":
    main()

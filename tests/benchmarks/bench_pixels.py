"""What reading and writing pixels costs, and what reading fewer does to scores.

    python tests/benchmarks/bench_pixels.py [SET… --model NAME=WEIGHTS] [--megapixels 2 4] [--input-sizes 448 224]

The processor's time of decoding and resizing a JPEG is taken whole and no larger than needed, in turn, and that of
writing a heatmap's PNG with other filters and compressions. The images of sets are enlarged to so many megapixels and
written as JPEGs, which are inspected both ways: with the memory of the full decode, and each with a fit of its own.
Fits of slightly different pixels choose other rows, as fits with another seed do; that is shown beside.
"""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from time import thread_time

import cv2
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from backend.base.arrays import few_threads_each
from backend.base.decoding import decode, deflate
from backend.evaluation.sets import InspectionSet, LabelledImage, read_set
from backend.extractors.protocol import Extractor, ExtractorOptions, needed_by, prepare
from backend.extractors.texture import TextureFeatures
from backend.features import build_extractor
from backend.infer import Criteria, Roi, RoiSize, heatmap_png, heatmap_range, inspect, inspect_map
from backend.patchcore import Array, PatchCoreMemory
from backend.tools.bench_stages import encoded, pictures

WAYS = (False, True)
BGR = NDArray[np.uint8]
View = tuple[Array, Roi]


def seen(data: bytes, extractor: Extractor, scaled: bool) -> tuple[BGR, tuple[int, int], RoiSize]:
    """What the extractor gets of a file, its token grid and the file's size."""
    found = decode(data, needed=needed_by(extractor, None) if scaled else None)
    grid = extractor.grid(*found.size)
    return prepare(found.pixels, grid, extractor.patch, found.size), grid, RoiSize(*found.size)


def enlarged(image: BGR, megapixels: float) -> bytes:
    """A JPEG of `image` with so many pixels."""
    factor = (1e6 * megapixels / (image.shape[0] * image.shape[1])) ** 0.5
    return encoded(np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)), "jpg")


def cpu_ms(work: Callable[[], object], repeats: int) -> float:
    """Median milliseconds of this thread, after one call that does not count."""
    spent = []
    for _ in range(repeats + 1):
        started = thread_time()
        work()
        spent.append(1000 * (thread_time() - started))
    return float(np.median(spent[1:]))


def heatmaps(megapixels: Sequence[float], repeats: int) -> None:
    """Milliseconds and size of a heatmap's PNG, written as the service does and otherwise."""
    tokens = np.random.default_rng(0).random((32, 32)).astype(np.float32)
    tokens = np.asarray(cv2.GaussianBlur(0.3 + 0.3 * tokens, (0, 0), 0.8), np.float32)
    tokens[10:13, 10:13] += 0.5
    for size in megapixels:
        side = round((1e6 * size) ** 0.5)
        found = inspect_map(tokens, Roi(RoiSize(side, side), (32, 32)), Criteria())
        png = heatmap_png(found, "relative", *heatmap_range(found, "relative", None))
        spent = cpu_ms(partial(heatmap_png, found, "relative", *heatmap_range(found, "relative", None)), repeats)
        print(f"heatmap of {side}²: {spent:.1f} ms, {len(png) >> 10} KiB")
        grey = cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_GRAYSCALE)
        assert grey is not None
        rows = {
            "none": grey,
            "Sub": np.diff(grey, axis=1, prepend=np.uint8(0)),
            "Up": np.diff(grey, axis=0, prepend=np.uint8(0)),
        }
        ways: dict[str, Callable[[bytes], bytes]] = {"zlib 1": partial(zlib.compress, level=1)}
        if deflate is not zlib:
            ways |= {f"ISA-L {level}": partial(deflate.compress, level=level) for level in range(4)}
        for (name, own), (way, compress) in product(rows.items(), ways.items()):
            data = own.tobytes()
            spent = cpu_ms(partial(compress, data), repeats)
            print(f"  {name:4} {way:8} {spent:6.1f} ms {len(compress(data)) >> 10:6} KiB", flush=True)


def times(megapixels: Sequence[float], input_sizes: Sequence[int], repeats: int) -> None:
    """Milliseconds of the processor to decode and resize a rendered part, medians."""
    for size in megapixels:
        side = round((1e6 * size) ** 0.5)
        data = encoded(pictures(1, side, np.random.default_rng(0))[0], "jpg")
        for input_size in input_sizes:
            extractor = TextureFeatures(input_size)
            spent: dict[bool, list[float]] = {way: [] for way in WAYS}
            for _ in range(repeats + 1):
                for way in WAYS:
                    started = thread_time()
                    seen(data, extractor, way)
                    spent[way].append(1000 * (thread_time() - started))
            whole, ours = (float(np.median(spent[way][1:])) for way in WAYS)
            print(
                f"{side}² ({len(data) >> 10} KiB) to {input_size}: {whole:.1f} ms whole, {ours:.1f} ms scaled",
                flush=True,
            )


def views(images: Sequence[LabelledImage], extractor: Extractor, megapixels: float) -> Iterator[tuple[View, ...]]:
    """Each image's tokens and ROI, read whole and scaled."""
    for image in images:
        data = enlarged(decode(image.path.read_bytes(), name=image.path.name).pixels, megapixels)
        both = [seen(data, extractor, way) for way in WAYS]
        rows = [extractor.extract([pixels])[0] for pixels, _, _ in both]
        yield tuple((own, Roi(size, grid)) for own, (_, grid, size) in zip(rows, both, strict=True))


def compare(one: InspectionSet, extractor: Extractor, megapixels: float, most: int) -> None:
    """Print how far the scores of a set's test images move."""
    train = list(views(one.train[:most], extractor, megapixels))
    step = max(1, len(one.test) // most)
    chosen = one.test[::step]
    test = list(views(chosen, extractor, megapixels))
    whole, ours = (np.concatenate([both[way][0] for both in train]) for way in WAYS)
    memory = PatchCoreMemory.build(whole, 0.02)
    other = PatchCoreMemory.build(whole, 0.02, rng=np.random.default_rng(1))

    def scores(memory: PatchCoreMemory, way: int) -> Array:
        judged = (inspect(rows, memory, roi, Criteria()) for rows, roi in (both[way] for both in test))
        return np.array([found.score for found in judged])

    before, said = scores(memory, 0), []
    for name, own in (
        ("same memory", scores(memory, 1)),
        ("a fit of its own", scores(PatchCoreMemory.build(ours, 0.02), 1)),
        ("decoded whole, fitted with another seed", scores(other, 0)),
    ):
        moved = 100 * np.abs(own / before - 1)
        said.append(f"{name} {np.median(moved):.3f} % median, {moved.max():.3f} % most")
    what = f"{one.name} {extractor.name} {extractor.input_size}, {megapixels:g} MP, {len(test)} images"
    print(f"{what}: {'; '.join(said)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sets", type=Path, nargs="*")
    parser.add_argument("--model", action="append", default=[], help="NAME=WEIGHTS")
    parser.add_argument("--megapixels", type=float, nargs="+", default=[2, 4])
    parser.add_argument("--input-sizes", type=int, nargs="+", default=[448, 224])
    parser.add_argument("--most", type=int, default=40, help="images of a set that are fitted, and that are tested")
    parser.add_argument("--repeats", type=int, default=15)
    given = parser.parse_args()
    few_threads_each()
    cv2.setNumThreads(1)
    times(given.megapixels, given.input_sizes, given.repeats)
    heatmaps(given.megapixels, given.repeats)
    for model in given.model:
        name, _, weights = model.partition("=")
        for input_size in given.input_sizes:
            extractor = build_extractor(ExtractorOptions(model_name=name, weights=weights, input_size=input_size))
            for folder in given.sets:
                for megapixels in given.megapixels:
                    compare(read_set(folder), extractor, megapixels, given.most)


if __name__ == "__main__":
    main()

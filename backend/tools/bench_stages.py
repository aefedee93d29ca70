"""What each stage of an inspection costs, without HTTP: for `python -m backend bench` and for a machine with a GPU.

Needs the extractor's libraries, NumPy, OpenCV and scikit-learn or FAISS, and nothing of the service's.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from time import perf_counter
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.base.arrays import available_cores, cpu_name, few_threads_each, instruction_set
from backend.base.decoding import Decoded, decode
from backend.base.images import encode_png, resize, to_base64
from backend.extractors.protocol import Extractor, needed_by
from backend.infer import Criteria, Inspection, Roi, RoiSize, heatmap_png, heatmap_range, inspect, view_of
from backend.patchcore import PatchCoreMemory
from backend.tools.scenes import brake_disc

ROWS = 700
STAGES = ("decode", "resize", "forward", "knn", "post", "png", "json", "end to end")
LIBRARIES = ("torch", "timm", "openvino", "numpy", "opencv-python-headless", "faiss-cpu", "scikit-learn", "isal")
Timings = list[float]


@dataclass(frozen=True)
class Spread:
    """Quantiles of durations, in milliseconds."""

    p50: float
    p95: float
    p99: float
    n: int

    @classmethod
    def of(cls, milliseconds: Timings) -> Spread:
        """The spread of one duration or more."""
        p50, p95, p99 = (round(float(q), 3) for q in np.percentile(milliseconds, [50, 95, 99]))
        return cls(p50, p95, p99, len(milliseconds))


def timed(work: Callable[[], Any], repeats: int) -> Timings:
    """Milliseconds of each of `repeats` calls, after one that does not count."""
    work()
    spent = []
    for _ in range(repeats):
        started = perf_counter()
        work()
        spent.append(1000 * (perf_counter() - started))
    return spent


def timed_by_stage(work: Callable[[Callable[[str], None]], Any], repeats: int) -> dict[str, Timings]:
    """Milliseconds of each stage that `work` marks, in each of `repeats` calls, after one that does not count."""
    spent: dict[str, Timings] = {}
    for _ in range(repeats + 1):
        last = perf_counter()

        def mark(stage: str) -> None:
            nonlocal last
            now = perf_counter()
            spent.setdefault(stage, []).append(1000 * (now - last))
            last = now

        work(mark)
    return {stage: milliseconds[1:] for stage, milliseconds in spent.items()}


def machine(extractor: Extractor) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "cpu": cpu_name(),
        "cores": available_cores(),
        "instructions": instruction_set(),
        "load": [round(x, 1) for x in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "extractor": extractor.name,
        "runtime": extractor.runtime,
        "precision": getattr(extractor, "precision", None),
        "device": extractor.device,
        "libraries": {name: found for name in LIBRARIES if (found := _version(name))},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def pictures(n: int, side: int, rng: np.random.Generator) -> list[NDArray[np.uint8]]:
    """`n` rendered brake discs of (side, side, 3) uint8 BGR, each with grain of its own; four different ones."""
    scenes = [resize(brake_disc(rng).image, side, side) for _ in range(min(n, 4))]
    return [np.asarray(cv2.add(scenes[i % 4], _grain(side, rng)), np.uint8) for i in range(n)]


def _grain(side: int, rng: np.random.Generator) -> NDArray[np.uint8]:
    return np.repeat(rng.integers(0, 6, (side, side, 1), np.uint8), 3, axis=2)


def encoded(image: NDArray[np.uint8], form: str) -> bytes:
    """The image as a PNG or JPEG file, as `form` says (`png`, `jpg`)."""
    if form == "png":
        return encode_png(image)
    return cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


@dataclass
class Bench:
    """One extractor and a memory of 700 rows, and the stages of an inspection with them."""

    extractor: Extractor
    rng: np.random.Generator
    memory: PatchCoreMemory
    _pixels: NDArray[np.uint8] | None = None

    @classmethod
    def of(cls, extractor: Extractor, rng: np.random.Generator, *, images: int = 4, rows: int = ROWS) -> Bench:
        """Fit a memory of `rows` rows on a few rendered parts."""
        few_threads_each()
        side = extractor.input_size
        grid = extractor.grid(side, side)
        shown = [extractor.prepare(image, grid) for image in pictures(images, side, rng)]
        emb = np.concatenate([extractor.extract([image])[0] for image in shown])
        memory = PatchCoreMemory.build(emb, min(1.0, rows / len(emb)), limit=rows)
        memory.attach_index()
        return cls(extractor, rng, memory)

    def stages(self, side: int, repeats: int, form: str = "png") -> dict[str, Spread]:
        """Durations by stage of an inspection of (side, side) px, of their sum in one go, and of the answer's JSON."""
        data = encoded(pictures(1, side, self.rng)[0], form)
        read, grid = self._decode(data)
        pixels = self.extractor.prepare(read.pixels, grid, read.size)
        tokens = self.extractor.extract([pixels])[0]
        roi, criteria = Roi(RoiSize(side, side), grid), Criteria(threshold=1.0)
        plain = inspect(tokens, self.memory, roi, criteria)
        criteria = replace(criteria, threshold=float(np.quantile(plain.token_map, 0.98)))
        found = inspect(tokens, self.memory, roi, criteria)
        png = self._png(found)
        work: dict[str, Callable[[], Any]] = {
            "decode": lambda: self._decode(data),
            "resize": lambda: self.extractor.prepare(read.pixels, grid, read.size),
            "forward": lambda: self.extractor.extract([pixels]),
            "png": lambda: self._png(found),
            "json": lambda: self._json(found, png),
            "end to end": lambda: self._inspect(data, criteria),
        }
        spent = {name: timed(call, repeats) for name, call in work.items()}
        spent |= timed_by_stage(lambda mark: inspect(tokens, self.memory, roi, criteria, mark=mark), repeats)
        return {name: Spread.of(spent[name]) for name in STAGES}

    def forward(self, side: int, repeats: int, batch: int = 1) -> Spread:
        """Duration of a bare forward pass of `batch` prepared images of (side, side) px."""
        grid = self.extractor.grid(side, side)
        images = [self.extractor.prepare(image, grid) for image in pictures(batch, side, self.rng)]
        return Spread.of(timed(lambda: self.extractor.extract(images), repeats))

    def forward_once(self) -> float:
        """Milliseconds of one bare forward pass of an image of input_size²."""
        if self._pixels is None:
            side = self.extractor.input_size
            grid = self.extractor.grid(side, side)
            self._pixels = self.extractor.prepare(pictures(1, side, self.rng)[0], grid)
        started = perf_counter()
        self.extractor.extract([self._pixels])
        return 1000 * (perf_counter() - started)

    def _decode(self, data: bytes) -> tuple[Decoded, tuple[int, int]]:
        """What a new fit reads of a file, and its token grid."""
        read = decode(data, needed=needed_by(self.extractor, None))
        return read, self.extractor.grid(*read.size)

    def _inspect(self, data: bytes, criteria: Criteria) -> str:
        read, grid = self._decode(data)
        pixels, roi = self.extractor.prepare(read.pixels, grid, read.size), Roi(RoiSize(*read.size), grid)
        view = view_of(roi, criteria, "relative")
        (tokens,) = self.extractor.look([pixels], [None if view is None else self.memory.looking(view)])
        found = inspect(tokens, self.memory, roi, criteria)
        return self._json(found, self._png(found))

    def _png(self, found: Inspection) -> bytes:
        return heatmap_png(found, "relative", *heatmap_range(found, "relative", None))

    def _json(self, found: Inspection, png: bytes) -> str:
        regions = [{"bbox": r.bbox, "contour": r.contour} for r in found.regions]
        return json.dumps({"score": found.score, "heatmap_png_base64": to_base64(png), "regions": regions})

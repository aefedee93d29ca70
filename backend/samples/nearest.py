"""What good parts look like where a part differs: the stored sample whose patch comes nearest to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.base.keys import ModelKey
from backend.base.messages import Notice
from backend.infer import Roi
from backend.samples.collector import Collector
from backend.samples.scoring import Sample, SampleScorer, Tokens
from backend.service.images import ImageFile
from backend.service.jobs import Job

LOOKED_AT = 50  # nearest rows among which one of a stored sample is sought

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Nearest:
    """A place in a stored good sample.

    Attributes:
        name: of the sample, as the list of samples has it.
        box: (x, y, w, h) of the place in the sample, in its pixels: as large a share of it as what was asked about.
        distance: from the patch that was asked about to this one, as the anomaly map measures it before it is blurred.
    """

    name: str
    box: Box
    distance: float


def nearest_good(
    collector: Collector, key: ModelKey, file: ImageFile, box: Box, *, mm_per_px: float, job: Job
) -> tuple[Nearest | None, list[Notice]]:
    """The stored OK sample, and the place in it, that looks most like what stands out most in `box` of `file`.

    Args:
        box: (x, y, w, h) in pixels of the file's image.

    Returns:
        None where none of the memory's images that come near is stored any more, which a notice says.

    Raises:
        MemoryNotFound, ExtractorMismatch, TokenGridMismatch, BadImage, MaskEmpty, QueueFull, Cancelled, DamagedFile.
    """
    scorer = SampleScorer(collector.inspector, collector.samples, key)
    pipeline, memory = scorer.pipeline, scorer.model.memory
    with pipeline.queue.slot():
        image, roi = pipeline.prepare(file, mm_per_px)
        tokens = job.wait(pipeline.submit(image.pixels, roi))
    at = _standing_out(pipeline.judge(tokens, roi).token_map, roi, box)
    patch = tokens.reshape(*roi.grid, -1)[at]
    stored = scorer.model.stored
    names = {digest: name for name, digest in collector.samples.digests(key, "ok").items()}
    by_number = {number: names[digest] for digest, number in stored.known_images.items() if digest in names}
    for row in memory.nearest(patch[None], LOOKED_AT)[0]:
        name = by_number.get(int(stored.image_ids[row]))
        if name is None:
            continue
        (read, theirs), *_ = scorer.embedded([Sample("ok", name)], job)
        if read.ready is None or theirs is None:
            continue  # it cannot be decoded any more
        place, distance = _most_alike(theirs, patch, read.ready[1])
        return Nearest(name, _around(place, read.ready[1], _scaled(box, roi, read.ready[1])), distance), list(
            scorer.notices
        )
    return None, [*scorer.notices, Notice("nearest_not_stored")]


def _standing_out(distances: NDArray[np.float32], roi: Roi, box: Box) -> tuple[int, int]:
    """The token (row, column) of the part whose distance is greatest among those of `box`, or the nearest to it."""
    (rows, columns), (x, y, w, h) = roi.grid, box
    down, right = rows / roi.size.height, columns / roi.size.width
    top, left = (int(np.clip(at, 0, most - 1)) for at, most in ((y * down, rows), (x * right, columns)))
    bottom, end = max(top, int(np.ceil((y + h) * down)) - 1), max(left, int(np.ceil((x + w) * right)) - 1)
    row, column = np.arange(rows)[:, None], np.arange(columns)
    away = np.hypot(row - np.clip(row, top, bottom), column - np.clip(column, left, end))
    if roi.inside is not None:
        away[~roi.inside] = np.inf
    at, beside = divmod(int(np.where(away == away.min(), distances, -1).argmax()), columns)
    return at, beside


def _most_alike(tokens: Tokens, patch: NDArray[np.float32], roi: Roi) -> tuple[tuple[int, int], float]:
    """The token (row, column) of an image's part that is nearest to `patch` (D,), and how far it is from it."""
    apart = np.linalg.norm(tokens - patch, axis=1)
    if roi.inside is not None:
        apart[~roi.inside.ravel()] = np.inf
    row, column = divmod(int(apart.argmin()), roi.grid[1])
    return (row, column), float(apart.min())


def _scaled(box: Box, here: Roi, there: Roi) -> Box:
    """The same share of an image of another size."""
    right, down = there.size.width / here.size.width, there.size.height / here.size.height
    x, y, w, h = box
    return x * right, y * down, w * right, h * down


def _around(token: tuple[int, int], roi: Roi, box: Box) -> Box:
    """A box as large as `box` around a token, inside the image."""
    (row, column), (rows, columns), (*_, w, h) = token, roi.grid, box
    w, h = min(w, roi.size.width), min(h, roi.size.height)
    x = (column + 0.5) * roi.size.width / columns - w / 2
    y = (row + 0.5) * roi.size.height / rows - h / 2
    return float(np.clip(x, 0, roi.size.width - w)), float(np.clip(y, 0, roi.size.height - h)), w, h

"""A dress rehearsal before the first request: libraries are loaded, grids compiled and memories read."""

from __future__ import annotations

import logging

import numpy as np

from backend.base.errors import InspectionError
from backend.base.images import encode_png
from backend.extractors.protocol import Extractor, Grid
from backend.infer import Criteria
from backend.patchcore import PatchCoreMemory
from backend.roi_mask import Shape
from backend.service.images import ImageFile
from backend.service.jobs import Job
from backend.service.models import FittedModel, ModelCache
from backend.service.pipeline import Pipeline
from backend.service.queue import InferenceQueue
from backend.storage import StoredMemory

logger = logging.getLogger(__name__)

MOST_MODELS = 16


def rehearse(queue: InferenceQueue, cache: ModelCache) -> None:
    """Inspect a blank image with a memory of its own, on the default grid and as the models last used see theirs.

    Requests that come meanwhile are served in between.
    """
    extractor = queue.extractor
    side = extractor.input_size
    seen = {(extractor.grid(side, side), False), *_known(cache, extractor)}
    for grid, part_alone in seen:
        _inspect_blank(queue, grid, part_alone=part_alone)


def _known(cache: ModelCache, extractor: Extractor) -> set[tuple[Grid, bool]]:
    """Grids of the models that were written last, which are in the cache from here on, and who see the part alone."""
    keys = cache.store.keys()
    stamps = {key: stamp[2] for key in keys if (stamp := cache.store.stamp(key))}
    seen = set()
    for key in sorted(stamps, key=lambda key: stamps[key], reverse=True)[:MOST_MODELS]:
        try:
            stored = cache.model(key).stored
        except InspectionError as err:
            logger.warning("%s is not ready to be used: %s", key, err)
            continue
        if extractor.made(stored.fingerprint):
            seen.add((stored.grid, stored.part_alone))
    return seen


def _inspect_blank(queue: InferenceQueue, grid: Grid, *, part_alone: bool) -> None:
    """Take a blank PNG all the way that a request's image goes, and as many beside it as a batch holds.

    It is larger than the extractor needs, so that it is resized.
    """
    extractor = queue.extractor
    height, width = (3 * n * extractor.patch // 2 for n in grid)
    png = encode_png(np.zeros((height, width, 3), np.uint8))
    rows = np.eye(4, extractor.dim, dtype=np.float32)
    stored = StoredMemory(rows, grid, np.zeros(4, np.int32), {"part_alone": part_alone})
    blank = FittedModel(PatchCoreMemory(rows), stored, None)
    blank.memory.attach_index()
    pipeline = Pipeline(queue, blank, Criteria(threshold=blank.longest_row))
    shape = Shape("rect", {"x": 0, "y": 0, "w": width, "h": height}) if part_alone else None
    file = ImageFile("blank.png", lambda: png, shape)
    image, roi = pipeline.prepare(file, mm_per_px=1.0)
    several = [pipeline.submit(image.pixels, roi, bulk=True) for _ in range(min(queue.max_batch, 4) + 1)]
    pipeline.run(file, mm_per_px=1.0, job=Job(), heatmap="relative")
    for future in several:
        future.result()

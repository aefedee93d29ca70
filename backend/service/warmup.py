"""A rehearsal before the first request: it loads libraries, compiles the network for its grids and reads memories."""

from __future__ import annotations

import logging

import numpy as np

from backend.base.errors import InspectionError
from backend.base.images import decode_image, encode_png
from backend.extractors.protocol import Extractor, Grid, prepare
from backend.infer import InferenceEngine, RoiSize, Scoring, heatmap_png, heatmap_range
from backend.patchcore import PatchCoreMemory
from backend.service.models import ModelCache
from backend.service.queue import InferenceQueue

logger = logging.getLogger(__name__)

MOST_MODELS = 16


def rehearse(queue: InferenceQueue, cache: ModelCache) -> None:
    """Inspect a blank image with a memory of its own, on the default grid and on those of the models last used.

    Requests that come meanwhile are served in between.
    """
    extractor = queue.extractor
    side = extractor.input_size
    grids = {extractor.grid(side, side), *_known_grids(cache, extractor)}
    for grid in grids:
        _inspect_blank(queue, grid)


def _known_grids(cache: ModelCache, extractor: Extractor) -> set[Grid]:
    """Grids of the models that were written last, which are in the cache from here on."""
    keys = cache.store.keys()
    stamps = {key: stamp[2] for key in keys if (stamp := cache.store.stamp(key))}
    grids = set()
    for key in sorted(stamps, key=lambda key: stamps[key], reverse=True)[:MOST_MODELS]:
        try:
            stored = cache.model(key).stored
        except InspectionError as err:
            logger.warning("%s is not ready to be used: %s", key, err)
            continue
        if stored.fingerprint in {None, extractor.fingerprint}:
            grids.add(stored.grid)
    return grids


def _inspect_blank(queue: InferenceQueue, grid: Grid) -> None:
    extractor = queue.extractor
    height, width = grid[0] * extractor.patch, grid[1] * extractor.patch
    pixels = prepare(decode_image(encode_png(np.zeros((height, width, 3), np.uint8))), grid, extractor.patch)
    several = [queue.submit(pixels, bulk=True) for _ in range(min(queue.max_batch, 4) + 1)]
    tokens, *_ = [future.result() for future in several]
    engine, frame = InferenceEngine(Scoring()), RoiSize(height, width)
    found = engine.run(engine.token_map(tokens, grid, PatchCoreMemory(tokens[:4].copy())), frame, threshold=1.0)
    heatmap_png(found, "relative", *heatmap_range(found, "relative", None))

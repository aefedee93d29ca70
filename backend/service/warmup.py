"""A dress rehearsal before the first request: libraries are loaded, grids compiled and memories read."""

from __future__ import annotations

import logging

import numpy as np
from numpy.typing import NDArray

from backend.base.errors import InspectionError, NotReady
from backend.base.images import encode_png
from backend.extractors.protocol import RGB, Extractor, Grid, prepare
from backend.infer import Criteria, Inspection, Roi, view_of
from backend.memory.on_device import Seen, View
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
    _hold_against_host(queue)
    extractor = queue.extractor
    side = extractor.input_size
    seen = {(extractor.grid(side, side), False), *_known(cache, extractor)}
    for grid, part_alone in seen:
        _inspect_blank(queue, grid, part_alone=part_alone)


def _hold_against_host(queue: InferenceQueue) -> None:
    """Leave to the host whatever the extractor's device says otherwise of a picture, or cannot say."""
    extractor = queue.extractor
    grid = extractor.grid(extractor.input_size, extractor.input_size)
    height, width = (3 * n * extractor.patch // 2 for n in grid)
    picture = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    png = encode_png(picture)
    file = ImageFile("noise.png", lambda: png)
    if (
        _of(np.eye(4, extractor.dim, dtype=np.float32), grid).memory.looking(View(grid=grid, k=1, size=grid, sigma=0.0))
        is None
    ):
        return
    pixels = prepare(picture, grid, extractor.patch)
    pipeline = Pipeline(queue, _of(queue.submit(pixels).result()[::8].copy(), grid), Criteria())
    try:
        image, roi = pipeline.prepare(file, 1.0)
        said, tokens = _said_of(pipeline, image.pixels, roi)
        same = np.array_equal(image.pixels, pixels)
        same = same and (said is None or _alike(pipeline.judge(said, roi), pipeline.judge(tokens, roi)))
    except NotReady:  # the service closes
        raise
    except (InspectionError, RuntimeError) as err:
        logger.warning("the GPU cannot make an anomaly map: %s", err)
        same = False
    if not same:
        logger.warning("the GPU does not make the CPU's anomaly map of a picture: the CPU makes all of them")
        extractor.leave_to_host()


def _said_of(pipeline: Pipeline, pixels: RGB, roi: Roi) -> tuple[Seen | None, NDArray[np.float32]]:
    """What the device says of prepared pixels, if anything, and the tokens of the same forward pass."""
    view = view_of(roi, pipeline.criteria, "relative")
    looking = None if view is None else pipeline.model.memory.looking(view)
    if looking is None:
        return None, pipeline.queue.submit(pixels).result()
    found = pipeline.queue.look(pixels, lambda rows: (looking(rows), rows.cpu().numpy().copy())).result()
    return (None, found) if isinstance(found, np.ndarray) else found


def _alike(one: Inspection, other: Inspection) -> bool:
    """Whether they differ by rounding alone."""
    maps = np.allclose(one.token_map, other.token_map, rtol=1e-3, atol=1e-4)
    return maps and all(np.isclose(one.stats[name], value, rtol=1e-3, atol=1e-4) for name, value in other.stats.items())


def _of(rows: NDArray[np.float32], grid: Grid, **known: object) -> FittedModel:
    """A model whose memory has these rows."""
    stored = StoredMemory(rows, grid, np.zeros(len(rows), np.int32), dict(known))
    model = FittedModel(PatchCoreMemory(rows), stored, None)
    model.memory.attach_index()
    return model


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
    blank = _of(np.eye(4, extractor.dim, dtype=np.float32), grid, part_alone=part_alone)
    pipeline = Pipeline(queue, blank, Criteria(threshold=blank.longest_row))
    shape = Shape("rect", {"x": 0, "y": 0, "w": width, "h": height}) if part_alone else None
    file = ImageFile("blank.png", lambda: png, shape)
    image, roi = pipeline.prepare(file, mm_per_px=1.0)
    several = [pipeline.submit(image.pixels, roi, bulk=True) for _ in range(min(queue.max_batch, 4) + 1)]
    pipeline.run(file, mm_per_px=1.0, job=Job(), heatmap="relative")
    for future in several:
        future.result()

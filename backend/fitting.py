"""From image files to the embeddings of a fit: decoding runs ahead while the extractor works."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.errors import Notice, TokenGridMismatch
from backend.features import RGB, Extractor, Grid, prepare, token_grid
from backend.lane import Job, Lane
from backend.patchcore import PatchCoreMemory
from backend.utils import decode_image, is_large

DECODERS = 2
# A small file may decode to hundreds of megabytes: requests that send such ones wait for each other.
_LARGE = threading.Lock()


@dataclass(frozen=True)
class ImageFile:
    """An image file: what to call it, and how to get its bytes when they are needed."""

    name: str
    read: Callable[[], bytes]

    @classmethod
    def named(cls, name: str | None, read: Callable[[], bytes]) -> ImageFile:
        """An image file under the last part of `name` (a client may send a whole path)."""
        last = PurePath((name or "image").replace("\\", "/")).name
        return cls("".join(c for c in last if c.isprintable())[:120] or "image", read)


@dataclass(frozen=True)
class PreparedImage:
    """A decoded ROI ready for the extractor. `size`: (height, width) as sent."""

    pixels: RGB
    grid: Grid
    size: tuple[int, int]
    digest: str
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True)
class Embedded:
    """Embeddings of a set of images: emb (n·T, D) float32, src (n·T,) int32 image numbers, digests of the files."""

    emb: NDArray[np.float32]
    src: NDArray[np.int32]
    grid: Grid
    digests: list[str]


def prepare_image(
    file: ImageFile, extractor: Extractor, *, expected: Grid | None, max_megapixels: float
) -> PreparedImage:
    """Decode and resize one ROI to its own token grid, or to `expected` when that is within one token per side.

    Raises:
        BadImage: it cannot be used.
        TokenGridMismatch: its grid is further from `expected`.
    """
    data = file.read()
    with _LARGE if is_large(data) else nullcontext():
        return _prepared(data, file, extractor, expected, max_megapixels)


def _prepared(
    data: bytes, file: ImageFile, extractor: Extractor, expected: Grid | None, max_megapixels: float
) -> PreparedImage:
    image = decode_image(data, name=file.name, max_megapixels=max_megapixels)
    height, width = image.shape[:2]
    grid = token_grid(height, width, input_size=extractor.input_size, patch=extractor.patch)
    notices: tuple[Notice, ...] = ()
    if expected is not None and grid != expected:
        if not _same_roi(height, width, expected, extractor):
            raise TokenGridMismatch(got=grid, expected=expected, name=file.name)
        notices = (Notice("roi_resized", {"got": grid, "expected": expected}),)
    grid = expected or grid
    pixels = prepare(image, grid, extractor.patch)
    return PreparedImage(pixels, grid, (height, width), hashlib.sha256(data).hexdigest(), notices)


def _same_roi(height: int, width: int, expected: Grid, extractor: Extractor) -> bool:
    """Whether an ROI of this size, or of one pixel more or less, lies within one token per side of `expected`."""
    sizes = product(range(max(1, height - 1), height + 2), range(max(1, width - 1), width + 2))
    grids = (token_grid(h, w, input_size=extractor.input_size, patch=extractor.patch) for h, w in sizes)
    return any(max(abs(rows - expected[0]), abs(cols - expected[1])) <= 1 for rows, cols in grids)


def embed_images(
    files: Sequence[ImageFile],
    lane: Lane,
    job: Job,
    *,
    expected: Grid | None = None,
    max_megapixels: float = 100,
) -> Embedded:
    """Embeddings of all `files` on the grid of the first one (or `expected`), never held twice.

    Raises:
        BadImage, TokenGridMismatch: for the first file that cannot be used.
        Cancelled: the job was cancelled.
    """
    extractor = lane.extractor
    first = prepare_image(files[0], extractor, expected=expected, max_megapixels=max_megapixels)
    tokens = first.grid[0] * first.grid[1]
    emb = np.empty((len(files) * tokens, extractor.dim), np.float32)
    digests = [first.digest]

    def ready() -> Iterator[PreparedImage]:
        yield first
        with ThreadPoolExecutor(DECODERS, thread_name_prefix="decode") as pool:
            later = (
                pool.submit(prepare_image, file, extractor, expected=first.grid, max_megapixels=max_megapixels)
                for file in files[1:]
            )
            for image in _ahead(later, 2 * DECODERS):
                digests.append(image.digest)
                yield image

    in_lane = (lane.submit(image.pixels, bulk=True) for image in ready())
    for number, rows in enumerate(_ahead(in_lane, lane.max_batch + 1, job)):
        emb[number * tokens : (number + 1) * tokens] = rows
        job.report("extract", number + 1, len(files))
    return Embedded(emb, np.repeat(np.arange(len(files), dtype=np.int32), tokens), first.grid, digests)


def _ahead(futures: Iterator[Future[Any]], window: int, job: Job | None = None) -> Iterator[Any]:
    """Results in order while up to `window` later ones are under way; what is under way is cancelled on leaving."""
    waiting: deque[Future[Any]] = deque()
    try:
        for future in futures:
            waiting.append(future)
            if len(waiting) > window:
                yield _result(waiting.popleft(), job)
        while waiting:
            yield _result(waiting.popleft(), job)
    finally:
        for future in waiting:
            future.cancel()


def _result(future: Future[Any], job: Job | None) -> Any:
    if job is None:
        return future.result()
    job.check()
    return job.wait(future)


def fit_metadata(
    extractor: Extractor,
    files: Sequence[ImageFile],
    embedded: Embedded,
    memory: PatchCoreMemory,
    *,
    coreset_rate: float,
    seed: int,
    mm_per_px: float,
) -> dict[str, Any]:
    """The metadata of memory.npz; the store adds generation, model_version and created_utc."""
    return {
        "extractor": extractor.name,
        "fingerprint": extractor.fingerprint,
        "input_size": extractor.input_size,
        "patch_size": extractor.patch,
        "n_images": len(files),
        "n_embeddings": len(embedded.emb),
        "coreset_rate": coreset_rate,
        "coreset_rate_applied": len(memory) / len(embedded.emb),
        "radius": memory.radius or 0.0,
        "seed": seed,
        "mm_per_px": mm_per_px,
        "images": [{"name": f.name, "sha256": d} for f, d in zip(files, embedded.digests, strict=True)],
    }

"""From image files to the embeddings of a fit: decoding runs ahead while the extractor works."""

from __future__ import annotations

import hashlib
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.base.errors import Notice, TokenGridMismatch
from backend.base.images import decode_image, encode_png, is_large
from backend.extractors.protocol import RGB, Extractor, Grid, prepare
from backend.patchcore import ChunkedCoreset, PatchCoreMemory
from backend.roi_mask import Shape, build_mask, token_mask
from backend.service.augment import Augmentation
from backend.service.passes import Budget
from backend.service.queue import InferenceQueue, Job

DECODERS = 2
_NO_PIXELS = np.empty((0, 0, 3), np.uint8)
# A small file may decode to hundreds of megabytes: requests that send such ones wait for each other.
_LARGE = threading.Lock()


@dataclass(frozen=True)
class ImageFile:
    """An image file: what to call it, and how to get its bytes when they are needed.

    `shape`: the part inside the ROI, in the image's pixels, for a fit that is to know nothing but the part.
    """

    name: str
    read: Callable[[], bytes]
    shape: Shape | None = None

    @classmethod
    def named(cls, name: str | None, read: Callable[[], bytes], shape: Shape | None = None) -> ImageFile:
        """An image file under the last part of `name` (a client may send a whole path)."""
        last = PurePath((name or "image").replace("\\", "/")).name
        return cls("".join(c for c in last if c.isprintable())[:120] or "image", read, shape)


@dataclass(frozen=True)
class PreparedImage:
    """A decoded ROI ready for the extractor. `size`: (height, width) as sent.

    `inside`: (tokens,) bool, whether a token's cell touches the part; None without a shape.
    """

    pixels: RGB
    grid: Grid
    size: tuple[int, int]
    digest: str
    notices: tuple[Notice, ...] = ()
    inside: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a set of images: emb (N, D) float32, src (N,) int32 image numbers, digests of the files.

    `counts`: rows of each image: all its tokens, or those that touch the part where a shape says what that is.
    `shaped`: of each image whether it came with a shape; empty where none did.
    `passes`: what chose emb, when there are more embeddings than memory was given for.
    """

    emb: NDArray[np.float32]
    src: NDArray[np.int32]
    grid: Grid
    digests: list[str]
    counts: list[int]
    shaped: list[bool] = field(default_factory=list)
    passes: ChunkedCoreset | None = None

    @property
    def masked(self) -> bool:
        """Whether all images came with a shape: what lies beside the part is in none of the embeddings."""
        return bool(self.shaped) and all(self.shaped)

    @property
    def mixed(self) -> bool:
        """Whether some images came with a shape and others without."""
        return any(self.shaped) and not all(self.shaped)

    @property
    def n_embeddings(self) -> int:
        """Embeddings of all the images."""
        return len(self.emb) if self.passes is None else self.passes.n_seen


def prepare_image(
    file: ImageFile, extractor: Extractor, *, expected: Grid | None, max_megapixels: float, digested: bool = True
) -> PreparedImage:
    """Decode and resize one ROI to its own token grid, or to `expected` when that is within one token per side.

    `digested`: with the SHA-256 of the file.

    Raises:
        BadImage: it cannot be used.
        TokenGridMismatch: its grid is further from `expected`.
        MaskEmpty: its shape covers no pixel.
    """
    data = file.read()
    with _LARGE if is_large(data) else nullcontext():
        return _prepared(data, file, extractor, expected, max_megapixels, digested)


def _prepared(
    data: bytes, file: ImageFile, extractor: Extractor, expected: Grid | None, max_megapixels: float, digested: bool
) -> PreparedImage:
    image = decode_image(data, name=file.name, max_megapixels=max_megapixels)
    digest = hashlib.sha256(data).hexdigest() if digested else ""
    height, width = image.shape[:2]
    grid = extractor.grid(height, width)
    notices: tuple[Notice, ...] = ()
    if expected is not None and grid != expected:
        if not _same_roi(height, width, expected, extractor):
            raise TokenGridMismatch(got=grid, expected=expected, name=file.name)
        notices = (Notice("roi_resized", {"got": grid, "expected": expected}),)
    grid = expected or grid
    pixels = prepare(image, grid, extractor.patch)
    mask = build_mask(file.shape, height, width)
    inside = None if mask is None else token_mask(mask, grid).ravel()
    return PreparedImage(pixels, grid, (height, width), digest, notices, inside)


def _same_roi(height: int, width: int, expected: Grid, extractor: Extractor) -> bool:
    """Whether an ROI of this size, or of one pixel more or less, lies within one token per side of `expected`."""
    sizes = product(range(max(1, height - 1), height + 2), range(max(1, width - 1), width + 2))
    grids = (extractor.grid(h, w) for h, w in sizes)
    return any(max(abs(rows - expected[0]), abs(cols - expected[1])) <= 1 for rows, cols in grids)


def embed_images(
    files: Sequence[ImageFile],
    queue: InferenceQueue,
    job: Job,
    *,
    expected: Grid | None = None,
    max_megapixels: float = 100,
    budget: Budget | None = None,
) -> Embeddings:
    """Embeddings of all `files` on the grid of the first one (or `expected`), never held twice.

    Of a file with a shape only the tokens that touch the part are kept, and beyond the `budget` only a coreset.

    Raises:
        BadImage, TokenGridMismatch, MaskEmpty: for the first file that cannot be used.
        Cancelled: the job was cancelled.
    """
    extractor = queue.extractor
    ready_one = partial(prepare_image, extractor=extractor, max_megapixels=max_megapixels)
    first = ready_one(files[0], expected=expected)
    tokens = first.grid[0] * first.grid[1]
    seen: list[PreparedImage] = []

    def ready() -> Iterator[PreparedImage]:
        yield first
        with ThreadPoolExecutor(DECODERS, thread_name_prefix="decode") as pool:
            later = (pool.submit(ready_one, file, expected=first.grid) for file in files[1:])
            yield from ahead(later, 2 * DECODERS)

    def submitted(image: PreparedImage) -> Future[NDArray[np.float32]]:
        seen.append(replace(image, pixels=_NO_PIXELS))
        return queue.submit(image.pixels, bulk=True)

    counts: list[int] = []

    def embedded() -> Iterator[NDArray[np.float32]]:
        for number, rows in enumerate(ahead((submitted(image) for image in ready()), queue.max_batch + 1, job)):
            inside = seen[number].inside
            kept = rows if inside is None else rows[inside]
            counts.append(len(kept))
            yield kept
            job.report("extract", number + 1, len(files))

    passes = None
    if budget is None or budget.holds(len(files) * tokens, extractor.dim):
        emb = _gathered(embedded(), len(files) * tokens, extractor.dim)
        src = np.repeat(np.arange(len(files), dtype=np.int32), counts)
    else:
        passes = budget.choose(embedded(), len(files) * tokens)
        emb, src = passes.rows, passes.chunk.astype(np.int32)
    shaped = [image.inside is not None for image in seen]
    return Embeddings(emb, src, first.grid, [image.digest for image in seen], counts, shaped, passes)


def _gathered(chunks: Iterator[NDArray[np.float32]], most: int, dim: int) -> NDArray[np.float32]:
    """Chunks (N_i, dim) of no more than `most` rows together, one below the other."""
    emb, n = np.empty((most, dim), np.float32), 0
    for rows in chunks:
        emb[n : n + len(rows)] = rows
        n += len(rows)
    return emb[:n]


def embed_good_parts(
    files: Sequence[ImageFile],
    queue: InferenceQueue,
    job: Job,
    *,
    augmentation: Augmentation,
    seed: int,
    expected: Grid | None = None,
    max_megapixels: float = 100,
    budget: Budget | None = None,
) -> Embeddings:
    """Embeddings of `files`, and of an augmented view of each when there is augmentation.

    `src` numbers the files; one sent twice has the first one's number, a view its image's, and a row that several
    files share −1, so that what leaves one image out leaves out what that image alone brought.

    Raises:
        BadImage, TokenGridMismatch, Cancelled.
    """
    views = [view for file in files for view in _with_view(file, augmentation, seed)]
    per_file = len(views) // len(files)
    embedded = embed_images(views, queue, job, expected=expected, max_megapixels=max_megapixels, budget=budget)
    digests = embedded.digests[::per_file]
    first: dict[str, int] = {}
    numbers = np.array([first.setdefault(digest, i) for i, digest in enumerate(digests)], np.int32)
    src = numbers[embedded.src // per_file]
    src[rows_of_several(embedded.emb, src)] = -1
    counts = np.reshape(embedded.counts, (-1, per_file)).sum(axis=1).tolist()
    return replace(embedded, src=src, digests=digests, counts=counts, shaped=embedded.shaped[::per_file])


def _with_view(file: ImageFile, augmentation: Augmentation, seed: int) -> Iterator[ImageFile]:
    yield file
    if augmentation:
        yield ImageFile(f"{file.name} (augmented)", lambda: _view_bytes(file, augmentation, seed), file.shape)


def _view_bytes(file: ImageFile, augmentation: Augmentation, seed: int) -> bytes:
    """A PNG of the one view that `seed` and the image's own content give, whatever it is fitted with."""
    data = file.read()
    content = np.frombuffer(hashlib.sha256(data).digest(), np.uint32)
    rng = np.random.default_rng([seed, *content.tolist()])
    return encode_png(augmentation.view(decode_image(data, name=file.name), rng))


def rows_of_several(emb: NDArray[np.float32], src: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(N,) bool: rows of emb (N, D) that occur, bit for bit, under more than one number of src (N,)."""
    columns = np.linspace(0, emb.shape[1] - 1, 4).astype(int)
    keys = np.ascontiguousarray(emb[:, columns]).view("V16").ravel()
    _, first, group, count = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    alike = np.flatnonzero(count[group] > 1)
    pairs = (alike[at : at + 4096] for at in range(0, len(alike), 4096))
    alike = np.concatenate([rows[(emb[rows] == emb[first[group[rows]]]).all(axis=1)] for rows in pairs] or [alike])
    low, high = np.full(len(count), np.iinfo(np.int32).max), np.full(len(count), -2)
    np.minimum.at(low, group[alike], src[alike])
    np.maximum.at(high, group[alike], src[alike])
    several = np.zeros(len(emb), bool)
    several[alike] = (low != high)[group[alike]]
    return several


def ahead(futures: Iterator[Future[Any]], window: int, job: Job | None = None) -> Iterator[Any]:
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
    embedded: Embeddings,
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
        "n_embeddings": embedded.n_embeddings,
        "coreset_rate": coreset_rate,
        "coreset_rate_applied": len(memory) / embedded.n_embeddings,
        "radius": memory.radius or 0.0,
        **({"in_passes": True} if embedded.passes else {}),
        "seed": seed,
        "mm_per_px": mm_per_px,
        **({"masked": True} if embedded.masked else {}),
        "images": [{"name": f.name, "sha256": d} for f, d in zip(files, embedded.digests, strict=True)],
    }

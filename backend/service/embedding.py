"""From images of good parts to the embeddings of a fit: decoding runs ahead while the extractor works."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.base.decoding import ImageOptions
from backend.base.errors import InvalidValue, PartNotAlone
from backend.base.messages import Notice
from backend.extractors.protocol import RGB, Extractor, Grid, needed_by
from backend.infer import RoiSize, working_mask
from backend.memory.chunked import Budget, BudgetTooSmall, ChunkedCoreset
from backend.roi_mask import token_mask
from backend.service.appearance import Appearance, appearance_of
from backend.service.images import DECODERS, ImageFile, about_pixels, decoded, fitted_grid
from backend.service.jobs import Job, ahead
from backend.service.queue import InferenceQueue

BGR = NDArray[np.uint8]
MOST_APPEARANCES = 256


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How far a view may differ from its image. All zero: there are no views.

    `rotation_deg`: turned about the centre by up to ± this; what comes in at the corners mirrors the border.
    `jitter`: brightness, contrast and the gain of each colour channel change by up to ± this share.
    """

    rotation_deg: float = 0.0
    jitter: float = 0.0

    def __bool__(self) -> bool:
        return self.rotation_deg > 0 or self.jitter > 0

    def view(self, image: BGR, rng: np.random.Generator) -> BGR:
        """One view of `image` (H, W, 3) uint8, of the same size; the same for the same state of `rng`."""
        angle = rng.uniform(-self.rotation_deg, self.rotation_deg)
        brightness, contrast = rng.uniform(-self.jitter, self.jitter, 2)
        gains = 1.0 + rng.uniform(-self.jitter, self.jitter, 3) / 2
        turned = _turned(image, angle) if self.rotation_deg > 0 else image
        if self.jitter == 0:
            return turned
        mean = turned.mean(axis=(0, 1))
        lit = ((turned - mean) * (1 + contrast) + mean) * (1 + brightness) * gains
        return np.asarray(np.clip(np.rint(lit), 0, 255), np.uint8)


def _turned(image: BGR, angle: float) -> BGR:
    height, width = image.shape[:2]
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
    turned = cv2.warpAffine(image, turn, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)
    return np.asarray(turned, np.uint8)


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of a set of images.

    Attributes:
        emb: (N, D) float32 unit rows; a coreset of them where `passes` says so.
        image_ids: (N,) int32, the number of the image a row came from; −1 for a row that several images share.
        grid: token rows and columns of each image.
        digests: SHA-256 of each image's file.
        counts: rows of each image and its view: all tokens, or those that touch the part where a shape says what it is.
        shaped: whether each image came with a shape.
        part_alone: whether the extractor saw nothing of each image but the tokens that touch the part.
        passes: the choice of `emb` in passes, where there are more embeddings than memory was given for.
        notices: what is to be said of how the images were read, each code once, of the first image that it concerns.
        roi_px: height and width of the first image, in pixels.
        appearances: how images look, MOST_APPEARANCES of them at most.
    """

    emb: NDArray[np.float32]
    image_ids: NDArray[np.int32]
    grid: Grid
    digests: list[str]
    counts: list[int]
    shaped: list[bool] = field(default_factory=list)
    part_alone: bool = False
    passes: ChunkedCoreset | None = None
    notices: tuple[Notice, ...] = ()
    roi_px: tuple[int, int] = (0, 0)
    appearances: tuple[Appearance, ...] = ()

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

    def only(self, numbers: Sequence[int]) -> Embeddings:
        """The embeddings of the images `numbers` alone, numbered anew."""
        if len(numbers) == len(self.digests):
            return self
        starts = np.concatenate([[0], np.cumsum(self.counts)])
        rows = np.concatenate([np.arange(starts[n], starts[n + 1]) for n in numbers] or [np.empty(0, np.int64)])
        counts = [self.counts[n] for n in numbers]
        own = np.repeat(np.arange(len(numbers), dtype=np.int32), counts)
        return replace(
            self,
            emb=self.emb[rows],
            image_ids=np.where(self.image_ids[rows] < 0, -1, own).astype(np.int32),
            digests=[self.digests[n] for n in numbers],
            counts=counts,
            shaped=[self.shaped[n] for n in numbers],
        )


def embed_images(  # noqa: PLR0913 - the options of one step, by name
    files: Sequence[ImageFile],
    queue: InferenceQueue,
    job: Job,
    *,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    expected: Grid | None = None,
    images: ImageOptions | None = None,
    budget: Budget | None = None,
    part_alone: bool = False,
) -> Embeddings:
    """Embeddings of `files` on the grid of the first one (or `expected`), never held twice.

    With `augmentation` one more view of each image is embedded, which `seed` and the file's content decide. Of a file
    with a shape only the tokens that touch the part are kept, and beyond the `budget` only a coreset. With
    `part_alone` the extractor sees no others, where all files have a shape.

    A file that is there twice has the number of the first in `image_ids`, and a row that several files share, bit for
    bit, has −1. So leaving one image out leaves out what that image alone brought.

    Raises:
        BadImage, TokenGridMismatch, MaskEmpty: for the first file that cannot be used.
        InvalidValue: the `budget` does not hold what a coreset in passes needs.
        PartNotAlone: the extractor does not leave tokens out.
        Cancelled: the job was cancelled.
    """
    part_alone = part_alone and all(file.shape for file in files)
    if part_alone and not queue.extractor.leaves_out:
        raise PartNotAlone(model=queue.extractor.name)
    views_of = partial(_views, extractor=queue.extractor, augmentation=augmentation, seed=seed, options=images)
    read = _read(files, views_of, expected)
    first = next(read)
    per_file, dim, aspect = len(first.pixels), queue.extractor.dim, queue.extractor.input_aspect
    most = len(files) * per_file * first.grid[0] * first.grid[1]
    digests: list[str] = []
    insides: list[NDArray[np.bool_] | None] = []
    counts = [0] * len(files)
    said: dict[str, Notice] = {}
    appearances: list[Appearance] = []
    every = -(-len(files) // MOST_APPEARANCES)

    def submitted() -> Iterator[Future[NDArray[np.float32]]]:
        for views in chain((first,), read):
            if len(digests) % every == 0:
                appearances.append(views.appearance)
            digests.append(views.digest)
            insides.append(views.inside)
            for notice in (*views.notices, *about_pixels(views.roi_px, first.roi_px, aspect)):
                said.setdefault(notice.code, notice)
            while views.pixels:
                yield queue.submit(views.pixels.pop(0), inside=views.inside if part_alone else None, bulk=True)

    def embedded() -> Iterator[NDArray[np.float32]]:
        for number, rows in enumerate(ahead(submitted(), queue.max_batch + 1, job)):
            inside = insides[number // per_file]
            kept = rows if inside is None else rows[inside.ravel()]
            counts[number // per_file] += len(kept)
            yield kept
            job.report("extract", number + 1, len(files) * per_file)

    passes = None
    if budget is None or budget.holds(most, dim):
        emb = _gathered(embedded(), most, dim)
        files_of_rows = np.repeat(np.arange(len(files)), counts)
    else:
        passes = _in_passes(budget, embedded(), most)
        emb, files_of_rows = passes.rows, passes.chunk // per_file
    shaped = [inside is not None for inside in insides]
    image_ids = _image_ids(emb, files_of_rows, digests)
    return Embeddings(
        emb,
        image_ids,
        first.grid,
        digests,
        counts,
        shaped,
        part_alone,
        passes,
        tuple(said.values()),
        first.roi_px,
        tuple(appearances),
    )


def _in_passes(budget: Budget, chunks: Iterator[NDArray[np.float32]], n_rows: int) -> ChunkedCoreset:
    try:
        return budget.choose(chunks, n_rows)
    except BudgetTooSmall as err:
        needed = f">= {-(-err.needed >> 20)}"
        raise InvalidValue(field="FIT_MEMORY_MB", value=f"{budget.megabytes:g}", expected=needed) from err


@dataclass(frozen=True)
class _Views:
    """A file's image and, with augmentation, one view of it, ready for the extractor.

    `inside`: (rows, columns) bool, whether a token's cell touches the part; None without a shape.
    `notices`: what is to be said of how the image was read.
    """

    pixels: list[RGB]
    grid: Grid
    digest: str
    inside: NDArray[np.bool_] | None
    notices: tuple[Notice, ...]
    roi_px: tuple[int, int]
    appearance: Appearance


def _views(
    file: ImageFile,
    *,
    extractor: Extractor,
    augmentation: Augmentation | None,
    seed: int,
    expected: Grid | None,
    options: ImageOptions | None,
) -> _Views:
    with decoded(file, options, needed_by(extractor, expected)) as (data, found):
        image, digest = found.pixels, hashlib.sha256(data)
        grid, notices = fitted_grid(file.name, found.size, extractor, expected)
        pixels = [extractor.prepare(image, grid, found.size)]
        if augmentation:
            rng = np.random.default_rng([seed, *np.frombuffer(digest.digest(), np.uint32).tolist()])
            pixels.append(extractor.prepare(augmentation.view(image, rng), grid, found.size))
        mask = working_mask(file.shape, RoiSize(*found.size))
    inside = None if mask is None else token_mask(mask, grid)
    notices = (*found.notices, *notices)
    return _Views(pixels, grid, digest.hexdigest(), inside, notices, found.size, appearance_of(pixels[0]))


def _read(files: Sequence[ImageFile], views_of: Callable[..., _Views], expected: Grid | None) -> Iterator[_Views]:
    """The views of each of `files`, decoded ahead, on the grid of the first or on `expected`."""
    first = views_of(files[0], expected=expected)
    yield first
    with ThreadPoolExecutor(DECODERS, thread_name_prefix="decode") as pool:
        yield from ahead((pool.submit(views_of, file, expected=first.grid) for file in files[1:]), 2 * DECODERS)


def _image_ids(emb: NDArray[np.float32], files_of_rows: NDArray[np.int64], digests: Sequence[str]) -> NDArray[np.int32]:
    """(N,) the number of the image that each row of emb came from; see embed_images."""
    first_alike: dict[str, int] = {}
    numbers = np.array([first_alike.setdefault(digest, n) for n, digest in enumerate(digests)], np.int32)
    image_ids = numbers[files_of_rows]
    image_ids[rows_of_several(emb, image_ids)] = -1
    return image_ids


def _gathered(chunks: Iterator[NDArray[np.float32]], most: int, dim: int) -> NDArray[np.float32]:
    """Chunks (N_i, dim) of no more than `most` rows together, one below the other."""
    emb, n = np.empty((most, dim), np.float32), 0
    for rows in chunks:
        emb[n : n + len(rows)] = rows
        n += len(rows)
    return emb[:n]


def rows_of_several(emb: NDArray[np.float32], image_ids: NDArray[np.int32]) -> NDArray[np.bool_]:
    """(N,) bool: rows of emb (N, D) that occur, bit for bit, under more than one number of image_ids (N,)."""
    columns = np.linspace(0, emb.shape[1] - 1, 4).astype(int)
    keys = np.ascontiguousarray(emb[:, columns]).view("V16").ravel()
    _, first, group, count = np.unique(keys, return_index=True, return_inverse=True, return_counts=True)
    alike = np.flatnonzero(count[group] > 1)
    pairs = (alike[at : at + 4096] for at in range(0, len(alike), 4096))
    alike = np.concatenate([rows[(emb[rows] == emb[first[group[rows]]]).all(axis=1)] for rows in pairs] or [alike])
    low, high = np.full(len(count), np.iinfo(np.int32).max), np.full(len(count), -2)
    np.minimum.at(low, group[alike], image_ids[alike])
    np.maximum.at(high, group[alike], image_ids[alike])
    several = np.zeros(len(emb), bool)
    several[alike] = (low != high)[group[alike]]
    return several

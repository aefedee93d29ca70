"""How far images of a fit are from the memory without themselves, and without others that are like them.

A bad part among the good ones is in the memory as they are; without its own rows it is far from it. Several alike vouch
for each other. So the one to four images that are nearest to each place of an image are left out there as well: of good
parts there are always more.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from backend.base.arrays import available_cores, blocks

Array = NDArray[np.float32]
Numbers = NDArray[np.int64]

COMPANIONS = 4
"""Images that are left out beside one at most: five copies of a bad part may be among the good ones."""
TOP_SHARE = 0.01
MOST_PAIRS = 2**30  # of a token and a row: more take longer than the rest of a fit
_SHARED = -1
_BLOCK = 256


@dataclass(frozen=True)
class Alone:
    """One image without the others that are like it.

    Attributes:
        distances: (1 + c, T) of each token to the memory without the rows of the image itself, and without those of the
            1 … c other images that are nearest to that token.
        scores: of each row of distances the mean of the largest 1 %, at least of one.
        companions: the images left out in each of the rows above that are nearest to most of the farthest tokens there;
            none in the first.
    """

    distances: Array
    scores: list[float]
    companions: list[tuple[int, ...]]


@dataclass(frozen=True)
class LeftOut:
    """What was found of n images: scores (n, 1 + c) and companions as of `Alone`."""

    scores: NDArray[np.float64]
    companions: list[list[tuple[int, ...]]]


class RowsByImage:
    """The rows of a memory by the image that they came from.

    Args:
        emb: (N, D) float32 unit rows.
        image_ids: (N,) numbers of images; −1 for a row that several share, which is never left out.
        every: keep every n-th row of each image, the first of them always.
    """

    def __init__(self, emb: Array, image_ids: NDArray[np.integer], every: int = 1) -> None:
        order = np.argsort(image_ids, kind="stable")
        ordered = np.asarray(image_ids, np.int64)[order]
        starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
        self.images = ordered[starts]
        within = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
        kept = within % every == 0
        self._starts = np.r_[0, np.cumsum(np.add.reduceat(kept, starts))[:-1]]
        self._rows = np.ascontiguousarray(-2.0 * emb[order[kept]].T, np.float32)

    def depth(self, n_images: int) -> int:
        """How many companions can be left out of `n_images` and leave most of the others."""
        return max(0, min(COMPANIONS, int((self.images != _SHARED).sum()) - 2, n_images // 4 - 1))

    def distances(self, tokens: Array) -> Array:
        """(T, images) Euclidean distance of each of tokens (T, D), unit rows, to the nearest row of each image."""
        products = (tokens[part] @ self._rows for part in blocks(len(tokens), _BLOCK))
        nearest = np.concatenate([np.minimum.reduceat(block, self._starts, axis=1) for block in products])
        return np.asarray(np.sqrt(np.maximum(nearest + 2.0, 0.0)), np.float32)

    def without(self, tokens: Array, number: int, depth: int) -> Alone:
        """An image of tokens (T, D) without itself and up to `depth` companions.

        `number`: the image's own; −1 for one that the memory was not made from.
        """
        others = np.flatnonzero((self.images != number) & (self.images != _SHARED))
        to_images, n_top = self.distances(tokens), max(1, round(len(tokens) * TOP_SHARE))
        shared = to_images[:, self.images == _SHARED].min(axis=1, initial=np.inf)
        to_images = to_images[:, others]
        order = np.argpartition(to_images, min(depth, len(others) - 1), axis=1)[:, : depth + 1]
        order = np.take_along_axis(order, np.argsort(np.take_along_axis(to_images, order, axis=1), axis=1), axis=1)
        distances = np.minimum(np.take_along_axis(to_images, order, axis=1), shared[:, None]).T
        top = np.argpartition(distances, -n_top, axis=1)[:, -n_top:]
        scores = np.take_along_axis(distances, top, axis=1).mean(axis=1, dtype=np.float64).tolist()
        nearest = self.images[others][order]
        companions = [_of_most(nearest[farthest, :n]) for n, farthest in enumerate(top)]
        return Alone(np.ascontiguousarray(distances), scores, companions)


def _of_most(nearest: Numbers) -> tuple[int, ...]:
    """The images that are in most rows of nearest (T, n)."""
    images, counts = np.unique(nearest, return_counts=True)
    return tuple(images[2 * counts > len(nearest)].tolist())


def left_out(
    images: Sequence[tuple[Array, int]],
    emb: Array,
    image_ids: NDArray[np.integer],
    progress: Callable[[int, int], None] = lambda *_: None,
) -> LeftOut:
    """How far each of `images`, its tokens (T, D) and its number, is from the memory that has not seen it.

    Images share out the cores. Where there are too many pairs of tokens and rows, every n-th row of each image stands
    for all: scores are larger then, those of all images alike.

    Args:
        emb, image_ids: the memory's rows, as of RowsByImage.
        progress: called with (done, total).
    """
    pairs = len(emb) * sum(len(tokens) for tokens, _ in images)
    rows = RowsByImage(emb, image_ids, every=-(-pairs // MOST_PAIRS))
    one = partial(_one, rows=rows, depth=rows.depth(len(images)))
    scores, companions = [], []
    with ThreadPoolExecutor(available_cores(), thread_name_prefix="left-out") as pool:
        for done, alone in enumerate(pool.map(one, images), start=1):
            scores.append(alone.scores)
            companions.append(alone.companions)
            progress(done, len(images))
    return LeftOut(np.array(scores, np.float64), companions)


def _one(image: tuple[Array, int], rows: RowsByImage, depth: int) -> Alone:
    return rows.without(*image, depth)


def same_pictures(images: Sequence[Array]) -> Numbers:
    """(n,) the number of the first image whose tokens (T, D) are the same to the last bit."""
    first: dict[bytes, int] = {}
    seals = (hashlib.sha256(tokens.tobytes()).digest() for tokens in images)
    return np.array([first.setdefault(seal, number) for number, seal in enumerate(seals)], np.int64)

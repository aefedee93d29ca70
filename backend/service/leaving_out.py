"""The images of a fit, each compared with the memory as if it had not been there."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from backend.memory.left_out import LeftOut, left_out, same_pictures
from backend.patchcore import PatchCoreMemory
from backend.service.embedding import Embeddings, rows_of_several

FEWEST = 5


def images_left_out(
    memory: PatchCoreMemory,
    embeddings: Embeddings,
    *,
    first: int = 0,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> LeftOut | None:
    """What each image of `embeddings` is like without itself in `memory`, which was fitted on them or grew by them.

    None where that says nothing: of fewer than five images, of a memory that has rows of only one, or of one that was
    chosen in passes, which leave no embeddings to compare with.

    Args:
        first: the number in the memory of the first image.
        progress: called with (done, total).
    """
    if embeddings.passes or len(embeddings.digests) < FEWEST or memory.image_ids is None:
        return None
    ends = np.cumsum(embeddings.counts)
    images = [embeddings.emb[end - count : end] for end, count in zip(ends, embeddings.counts, strict=True)]
    numbers = same_pictures(images)
    image_ids = memory.image_ids
    if len(set(numbers.tolist())) < len(numbers):
        image_ids = _as_pictures(memory, embeddings, numbers, first)
    if len(np.unique(image_ids[image_ids >= 0])) < 2:
        return None
    asked = [(_part(memory, tokens), int(number) + first) for tokens, number in zip(images, numbers, strict=True)]
    return left_out(asked, memory.emb, image_ids, progress)


def _as_pictures(
    memory: PatchCoreMemory, embeddings: Embeddings, numbers: NDArray[np.int64], first: int
) -> NDArray[np.int32]:
    """The numbers of the memory's rows, had it been known that some files are one picture.

    A row of that picture alone is no row of several images then, and is left out with it.
    """
    assert memory.image_ids is not None
    of_rows = np.repeat(numbers, embeddings.counts).astype(np.int32)
    of_rows[rows_of_several(embeddings.emb, of_rows)] = -1
    of_one_picture = np.flatnonzero((embeddings.image_ids < 0) & (of_rows >= 0))
    known = {embeddings.emb[row].tobytes(): int(of_rows[row]) for row in of_one_picture}
    shared = np.flatnonzero(memory.image_ids < 0)
    image_ids = memory.image_ids.copy()
    found = [known.get(memory.rows[int(row)].tobytes(), -1 - first) for row in shared]
    image_ids[shared] = np.array(found, np.int32) + first
    return image_ids


def _part(memory: PatchCoreMemory, tokens: NDArray[np.float32]) -> NDArray[np.float32]:
    """The tokens that the memory compares at all."""
    return tokens if memory.foreground is None else tokens[memory.foreground.of(tokens)]

"""From an image file to pixels that an extractor takes: decoded, and resized to whole tokens."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import PurePath

from backend.base.decoding import Decoded, ImageOptions, Needed, decode
from backend.base.errors import TokenGridMismatch, TooManyTokens
from backend.base.images import is_large
from backend.base.messages import Notice
from backend.extractors.protocol import RGB, Aspect, Extractor, Grid, needed_by
from backend.infer import RoiSize
from backend.roi_mask import Shape

DECODERS = 2
SAME_SIZE = 1.25  # two ROIs that differ by more were not taken with the same pixels
MOST_ASPECT = 16  # times the tokens of a square ROI that a long one may become
# A small file may decode to hundreds of megabytes, so at most one such image is decoded at a time.
_LARGE = threading.Lock()


@dataclass(frozen=True)
class ImageFile:
    """An image file: what to call it, how to get its bytes when they are needed, and where the part is.

    `shape`: the part inside the ROI, in the image's pixels. A fit learns it alone, and an inspection looks at it alone.
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
    """A decoded ROI ready for the extractor.

    Attributes:
        pixels: (rows · patch, columns · patch, 3) uint8 RGB.
        grid: token rows and columns.
        size: of the ROI as it was sent.
        digest: SHA-256 of the file in hexadecimal digits; empty if it was not asked for.
        notices: what is to be said of it.
    """

    pixels: RGB
    grid: Grid
    size: RoiSize
    digest: str
    notices: tuple[Notice, ...] = ()


def prepare_image(
    file: ImageFile,
    extractor: Extractor,
    *,
    expected: Grid | None = None,
    options: ImageOptions | None = None,
    digested: bool = False,
) -> PreparedImage:
    """Decode and resize one ROI to its own token grid, or to `expected` when that is within one token per side.

    `digested`: with the SHA-256 of the file.

    Raises:
        BadImage: it cannot be used.
        TokenGridMismatch: its grid is further from `expected`.
    """
    with decoded(file, options, needed_by(extractor, expected)) as (data, found):
        grid, notices = fitted_grid(file.name, found.size, extractor, expected)
        return PreparedImage(
            extractor.prepare(found.pixels, grid, found.size),
            grid,
            RoiSize(*found.size),
            hashlib.sha256(data).hexdigest() if digested else "",
            (*found.notices, *notices),
        )


@contextmanager
def decoded(
    file: ImageFile, options: ImageOptions | None = None, needed: Needed | None = None
) -> Iterator[tuple[bytes, Decoded]]:
    """The bytes of `file` and its pixels; no two large images are held at once.

    `needed`: see decode; it counts where `options` have JPEGs scaled.

    Raises:
        BadImage: it cannot be used.
    """
    data, options = file.read(), options or ImageOptions()
    needed = needed if options.scaled else None
    with _LARGE if is_large(data, needed) else nullcontext():
        yield data, decode(data, name=file.name, options=options, needed=needed)


def about_pixels(got: tuple[int, int], expected: tuple[int, int], aspect: Aspect) -> list[Notice]:
    """A notice when two images of one memory, (height, width) in px, differ by more than SAME_SIZE.

    With the aspect `square` crops are meant to differ.
    """
    if aspect == "square" or all(1 / SAME_SIZE <= a / b <= SAME_SIZE for a, b in zip(got, expected, strict=True)):
        return []
    return [Notice("roi_px_differs", {"got": f"{got[1]} × {got[0]}", "expected": f"{expected[1]} × {expected[0]}"})]


def fitted_grid(
    name: str, size: tuple[int, int], extractor: Extractor, expected: Grid | None
) -> tuple[Grid, tuple[Notice, ...]]:
    """The token grid of an image of `size` (height, width) px, or `expected` when that is within one token per side.

    Returns:
        The grid, and a notice if it is not the image's own.

    Raises:
        TooManyTokens: INPUT_EDGE=smaller makes too much of so long an image.
        TokenGridMismatch: it is further from `expected`; the error says `name`.
    """
    height, width = size
    grid, limit = extractor.grid(height, width), MOST_ASPECT * prod(extractor.grid(*2 * (extractor.input_size,)))
    if prod(grid) > limit:
        raise TooManyTokens(name=name, width=width, height=height, tokens=prod(grid), limit=limit)
    if expected is None or grid == expected:
        return grid, ()
    if not _same_roi(height, width, expected, extractor):
        raise TokenGridMismatch(got=grid, expected=expected, name=name)
    return expected, (Notice("roi_resized", {"got": grid, "expected": expected}),)


def _same_roi(height: int, width: int, expected: Grid, extractor: Extractor) -> bool:
    """Whether an ROI of this size, or of one pixel more or less, lies within one token per side of `expected`."""
    sizes = product(range(max(1, height - 1), height + 2), range(max(1, width - 1), width + 2))
    grids = (extractor.grid(h, w) for h, w in sizes)
    return any(max(abs(rows - expected[0]), abs(cols - expected[1])) <= 1 for rows, cols in grids)

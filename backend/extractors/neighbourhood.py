"""Extractors around an extractor: neighbourhoods averaged on the token grid, and an ROI seen in tiles.

They hold for every backbone and every runtime, and each has a fingerprint of its own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from backend.features import RGB, Extractor

Rows = NDArray[np.float32]


class Wrapped:
    """An extractor that changes what another one gives; a subclass has its own `extract`.

    `recipe` says what it changes; empty: nothing that tells in the embeddings.
    """

    def __init__(self, inner: Extractor, recipe: str) -> None:
        self.inner = inner
        self.name, self.dim, self.patch = inner.name, inner.dim, inner.patch
        self.input_size, self.runtime = inner.input_size, inner.runtime
        self.streams: int = getattr(inner, "streams", 1)
        self.widths: tuple[int, ...] = tuple(getattr(inner, "widths", (inner.dim,)))
        self.smaller_edge = bool(getattr(inner, "smaller_edge", False))
        self.reach = float(getattr(inner, "reach", 1.0))
        sealed = hashlib.sha256(f"{inner.fingerprint}|{recipe}".encode()).hexdigest()[:16]
        self.fingerprint = sealed if recipe else inner.fingerprint

    @property
    def device(self) -> str:
        """See Extractor."""
        return self.inner.device

    def grid(self, image: RGB) -> tuple[int, int]:
        """Token rows and columns of the inner extractor for `image`."""
        return image.shape[0] // self.inner.patch, image.shape[1] // self.inner.patch


class SmallerEdge(Wrapped):
    """The same extractor for ROIs whose smaller edge becomes `input_size` pixels (see features.grid_of)."""

    def __init__(self, inner: Extractor) -> None:
        super().__init__(inner, "")
        self.smaller_edge = True

    def extract(self, images: Sequence[RGB]) -> Rows:
        """See Extractor."""
        return self.inner.extract(images)


class Neighbourhood(Wrapped):
    """Each token becomes the mean of the tokens around it (Roth et al. 2022, section 3.1, eq. 2), unit again.

    Args:
        size: side of the neighbourhood in tokens; odd. Only tokens inside the image count.
        stride: every stride-th token of every stride-th row is kept, so a token's cell grows by it.
    """

    def __init__(self, inner: Extractor, size: int, stride: int = 1) -> None:
        super().__init__(inner, f"around {size}/{stride}")
        self.size, self.stride = size, stride
        self.patch = inner.patch * stride
        self.reach = max(1.0, (self.reach + size - 1) / stride)

    def extract(self, images: Sequence[RGB]) -> Rows:
        """See Extractor."""
        rows, cols = self.grid(images[0])
        maps = self.inner.extract(images).reshape(len(images), rows, cols, self.dim)
        summed = windows_summed(windows_summed(maps, self.size, axis=1), self.size, axis=2)
        start = self.stride // 2
        kept = summed[:, start :: self.stride, start :: self.stride].reshape(len(images), -1, self.dim)
        return unit_rows(kept)


class Tiled(Wrapped):
    """The ROI in tiles × tiles overlapping tiles, each seen as large as the whole ROI is without: a finer token grid.

    Where tiles overlap their tokens are averaged, more heavily towards the middle of a tile, and normalised again.

    Args:
        tiles: tiles per side; the token grid is about that many times as fine.
        overlap: share of a tile that its neighbour sees too, 0 … 0.9.
    """

    def __init__(self, inner: Extractor, tiles: int, overlap: float = 0.25) -> None:
        super().__init__(inner, f"tiles {tiles}/{overlap}")
        self.tiles, self.overlap = tiles, overlap
        self.input_size = round(inner.input_size * (tiles - (tiles - 1) * overlap))

    def extract(self, images: Sequence[RGB]) -> Rows:
        """See Extractor."""
        return np.stack([self._extract(image) for image in images])

    def _extract(self, image: RGB) -> Rows:
        rows, cols = self.grid(image)
        total = np.zeros((rows, cols, self.dim), np.float32)
        for down in spans(rows, self.tiles, self.overlap):
            for across in spans(cols, self.tiles, self.overlap):
                total[down, across] += self._tile(image, down, across)
        return unit_rows(total.reshape(rows * cols, self.dim))

    def _tile(self, image: RGB, down: slice, across: slice) -> Rows:
        side = self.patch
        pixels = image[down.start * side : down.stop * side, across.start * side : across.stop * side]
        height, width = down.stop - down.start, across.stop - across.start
        tokens = self.inner.extract([np.ascontiguousarray(pixels)])[0].reshape(height, width, self.dim)
        weight: Rows = np.outer(_tent(height), _tent(width)).astype(np.float32)
        weighted: Rows = tokens * weight[:, :, None]
        return weighted


def spans(length: int, tiles: int, overlap: float) -> Iterator[slice]:
    """`tiles` equally long spans that cover 0 … length, neighbours sharing about `overlap` of their length."""
    size = min(length, int(np.ceil(length / (tiles - (tiles - 1) * overlap))))
    for start in np.linspace(0, length - size, tiles).round().astype(int):
        yield slice(int(start), int(start) + size)


def _tent(length: int) -> NDArray[np.float64]:
    position = np.arange(length) + 0.5
    tent: NDArray[np.float64] = np.minimum(position, length - position)
    return tent


def windows_summed(maps: Rows, size: int, *, axis: int) -> Rows:
    """Sums over windows of `size` centred on each entry along `axis`; what lies outside adds nothing."""
    total = maps.copy()
    moved, source = np.moveaxis(total, axis, 0), np.moveaxis(maps, axis, 0)
    for step in range(1, size // 2 + 1):
        moved[step:] += source[:-step]
        moved[:-step] += source[step:]
    return total


def unit_rows(rows: Rows) -> Rows:
    """Rows (…, D) of unit length."""
    unit: Rows = rows / np.maximum(np.linalg.norm(rows, axis=-1, keepdims=True), np.float32(1e-12))
    return unit

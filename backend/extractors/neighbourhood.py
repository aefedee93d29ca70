"""What wraps an extractor: averages over neighbourhoods of the token grid, and an ROI that is seen in tiles.

Both serve every network and every runtime, and change the fingerprint.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from backend.extractors.protocol import RGB, Extractor, Mask, Rows


class Wrapped(Extractor):
    """An extractor that changes what another one gives; a subclass has its own `extract` and `extract_part`.

    Args:
        inner: the other one.
        change: what the subclass changes in the embeddings, with its numbers: it makes the fingerprint another. Empty:
            nothing, and the fingerprint stays.
    """

    def __init__(self, inner: Extractor, change: str) -> None:
        self.inner = inner
        self.name, self.runtime, self.streams = inner.name, inner.runtime, inner.streams
        self.reach, self.leaves_out = inner.reach, inner.leaves_out
        self.dim, self.patch = inner.dim, inner.patch
        self.input_size, self.input_edge = inner.input_size, inner.input_edge
        self.input_aspect = inner.input_aspect
        sealed = hashlib.sha256(f"{inner.fingerprint}|{change}".encode()).hexdigest()[:16]
        self.fingerprint = sealed if change else inner.fingerprint

    @property
    def device(self) -> str:
        """See Extractor."""
        return self.inner.device


class Neighbourhood(Wrapped):
    """Replaces each token by the mean of the tokens around it, of unit length (Roth et al. 2022, section 3.1, eq. 2).

    Args:
        size: side of the neighbourhood in tokens; odd. Only tokens inside the image count, and inside the part where
            it is seen alone.
        stride: every stride-th token of every stride-th row is kept, so a token's cell grows by it.
    """

    def __init__(self, inner: Extractor, size: int, stride: int = 1) -> None:
        super().__init__(inner, f"around {size}/{stride}")
        self.size, self.stride = size, stride
        self.patch = inner.patch * stride
        self.reach = max(1.0, (self.reach + size - 1) / stride)

    def extract(self, images: Sequence[RGB]) -> Rows:
        """See Extractor."""
        return self._averaged(self.inner.extract(images), images)

    def extract_part(self, images: Sequence[RGB], inside: Mask) -> Rows:
        """See Extractor."""
        finer = np.repeat(np.repeat(inside, self.stride, axis=0), self.stride, axis=1)
        averaged = self._averaged(self.inner.extract_part(images, finer), images)
        averaged[:, ~inside.ravel()] = 0.0
        return averaged

    def _averaged(self, tokens: Rows, images: Sequence[RGB]) -> Rows:
        rows, cols = (side // self.inner.patch for side in images[0].shape[:2])
        maps = tokens.reshape(len(images), rows, cols, self.dim)
        summed = windows_summed(windows_summed(maps, self.size, axis=1), self.size, axis=2)
        start = self.stride // 2
        kept = summed[:, start :: self.stride, start :: self.stride].reshape(len(images), -1, self.dim)
        return unit_rows(kept)


class Tiled(Wrapped):
    """Cuts the ROI into tiles × tiles overlapping tiles, and shows each to the inner extractor as large as an ROI.

    The token grid becomes about `tiles` times as fine. Where tiles overlap their tokens are averaged, those near the
    middle of a tile with more weight, and normalised again.

    Args:
        tiles: tiles per side.
        overlap: share of a tile that its neighbour sees too, 0 … 0.9.
    """

    def __init__(self, inner: Extractor, tiles: int, overlap: float = 0.25) -> None:
        super().__init__(inner, f"tiles {tiles}/{overlap}")
        self.tiles, self.overlap = tiles, overlap
        self.input_size = round(inner.input_size * (tiles - (tiles - 1) * overlap))

    def extract(self, images: Sequence[RGB]) -> Rows:
        """See Extractor."""
        return np.stack([self._extract(image) for image in images])

    def extract_part(self, images: Sequence[RGB], inside: Mask) -> Rows:
        """See Extractor. A tile beside the part is not looked at."""
        return np.stack([self._extract(image, inside) for image in images])

    def _extract(self, image: RGB, inside: Mask | None = None) -> Rows:
        rows, cols = (side // self.patch for side in image.shape[:2])
        total = np.zeros((rows, cols, self.dim), np.float32)
        for down in spans(rows, self.tiles, self.overlap):
            for across in spans(cols, self.tiles, self.overlap):
                if inside is None or inside[down, across].any():
                    total[down, across] += self._tile(image, down, across, inside)
        return unit_rows(total.reshape(rows * cols, self.dim))

    def _tile(self, image: RGB, down: slice, across: slice, inside: Mask | None) -> Rows:
        side = self.patch
        pixels = image[down.start * side : down.stop * side, across.start * side : across.stop * side]
        height, width = down.stop - down.start, across.stop - across.start
        tile = [np.ascontiguousarray(pixels)]
        found = self.inner.extract(tile) if inside is None else self.inner.extract_part(tile, inside[down, across])
        tokens = found[0].reshape(height, width, self.dim)
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

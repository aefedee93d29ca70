"""An extractor without weights: opponent-colour histograms and local DCT energies, in NumPy and OpenCV alone.

The parts are classical: opponent colour (van de Sande et al., 2010), soft binning (Lowe, 2004) and the energies of
local DCT filters (Ng, Tan and Kittler, 1992).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import product

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.extractors.protocol import RGB, Aspect, Edge, Extractor

Floats = NDArray[np.float32]

PATCH = 14
VERSION = 1
# The mean that an image's brightness is brought to, so that exposure alone makes no defect.
BRIGHTNESS = 0.45
# Keeps the chromaticity of dark pixels finite and their sensor noise small.
DARK = 0.3
BINS = 8
# What the bins span: the root of the brightness (a step in the shade counts as much as one in the light), and chroma.
RANGES = ((0.0, 1.1), (-0.7, 0.7), (-0.7, 0.7))
# Side, in tokens, of the neighbourhoods that the histograms are averaged over.
NEIGHBOURHOODS = (1, 3)
WINDOW = 8
# Per scale: pixels of a token's side, stride of the windows, and per plane the highest u + v of its coefficients.
# Sensors and JPEG hold colour at half the resolution of brightness, so the finest scale has nothing of it to measure.
SCALES = ((14, 2, (4, 0, 0)), (8, 2, (4, 2, 2)), (4, 1, (4, 2, 2)))
# Joins the energies before they are normalised: a flat token then has a direction of its own and not its noise's.
FLOOR = 1.0
# Of the energies, beside the histograms' 1: they vary more from one good part to the next.
ENERGY_WEIGHT = 0.5

_ENERGIES = sum((n + 1) * (n + 2) // 2 - 1 for *_, orders in SCALES for n in orders)
DIM = BINS * len(RANGES) * len(NEIGHBOURHOODS) + _ENERGIES + 1


def texture_tokens(rgb: RGB, grid: tuple[int, int]) -> Floats:
    """Descriptors of the cells of a token grid.

    Args:
        rgb: (H, W, 3) uint8 RGB, with H == grid[0] * 14 and W == grid[1] * 14.
        grid: token rows and columns, (h, w).

    Returns:
        (h * w, DIM) float32, row-major, each row of unit length.

    Raises:
        ValueError: the image is not of the grid's size.
    """
    if rgb.shape != (grid[0] * PATCH, grid[1] * PATCH, 3):
        raise ValueError(f"an image of {rgb.shape} does not have {grid} tokens of {PATCH} px")
    planes = _opponent_planes(rgb)
    colour, energy = _unit(_colour(planes, grid)), _unit(_energy(planes, grid))
    return _unit(np.concatenate([colour, np.float32(ENERGY_WEIGHT) * energy], axis=1))


def _opponent_planes(rgb: RGB) -> list[Floats]:
    """Root brightness, and the red-green and yellow-blue chromaticities: three (H, W) float32 planes."""
    gain = BRIGHTNESS / max(float(rgb.mean()), 1.0)
    scaled: Floats = rgb.astype(np.float32) * np.float32(gain)
    red, green, blue = np.moveaxis(scaled, 2, 0)
    light: Floats = (red + green + blue) / np.float32(3)
    share: Floats = np.float32(1) / (light + np.float32(DARK))
    return [np.sqrt(light), (red - green) * share, ((red + green) / np.float32(2) - blue) * share]


def _colour(planes: list[Floats], grid: tuple[int, int]) -> Floats:
    """(h * w, 48) soft histograms of each plane, over the token and over its neighbourhood."""
    shares = [_soft_histogram(plane, low, high, grid) for plane, (low, high) in zip(planes, RANGES, strict=True)]
    own = np.concatenate(shares, axis=2)
    pooled = [cv2.blur(own, (side, side), borderType=cv2.BORDER_REFLECT) for side in NEIGHBOURHOODS]
    return np.concatenate(pooled, axis=2, dtype=np.float32).reshape(grid[0] * grid[1], -1)


def _soft_histogram(plane: Floats, low: float, high: float, grid: tuple[int, int]) -> Floats:
    """(h, w, 8) shares of a token's pixels, each pixel split linearly between its two nearest bin centres.

    The ramps clip(t - k, 0, 1) averaged over the token differ from one to the next by exactly the bins' shares.
    """
    position = (plane - np.float32(low)) * np.float32((BINS - 1) / (high - low))
    ramps = [_pool(np.clip(position - np.float32(k), 0, 1), grid) for k in range(BINS - 1)]
    steps = [np.ones(grid, np.float32), *ramps, np.zeros(grid, np.float32)]
    return np.asarray(-np.diff(np.stack(steps, axis=2), axis=2), np.float32)


def _energy(planes: list[Floats], grid: tuple[int, int]) -> Floats:
    """(h * w, 63) mean magnitudes of the low DCT coefficients of each plane and scale, and the constant FLOOR."""
    pooled = [np.full(grid, FLOOR, np.float32)]
    for cell, stride, orders in SCALES:
        for plane, order in zip(planes, orders, strict=True):
            scaled = plane if cell == PATCH else _pool(plane, (grid[0] * cell, grid[1] * cell))
            pooled += [_pool(c, grid) for c in np.abs(_coefficients(scaled, order, stride))] if order else []
    return np.stack(pooled, axis=2).reshape(grid[0] * grid[1], -1)


def _coefficients(plane: Floats, order: int, stride: int) -> Floats:
    """(n, H / stride, W / stride) DCT-II coefficients 0 < u + v <= order of 8×8 windows, one centred on each stride."""
    pairs = [(u, v) for u, v in product(range(order + 1), repeat=2) if 0 < u + v <= order]
    basis = np.stack([np.outer(_cosine(u), _cosine(v)).ravel() for u, v in pairs])
    before, after = (WINDOW - stride) // 2, (WINDOW - stride + 1) // 2
    padded = cv2.copyMakeBorder(plane, before, after, before, after, cv2.BORDER_REFLECT)
    rows, cols = plane.shape[0] // stride, plane.shape[1] // stride
    windows = np.empty((WINDOW, WINDOW, rows, cols), np.float32)
    for y, x in product(range(WINDOW), repeat=2):
        windows[y, x] = padded[y : y + rows * stride : stride, x : x + cols * stride : stride]
    return np.asarray((basis @ windows.reshape(WINDOW * WINDOW, -1)).reshape(-1, rows, cols), np.float32)


def _cosine(frequency: int) -> Floats:
    """(8,) the orthonormal DCT-II basis vector of a frequency."""
    wave = np.cos(np.pi * frequency * (2 * np.arange(WINDOW) + 1) / (2 * WINDOW))
    return np.asarray(wave / np.linalg.norm(wave), np.float32)


def _pool(plane: Floats, grid: tuple[int, int]) -> Floats:
    """(h, w) means of a plane over the cells of a grid."""
    return np.asarray(cv2.resize(plane, grid[::-1], interpolation=cv2.INTER_AREA), np.float32)


def _unit(rows: Floats) -> Floats:
    """Rows of unit length; none is all zeros, since shares sum to one and energies have their floor."""
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True), np.float32)


class TextureFeatures(Extractor):
    """The extractor without weights: texture_tokens of each image, on one core, the same on every machine."""

    name = "texture"
    dim = DIM
    patch = PATCH
    device = "cpu"
    runtime = "numpy"
    reach = float(max(NEIGHBOURHOODS))

    def __init__(self, input_size: int = 448, input_edge: Edge = "area", input_aspect: Aspect = "keep") -> None:
        self.input_size, self.input_edge, self.input_aspect = input_size, input_edge, input_aspect
        levels, bins = (BRIGHTNESS, DARK, FLOOR, ENERGY_WEIGHT), (BINS, RANGES, NEIGHBOURHOODS)
        constants = (VERSION, PATCH, levels, bins, WINDOW, SCALES)
        self.fingerprint = hashlib.sha256(repr(constants).encode()).hexdigest()[:16]

    def extract(self, images: Sequence[RGB]) -> Floats:
        """(B, T, DIM) float32 unit rows of equally large (H, W, 3) uint8 RGB images; sides are multiples of 14."""
        grid = (images[0].shape[0] // PATCH, images[0].shape[1] // PATCH)
        return np.stack([texture_tokens(image, grid) for image in images])

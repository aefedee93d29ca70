"""Defects made on pictures of good parts: spots, scratches, dents, misplaced patches, missing texture.

Each is a cover, how much of a pixel the defect takes (0–1), and what it shows there. Pure: pixels in, pixels out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
Float = NDArray[np.float32]
Mask = NDArray[np.bool_]
Away = NDArray[np.int64]

Kind = Literal["dark", "bright", "colour", "scratch", "dent", "patch", "missing"]
Zone = Literal["centre", "middle", "edge"]
Grade = Literal["clear", "faint"]

KINDS: tuple[Kind, ...] = get_args(Kind)
ZONES: tuple[Zone, ...] = get_args(Zone)
GRADES: dict[Grade, float] = {"clear": 0.8, "faint": 0.3}
LENGTH_OF_SCRATCH = 12.0
"""Of a scratch, as a multiple of its width."""

_DARK, _BRIGHT = 20.0, 235.0
_COLOURS = np.array([[40, 40, 210], [40, 190, 40], [210, 60, 40]], np.float32)  # BGR: red, green, blue
_LEAST_CHANGE = 4.0  # grey levels, mean over the defect: less cannot be called one


@dataclass(frozen=True)
class Defect:
    """A picture with a defect, and its area in pixels of the picture."""

    picture: Picture
    area_px: float


def zones_of(mask: Mask | None, height: int, width: int) -> dict[Zone, Mask]:
    """Three zones of the part with as many pixels each, by the distance from its edge; of the whole ROI without a mask.

    `mask`: (height, width) bool.
    """
    inside = np.ones((height, width), np.bool_) if mask is None else mask
    framed = np.pad(inside, 1).view(np.uint8)
    depth = cv2.distanceTransform(framed, cv2.DIST_L2, 5)[1:-1, 1:-1]
    outer, inner = np.quantile(depth[inside], [1 / 3, 2 / 3])
    return {
        "centre": inside & (depth > inner),
        "middle": inside & (depth > outer) & (depth <= inner),
        "edge": inside & (depth <= outer),
    }


def extent_of(kind: Kind, area: float) -> float:
    """The length of a scratch, or the diameter of any other defect, of `area`; in the unit whose square that is in."""
    return float((area * LENGTH_OF_SCRATCH) ** 0.5 if kind == "scratch" else 2 * (area / np.pi) ** 0.5)


def make_defect(
    picture: Picture,
    kind: Kind,
    *,
    area_px: float,
    strength: float,
    zone: Mask,
    donor: Picture,
    rng: np.random.Generator,
    attempts: int = 8,
) -> Defect | None:
    """The picture with one defect whose middle is in `zone`, or None where it cannot be told from the part.

    Args:
        picture: (H, W, 3) uint8 BGR.
        area_px: the area asked for; what lies beyond the picture is not there.
        strength: how much of the picture the defect hides, 0–1.
        zone: (H, W) bool, at least one pixel.
        donor: (H, W, 3) uint8 of a good part, from which a misplaced patch is taken.
        attempts: places that are tried, where a dark spot may be on dark ground.
    """
    places = np.flatnonzero(zone)
    for _ in range(attempts):
        y, x = divmod(int(places[rng.integers(len(places))]), picture.shape[1])
        reach = int(extent_of(kind, area_px) / 2) + 2
        box = slice(max(0, y - reach), y + reach + 1), slice(max(0, x - reach), x + reach + 1)
        part = picture[box].astype(np.float32)
        rows, columns = np.ogrid[: part.shape[0], : part.shape[1]]
        away = rows - (y - box[0].start), columns - (x - box[1].start)
        cover = _scratch(*away, area_px, rng) if kind == "scratch" else _disc(*away, area_px)
        shown = _SHOWN[kind](part, cover, donor, rng)
        made = np.clip(np.rint(part + strength * cover[:, :, None] * (shown - part)), 0, 255).astype(np.uint8)
        change = np.abs(made.astype(np.float32) - part).mean(axis=2)[cover > 0.5]
        if change.size and change.mean() >= _LEAST_CHANGE:
            whole = picture.copy()
            whole[box] = made
            return Defect(whole, float(cover.sum()))
    return None


def _disc(down: Away, across: Away, area: float) -> Float:
    """(h, w) cover of a disc whose edge is a pixel soft, at these distances from its middle."""
    return np.asarray(np.clip((area / np.pi) ** 0.5 + 0.5 - np.hypot(down, across), 0, 1), np.float32)


def _scratch(down: Away, across: Away, area: float, rng: np.random.Generator) -> Float:
    """(h, w) cover of a straight line, a twelfth as wide as long, at a random angle."""
    angle = rng.uniform(0, np.pi)
    along = down * np.sin(angle) + across * np.cos(angle)
    beside = np.abs(across * np.sin(angle) - down * np.cos(angle))
    length = extent_of("scratch", area)
    thickness = length / LENGTH_OF_SCRATCH
    soft = np.clip(thickness / 2 + 0.5 - beside, 0, min(1.0, thickness))
    return np.asarray(soft * np.clip(length / 2 + 0.5 - np.abs(along), 0, 1), np.float32)


def _grey(level: float) -> Callable[..., Float]:
    return lambda part, *_: np.full_like(part, level)


def _colour(part: Float, cover: Float, donor: Picture, rng: np.random.Generator) -> Float:
    """The one of red, green and blue that differs most from what is there."""
    there = np.average(part.reshape(-1, 3), axis=0, weights=cover.ravel())
    farthest = np.abs(_COLOURS - there).sum(axis=1).argmax()
    return np.broadcast_to(_COLOURS[farthest], part.shape)


def _scratched(part: Float, cover: Float, donor: Picture, rng: np.random.Generator) -> Float:
    """Bright on what is dark, and dark on what is bright."""
    dark = np.average(part.mean(axis=2), weights=cover) < 128
    return np.full_like(part, _BRIGHT if dark else _DARK)


def _dented(part: Float, cover: Float, donor: Picture, rng: np.random.Generator) -> Float:
    """Blurred, and shaded from light on one side to shade on the other."""
    height, width = cover.shape
    sigma = max(0.8, min(height, width) / 6)
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
    slope = rows * np.sin(angle) + columns * np.cos(angle)
    return np.asarray(cv2.GaussianBlur(part, (0, 0), sigma) + 60 * slope[:, :, None], np.float32)


def _misplaced(part: Float, cover: Float, donor: Picture, rng: np.random.Generator) -> Float:
    """As much of another place of a good part (CutPaste: Li et al., CVPR 2021)."""
    height, width = cover.shape
    y, x = (int(rng.integers(0, size - side + 1)) for size, side in zip(donor.shape, (height, width), strict=False))
    return np.asarray(donor[y : y + height, x : x + width], np.float32)


def _missing(part: Float, cover: Float, donor: Picture, rng: np.random.Generator) -> Float:
    """The mean colour of what is there: a place without texture."""
    return np.broadcast_to(
        np.average(part.reshape(-1, 3), axis=0, weights=cover.ravel()).astype(np.float32), part.shape
    )


_SHOWN: dict[Kind, Callable[[Float, Float, Picture, np.random.Generator], Float]] = {
    "dark": _grey(_DARK),
    "bright": _grey(_BRIGHT),
    "colour": _colour,
    "scratch": _scratched,
    "dent": _dented,
    "patch": _misplaced,
    "missing": _missing,
}

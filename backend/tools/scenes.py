"""Brake discs, good and bad, for demonstrations without files: the ROI a station would cut, and its truth."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

from backend.tools.scenes_render import (
    DRILL_RADIUS,
    DRILLS,
    MM_PER_PX,
    NATIVE_SIZE,
    RING_IN,
    RING_OUT,
    Floats,
    Part,
    Surface,
    band,
    blur,
    normal,
    photograph,
    smooth_step,
    turned_disc,
    unit,
)

__all__ = ["MM_PER_PX", "Defect", "Scene", "brake_disc"]

Defect: TypeAlias = Literal["", "crack", "scratch", "rust", "dent", "missing_hole"]


@dataclass(frozen=True, eq=False)
class Scene:
    """One canonical ROI: image (H, W, 3) uint8 BGR, the defect's name ("" when good), truth (H, W) bool.

    ``truth`` marks the pixels that the defect changed; everywhere else the image is the same part without it.
    ``shape`` is the friction ring as an annulus mask: kind, cx, cy, r, r_inner, in pixels.
    """

    image: NDArray[np.uint8]
    defect: str
    truth: NDArray[np.bool_]
    shape: dict[str, Any]


def brake_disc(rng: np.random.Generator, *, size: int = NATIVE_SIZE, defect: Defect = "") -> Scene:
    """Draw a ventilated, cross-drilled brake disc as a station's camera would see it, ``size`` pixels square.

    Every call is another part: brightness, grooves, stains, noise and a misalignment under one pixel differ.
    The same state of ``rng`` gives the same part whatever the defect, so a good and a bad picture can be
    compared pixel by pixel. Defects lie on the friction ring; a crack starts at a drill hole. Another
    size shows the same view at ``MM_PER_PX * 448 / size``.

    Raises ValueError for an unknown defect or a size under 64.
    """
    if defect and defect not in _DEFECTS:
        raise ValueError(f"defect must be one of {', '.join(_DEFECTS)} or empty, not {defect!r}")
    if size < 64:
        raise ValueError(f"size must be at least 64 pixels, not {size}")
    part = Part.draw(rng, size)
    surface = turned_disc(part)
    image, truth = photograph(surface, part), np.zeros((size, size), np.bool_)
    if defect:
        bad = photograph(_DEFECTS[defect](surface, part, rng), part)
        truth = _changed(image, bad)
        image = np.where(truth[..., None], bad, image)
    return Scene(image, defect, truth, _friction_ring(size))


def _friction_ring(size: int) -> dict[str, Any]:
    scale, centre = size / (NATIVE_SIZE * MM_PER_PX), (size - 1) / 2
    return {
        "kind": "annulus", "cx": centre, "cy": centre,
        "r": round(RING_OUT * scale, 1), "r_inner": round(RING_IN * scale, 1),
    }  # fmt: skip


def _changed(good: NDArray[np.uint8], bad: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a person could see the difference: 5 grey levels, with the pinholes of a zero crossing closed."""
    seen = (cv2.absdiff(good, bad).max(axis=2) >= 5).astype(np.uint8)
    return np.asarray(cv2.morphologyEx(seen, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)), np.bool_)


def _spot(rng: np.random.Generator) -> tuple[float, float]:
    """A place on the friction ring, clear of its edges."""
    row, angle = rng.uniform(96, 122), rng.uniform(0, 2 * np.pi)
    return float(row * np.cos(angle)), float(row * np.sin(angle))


def _away(surface: Surface, x: float, y: float) -> Floats:
    """Millimetres from every pixel to one point."""
    return np.asarray(np.hypot(surface.x - np.float32(x), surface.y - np.float32(y)), np.float32)


def _ground(surface: Surface) -> Floats:
    """1 on the friction ring's solid face, 0 in its holes and beyond its edges."""
    return band(RING_IN + 1.5, RING_OUT - 1.5, surface.radius, 0.6) * smooth_step(0.85, 0.99, surface.open)


def _distance(surface: Surface, path: NDArray[np.float64]) -> Floats:
    """Millimetres from every pixel to a polyline of (x, y) millimetres."""
    side = surface.x.shape[0]
    pixel = float(surface.x[0, 1] - surface.x[0, 0])
    origin = np.array([surface.x[side // 2, 0], surface.y[0, side // 2]], np.float64)
    off = np.full((side, side), 255, np.uint8)
    cv2.polylines(off, [np.rint((path - origin) / pixel).astype(np.int32)], False, 0)
    return np.asarray(pixel * cv2.distanceTransform(off, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)


def _relief(surface: Surface, height: Floats) -> tuple[Floats, Floats]:
    """The slopes after adding ``height`` (mm) to the surface."""
    down, right = np.gradient(height, float(surface.x[0, 1] - surface.x[0, 0]))
    return (surface.slope_x + right).astype(np.float32), (surface.slope_y + down).astype(np.float32)


def _clouds(rng: np.random.Generator, side: int, scales: tuple[float, ...]) -> Floats:
    """Unit fractal noise with the given scales (pixels of a 896-pixel grid), coarse ones the stronger."""
    sigmas = [scale * side / 896 for scale in scales]
    layers = [sigma**0.5 * unit(blur(normal(rng, (side, side)), sigma)) for sigma in sigmas]
    return unit(np.sum(layers, axis=0, dtype=np.float32))


def _crack(surface: Surface, part: Part, rng: np.random.Generator) -> Surface:
    """A fatigue crack that starts at a drill hole and wanders outwards or inwards, thinning to nothing."""
    row, angle = DRILLS[int(rng.integers(len(DRILLS)))]
    outward = 1 if row < 100 or (row < 120 and rng.random() < 0.5) else -1
    heading = angle + (0 if outward > 0 else np.pi) + rng.normal(0, 0.25)
    turns = heading + np.cumsum(rng.normal(0, 0.22, 24)) * 0.6 + rng.normal(0, 0.25, 24)
    steps = rng.uniform(0.9, 1.3) * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    start = np.array([np.cos(angle), np.sin(angle)]) * (row + outward * DRILL_RADIUS)
    path = np.vstack([start, start + np.cumsum(steps, axis=0)])
    thinning = np.float32(0.45) * np.clip(_away(surface, *start) / np.float32(26), 0, 1)
    core = (1 - smooth_step(0.4, 1.2, np.add(_distance(surface, path), thinning, dtype=np.float32))) * _ground(surface)
    slope_x, slope_y = _relief(surface, -0.18 * blur(core, 1.6))
    return replace(
        surface,
        slope_x=slope_x,
        slope_y=slope_y,
        gloss=surface.gloss * (1 - 0.8 * core),
        open=surface.open * (1 - 0.86 * core),
    )


def _scratch(surface: Surface, part: Part, rng: np.random.Generator) -> Surface:
    """A handling scratch across the turning marks: a bright furrow, dark flanks, a fainter one beside."""
    x, y = _spot(rng)
    heading = np.arctan2(y, x) + rng.uniform(0.5, 1.1) * rng.choice([-1, 1])
    t = np.linspace(-1, 1, 40)
    half, bend = rng.uniform(15, 24), rng.uniform(-2.5, 2.5)
    u, v = np.array([np.cos(heading), np.sin(heading)]), np.array([-np.sin(heading), np.cos(heading)])
    path = np.array([x, y]) + half * t[:, None] * u + bend * (t**2)[:, None] * v
    main = 1 - smooth_step(0.15, 0.95, _distance(surface, path))
    beside = 1 - smooth_step(0.0, 0.7, _distance(surface, path[6:27] + rng.uniform(1.4, 2.4) * v))
    ends = 1 - smooth_step(0.75 * half, 1.02 * half, _away(surface, x, y))
    broken = np.clip(0.85 + 0.25 * _clouds(rng, surface.x.shape[0], (12.0, 4.0)), 0, 1)
    flank = band(0.9, 1.9, _distance(surface, path), 0.3) * ends * broken * _ground(surface)
    core = np.maximum(main, 0.5 * beside) * ends * broken * _ground(surface)
    slope_x, slope_y = _relief(surface, -0.22 * core)
    return replace(
        surface,
        slope_x=slope_x,
        slope_y=slope_y,
        rough=surface.rough + 0.5 * core,
        gloss=surface.gloss * (1 + 0.2 * core),
        albedo=surface.albedo * (1 + 0.5 * core)[..., None],
        open=surface.open * (1 - 0.5 * flank),
    )


def _rust(surface: Surface, part: Part, rng: np.random.Generator) -> Surface:
    """A corroded patch: mottled browns, ragged outline, specks around it, no gloss."""
    (x, y), side = _spot(rng), surface.x.shape[0]
    away = _away(surface, x, y) / np.float32(rng.uniform(9, 15))
    cloud, speck = _clouds(rng, side, (14.0, 6.0, 2.5)), _clouds(rng, side, (2.2, 1.3))
    cloud = cloud - cloud[away < 0.8].mean()
    cover = smooth_step(-0.15, 0.75, 1.05 - away + 0.28 * cloud + 0.10 * speck)
    specks = 0.8 * smooth_step(2.2, 2.9, speck) * (1 - smooth_step(1.1, 1.9, away))
    cover = np.maximum(cover, specks) * _ground(surface)
    ochre, umber = np.array([0.014, 0.044, 0.125], np.float32), np.array([0.009, 0.018, 0.040], np.float32)
    mottle = np.clip(0.5 + 0.24 * speck + 0.22 * cloud, 0, 1)[..., None]
    mix = (0.95 * cover)[..., None]
    slope_x, slope_y = _relief(surface, 0.05 * cover * speck)
    return replace(
        surface,
        slope_x=slope_x,
        slope_y=slope_y,
        gloss=surface.gloss * (1 - 0.97 * cover),
        albedo=surface.albedo * (1 - mix) + mix * (ochre * mottle + umber * (1 - mottle)),
    )


def _dent(surface: Surface, part: Part, rng: np.random.Generator) -> Surface:
    """A blow: an oval hollow with a raised lip, its grooves half crushed."""
    (x, y), lean = _spot(rng), rng.uniform(0, np.pi)
    dx, dy = surface.x - np.float32(x), surface.y - np.float32(y)
    wide = rng.uniform(4.5, 6.5)
    narrow = wide * rng.uniform(0.6, 0.85)
    a = (dx * np.cos(lean) + dy * np.sin(lean)) / wide
    b = (dy * np.cos(lean) - dx * np.sin(lean)) / narrow
    squared = np.asarray(a * a + b * b, np.float32)
    hollow = np.exp(-squared) * (1 - smooth_step(4.0, 6.0, squared))
    lip = 0.35 * np.exp(-((np.sqrt(squared) - 1.55) ** 2) / 0.12)
    ground = _ground(surface)
    slope_x, slope_y = _relief(surface, np.asarray(wide * 0.21 * (lip - hollow), np.float32))
    return replace(
        surface,
        slope_x=surface.slope_x + ground * (slope_x - surface.slope_x * (1 + 0.5 * hollow)),
        slope_y=surface.slope_y + ground * (slope_y - surface.slope_y * (1 + 0.5 * hollow)),
        rough=surface.rough + 0.12 * hollow * ground,
        open=surface.open * (1 - 0.18 * hollow * ground),
    )


def _missing_hole(surface: Surface, part: Part, rng: np.random.Generator) -> Surface:
    """A drill hole that was never drilled."""
    return turned_disc(part, without=int(rng.integers(len(DRILLS))))


_DEFECTS: dict[str, Callable[[Surface, Part, np.random.Generator], Surface]] = {
    "crack": _crack, "scratch": _scratch, "rust": _rust, "dent": _dent, "missing_hole": _missing_hole,
}  # fmt: skip

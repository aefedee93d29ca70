"""Rendered brake discs, good and bad, for demonstrations without files: the ROI a station would cut, and its truth.

A disc is a height field on a fixed grid: every pixel has a slope, a diffuse albedo, a gloss and how open it is to the
light. A key lamp, a fill lamp and a dome light it. Turned metal glints across its grooves, so the highlight is Ward's
anisotropic lobe (G. J. Ward, "Measuring and modeling anisotropic reflection", SIGGRAPH 1992) about the circular
tangent, which gives the bow tie seen on real discs. Lengths are millimetres; x points right, y down, z to the camera.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["MM_PER_PX", "Defect", "Scene", "brake_disc"]

Defect: TypeAlias = Literal["", "crack", "scratch", "rust", "dent", "missing_hole"]
_Floats: TypeAlias = NDArray[np.float32]

_NATIVE_SIZE = 448
MM_PER_PX: float = 0.66
"""Millimetres per pixel at 448 pixels; another size shows the same view at `MM_PER_PX * 448 / size`."""

_OUTER, _RING_OUT, _RING_IN, _HAT, _BORE = 140.0, 138.0, 80.0, 75.0, 33.0
_BOLT_CIRCLE, _BOLT_RADIUS = 55.0, 7.5
_DRILL_RADIUS, _DRILL_CHAMFER = 3.3, 4.5
_DRILLS = tuple(
    (row, np.deg2rad(30 * group + 9 * step + 4)) for group in range(12) for step, row in enumerate((93.0, 109.0, 125.0))
)
_SUPERSAMPLE = 2
_CAMERA_HEIGHT = 800.0
_KEY_AZIMUTH = np.deg2rad(-118.0)
_KEY = (1.0, 0.985, 0.955)
_FILL = (0.90, 0.96, 1.0)


@dataclass(frozen=True, eq=False)
class Scene:
    """One canonical ROI: image (H, W, 3) uint8 BGR, the defect's name ("" when good), truth (H, W) bool.

    `truth` marks the pixels that the defect changed; everywhere else the image is the same part without it.
    `shape` is the friction ring as an annulus mask: kind, cx, cy, r, r_inner, in pixels.
    """

    image: NDArray[np.uint8]
    defect: str
    truth: NDArray[np.bool_]
    shape: dict[str, Any]


def brake_disc(rng: np.random.Generator, *, size: int = _NATIVE_SIZE, defect: Defect = "") -> Scene:
    """Draw a ventilated, cross-drilled brake disc as a station's camera would see it, `size` pixels square.

    Every call is another part: brightness, grooves, stains, noise and a misalignment under one pixel differ.
    The same state of `rng` gives the same part whatever the defect, so a good and a bad picture can be
    compared pixel by pixel. Defects lie on the friction ring; a crack starts at a drill hole. Another
    size shows the same view at `MM_PER_PX * 448 / size`.

    Raises ValueError for an unknown defect or a size under 64.
    """
    if defect and defect not in _DEFECTS:
        raise ValueError(f"defect must be one of {', '.join(_DEFECTS)} or empty, not {defect!r}")
    if size < 64:
        raise ValueError(f"size must be at least 64 pixels, not {size}")
    part = _Part.draw(rng, size)
    surface = _turned_disc(part)
    image, truth = _photograph(surface, part), np.zeros((size, size), np.bool_)
    if defect:
        bad = _photograph(_DEFECTS[defect](surface, part, rng), part)
        truth = _changed(image, bad)
        image = np.where(truth[..., None], bad, image)
    return Scene(image, defect, truth, _friction_ring(size))


def _friction_ring(size: int) -> dict[str, Any]:
    scale, centre = size / (_NATIVE_SIZE * MM_PER_PX), (size - 1) / 2
    return {
        "kind": "annulus", "cx": centre, "cy": centre,
        "r": round(_RING_OUT * scale, 1), "r_inner": round(_RING_IN * scale, 1),
    }  # fmt: skip


def _changed(good: NDArray[np.uint8], bad: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """(H, W) bool: pixels that differ by 5 grey levels or more, which a person sees; pinholes among them are filled."""
    seen = (cv2.absdiff(good, bad).max(axis=2) >= 5).astype(np.uint8)
    return np.asarray(cv2.morphologyEx(seen, cv2.MORPH_CLOSE, np.ones((3, 3), np.uint8)), np.bool_)


@dataclass(frozen=True)
class _Part:
    """What differs from one good part, and one exposure, to the next."""

    size: int
    shift: tuple[float, float]
    turn: float
    exposure: float
    azimuth: float
    gloss: float
    grooves: _Floats
    streaks: _Floats
    stains: _Floats
    grain: _Floats
    noise: _Floats

    @classmethod
    def draw(cls, rng: np.random.Generator, size: int) -> _Part:
        """Take all that is random about a part and its picture of `size` pixels."""
        scale = MM_PER_PX * _NATIVE_SIZE / size
        shift = rng.uniform(-0.45, 0.45, 2) * scale
        side = size * _SUPERSAMPLE
        return cls(
            size=size,
            shift=(float(shift[0]), float(shift[1])),
            turn=float(rng.uniform(-0.5, 0.5) * scale / _OUTER),
            exposure=float(rng.normal(1.0, 0.03)),
            azimuth=float(_KEY_AZIMUTH + rng.normal(0.0, 0.012)),
            gloss=float(rng.normal(1.0, 0.05)),
            grooves=_groove_profile(rng),
            streaks=_wrapped_noise(rng, (900, 1024), (0.8, 34.0)),
            stains=_wrapped_noise(rng, (160, 256), (9.0, 14.0)),
            grain=_blur(_normal(rng, (side, side)), 0.9 * side / 896),
            noise=_sensor_noise(rng, size),
        )


def _normal(rng: np.random.Generator, shape: tuple[int, ...]) -> _Floats:
    """White noise of unit variance."""
    return rng.standard_normal(shape, dtype=np.float32)


def _blur(plane: _Floats, across: float, down: float = 0.0) -> _Floats:
    """Gaussian smoothing with standard deviations in cells; without `down` the same both ways."""
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), sigmaX=across, sigmaY=down), np.float32)


def _unit(noise: _Floats) -> _Floats:
    """`noise` scaled to unit variance."""
    return np.asarray(noise / (noise.std() + 1e-6), np.float32)


def _groove_profile(rng: np.random.Generator) -> _Floats:
    """Slope of the turning marks by radius, one value each 0.15 mm: feed marks, chatter, waviness."""
    white = _normal(rng, (1, 1000))
    mix = [(0.42, 1.6), (0.55, 4.0), (0.45, 22.0)]
    profile = np.sum([weight * _unit(_blur(white, sigma))[0] for weight, sigma in mix], axis=0)
    feed = 0.55 * np.sin(2 * np.pi * np.arange(1000) * 0.15 / 1.9 + rng.uniform(0, 6.28))
    return np.asarray(profile + feed, np.float32)


def _wrapped_noise(rng: np.random.Generator, shape: tuple[int, int], sigma: tuple[float, float]) -> _Floats:
    """Unit noise over (radius, angle), smoothed by `sigma` cells along each, seamless in angle."""
    columns = shape[1]
    white = np.hstack([_normal(rng, shape)] * 3)
    return _unit(_blur(white, sigma[1], sigma[0])[:, columns : 2 * columns])


def _sensor_noise(rng: np.random.Generator, size: int) -> _Floats:
    """Noise as a colour camera leaves it: shared luminance grain and a smaller, demosaiced colour part."""
    luma = _blur(_normal(rng, (size, size)), 0.45)
    chroma = _blur(_normal(rng, (size, size, 3)), 0.8)
    return np.asarray(_unit(luma)[..., None] + 0.45 * _unit(chroma), np.float32)


@dataclass(frozen=True)
class _Surface:
    """A height field: slopes dh/dx and dh/dy, albedo (BGR), gloss, width of the glint, openness."""

    x: _Floats
    y: _Floats
    radius: _Floats
    angle: _Floats
    slope_x: _Floats
    slope_y: _Floats
    albedo: _Floats
    gloss: _Floats
    rough: _Floats
    open: _Floats


def _smooth_step(low: float, high: float, value: _Floats) -> _Floats:
    """Hermite step from 0 at `low` to 1 at `high`."""
    t = np.clip((value - np.float32(low)) / np.float32(high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def _band(low: float, high: float, value: _Floats, soft: float = 0.35) -> _Floats:
    """1 between `low` and `high`, 0 outside, over an edge of `soft` each way."""
    return _smooth_step(low - soft, low + soft, value) * (1 - _smooth_step(high - soft, high + soft, value))


def _turned_disc(part: _Part, without: int = -1) -> _Surface:
    """The part, with drill hole number `without` left solid."""
    surface = _finish(_blank(part), part)
    for number, (row, angle) in enumerate(_DRILLS):
        if number != without:
            _bore(surface, row, angle, _DRILL_RADIUS, _DRILL_CHAMFER, part.azimuth)
    bolts = [(degrees, _BOLT_RADIUS, _BOLT_RADIUS + 1.4) for degrees in range(-90, 270, 72)]
    for degrees, radius, chamfer in [*bolts, (-54, 3.2, 5.4), (162, 3.2, 4.0)]:
        _bore(surface, _BOLT_CIRCLE, np.deg2rad(degrees), radius, chamfer, part.azimuth)
    _bore(surface, 0.0, 0.0, _BORE, _BORE + 1.8, part.azimuth)
    return surface


def _blank(part: _Part) -> _Surface:
    """The turned body without holes or finish: slopes and coordinates in the part's own frame."""
    side = part.size * _SUPERSAMPLE
    pixel = MM_PER_PX * _NATIVE_SIZE / side
    line = ((np.arange(side) - (side - 1) / 2) * pixel).astype(np.float32)
    gx, gy = np.meshgrid(line - np.float32(part.shift[0]), line - np.float32(part.shift[1]))
    cos, sin = np.float32(np.cos(part.turn)), np.float32(np.sin(part.turn))
    x, y = gx * cos + gy * sin, gy * cos - gx * sin
    radius = np.hypot(x, y)
    rise = _band(_RING_IN - 1.2, _RING_IN, radius) - 0.9 * _band(_RING_OUT, _OUTER, radius)
    rise -= 1.6 * _band(_HAT - 2.4, _HAT, radius, 1.0)
    rise -= 0.25 * _band(_BORE + 1.8, _BORE + 4.0, radius)
    reach = np.maximum(radius, 1e-3)
    zero = np.zeros_like(radius)
    return _Surface(
        x, y, radius, np.arctan2(y, x), rise * x / reach, rise * y / reach,
        np.zeros((side, side, 3), np.float32), zero, zero.copy(), np.ones_like(radius),
    )  # fmt: skip


def _polar(texture: _Floats, surface: _Surface) -> _Floats:
    """Sample a (radius, angle) texture that spans 0 … 150 mm and the whole turn."""
    rows, columns = texture.shape
    padded = np.hstack([texture, texture[:, :1]])
    across = (surface.angle + np.float32(np.pi)) * np.float32(columns / (2 * np.pi))
    down = surface.radius * np.float32((rows - 1) / 150)
    sampled = cv2.remap(padded, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(sampled, np.float32)


def _finish(surface: _Surface, part: _Part) -> _Surface:
    """Give each zone its material: bench, ground ring, undercut, coated hub, machined edges."""
    r = surface.radius
    ring, hat = _band(_RING_IN, _OUTER, r), 1 - _smooth_step(_HAT - 0.4, _HAT + 0.4, r)
    disc = 1 - _smooth_step(_OUTER - 0.3, _OUTER + 0.3, r)
    streaks, stains = _polar(part.streaks, surface), _polar(part.stains, surface)
    groove = np.interp(r, np.arange(1000) * 0.15, part.grooves).astype(np.float32)
    tilt = groove * (0.055 * ring + 0.022 * hat) + 0.03 * streaks * ring + 0.035 * part.grain * hat
    reach = np.maximum(r, 1e-3)
    tone = 0.030 + disc * (0.050 + 0.055 * ring + 0.03 * hat)
    mottle = disc * (0.05 * streaks * ring + 0.05 * stains + 0.06 * part.grain)
    tone *= 1 + mottle + (1 - disc) * 0.18 * part.grain
    cast = np.array([-0.03, 0.008, 0.02], np.float32)
    tint = np.array([1.02, 1.0, 0.985], np.float32) + hat[..., None] * cast
    gloss = part.gloss * (ring * (0.92 + 0.10 * streaks - 0.05 * stains) + hat * (0.13 + 0.01 * stains))
    under = _band(_HAT, _RING_IN - 1.0, r, 0.8)
    return replace(
        surface,
        slope_x=surface.slope_x + tilt * surface.x / reach,
        slope_y=surface.slope_y + tilt * surface.y / reach,
        albedo=tone[..., None] * tint,
        gloss=gloss.astype(np.float32),
        rough=(0.15 + 0.17 * hat).astype(np.float32),
        open=(1 - 0.72 * under) * (1 - (1 - disc) * 0.55 * (1 - _smooth_step(_OUTER, _OUTER + 9, r))),
    )


def _bore(surface: _Surface, row: float, angle: float, radius: float, chamfer: float, azimuth: float) -> None:
    """Sink a hole into `surface` in place: countersunk rim, dark inside, far wall catching the light."""
    cx, cy = row * np.cos(angle), row * np.sin(angle)
    rows, columns = _window(surface, cx, cy, chamfer + 2)
    dx, dy = surface.x[rows, columns] - np.float32(cx), surface.y[rows, columns] - np.float32(cy)
    reach = np.maximum(np.hypot(dx, dy), 1e-3)
    rim, inside = _band(radius, chamfer, reach, 0.25), 1 - _smooth_step(radius - 0.3, radius + 0.3, reach)
    surface.slope_x[rows, columns] += 0.75 * rim * dx / reach
    surface.slope_y[rows, columns] += 0.75 * rim * dy / reach
    surface.gloss[rows, columns] *= (1 - 0.4 * rim) * (1 - inside)
    surface.rough[rows, columns] += 0.35 * rim
    facing = np.clip(-(dx * np.cos(azimuth) + dy * np.sin(azimuth)) / reach, 0, 1)
    wall = 0.03 + 0.5 * facing * _smooth_step(radius - 2.2, radius, reach)
    surface.open[rows, columns] *= 1 - inside * (1 - wall.astype(np.float32))


def _window(surface: _Surface, cx: float, cy: float, reach: float) -> tuple[slice, slice]:
    """The rows and columns within `reach` of a point, so that a small feature costs little."""
    side = surface.x.shape[0]
    pixel = float(surface.x[0, 1] - surface.x[0, 0])
    column = (cx - float(surface.x[side // 2, 0])) / pixel
    row = (cy - float(surface.y[0, side // 2])) / pixel
    extent = reach / pixel + 4
    return (
        slice(max(int(row - extent), 0), max(int(row + extent) + 1, 1)),
        slice(max(int(column - extent), 0), max(int(column + extent) + 1, 1)),
    )


def _photograph(surface: _Surface, part: _Part) -> NDArray[np.uint8]:
    """Shade, blur as a lens does, average to pixels, roll off the highlights, add the sensor's noise."""
    light = _blur(_shade(surface, part), 1.0)
    pixels = cv2.resize(light, (part.size, part.size), interpolation=cv2.INTER_AREA)
    density = 1 - np.exp(-1.55 * part.exposure * np.asarray(pixels, np.float32))
    grey = 255 * np.power(np.clip(density, 0, 1), np.float32(1 / 2.2))
    grey += part.noise * (1.1 + 0.9 * np.sqrt(grey / 255))
    return np.asarray(np.clip(np.rint(grey), 0, 255), np.uint8)


def _shade(surface: _Surface, part: _Part) -> _Floats:
    """Linear light, (side, side, 3) BGR: a dome that sees everything, a key and a weak fill."""
    key = _lamp(surface, part.azimuth, 330.0, 560.0) * _shadow(surface, part.azimuth)[..., None]
    fill = _lamp(surface, part.azimuth + 2.3, 420.0, 420.0)
    steep = 1 / np.sqrt(1 + surface.slope_x**2 + surface.slope_y**2)
    dome = (0.55 * surface.albedo + 0.075 * surface.gloss[..., None]) * steep[..., None]
    light = dome + key * np.array(_KEY[::-1], np.float32) + 0.45 * fill * np.array(_FILL[::-1], np.float32)
    return np.asarray(light * surface.open[..., None], np.float32)


def _shadow(surface: _Surface, azimuth: float) -> _Floats:
    """The key light that is left beside the raised hub and, on the bench, beside the disc itself."""
    away = np.float32(-np.cos(azimuth)), np.float32(-np.sin(azimuth))
    hub = np.hypot(surface.x - 6 * away[0], surface.y - 6 * away[1])
    disc = np.hypot(surface.x - 8 * away[0], surface.y - 8 * away[1])
    on_ring = _smooth_step(_HAT, _HAT + 0.8, surface.radius) * (1 - _smooth_step(_HAT - 3.5, _HAT + 3.0, hub))
    on_bench = _smooth_step(_OUTER, _OUTER + 0.8, surface.radius) * (1 - _smooth_step(_OUTER - 5, _OUTER + 5, disc))
    return (1 - 0.6 * on_ring) * (1 - 0.75 * on_bench)


def _lamp(surface: _Surface, azimuth: float, aside: float, above: float) -> _Floats:
    """Lambert plus Ward's anisotropic lobe for a lamp `aside` and `above` the part (mm)."""
    norm = np.sqrt(1 + surface.slope_x**2 + surface.slope_y**2)
    lx, ly = np.float32(aside * np.cos(azimuth)) - surface.x, np.float32(aside * np.sin(azimuth)) - surface.y
    far = np.sqrt(lx * lx + ly * ly + np.float32(above**2))
    facing = np.clip((np.float32(above) - surface.slope_x * lx - surface.slope_y * ly) / (far * norm), 0, 1)
    seen = np.sqrt(surface.radius**2 + np.float32(_CAMERA_HEIGHT**2))
    hx, hy = lx / far - surface.x / seen, ly / far - surface.y / seen
    hz = np.float32(above) / far + np.float32(_CAMERA_HEIGHT) / seen
    reach = np.maximum(surface.radius, 1e-3)
    ux, uy = surface.x / reach, surface.y / reach
    across = (hx * ux + hy * uy) / hz + surface.slope_x * ux + surface.slope_y * uy
    along = (hy * ux - hx * uy) / hz + surface.slope_y * ux - surface.slope_x * uy
    lobe = np.exp(-((along / surface.rough) ** 2) - (across / np.float32(0.42)) ** 2)
    falloff = (np.float32(np.hypot(aside, above)) / far) ** 2
    sheen = surface.albedo + (surface.gloss * lobe)[..., None]
    return np.asarray((falloff * facing)[..., None] * sheen, np.float32)


def _spot(rng: np.random.Generator) -> tuple[float, float]:
    """A place on the friction ring, clear of its edges."""
    row, angle = rng.uniform(96, 122), rng.uniform(0, 2 * np.pi)
    return float(row * np.cos(angle)), float(row * np.sin(angle))


def _away(surface: _Surface, x: float, y: float) -> _Floats:
    """Millimetres from every pixel to one point."""
    return np.asarray(np.hypot(surface.x - np.float32(x), surface.y - np.float32(y)), np.float32)


def _ground(surface: _Surface) -> _Floats:
    """1 on the friction ring's solid face, 0 in its holes and beyond its edges."""
    return _band(_RING_IN + 1.5, _RING_OUT - 1.5, surface.radius, 0.6) * _smooth_step(0.85, 0.99, surface.open)


def _distance(surface: _Surface, path: NDArray[np.float64]) -> _Floats:
    """Millimetres from every pixel to a polyline of (x, y) millimetres."""
    side = surface.x.shape[0]
    pixel = float(surface.x[0, 1] - surface.x[0, 0])
    origin = np.array([surface.x[side // 2, 0], surface.y[0, side // 2]], np.float64)
    off = np.full((side, side), 255, np.uint8)
    cv2.polylines(off, [np.rint((path - origin) / pixel).astype(np.int32)], False, 0)
    return np.asarray(pixel * cv2.distanceTransform(off, cv2.DIST_L2, cv2.DIST_MASK_PRECISE), np.float32)


def _relief(surface: _Surface, height: _Floats) -> tuple[_Floats, _Floats]:
    """The slopes after adding `height` (mm) to the surface."""
    down, right = np.gradient(height, float(surface.x[0, 1] - surface.x[0, 0]))
    return (surface.slope_x + right).astype(np.float32), (surface.slope_y + down).astype(np.float32)


def _clouds(rng: np.random.Generator, side: int, scales: tuple[float, ...]) -> _Floats:
    """Unit fractal noise with the given scales (pixels of a 896-pixel grid), coarse ones the stronger."""
    sigmas = [scale * side / 896 for scale in scales]
    layers = [sigma**0.5 * _unit(_blur(_normal(rng, (side, side)), sigma)) for sigma in sigmas]
    return _unit(np.sum(layers, axis=0, dtype=np.float32))


def _crack(surface: _Surface, part: _Part, rng: np.random.Generator) -> _Surface:
    """A fatigue crack that starts at a drill hole and wanders outwards or inwards, thinning to nothing."""
    row, angle = _DRILLS[int(rng.integers(len(_DRILLS)))]
    outward = 1 if row < 100 or (row < 120 and rng.random() < 0.5) else -1
    heading = angle + (0 if outward > 0 else np.pi) + rng.normal(0, 0.25)
    turns = heading + np.cumsum(rng.normal(0, 0.22, 24)) * 0.6 + rng.normal(0, 0.25, 24)
    steps = rng.uniform(0.9, 1.3) * np.stack([np.cos(turns), np.sin(turns)], axis=1)
    start = np.array([np.cos(angle), np.sin(angle)]) * (row + outward * _DRILL_RADIUS)
    path = np.vstack([start, start + np.cumsum(steps, axis=0)])
    thinning = np.float32(0.45) * np.clip(_away(surface, *start) / np.float32(26), 0, 1)
    core = (1 - _smooth_step(0.4, 1.2, np.add(_distance(surface, path), thinning, dtype=np.float32))) * _ground(surface)
    slope_x, slope_y = _relief(surface, -0.18 * _blur(core, 1.6))
    return replace(
        surface,
        slope_x=slope_x,
        slope_y=slope_y,
        gloss=surface.gloss * (1 - 0.8 * core),
        open=surface.open * (1 - 0.86 * core),
    )


def _scratch(surface: _Surface, part: _Part, rng: np.random.Generator) -> _Surface:
    """A handling scratch across the turning marks: a bright furrow, dark flanks, a fainter one beside."""
    x, y = _spot(rng)
    heading = np.arctan2(y, x) + rng.uniform(0.5, 1.1) * rng.choice([-1, 1])
    t = np.linspace(-1, 1, 40)
    half, bend = rng.uniform(15, 24), rng.uniform(-2.5, 2.5)
    u, v = np.array([np.cos(heading), np.sin(heading)]), np.array([-np.sin(heading), np.cos(heading)])
    path = np.array([x, y]) + half * t[:, None] * u + bend * (t**2)[:, None] * v
    main = 1 - _smooth_step(0.15, 0.95, _distance(surface, path))
    beside = 1 - _smooth_step(0.0, 0.7, _distance(surface, path[6:27] + rng.uniform(1.4, 2.4) * v))
    ends = 1 - _smooth_step(0.75 * half, 1.02 * half, _away(surface, x, y))
    broken = np.clip(0.85 + 0.25 * _clouds(rng, surface.x.shape[0], (12.0, 4.0)), 0, 1)
    flank = _band(0.9, 1.9, _distance(surface, path), 0.3) * ends * broken * _ground(surface)
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


def _rust(surface: _Surface, part: _Part, rng: np.random.Generator) -> _Surface:
    """A corroded patch: mottled browns, ragged outline, specks around it, no gloss."""
    (x, y), side = _spot(rng), surface.x.shape[0]
    away = _away(surface, x, y) / np.float32(rng.uniform(9, 15))
    cloud, speck = _clouds(rng, side, (14.0, 6.0, 2.5)), _clouds(rng, side, (2.2, 1.3))
    cloud = cloud - cloud[away < 0.8].mean()
    cover = _smooth_step(-0.15, 0.75, 1.05 - away + 0.28 * cloud + 0.10 * speck)
    specks = 0.8 * _smooth_step(2.2, 2.9, speck) * (1 - _smooth_step(1.1, 1.9, away))
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


def _dent(surface: _Surface, part: _Part, rng: np.random.Generator) -> _Surface:
    """A blow: an oval hollow with a raised lip, its grooves half crushed."""
    (x, y), lean = _spot(rng), rng.uniform(0, np.pi)
    dx, dy = surface.x - np.float32(x), surface.y - np.float32(y)
    wide = rng.uniform(4.5, 6.5)
    narrow = wide * rng.uniform(0.6, 0.85)
    a = (dx * np.cos(lean) + dy * np.sin(lean)) / wide
    b = (dy * np.cos(lean) - dx * np.sin(lean)) / narrow
    squared = np.asarray(a * a + b * b, np.float32)
    hollow = np.exp(-squared) * (1 - _smooth_step(4.0, 6.0, squared))
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


def _missing_hole(surface: _Surface, part: _Part, rng: np.random.Generator) -> _Surface:
    """A drill hole that was never drilled."""
    return _turned_disc(part, without=int(rng.integers(len(_DRILLS))))


_DEFECTS: dict[str, Callable[[_Surface, _Part, np.random.Generator], _Surface]] = {
    "crack": _crack, "scratch": _scratch, "rust": _rust, "dent": _dent, "missing_hole": _missing_hole,
}  # fmt: skip

"""The small renderer behind the demonstration scenes: a turned brake disc, its lamps and its camera.

A disc is a height field on a fixed grid: every pixel has a slope, a diffuse albedo, a gloss and how open it
is to the light. A key lamp, a fill lamp and a dome shade it. Turned metal glints across its grooves, so the
highlight is Ward's anisotropic lobe (G. J. Ward, "Measuring and modeling anisotropic reflection",
SIGGRAPH 1992) about the circular tangent, which gives the bow tie seen on real discs. Lengths are
millimetres; x points right, y down, z to the camera.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeAlias

import cv2
import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float32]

NATIVE_SIZE = 448
MM_PER_PX: float = 0.66
"""Millimetres per pixel at NATIVE_SIZE; another size shows the same view at ``MM_PER_PX * 448 / size``."""

_OUTER, RING_OUT, RING_IN, _HAT, _BORE = 140.0, 138.0, 80.0, 75.0, 33.0
_BOLT_CIRCLE, _BOLT_RADIUS = 55.0, 7.5
DRILL_RADIUS, _DRILL_CHAMFER = 3.3, 4.5
DRILLS = tuple(
    (row, np.deg2rad(30 * group + 9 * step + 4)) for group in range(12) for step, row in enumerate((93.0, 109.0, 125.0))
)
_SUPERSAMPLE = 2
_CAMERA_HEIGHT = 800.0
_KEY_AZIMUTH = np.deg2rad(-118.0)
_KEY = (1.0, 0.985, 0.955)
_FILL = (0.90, 0.96, 1.0)


@dataclass(frozen=True)
class Part:
    """What differs from one good part, and one exposure, to the next."""

    size: int
    shift: tuple[float, float]
    turn: float
    exposure: float
    azimuth: float
    gloss: float
    grooves: Floats
    streaks: Floats
    stains: Floats
    grain: Floats
    noise: Floats

    @classmethod
    def draw(cls, rng: np.random.Generator, size: int) -> Part:
        """Take all that is random about a part and its picture of ``size`` pixels."""
        scale = MM_PER_PX * NATIVE_SIZE / size
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
            grain=blur(normal(rng, (side, side)), 0.9 * side / 896),
            noise=_sensor_noise(rng, size),
        )


def normal(rng: np.random.Generator, shape: tuple[int, ...]) -> Floats:
    """White noise of unit variance."""
    return rng.standard_normal(shape, dtype=np.float32)


def blur(plane: Floats, across: float, down: float = 0.0) -> Floats:
    """Gaussian smoothing with standard deviations in cells; without ``down`` the same both ways."""
    return np.asarray(cv2.GaussianBlur(plane, (0, 0), sigmaX=across, sigmaY=down), np.float32)


def unit(noise: Floats) -> Floats:
    """``noise`` scaled to unit variance."""
    return np.asarray(noise / (noise.std() + 1e-6), np.float32)


def _groove_profile(rng: np.random.Generator) -> Floats:
    """Slope of the turning marks by radius, one value each 0.15 mm: feed marks, chatter, waviness."""
    white = normal(rng, (1, 1000))
    mix = [(0.42, 1.6), (0.55, 4.0), (0.45, 22.0)]
    profile = np.sum([weight * unit(blur(white, sigma))[0] for weight, sigma in mix], axis=0)
    feed = 0.55 * np.sin(2 * np.pi * np.arange(1000) * 0.15 / 1.9 + rng.uniform(0, 6.28))
    return np.asarray(profile + feed, np.float32)


def _wrapped_noise(rng: np.random.Generator, shape: tuple[int, int], sigma: tuple[float, float]) -> Floats:
    """Unit noise over (radius, angle), smoothed by ``sigma`` cells along each, seamless in angle."""
    columns = shape[1]
    white = np.hstack([normal(rng, shape)] * 3)
    return unit(blur(white, sigma[1], sigma[0])[:, columns : 2 * columns])


def _sensor_noise(rng: np.random.Generator, size: int) -> Floats:
    """Noise as a colour camera leaves it: shared luminance grain and a smaller, demosaiced colour part."""
    luma = blur(normal(rng, (size, size)), 0.45)
    chroma = blur(normal(rng, (size, size, 3)), 0.8)
    return np.asarray(unit(luma)[..., None] + 0.45 * unit(chroma), np.float32)


@dataclass(frozen=True)
class Surface:
    """A height field: slopes dh/dx and dh/dy, albedo (BGR), gloss, width of the glint, openness."""

    x: Floats
    y: Floats
    radius: Floats
    angle: Floats
    slope_x: Floats
    slope_y: Floats
    albedo: Floats
    gloss: Floats
    rough: Floats
    open: Floats


def smooth_step(low: float, high: float, value: Floats) -> Floats:
    """Hermite step from 0 at ``low`` to 1 at ``high``."""
    t = np.clip((value - np.float32(low)) / np.float32(high - low), 0, 1)
    return np.asarray(t * t * (3 - 2 * t), np.float32)


def band(low: float, high: float, value: Floats, soft: float = 0.35) -> Floats:
    """1 between ``low`` and ``high``, 0 outside, over an edge of ``soft`` each way."""
    return smooth_step(low - soft, low + soft, value) * (1 - smooth_step(high - soft, high + soft, value))


def turned_disc(part: Part, without: int = -1) -> Surface:
    """The part, with drill hole number ``without`` left solid."""
    surface = _finish(_blank(part), part)
    for number, (row, angle) in enumerate(DRILLS):
        if number != without:
            _bore(surface, row, angle, DRILL_RADIUS, _DRILL_CHAMFER, part.azimuth)
    bolts = [(degrees, _BOLT_RADIUS, _BOLT_RADIUS + 1.4) for degrees in range(-90, 270, 72)]
    for degrees, radius, chamfer in [*bolts, (-54, 3.2, 5.4), (162, 3.2, 4.0)]:
        _bore(surface, _BOLT_CIRCLE, np.deg2rad(degrees), radius, chamfer, part.azimuth)
    _bore(surface, 0.0, 0.0, _BORE, _BORE + 1.8, part.azimuth)
    return surface


def _blank(part: Part) -> Surface:
    """The turned body without holes or finish: slopes and coordinates in the part's own frame."""
    side = part.size * _SUPERSAMPLE
    pixel = MM_PER_PX * NATIVE_SIZE / side
    line = ((np.arange(side) - (side - 1) / 2) * pixel).astype(np.float32)
    gx, gy = np.meshgrid(line - np.float32(part.shift[0]), line - np.float32(part.shift[1]))
    cos, sin = np.float32(np.cos(part.turn)), np.float32(np.sin(part.turn))
    x, y = gx * cos + gy * sin, gy * cos - gx * sin
    radius = np.hypot(x, y)
    rise = band(RING_IN - 1.2, RING_IN, radius) - 0.9 * band(RING_OUT, _OUTER, radius)
    rise -= 1.6 * band(_HAT - 2.4, _HAT, radius, 1.0)
    rise -= 0.25 * band(_BORE + 1.8, _BORE + 4.0, radius)
    reach = np.maximum(radius, 1e-3)
    zero = np.zeros_like(radius)
    return Surface(
        x, y, radius, np.arctan2(y, x), rise * x / reach, rise * y / reach,
        np.zeros((side, side, 3), np.float32), zero, zero.copy(), np.ones_like(radius),
    )  # fmt: skip


def _polar(texture: Floats, surface: Surface) -> Floats:
    """Sample a (radius, angle) texture that spans 0 … 150 mm and the whole turn."""
    rows, columns = texture.shape
    padded = np.hstack([texture, texture[:, :1]])
    across = (surface.angle + np.float32(np.pi)) * np.float32(columns / (2 * np.pi))
    down = surface.radius * np.float32((rows - 1) / 150)
    sampled = cv2.remap(padded, across, down, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(sampled, np.float32)


def _finish(surface: Surface, part: Part) -> Surface:
    """Give each zone its material: bench, ground ring, undercut, coated hub, machined edges."""
    r = surface.radius
    ring, hat = band(RING_IN, _OUTER, r), 1 - smooth_step(_HAT - 0.4, _HAT + 0.4, r)
    disc = 1 - smooth_step(_OUTER - 0.3, _OUTER + 0.3, r)
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
    under = band(_HAT, RING_IN - 1.0, r, 0.8)
    return replace(
        surface,
        slope_x=surface.slope_x + tilt * surface.x / reach,
        slope_y=surface.slope_y + tilt * surface.y / reach,
        albedo=tone[..., None] * tint,
        gloss=gloss.astype(np.float32),
        rough=(0.15 + 0.17 * hat).astype(np.float32),
        open=(1 - 0.72 * under) * (1 - (1 - disc) * 0.55 * (1 - smooth_step(_OUTER, _OUTER + 9, r))),
    )


def _bore(surface: Surface, row: float, angle: float, radius: float, chamfer: float, azimuth: float) -> None:
    """Sink a hole into ``surface`` in place: countersunk rim, dark inside, far wall catching the light."""
    cx, cy = row * np.cos(angle), row * np.sin(angle)
    rows, columns = _window(surface, cx, cy, chamfer + 2)
    dx, dy = surface.x[rows, columns] - np.float32(cx), surface.y[rows, columns] - np.float32(cy)
    reach = np.maximum(np.hypot(dx, dy), 1e-3)
    rim, inside = band(radius, chamfer, reach, 0.25), 1 - smooth_step(radius - 0.3, radius + 0.3, reach)
    surface.slope_x[rows, columns] += 0.75 * rim * dx / reach
    surface.slope_y[rows, columns] += 0.75 * rim * dy / reach
    surface.gloss[rows, columns] *= (1 - 0.4 * rim) * (1 - inside)
    surface.rough[rows, columns] += 0.35 * rim
    facing = np.clip(-(dx * np.cos(azimuth) + dy * np.sin(azimuth)) / reach, 0, 1)
    wall = 0.03 + 0.5 * facing * smooth_step(radius - 2.2, radius, reach)
    surface.open[rows, columns] *= 1 - inside * (1 - wall.astype(np.float32))


def _window(surface: Surface, cx: float, cy: float, reach: float) -> tuple[slice, slice]:
    """The rows and columns within ``reach`` of a point, so that a small feature costs little."""
    side = surface.x.shape[0]
    pixel = float(surface.x[0, 1] - surface.x[0, 0])
    column = (cx - float(surface.x[side // 2, 0])) / pixel
    row = (cy - float(surface.y[0, side // 2])) / pixel
    extent = reach / pixel + 4
    return (
        slice(max(int(row - extent), 0), max(int(row + extent) + 1, 1)),
        slice(max(int(column - extent), 0), max(int(column + extent) + 1, 1)),
    )


def photograph(surface: Surface, part: Part) -> NDArray[np.uint8]:
    """Shade, blur as a lens does, average to pixels, roll off the highlights, add the sensor's noise."""
    light = blur(_shade(surface, part), 1.0)
    pixels = cv2.resize(light, (part.size, part.size), interpolation=cv2.INTER_AREA)
    density = 1 - np.exp(-1.55 * part.exposure * np.asarray(pixels, np.float32))
    grey = 255 * np.power(np.clip(density, 0, 1), np.float32(1 / 2.2))
    grey += part.noise * (1.1 + 0.9 * np.sqrt(grey / 255))
    return np.asarray(np.clip(np.rint(grey), 0, 255), np.uint8)


def _shade(surface: Surface, part: Part) -> Floats:
    """Linear light, (side, side, 3) BGR: a dome that sees everything, a key and a weak fill."""
    key = _lamp(surface, part.azimuth, 330.0, 560.0) * _shadow(surface, part.azimuth)[..., None]
    fill = _lamp(surface, part.azimuth + 2.3, 420.0, 420.0)
    steep = 1 / np.sqrt(1 + surface.slope_x**2 + surface.slope_y**2)
    dome = (0.55 * surface.albedo + 0.075 * surface.gloss[..., None]) * steep[..., None]
    light = dome + key * np.array(_KEY[::-1], np.float32) + 0.45 * fill * np.array(_FILL[::-1], np.float32)
    return np.asarray(light * surface.open[..., None], np.float32)


def _shadow(surface: Surface, azimuth: float) -> Floats:
    """The key light that is left beside the raised hub and, on the bench, beside the disc itself."""
    away = np.float32(-np.cos(azimuth)), np.float32(-np.sin(azimuth))
    hub = np.hypot(surface.x - 6 * away[0], surface.y - 6 * away[1])
    disc = np.hypot(surface.x - 8 * away[0], surface.y - 8 * away[1])
    on_ring = smooth_step(_HAT, _HAT + 0.8, surface.radius) * (1 - smooth_step(_HAT - 3.5, _HAT + 3.0, hub))
    on_bench = smooth_step(_OUTER, _OUTER + 0.8, surface.radius) * (1 - smooth_step(_OUTER - 5, _OUTER + 5, disc))
    return (1 - 0.6 * on_ring) * (1 - 0.75 * on_bench)


def _lamp(surface: Surface, azimuth: float, aside: float, above: float) -> Floats:
    """Lambert plus Ward's anisotropic lobe for a lamp ``aside`` and ``above`` the part (mm)."""
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

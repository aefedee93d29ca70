"""What a memory on a torch device says of an image whose tokens are there: all that is asked, in one copy back.

The host's own way makes the same of the same tokens, up to the rounding of float32. Where a bound leaves a doubt that
a nearer row was missed, or a token is not finite, nothing is said, and the host's way is taken.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from backend.base.arrays import Float
from backend.base.enlarging import enlarging
from backend.memory.products import DeviceRows

if TYPE_CHECKING:
    import torch


ALWAYS = (1.0, 50.0, 99.0)
"""Percentiles that every view tells: those that a picture goes between, and the median."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What is asked of the anomaly map of one image.

    Attributes:
        grid: token rows and columns.
        k: neighbours in the memory whose distances are averaged.
        size: height and width of the map.
        sigma: of its blur, in its pixels.
        mask: (height, width) bool of the values that count, at least one; None: all.
        stand_ins: (rows, columns) int64, the token whose distance counts in each one's place; None: its own.
        percentile: one that is wanted beside ALWAYS, 0–100.
        top_share: of the largest values, whose mean is wanted.
        drawn: whether a picture is wanted.
        ceiling: the picture goes from 0 to this or to the maximum, if that is larger; None: from the 1st to the 99th
            percentile.
    """

    grid: tuple[int, int]
    k: int
    size: tuple[int, int]
    sigma: float
    mask: NDArray[np.bool_] | None = None
    stand_ins: NDArray[np.int64] | None = None
    percentile: float = 99.0
    top_share: float = 0.01
    drawn: bool = False
    ceiling: float | None = None


@dataclass(frozen=True)
class Seen:
    """What came back from the device.

    Attributes:
        token_map: (rows, columns) float32 distances.
        percentiles: of the values of the anomaly map inside the mask.
        max, mean: of these values.
        top_mean: the mean of the largest.
        picture: (height, width) uint8 of the anomaly map, 0 outside the mask; empty if none was wanted.
        limits: the distances that 0 and 255 of it stand for.
    """

    token_map: Float
    percentiles: Mapping[float, float]
    max: float
    mean: float
    top_mean: float
    picture: NDArray[np.uint8]
    limits: tuple[float, float]


def look(rows: DeviceRows, view: View, tokens: torch.Tensor) -> Seen | None:
    """What `rows` say of one image's tokens (T, D) float32; None where the host is to look itself.

    Raises:
        torch.OutOfMemoryError: the device's memory does not hold what this takes.
    """
    import torch

    with torch.inference_mode():
        found = rows.distances(tokens, view.k)
        return None if found is None else _seen(view, *found)


def _seen(view: View, distances: torch.Tensor, doubt: torch.Tensor) -> Seen | None:
    import torch

    where = str(distances.device)
    if view.stand_ins is not None:
        distances = distances[torch.from_numpy(view.stand_ins.ravel()).to(where)]
    down, across = (_line(*sides, view.sigma, where) for sides in zip(view.grid, view.size, strict=True))
    values = down @ (distances.reshape(view.grid) @ across.T)
    beside = None if view.mask is None else torch.from_numpy(~view.mask).to(where)
    n = values.numel() if view.mask is None else int(np.count_nonzero(view.mask))
    inside = values if beside is None else values.masked_fill(beside, torch.inf)
    ascending = inside.flatten().sort().values[:n]
    asked = tuple(dict.fromkeys((*ALWAYS, view.percentile)))
    ranks, beyond = _ranks(n, asked, where)
    sides, most = ascending[ranks].double(), ascending[-1:].double()
    known = torch.lerp(sides[0], sides[1], beyond)
    top = ascending[n - max(1, round(n * view.top_share)) :]
    means = torch.stack([ascending.mean(dtype=torch.float64), top.mean(dtype=torch.float64)])
    limits = _limits(known, most, view.ceiling)
    picture = _drawn(values, beside, limits) if view.drawn else torch.empty((0, 0), dtype=torch.uint8, device=where)
    numbers = torch.cat([doubt.double()[None], limits, most, means, known])
    figures, token_map, drawn = _home(numbers, distances.reshape(view.grid), picture)
    if figures[0] or not np.isfinite(figures).all():
        return None
    low, high, largest, mean, top_mean, *percentiles = figures[1:].tolist()
    told = dict(zip(asked, percentiles, strict=True))
    return Seen(token_map.copy(), told, largest, mean, top_mean, drawn, (low, high))


@lru_cache(64)
def _ranks(n: int, percentiles: tuple[float, ...], where: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(2, P) int64 ranks of `n` values beside each percentile, and (P,) float64 how far it is beyond the first of them.

    As numpy.percentile has it.
    """
    import torch

    places = (n - 1) * np.array(percentiles) / 100.0
    lower = np.floor(places).astype(np.int64)
    sides = np.stack([lower, np.minimum(lower + 1, n - 1)])
    return torch.from_numpy(sides).to(where), torch.from_numpy(places - lower).to(where)


@lru_cache(64)
def _line(n: int, size: int, sigma: float, where: str) -> torch.Tensor:
    """What `enlarging` gives, on a device."""
    import torch

    return torch.from_numpy(enlarging(n, size, sigma).copy()).to(where)


def _limits(percentiles: torch.Tensor, most: torch.Tensor, ceiling: float | None) -> torch.Tensor:
    """(2,) float64, the distances that a picture goes between."""
    import torch

    if ceiling is None:
        low, high = percentiles[:1], percentiles[len(ALWAYS) - 1 : len(ALWAYS)]
        return torch.cat([low, torch.where(high > low, high, low + 1e-6)])
    top = torch.clamp(most, min=ceiling)
    return torch.cat([torch.zeros_like(top), torch.where(top > 0, top, 1.0)])


def _drawn(values: torch.Tensor, beside: torch.Tensor | None, limits: torch.Tensor) -> torch.Tensor:
    """(height, width) uint8: 0 at the lower limit and below, 255 at the upper and above, and 0 `beside` the part."""
    import torch

    low, high = limits
    levels = (values - low.float()) * (255.0 / (high - low)).float()
    grey: torch.Tensor = levels.round_().clamp_(0, 255).to(torch.uint8)
    return grey if beside is None else grey.masked_fill_(beside, 0)


def _home(*parts: torch.Tensor) -> list[NDArray[Any]]:
    """The arrays of tensors of one device, those of the widest numbers first, which come in one copy."""
    import torch

    together = torch.cat([part.contiguous().flatten().view(torch.uint8) for part in parts])
    if together.device.type == "cuda":
        there, together = together, torch.empty(together.shape, dtype=torch.uint8, pin_memory=True)
        together.copy_(there, non_blocking=True)
        torch.cuda.current_stream().synchronize()
    arrays, at = [], 0
    for part in parts:
        size = part.numel() * part.element_size()
        kind = str(part.dtype).removeprefix("torch.")
        arrays.append(together[at : at + size].numpy().view(kind).reshape(part.shape))
        at += size
    return arrays

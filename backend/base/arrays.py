"""What arrays need that know nothing of models: unit rows, blocks of rows, processors, and order statistics of maps."""

from __future__ import annotations

import os
import platform
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_info, threadpool_limits

Float = NDArray[np.float32]

_READING = threading.RLock()
_CPU = Path("/proc/cpuinfo")
# What of a processor's flags, as Linux names them, decides how fast a network is.
_INSTRUCTIONS = {
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "VNNI",
    "avx512_vnni": "VNNI",
    "avx512_bf16": "BF16",
    "amx_tile": "AMX",
    "asimd": "NEON",
}


@contextmanager
def reading_arrays() -> Iterator[None]:
    """Held while NumPy reads a .npy or .npz file: one thread at a time.

    NumPy parses the header of each array with `ast`, which counts its depth for all threads together in CPython 3.11:
    two threads that read at once may get a SystemError.
    """
    with _READING:
        yield


def square_norms(x: NDArray[Any]) -> NDArray[Any]:
    """Squared Euclidean length of each row of `x` (N, D), in its dtype."""
    norms: NDArray[Any] = np.einsum("nd,nd->n", x, x)
    return norms


def l2_normalize(x: Float, eps: float = 1e-12) -> Float:
    """Rows of `x` (N, D) divided by their Euclidean length; a row shorter than `eps` is divided by `eps`."""
    x = np.asarray(x, dtype=np.float32)
    norms = np.sqrt(square_norms(x))
    unit: Float = x / np.maximum(norms, np.float32(eps))[:, None]
    return unit


def checked_rows(x: NDArray[Any], name: str, width: int | None = None) -> Float:
    """`x` as contiguous float32 (N, D).

    Args:
        x: anything that can be made such rows; N >= 1, and D is `width` if that is given.
        name: what the error calls them.

    Raises:
        ValueError: the shape is another, or there are values that are not finite.
    """
    rows = shaped_rows(x, name, width)
    if not all(np.isfinite(rows[block]).all() for block in blocks(len(rows), 1024)):
        raise ValueError(f"{name} hold NaN or infinite values, and have no distances")
    return rows


def shaped_rows(x: NDArray[Any], name: str, width: int | None = None) -> Float:
    """As `checked_rows`, without a look at the values."""
    rows = np.ascontiguousarray(x, dtype=np.float32)
    if rows.ndim != 2 or rows.size == 0 or (width is not None and rows.shape[1] != width):
        raise ValueError(f"{name} have shape {rows.shape}, where (N, {width or 'D'}) with N >= 1 is needed")
    return rows


def blocks(stop: int, size: int, start: int = 0) -> Iterator[slice]:
    """Slices of at most `size` that cover start … stop, in order."""
    return (slice(at, min(at + size, stop)) for at in range(start, stop, size))


def available_cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """What the processor of this machine calls itself."""
    lines = _CPU.read_text("utf-8").splitlines() if _CPU.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def instruction_set() -> str:
    """The vector instructions of the processor, such as `AVX2, AVX-512, VNNI`; off Linux what BLAS takes it for."""
    if _CPU.is_file():
        line = next((one for one in _CPU.read_text("utf-8").splitlines() if one.startswith(("flags", "Features"))), "")
        flags = set(line.partition(":")[2].split())
        return ", ".join(dict.fromkeys(name for flag, name in _INSTRUCTIONS.items() if flag in flags))
    return next((str(pool["architecture"]) for pool in threadpool_info() if pool.get("architecture")), "")


def few_threads_each() -> None:
    """Let OpenCV use a quarter of the cores, and NumPy's BLAS one, since requests run side by side.

    Most cores belong to the extractor. Threads of BLAS spin while they wait for the next product, which halves the pace
    of a forward pass beside them. Threads of OpenCV sleep, so where cores abound a few of them shorten one request.
    """
    cv2.setNumThreads(max(1, available_cores() // 4))
    threadpool_limits(limits=1, user_api="blas")


class Ranked:
    """The values of a map by rank, found through a histogram and not by sorting all of them.

    The upper half of the bits of a non-negative float32 is an integer that rises with it. So the value of a rank lies
    in the level (of equal upper halves) in which the counts reach that rank, and only this level is ordered.

    Args:
        values: (h, w) float32, finite, ≥ 0, not empty.
        mask: (h, w) bool of the values that count, at least one; all when None.
    """

    def __init__(self, values: Float, mask: NDArray[np.bool_] | None = None) -> None:
        self.values = values
        self._mask = None if mask is None else mask.view(np.uint8)
        self.min, self.max, _, _ = cv2.minMaxLoc(values, self._mask)
        halves = np.ascontiguousarray(values).view(np.uint16).reshape(*values.shape, 2)
        self._levels = cv2.extractChannel(halves, int(sys.byteorder == "little"))
        self._first, last = (int(np.float32(v).view(np.uint32)) >> 16 for v in (self.min, self.max))
        bins = last - self._first + 1
        counts = cv2.calcHist([self._levels], [0], self._mask, [bins], [self._first, last + 1])
        self._reached = np.cumsum(counts.ravel(), dtype=np.int64)
        self._ordered: dict[int, Float] = {}
        self.n = int(self._reached[-1])

    @cached_property
    def mean(self) -> float:
        """Mean of all values."""
        return float(cv2.mean(self.values, self._mask)[0])

    @cached_property
    def median(self) -> float:
        """Median of all values."""
        low, high = self._at((self.n - 1) // 2), self._at(self.n // 2)
        return (low + high) / 2.0

    def percentile(self, q: float) -> float:
        """The q-th percentile (0–100) with linear interpolation, as numpy.percentile."""
        position = (self.n - 1) * q / 100.0
        rank = int(np.floor(position))
        low, high = self._at(rank), self._at(min(rank + 1, self.n - 1))
        return low + (high - low) * (position - rank)

    def top_mean(self, n: int) -> float:
        """Mean of the `n` largest values."""
        above = self._chosen(self._levels >= self._first + self._level(self.n - n))
        return float(np.partition(above, above.size - n)[above.size - n :].mean(dtype=np.float64))

    def power_mean(self, power: float) -> float:
        """The `power`-th root of the mean of the values' `power`-th powers (GeM: Radenović et al., TPAMI 2019, eq. 3).

        It is the mean at power 1 and nears the maximum as the power grows. In between, one high value among a thousand
        raises it, and several raise it more.
        """
        if self.max <= 0:
            return 0.0
        inside = self.values if self._mask is None else self.values[self._mask.view(np.bool_)]
        relative = inside / np.float32(self.max)  # at most 1: no power overflows
        return float(self.max * np.mean(relative ** np.float32(power), dtype=np.float64) ** (1.0 / power))

    def _at(self, rank: int) -> float:
        """The value of `rank`, counted from 0 at the smallest."""
        level = self._level(rank)
        if level not in self._ordered:  # neighbouring ranks are mostly of one level
            self._ordered[level] = np.sort(self._chosen(self._levels == self._first + level))
        return float(self._ordered[level][rank - (int(self._reached[level - 1]) if level else 0)])

    def _level(self, rank: int) -> int:
        return int(np.searchsorted(self._reached, rank, side="right"))

    def _chosen(self, where: NDArray[np.bool_]) -> Float:
        if self._mask is not None:
            where &= self._mask.view(np.bool_)
        return self.values[where]

"""The GPU that the extractor runs on, lent to searches and coresets.

A process whose extractor is on a CPU never wakes a GPU up, and nothing here does either.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

logger = logging.getLogger(__name__)

Array = NDArray[np.float32]
T = TypeVar("T")

_PRODUCTS = 1 << 26  # held at a time
_EPS = float(np.finfo(np.float32).eps)


def device() -> str | None:
    """`cuda` where this process already computes there, else None."""
    torch = sys.modules.get("torch")
    return "cuda" if torch is not None and torch.cuda.is_available() and torch.cuda.is_initialized() else None


def lend(rows: Array) -> DeviceRows | None:
    """`rows` on the GPU; None where there is none or, with a warning, where its memory does not do."""
    where = device()
    if where is None:
        return None
    import torch

    try:
        return DeviceRows(rows, where)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        logger.warning("the GPU's memory is too small for %d MB of rows: the CPU searches them", rows.nbytes >> 20)
        return None


class DeviceRows:
    """Rows on a device. Its products are in float32 and there for proposals alone: who asks measures in its own way.

    Args:
        rows: (N, D) float32.
        where: the device, as torch names it.
    """

    def __init__(self, rows: Array, where: str) -> None:
        import torch

        self._rows = torch.from_numpy(rows).to(where)
        self._squares = self._rows.square().sum(dim=1)
        self._longest = float(self._squares.max())
        self._stream = torch.cuda.Stream() if where == "cuda" else None  # type: ignore[no-untyped-call]
        self.nbytes = rows.nbytes

    def nearest(self, q: Array, m: int) -> tuple[Array, NDArray[np.int64]]:
        """Lower bounds of squared distances (T, m), ascending, and the rows they are of.

        No row that is not among a patch's `m` is nearer to it than its last bound says: sums of products are within
        γ(D) · |q| · |m| of the truth, in whatever order they are made (Higham 2002, section 3.1).
        """
        return self._tried(lambda: self._nearest(q, m))

    def nearness(self, rows: NDArray[np.int64], centres: Array, halves: Array) -> Array:
        """(R,) largest c·x − |c|²/2 of each of the rows numbered `rows`; `centres` (C, D), `halves` (C,) = |c|²/2."""
        return self._tried(lambda: self._nearness(rows, centres, halves))

    def _nearest(self, q: Array, m: int) -> tuple[Array, NDArray[np.int64]]:
        import torch

        bounds, found = np.empty((len(q), m), np.float32), np.empty((len(q), m), np.int64)
        for part in _slices(len(q), max(1, _PRODUCTS // len(self._rows))):
            patches = torch.from_numpy(q[part]).to(self._rows.device)
            squares = patches.square().sum(dim=1)
            gaps, rows = torch.topk(self._squares - 2 * (patches @ self._rows.T), m, dim=1, largest=False)
            slack = 2 * _EPS * (q.shape[1] + 4) * torch.clamp(squares.max(), min=self._longest)
            bounds[part] = (gaps + squares[:, None] - slack).cpu().numpy()
            found[part] = rows.cpu().numpy()
        return bounds, found

    def _nearness(self, rows: NDArray[np.int64], centres: Array, halves: Array) -> Array:
        import torch

        found = np.empty(len(rows), np.float32)
        there, less = (torch.from_numpy(x).to(self._rows.device) for x in (centres, halves))
        for part in _slices(len(rows), max(1, _PRODUCTS // len(centres))):
            x = self._rows[torch.from_numpy(rows[part]).to(self._rows.device)]
            found[part] = (x @ there.T - less).amax(dim=1).cpu().numpy()
        return found

    def _tried(self, work: Callable[[], T]) -> T:
        """`work` on a stream of its own, so that it waits for no forward pass; on the CPU where memory runs out."""
        import torch

        with torch.inference_mode():
            try:
                with torch.cuda.stream(self._stream) if self._stream else nullcontext():
                    return work()
            except torch.OutOfMemoryError:
                logger.warning("the GPU's memory is too small to search in: from here on the CPU searches these rows")
                self._rows, self._squares, self._stream = self._rows.cpu(), self._squares.cpu(), None
                return work()


def _slices(stop: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` that cover 0 … stop."""
    return (slice(at, min(at + size, stop)) for at in range(0, stop, size))

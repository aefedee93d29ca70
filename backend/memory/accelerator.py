"""The GPU that the extractor runs on, lent to searches and coresets.

A process whose extractor is on a CPU never wakes a GPU up, and nothing here does either.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from backend.base.arrays import blocks

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

Array = NDArray[np.float32]
T = TypeVar("T")

_PRODUCTS = 1 << 26  # held at a time
_RESERVE = 1 << 30  # bytes of the GPU that stay the extractor's and the products'
_EPS = float(np.finfo(np.float32).eps)


def device() -> str | None:
    """`cuda` where this process already computes there, and float32 is not rounded to TF32, else None."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    return None if torch.backends.cuda.matmul.allow_tf32 else "cuda"


def lend(rows: Array) -> DeviceRows | None:
    """`rows` on the GPU; None where there is none or, with a warning, where its memory does not do."""
    where = device()
    if where is None:
        return None
    import torch

    try:
        if where != "cuda" or 2 * rows.nbytes + _RESERVE <= torch.cuda.mem_get_info()[0]:
            return DeviceRows(rows, where)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
    logger.warning("the GPU's memory is too small for %d MB of rows: the CPU searches them", rows.nbytes >> 20)
    return None


@dataclass(frozen=True)
class _Held:
    """Rows (N, D), their squared lengths, and the stream that works on them; on one device, all three."""

    rows: torch.Tensor
    squares: torch.Tensor
    stream: torch.cuda.Stream | None


class DeviceRows:
    """Rows on a device. Its products are in float32 and there for proposals alone: who asks measures in its own way.

    Args:
        rows: (N, D) float32.
        where: the device, as torch names it.
    """

    alone = False

    def __init__(self, rows: Array, where: str) -> None:
        import torch

        there = torch.from_numpy(rows).to(where)
        squares = torch.linalg.vector_norm(there, dim=1).square()
        self._longest = float(squares.max())
        # Of its own, so that no forward pass is waited for.
        self._held = _Held(there, squares, torch.cuda.Stream() if where == "cuda" else None)  # type: ignore[no-untyped-call]
        self.nbytes = rows.nbytes

    def nearest(self, q: Array, m: int) -> tuple[Array, NDArray[np.int64]]:
        """Lower bounds of squared distances (T, m), ascending, and the rows they are of.

        No row that is not among a patch's `m` is nearer to it than its last bound says: sums of products are within
        γ(D) · |q| · |m| of the truth, in whatever order they are made (Higham 2002, section 3.1).
        """
        return self._tried(lambda held: self._nearest(held, q, m))

    def nearness(self, rows: NDArray[np.int64], centres: Array, halves: Array) -> Array:
        """(R,) largest c·x − |c|²/2 of each of the rows numbered `rows`; `centres` (C, D), `halves` (C,) = |c|²/2."""
        return self._tried(lambda held: _nearness(held, rows, centres, halves))

    def _nearest(self, held: _Held, q: Array, m: int) -> tuple[Array, NDArray[np.int64]]:
        import torch

        bounds, found = np.empty((len(q), m), np.float32), np.empty((len(q), m), np.int64)
        for part in blocks(len(q), max(1, _PRODUCTS // len(held.rows))):
            patches = torch.from_numpy(q[part]).to(held.rows.device)
            squares = patches.square().sum(dim=1)
            gaps, rows = torch.topk((patches @ held.rows.T).mul_(-2).add_(held.squares), m, dim=1, largest=False)
            slack = 2 * _EPS * (q.shape[1] + 4) * torch.clamp(squares.max(), min=self._longest)
            bounds[part] = (gaps + squares[:, None] - slack).cpu().numpy()
            found[part] = rows.cpu().numpy()
        return bounds, found

    def _tried(self, work: Callable[[_Held], T]) -> T:
        """`work` with the rows where they are; on the CPU, from here on, where memory runs out.

        Other threads may be at work too: each goes on with the rows that it began with.
        """
        import torch

        held = self._held
        with torch.inference_mode():
            try:
                with torch.cuda.stream(held.stream) if held.stream else nullcontext():
                    return work(held)
            except torch.OutOfMemoryError:
                logger.warning("the GPU's memory is too small to search in: from here on the CPU searches these rows")
                self._held = _Held(held.rows.cpu(), held.squares.cpu(), None)
                return work(self._held)


def _nearness(held: _Held, rows: NDArray[np.int64], centres: Array, halves: Array) -> Array:
    import torch

    found = np.empty(len(rows), np.float32)
    there, less = (torch.from_numpy(x).to(held.rows.device) for x in (centres, halves))
    for part in blocks(len(rows), max(1, _PRODUCTS // len(centres))):
        x = held.rows[torch.from_numpy(rows[part]).to(held.rows.device)]
        found[part] = (x @ there.T).sub_(less).amax(dim=1).cpu().numpy()
    return found

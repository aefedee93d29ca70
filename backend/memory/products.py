"""Matrix products in few digits, which propose near rows and bound how near they can be.

A product in bfloat16 on the CPU, or in float32 on the extractor's GPU, costs a fraction of an exact search on the CPU.
Its distances are rounded, but by no more than is known beforehand. So every proposal comes with a lower bound of its
distance, and `search` and `coreset`, which ask for proposals, compute the distances that count themselves.

The GPU is used only where the extractor computes on it already: with an extractor on the CPU no GPU is woken up.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from numpy.typing import NDArray

from backend.base.arrays import Float, blocks, square_norms

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

T = TypeVar("T")
Proposals = tuple[Float, NDArray[np.int64]]

_EPS = float(np.finfo(np.float32).eps)

_CPU_PRODUCTS = 1 << 25  # products held at a time
_BF16_FROM = 1 << 22  # numbers in the rows; the exact search of fewer takes no longer
_ROUNDING = 2.0**-9  # of a number to bfloat16, relative to the number
_UNDERFLOW = 1e-34  # more than what is lost by squares that are too small for float32
_HALVES = 3  # bfloat16 numbers that add up to one float32 number
_FURTHER = 32  # columns added to the rows: the last three hold |m|²/2, and 32 keep the rows aligned

_GPU_PRODUCTS = 1 << 26  # products held at a time
_SPARE = 31  # rows measured beyond those that are wanted: the last must be certainly too far
_GPU_RESERVE = 1 << 30  # bytes of the GPU's memory that are left to the extractor and to the products


class Bf16Rows:
    """Rows in bfloat16, which propose neighbours together with lower bounds of their distances.

    |q − m|² = |q|² − 2(q·m − |m|²/2), and one product gives the whole bracket: |m|²/2 stands in three further columns
    of m whose sum it is, against ones in q. Rows and queries are taken relative to the mean of the rows, which leaves
    distances as they are and makes the numbers, and so their rounding, smaller.

    With q̂ and m̂ for the rounded vectors, |q·m − q̂·m̂| ≤ |q − q̂|·|m| + |q̂|·|m − m̂| (Cauchy–Schwarz), and all four
    lengths are known. Added to that are the rounding of the sum in float32 and of the product to bfloat16.

    Args:
        rows: (N, D) float32.
    """

    def __init__(self, rows: Float) -> None:
        import torch

        self._mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        centred = torch.from_numpy(rows - self._mean)
        self._rows = torch.zeros((len(rows), rows.shape[1] + _FURTHER), dtype=torch.bfloat16)
        self._rows[:, :-_FURTHER] = centred
        squares, lost = _lengths(centred.numpy(), self._rows[:, :-_FURTHER].float().numpy())
        rest = torch.from_numpy(squares / 2)
        for column in range(-_HALVES, 0):
            self._rows[:, column] = -rest
            rest = rest + self._rows[:, column].float()
        self._longest = float(np.sqrt(squares.max()))
        self._lost = float(lost.max())
        self._lost_halves = float(rest.abs().max())
        self.nbytes = 2 * self._rows.numel()

    def nearest(self, q: Float, m: int) -> Proposals:
        """See `search.CandidateIndex`; `q` (T, D) float32."""
        bounds, found = np.empty((len(q), m), np.float32), np.empty((len(q), m), np.int64)
        for part in blocks(len(q), max(1, _CPU_PRODUCTS // len(self._rows))):
            bounds[part], found[part] = self._nearest(q[part], m)
        return bounds, found

    def _nearest(self, q: Float, m: int) -> Proposals:
        import torch

        centred = q - self._mean
        short = torch.ones((len(q), self._rows.shape[1]), dtype=torch.bfloat16)
        short[:, :-_FURTHER] = torch.from_numpy(centred)
        squares, lost = _lengths(centred, short[:, :-_FURTHER].float().numpy())
        found, rows = torch.topk(short @ self._rows.T, m, dim=1)
        products, lengths = found.float().numpy(), np.sqrt(squares) + lost
        error = lost * self._longest + lengths * self._lost + self._lost_halves
        error += 2 * _EPS * q.shape[1] * (lengths + self._longest + self._lost) ** 2
        error += _UNDERFLOW
        bounds = squares[:, None] - 2 * (products + 2 * _ROUNDING * np.abs(products) + error[:, None])
        return bounds.astype(np.float32), rows.numpy()


def _lengths(x: Float, rounded: Float) -> tuple[Float, Float]:
    """Squared length of each row of `x` (N, D), and the length of what rounding took from it."""
    return square_norms(x), np.sqrt(square_norms(x - rounded))


def bf16_rows(rows: Float) -> Bf16Rows | None:
    """`rows` (N, D) in bfloat16; None for few of them, without torch, or on a processor without AMX or AVX-512 BF16."""
    if rows.size < _BF16_FROM or find_spec("torch") is None:
        return None
    import torch

    able = getattr(torch.cpu, "get_capabilities", dict[str, bool])()  # older releases do not tell
    return Bf16Rows(rows) if able.get("amx_bf16") or able.get("avx512_bf16") else None


@dataclass(frozen=True)
class _Held:
    """Rows (N, D) and their squared lengths (N,) on one device, and the stream that works on them."""

    rows: torch.Tensor
    squares: torch.Tensor
    stream: torch.cuda.Stream | None


class DeviceRows:
    """Rows on a torch device, whose products in float32 propose neighbours, and bring a coreset's gaps up to date.

    Its products have a stream of their own, so that they do not wait for the extractor's forward passes.

    Args:
        rows: (N, D) float32.
        where: the device, as torch names it.
    """

    def __init__(self, rows: Float, where: str) -> None:
        import torch

        there = torch.from_numpy(rows).to(where)
        squares = torch.linalg.vector_norm(there, dim=1).square()
        self._longest = float(squares.max())
        self._held = _Held(there, squares, torch.cuda.Stream() if where == "cuda" else None)  # type: ignore[no-untyped-call]
        self.nbytes = rows.nbytes

    def nearest(self, q: Float, m: int) -> Proposals:
        """See `search.CandidateIndex`; `q` (T, D) float32.

        A sum of D products is within γ(D) · |q| · |m| of the truth, in whatever order it is added up (Higham 2002,
        section 3.1).
        """
        return self._tried(lambda held: self._nearest(held, q, m))

    def distances(self, q: torch.Tensor, k: int) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Mean distance of queries (T, D) to their `k` nearest rows, all rows where there are fewer.

        Distances come from plain differences, as those of `search.ExactSearch`.

        Returns:
            (T,) float32, and () bool, whether one of them is not finite or a nearer row may have been missed. None
            where the rows are not on the queries' device.

        Raises:
            torch.OutOfMemoryError: the device's memory does not hold what this takes.
        """
        import torch

        held = self._held
        if q.device != held.rows.device:
            return None
        n_rows, dim = held.rows.shape
        k, m = min(k, n_rows), min(k + _SPARE, n_rows)
        means, doubts = [], []
        for part in blocks(len(q), max(1, _GPU_PRODUCTS // max(n_rows, m * dim))):
            bounds, rows = self._bounds(held, q[part], m)
            lengths = torch.linalg.vector_norm(held.rows[rows].sub_(q[part, None]), dim=2)
            near = lengths.topk(k, dim=1, largest=False).values
            means.append(near.mean(dim=1))
            doubts.append((bounds[:, -1] < near[:, -1].square()).any() & (m < n_rows))
        found = torch.cat(means)
        return found, torch.stack(doubts).any() | ~found.isfinite().all()

    def nearness(self, rows: NDArray[np.int64], centres: Float, halves: Float) -> Float:
        """The largest c·x − |c|²/2 over the centres c, of each of the rows x numbered `rows`: (R,) float32.

        Args:
            rows: (R,) numbers of rows.
            centres: (C, D) float32.
            halves: (C,) float32, |c|²/2.
        """
        return self._tried(lambda held: _nearness(held, rows, centres, halves))

    def _nearest(self, held: _Held, q: Float, m: int) -> Proposals:
        import torch

        bounds, found = np.empty((len(q), m), np.float32), np.empty((len(q), m), np.int64)
        for part in blocks(len(q), max(1, _GPU_PRODUCTS // len(held.rows))):
            lowest, rows = self._bounds(held, torch.from_numpy(q[part]).to(held.rows.device), m)
            bounds[part] = lowest.cpu().numpy()
            found[part] = rows.cpu().numpy()
        return bounds, found

    def _bounds(self, held: _Held, queries: torch.Tensor, m: int) -> tuple[torch.Tensor, torch.Tensor]:
        """As `nearest`, of queries that are where the rows are."""
        import torch

        squares = queries.square().sum(dim=1)
        gaps, rows = torch.topk((queries @ held.rows.T).mul_(-2).add_(held.squares), m, dim=1, largest=False)
        slack = 2 * _EPS * (queries.shape[1] + 4) * torch.clamp(squares.max(), min=self._longest)
        return gaps + squares[:, None] - slack, rows

    def _tried(self, work: Callable[[_Held], T]) -> T:
        """The result of `work` on the rows where they are. When the device's memory runs out they move to the CPU.

        Other threads may be at work meanwhile: each goes on with the rows that it began with.
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


def _nearness(held: _Held, rows: NDArray[np.int64], centres: Float, halves: Float) -> Float:
    import torch

    found = np.empty(len(rows), np.float32)
    there, less = (torch.from_numpy(x).to(held.rows.device) for x in (centres, halves))
    for part in blocks(len(rows), max(1, _GPU_PRODUCTS // len(centres))):
        x = held.rows[torch.from_numpy(rows[part]).to(held.rows.device)]
        found[part] = (x @ there.T).sub_(less).amax(dim=1).cpu().numpy()
    return found


def device() -> str | None:
    """`cuda` where this process computes there already, without rounding float32 to TF32; else None."""
    torch = sys.modules.get("torch")
    if torch is None or getattr(torch.__spec__, "_initializing", False):  # another thread may be importing it
        return None
    if not torch.cuda.is_available() or not torch.cuda.is_initialized():
        return None
    return None if torch.backends.cuda.matmul.allow_tf32 else "cuda"


def device_rows(rows: Float) -> DeviceRows | None:
    """`rows` (N, D) on the GPU; None where there is none, or, with a warning, where its memory is too small."""
    where = device()
    if where is None:
        return None
    import torch

    try:
        if where != "cuda" or 2 * rows.nbytes + _GPU_RESERVE <= torch.cuda.mem_get_info()[0]:
            return DeviceRows(rows, where)
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
    logger.warning("the GPU's memory is too small for %d MB of rows: the CPU searches them", rows.nbytes >> 20)
    return None

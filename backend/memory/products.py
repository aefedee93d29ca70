"""Where memories are searched at the network's pace: on the extractor's GPU, or by a processor's matrix units."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
from numpy.typing import NDArray

from backend.memory.accelerator import DeviceRows, lend

_PRODUCTS = 1 << 25  # held at a time
_BF16_FROM = 1 << 22  # numbers in the rows; fewer are searched as soon without
_ROUNDING = 2.0**-9  # of a number to bfloat16, relative to it
_UNDERFLOW = 1e-34  # more than what squares lose that are too small for float32
_HALVES = 3  # numbers in bfloat16 that add up to one in float32
_FURTHER = 32  # columns: as many as keep rows aligned, the last for |m|²/2
_EPS = float(np.finfo(np.float32).eps)


class Bf16Rows:
    """Rows of a memory in bfloat16, which propose neighbours with lower bounds of their distances.

    Of |q − m|² = |q|² − 2(q·m − |m|²/2) the bracket comes from one product: |m|²/2 stands in further columns, as three
    numbers that add up to it. Rows and patches are taken about the rows' mean, which leaves distances as they are and
    less to round. With q̂ and m̂ for what rounding leaves, |q·m − q̂·m̂| ≤ |q − q̂|·|m| + |q̂|·|m − m̂| (Cauchy–Schwarz);
    the lengths on the right are known. To that comes what adding up in float32 and rounding the product cost.

    Args:
        rows: (N, D) float32.
    """

    def __init__(self, rows: NDArray[np.float32]) -> None:
        import torch

        self._middle = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
        centred = torch.from_numpy(rows - self._middle)
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

    def nearest(self, q: NDArray[np.float32], m: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Lower bounds of squared distances (T, m), ascending, and the rows they are of.

        No row that is not among a patch's `m` is nearer to it than its last bound says.
        """
        bounds = np.empty((len(q), m), np.float32)
        found = np.empty((len(q), m), np.int64)
        step = max(1, _PRODUCTS // len(self._rows))
        for start in range(0, len(q), step):
            part = slice(start, start + step)
            bounds[part], found[part] = self._nearest(q[part], m)
        return bounds, found

    def _nearest(self, q: NDArray[np.float32], m: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        import torch

        centred = q - self._middle
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


def _lengths(x: NDArray[np.float32], rounded: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Squared length of each row of `x`, and the length of what rounding took from it."""
    off = x - rounded
    return np.einsum("nd,nd->n", x, x), np.sqrt(np.einsum("nd,nd->n", off, off))


def quick_rows(rows: NDArray[np.float32]) -> DeviceRows | Bf16Rows | None:
    """The rows where the extractor's GPU finds them; else in bfloat16, where that is a gain; else None."""
    return lend(rows) or bf16_rows(rows)


def bf16_rows(rows: NDArray[np.float32]) -> Bf16Rows | None:
    """Many rows in bfloat16 where torch is there and the processor multiplies in it (AMX or AVX-512)."""
    if rows.size < _BF16_FROM or find_spec("torch") is None:
        return None
    import torch

    able = getattr(torch.cpu, "get_capabilities", dict[str, bool])()  # older releases do not tell
    return Bf16Rows(rows) if able.get("amx_bf16") or able.get("avx512_bf16") else None

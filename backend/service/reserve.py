"""reserve.npz beside a memory: what a growth may still take of images that are gone.

    emb float32 (R, D) · src int32 (R,) · beyond float64 () · generation (of the memory it belongs to)

Nothing but a growth reads it, and one that finds none chooses among the new images alone.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np

from backend.base.errors import DiskFull, ReadOnlyStore
from backend.base.files import patiently, write_atomic
from backend.patchcore import PatchCoreMemory, Reserve
from backend.storage import NPZ_ERRORS, StoredMemory

logger = logging.getLogger(__name__)
NAME = "reserve.npz"


def keep_reserve(folder: Path, generation: str, memory: PatchCoreMemory) -> None:
    """Move what `memory` has in reserve to `folder`, for the memory `generation` there; no file if it has nothing.

    The memory is committed by then, so a disk that is full or refuses is a line in the log.
    """
    reserve, memory.reserve = memory.reserve, None
    path = folder / NAME
    try:
        if reserve is None or len(reserve.emb) == 0:
            path.unlink(missing_ok=True)
            return
        arrays: dict[str, Any] = {"emb": reserve.emb, "src": reserve.image_ids, "beyond": np.float64(reserve.beyond)}
        write_atomic(path, lambda file: np.savez(file, generation=np.array(generation), **arrays))
    except (DiskFull, ReadOnlyStore, OSError) as err:
        logger.warning("%s could not be written, so the next growth chooses among new images alone: %s", path, err)


def load_reserve(folder: Path, stored: StoredMemory) -> Reserve | None:
    """What is in reserve for `stored`; None without a file, or with one of another memory or one that is damaged."""
    path = folder / NAME
    try:
        with patiently(lambda: path.open("rb")) as file, np.load(file, allow_pickle=False) as npz:
            if not stored.generation or str(npz["generation"]) != stored.generation:
                return None
            return _checked(Reserve(npz["emb"], npz["src"], float(npz["beyond"])), stored.emb.shape[1])
    except FileNotFoundError:
        return None
    except NPZ_ERRORS as err:
        logger.warning("%s cannot be used, so this growth chooses among new images alone: %s", path, err)
        return None


def _checked(reserve: Reserve, dim: int) -> Reserve:
    emb, src = reserve.emb, reserve.image_ids
    if emb.dtype != np.float32 or src.dtype != np.int32 or src.ndim != 1 or emb.shape != (len(src), dim):
        raise ValueError(f"emb is {emb.dtype} {emb.shape} and src {src.dtype} {src.shape} for rows of {dim} numbers")
    if not (np.isfinite(emb).all() and np.isfinite(reserve.beyond)):
        raise ValueError("emb or beyond holds values that are not finite")
    return reserve

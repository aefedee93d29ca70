"""Memories that measure otherwise than by joint Euclidean distance: whitened, cosine, or blind to the background.

What they need beside their rows is stored with them, so a memory keeps measuring the way it was fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from backend.memory.coreset import Array, Progress, coreset_of, coreset_size
from backend.memory.foreground import Foreground
from backend.patchcore import Backend, CandidateIndex, PatchCoreMemory

Distance = Literal["l2", "cosine", "mahalanobis"]
Extras = Mapping[str, NDArray[Any]]

# Ridge of the whitening, as a share of the embeddings' mean variance: directions in which good parts hardly vary
# would otherwise rule the distance.
RIDGE = 0.1
SAMPLE = 50_000


def whitening(emb: Array, *, ridge: float = RIDGE) -> Array:
    """(D, D) float32 W for which ‖(x − y)·W‖ is, but for one factor, a Mahalanobis distance under `emb` (N, D).

    W is the inverse square root of Σ + ridge · mean(diag Σ) · I, scaled so that good embeddings vary as much as before
    on the whole: distances keep the size of those between unit rows.
    """
    chosen = emb[:: -(-len(emb) // SAMPLE)].astype(np.float64)
    centred = chosen - chosen.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred / max(1, len(chosen) - 1))
    values = np.maximum(values, 0)
    floor = max(ridge * float(values.mean()), 1e-12)
    scale = (values + floor) ** -0.5
    level = (float(values.sum()) / max(float((values * scale**2).sum()), 1e-12)) ** 0.5 or 1.0
    return np.asarray((vectors * (scale * level)) @ vectors.T, np.float32)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a memory measures. The default is PatchCoreMemory's own: joint rows, Euclidean, every token.

    Attributes:
        distance: l2; cosine, 1 − cos, half of l2 squared; or mahalanobis, l2 after a whitening learnt from `emb`.
        foreground: leave background tokens out of the memory, and at distance 0.
    """

    distance: Distance = "l2"
    foreground: bool = False

    def __bool__(self) -> bool:
        return self.distance != "l2" or self.foreground

    def __str__(self) -> str:
        own = "" if self.distance == "l2" else self.distance
        return ",".join(part for part in (own, "foreground" if self.foreground else "") if part)


class VariantMemory(PatchCoreMemory):
    """A memory whose rows and queries are whitened, whose distances are cosine ones, or that leaves the background out.

    Args:
        whiten: (D, D) float32; None where nothing is whitened.
        grid: token rows and columns of an image; whoever asks for that many distances asks for an image.
    """

    def __init__(
        self,
        emb: Array,
        variant: Variant,
        whiten: Array | None,
        grid: tuple[int, int],
        *,
        foreground: Foreground | None = None,
        backend: Backend = "auto",
        src: NDArray[np.int32] | None = None,
    ) -> None:
        self.emb, self.src, self.dim, self.n_embeddings = emb, src, emb.shape[1], len(emb)
        self.variant, self.whiten, self.grid, self.foreground = variant, whiten, grid, foreground
        self.measured = PatchCoreMemory(viewed(emb, whiten), backend=backend, src=src)
        self.backend = self.measured.backend

    def attach_index(self, rough: Callable[[Array], CandidateIndex | None]) -> None:
        """See PatchCoreMemory.attach_index."""
        self.measured.attach_index(rough)

    @property
    def nbytes(self) -> int:
        """Bytes the memory holds in RAM."""
        return self.emb.nbytes + self.measured.nbytes

    @property
    def kind(self) -> str:
        """The variant, in words."""
        return str(self.variant)

    @property
    def extras(self) -> dict[str, NDArray[Any]]:
        """What is stored beside the rows."""
        known = {
            "whiten": self.whiten,
            "cosine": np.array(True) if self.variant.distance == "cosine" else None,
            "foreground": self.foreground.as_array() if self.foreground else None,
        }
        return {name: array for name, array in known.items() if array is not None}

    def distances(self, q: Array, k: int = 1, *, leave_out: int | None = None, density: int = 0) -> NDArray[np.float32]:
        """See PatchCoreMemory.distances; 0 for the background, and not bounded by 2 where there is whitening.

        Density divides Euclidean distances: of cosine ones, which are their squares, its square is taken.
        """
        near, rows = self.measured.neighbours(viewed(q, self.whiten), k, leave_out=leave_out)
        if density:
            near = near / self.measured.spacing(rows[:, 0], density, leave_out)[:, None]
        found: NDArray[np.float32] = (near**2 / 2 if self.variant.distance == "cosine" else near).mean(axis=1)
        if self.foreground is not None:
            whole = len(q) == self.grid[0] * self.grid[1]
            found[~(self.foreground.of_image(q, self.grid) if whole else self.foreground.of(q))] = 0.0
        return found

    def weight(self, q: Array, neighbours: int) -> float:
        """See PatchCoreMemory.weight."""
        return self.measured.weight(viewed(q[None], self.whiten)[0], neighbours)


def viewed(rows: Array, whiten: Array | None) -> Array:
    """Rows (N, D) as they are measured."""
    rows = np.ascontiguousarray(rows, np.float32)
    return rows if whiten is None else rows @ whiten


def build_memory(  # noqa: PLR0913 - those of PatchCoreMemory.build, and two
    emb: Array,
    variant: Variant,
    grid: tuple[int, int],
    *,
    coreset_rate: float,
    limit: int,
    rng: np.random.Generator,
    backend: Backend = "auto",
    src: NDArray[np.int32] | None = None,
    progress: Progress | None = None,
) -> PatchCoreMemory:
    """The memory of a coreset of `emb` (N, D) under `variant`; the coreset is chosen in the space that measures.

    Args:
        grid: token rows and columns; with `foreground`, `emb` has every token of every image, in order.
        coreset_rate, limit: see coreset_size.
    """
    if not variant:
        return PatchCoreMemory.build(
            emb, coreset_rate, limit=limit, rng=rng, backend=backend, src=src, growing=True, progress=progress
        )
    n_seen = len(emb)
    foreground = Foreground.learnt(emb, grid) if variant.foreground else None
    if foreground is not None:
        kept = np.concatenate(
            [foreground.of_image(tokens, grid) for tokens in np.split(emb, len(emb) // (grid[0] * grid[1]))]
        )
        emb, src = emb[kept], None if src is None else src[kept]
    whiten = whitening(emb) if variant.distance == "mahalanobis" else None
    n = coreset_size(len(emb), coreset_rate, limit)
    coreset = coreset_of(viewed(emb, whiten), n, rng=rng, progress=progress)
    rows = coreset.indices
    memory = VariantMemory(
        emb[rows],
        variant,
        whiten,
        grid,
        foreground=foreground,
        backend=backend,
        src=None if src is None else src[rows],
    )
    memory.radius, memory.indices, memory.n_embeddings = coreset.radius, rows, n_seen
    return memory


def checked_extras(extras: Extras, dim: int) -> dict[str, NDArray[Any]]:
    """What is stored beside rows of `dim` numbers, as a variant needs it; arrays that no variant knows are left out.

    Raises:
        ValueError: names the array whose shape, dtype or values do not fit the rows, or says what is no longer read.
    """
    if "widths" in extras or "part_src" in extras:
        raise ValueError("it holds one memory for each block (PATCHCORE_MEMORIES=separate), which is no longer read")
    known: dict[str, tuple[str, tuple[int, ...], type[np.generic]]] = {
        "whiten": ("f", (dim, dim), np.float32),
        "cosine": ("b", (), np.bool_),
        "foreground": ("f", (dim + 1,), np.float32),
    }
    found: dict[str, NDArray[Any]] = {}
    for name, (kinds, shape, dtype) in known.items():
        array = extras.get(name)
        if array is None:
            continue
        if array.dtype.kind not in kinds or array.shape != shape or not np.isfinite(array).all():
            raise ValueError(f"{name} is {array.dtype} {array.shape} or not finite; {shape} fits rows of {dim}")
        found[name] = array.astype(dtype)
    return found


def stored_memory(
    emb: Array,
    grid: tuple[int, int],
    extras: Extras,
    *,
    backend: Backend = "auto",
    src: NDArray[np.int32] | None = None,
) -> PatchCoreMemory:
    """The memory that rows and what was stored beside them make."""
    whiten, foreground = extras.get("whiten"), extras.get("foreground")
    variant = Variant(
        distance="mahalanobis" if whiten is not None else "cosine" if "cosine" in extras else "l2",
        foreground=foreground is not None,
    )
    if not variant:
        return PatchCoreMemory(emb, backend=backend, src=src)
    return VariantMemory(
        emb,
        variant,
        whiten,
        grid,
        foreground=None if foreground is None else Foreground.from_array(foreground),
        backend=backend,
        src=src,
    )

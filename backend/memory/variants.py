"""Memories that measure otherwise than joint Euclidean distance.

Whitened (Mahalanobis), cosine, one memory for each block of the tokens, or blind to the background. What they need
beside their rows is stored with them, so a memory keeps measuring the way it was fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from backend.memory.coreset import Array, Progress, coreset_of, coreset_size
from backend.memory.foreground import Foreground
from backend.patchcore import Backend, CandidateIndex, PatchCoreMemory, l2_normalize

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
        widths: columns of each block that has a memory of its own; empty for one joint memory.
        foreground: leave background tokens out of the memory, and at distance 0.
    """

    distance: Distance = "l2"
    widths: tuple[int, ...] = ()
    foreground: bool = False

    def __bool__(self) -> bool:
        return self.distance != "l2" or len(self.widths) > 1 or self.foreground

    def __str__(self) -> str:
        own = "" if self.distance == "l2" else self.distance
        parts = [own, "separate" if len(self.widths) > 1 else "", "foreground" if self.foreground else ""]
        return ",".join(part for part in parts if part)

    def spans(self, dim: int) -> list[slice]:
        """The columns of each memory."""
        stops = np.cumsum(self.widths or (dim,)).tolist()
        return [slice(start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]


@dataclass(frozen=True)
class Space:
    """Where a variant measures: the columns of its parts, each of unit length, whitened or not."""

    spans: Sequence[slice]
    whiten: Array | None = None

    @classmethod
    def learnt(cls, emb: Array, variant: Variant) -> Space:
        """The space of `variant` for good embeddings (N, D)."""
        plain = cls(variant.spans(emb.shape[1]))
        if variant.distance != "mahalanobis":
            return plain
        whiten = np.zeros((emb.shape[1], emb.shape[1]), np.float32)
        for part, span in enumerate(plain.spans):
            whiten[span, span] = whitening(plain.view(emb, part))
        return cls(plain.spans, whiten)

    def unit(self, rows: Array, part: int) -> Array:
        """The columns of a part (N, d), of unit length."""
        own = np.ascontiguousarray(rows[:, self.spans[part]], np.float32)
        return own if len(self.spans) == 1 else l2_normalize(own)

    def view(self, rows: Array, part: int) -> Array:
        """`rows` (N, D) as a part measures them: (N, d)."""
        span, own = self.spans[part], self.unit(rows, part)
        return own if self.whiten is None else own @ np.ascontiguousarray(self.whiten[span, span])


class VariantMemory(PatchCoreMemory):
    """A memory whose distance is the mean, over its parts, of the distance to the part's nearest rows.

    Row i of `emb` holds row i of every part side by side, of unit length and divided by √parts, so that rows are unit
    vectors again. The rows of a part are a coreset of its own; `part_src` (N, parts) says which images they came from.

    Args:
        grid: token rows and columns of an image; whoever asks for that many distances asks for an image.
    """

    def __init__(
        self,
        emb: Array,
        variant: Variant,
        space: Space,
        grid: tuple[int, int],
        *,
        foreground: Foreground | None = None,
        part_src: NDArray[np.int32] | None = None,
        backend: Backend = "auto",
        src: NDArray[np.int32] | None = None,
    ) -> None:
        self.emb, self.src, self.dim, self.n_embeddings = emb, src, emb.shape[1], len(emb)
        self.variant, self.space, self.grid, self.foreground, self.part_src = variant, space, grid, foreground, part_src
        columns = [src] * len(space.spans) if part_src is None else [np.ascontiguousarray(s) for s in part_src.T]
        self.parts = [
            PatchCoreMemory(space.view(emb, part), backend=backend, src=own) for part, own in enumerate(columns)
        ]
        self.backend = self.parts[0].backend

    def attach_index(self, rough: Callable[[Array], CandidateIndex | None]) -> None:
        """See PatchCoreMemory.attach_index; of each part."""
        for part in self.parts:
            part.attach_index(rough)

    @property
    def nbytes(self) -> int:
        """Bytes the memory holds in RAM."""
        return self.emb.nbytes + sum(part.nbytes for part in self.parts)

    @property
    def kind(self) -> str:
        """The variant, in words."""
        return str(self.variant)

    @property
    def extras(self) -> dict[str, NDArray[Any]]:
        """What is stored beside the rows."""
        known = {
            "widths": np.array(self.variant.widths, np.int32) if len(self.parts) > 1 else None,
            "part_src": self.part_src,
            "whiten": self.space.whiten,
            "cosine": np.array(True) if self.variant.distance == "cosine" else None,
            "foreground": self.foreground.as_array() if self.foreground else None,
        }
        return {name: array for name, array in known.items() if array is not None}

    def distances(self, q: Array, k: int = 1, *, leave_out: int | None = None, density: int = 0) -> NDArray[np.float32]:
        """See PatchCoreMemory.distances; 0 for the background, and not bounded by 2 where there is whitening.

        Density divides Euclidean distances: of cosine ones, which are their squares, its square is taken.
        """
        total = np.zeros(len(q), np.float32)
        for number, part in enumerate(self.parts):
            near, rows = part.neighbours(self.space.view(q, number), k, leave_out=leave_out)
            if density:
                near = near / part.spacing(rows[:, 0], density, leave_out)[:, None]
            total += (near**2 / 2 if self.variant.distance == "cosine" else near).mean(axis=1)
        if self.foreground is not None:
            whole = len(q) == self.grid[0] * self.grid[1]
            total[~(self.foreground.of_image(q, self.grid) if whole else self.foreground.of(q))] = 0.0
        return total / np.float32(len(self.parts))

    def weight(self, q: Array, neighbours: int) -> float:
        """See PatchCoreMemory.weight; the mean over the parts."""
        views = [self.space.view(q[None], part)[0] for part in range(len(self.parts))]
        return float(np.mean([part.weight(view, neighbours) for part, view in zip(self.parts, views, strict=True)]))


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
    space, n = Space.learnt(emb, variant), coreset_size(len(emb), coreset_rate, limit)
    parts = range(len(space.spans))
    chosen = [coreset_of(space.view(emb, part), n, rng=rng, progress=progress) for part in parts]
    n = min(len(coreset.indices) for coreset in chosen)
    rows = [coreset.indices[:n] for coreset in chosen]
    joined = [space.unit(emb[rows[part]], part) for part in parts]
    memory = VariantMemory(
        np.concatenate(joined, axis=1) / np.float32(len(parts) ** 0.5),
        variant,
        space,
        grid,
        foreground=foreground,
        part_src=None if src is None or len(parts) == 1 else np.stack([src[own] for own in rows], axis=1),
        backend=backend,
        src=None if src is None else src[rows[0]],
    )
    memory.radius, memory.indices, memory.n_embeddings = max(c.radius for c in chosen), rows[0], n_seen
    return memory


def checked_extras(extras: Extras, n_rows: int, dim: int) -> dict[str, NDArray[Any]]:
    """What is stored beside (n_rows, dim) rows, as a variant needs it; arrays that no variant knows are left out.

    Raises:
        ValueError: names the array whose shape, dtype or values do not fit the rows.
    """
    parts = extras["widths"].size if "widths" in extras else 1
    known: dict[str, tuple[str, tuple[int, ...], type[np.generic]]] = {
        "widths": ("iu", (parts,), np.int32),
        "part_src": ("iu", (n_rows, parts), np.int32),
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
            raise ValueError(
                f"{name} is {array.dtype} {array.shape} or not finite; {shape} fits {n_rows} rows of {dim}"
            )
        found[name] = array.astype(dtype)
    widths = extras.get("widths")
    if widths is not None and (parts < 2 or int(widths.min()) < 1 or sum(widths.tolist()) != dim):
        raise ValueError(f"widths do not divide {dim} columns")
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
    whiten, widths, foreground = (extras.get(name) for name in ("whiten", "widths", "foreground"))
    variant = Variant(
        distance="mahalanobis" if whiten is not None else "cosine" if "cosine" in extras else "l2",
        widths=() if widths is None else tuple(int(width) for width in widths),
        foreground=foreground is not None,
    )
    if not variant:
        return PatchCoreMemory(emb, backend=backend, src=src)
    return VariantMemory(
        emb,
        variant,
        Space(variant.spans(emb.shape[1]), whiten),
        grid,
        foreground=None if foreground is None else Foreground.from_array(foreground),
        part_src=extras.get("part_src"),
        backend=backend,
        src=src,
    )

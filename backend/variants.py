"""Memories that measure otherwise than joint Euclidean distance: whitened, or a memory for each block of the tokens.

What they need beside their rows is stored with them, so a memory keeps measuring the way it was fitted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from backend.coreset import Array, Progress, coreset_size, kcenter_greedy
from backend.patchcore import Backend, PatchCoreMemory, l2_normalize

Distance = Literal["l2", "mahalanobis"]

# Ridge of the whitening, as a share of the embeddings' mean variance: directions in which good parts hardly vary
# would otherwise rule the distance.
RIDGE = 0.1
SAMPLE = 50_000


def whitening(emb: Array, *, ridge: float = RIDGE) -> Array:
    """(D, D) float32 W for which ‖(x − y)·W‖ is the Mahalanobis distance under the covariance of `emb` (N, D).

    The covariance is Σ + ridge · mean(diag Σ) · I, and W = its inverse square root, scaled so that good embeddings vary
    as much as before on average: distances stay of one size with those of unit rows.
    """
    chosen = emb[:: -(-len(emb) // SAMPLE)].astype(np.float64)
    centred = chosen - chosen.mean(axis=0)
    covariance = centred.T @ centred / max(1, len(chosen) - 1)
    variance = float(np.trace(covariance)) / len(covariance)
    values, vectors = np.linalg.eigh(covariance)
    scale = (np.maximum(values, 0) + max(ridge * variance, 1e-12)) ** -0.5
    level = (variance / max(float((np.maximum(values, 0) * scale**2).mean()), 1e-12)) ** 0.5
    whitened: Array = ((vectors * (scale * level)) @ vectors.T).astype(np.float32)
    return whitened


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a memory measures. The default is PatchCoreMemory's own: joint rows, Euclidean.

    Attributes:
        distance: l2, or mahalanobis: Euclidean after a whitening learnt from the good embeddings.
        widths: columns of each block that has a memory of its own; empty for one joint memory.
    """

    distance: Distance = "l2"
    widths: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return self.distance != "l2" or len(self.widths) > 1

    def spans(self, dim: int) -> list[slice]:
        """The columns of each memory."""
        stops = np.cumsum(self.widths or (dim,)).tolist()
        return [slice(start, stop) for start, stop in zip([0, *stops[:-1]], stops, strict=True)]


class VariantMemory(PatchCoreMemory):
    """A memory whose distance is the mean, over its parts, of the distance to the part's nearest rows.

    `emb` holds row i of every part side by side, each of unit length and then divided by √parts, so that rows are unit
    vectors again; the parts' rows come from patches of their own, whose images `part_src` (N, parts) names.

    Args:
        whiten: (D, D) float32, applied to differences within each part's columns; None for l2.
    """

    def __init__(
        self,
        emb: Array,
        variant: Variant,
        *,
        whiten: Array | None = None,
        part_src: NDArray[np.int32] | None = None,
        backend: Backend = "auto",
        src: NDArray[np.int32] | None = None,
    ) -> None:
        super().__init__(emb, backend=backend, src=src)
        self.variant, self.whiten, self.part_src = variant, whiten, part_src
        self.spans = variant.spans(self.dim)
        self.parts = []
        for number, span in enumerate(self.spans):
            own = src if part_src is None else np.ascontiguousarray(part_src[:, number])
            rows = _measured(self.emb, span, self.spans, whiten)
            self.parts.append(PatchCoreMemory(rows, backend=self.backend, src=own))

    @property
    def nbytes(self) -> int:
        """Bytes the memory holds in RAM."""
        return super().nbytes + sum(part.nbytes for part in self.parts)

    @property
    def extras(self) -> dict[str, NDArray[Any]]:
        """What is stored beside the rows."""
        widths = {"widths": np.array(self.variant.widths, np.int32)} if len(self.spans) > 1 else {}
        whiten = {} if self.whiten is None else {"whiten": self.whiten}
        return {**widths, **whiten, **({} if self.part_src is None else {"part_src": self.part_src})}

    def distances(self, q: Array, k: int = 1, *, leave_out: int | None = None) -> NDArray[np.float32]:
        """See PatchCoreMemory.distances; not bounded by 2 where there is whitening."""
        found = [
            part.distances(_measured(q, span, self.spans, self.whiten), k, leave_out=leave_out)
            for part, span in zip(self.parts, self.spans, strict=True)
        ]
        mean: NDArray[np.float32] = np.mean(found, axis=0, dtype=np.float32)
        return mean

    def weight(self, q: Array, neighbours: int) -> float:
        """See PatchCoreMemory.weight; the mean over the parts."""
        parts = zip(self.parts, self.spans, strict=True)
        return float(
            np.mean([p.weight(_measured(q[None], s, self.spans, self.whiten)[0], neighbours) for p, s in parts])
        )


def _measured(rows: Array, span: slice, spans: Sequence[slice], whiten: Array | None) -> Array:
    own = rows[:, span] if len(spans) == 1 else l2_normalize(rows[:, span])
    return np.ascontiguousarray(own if whiten is None else own @ whiten[span, span], np.float32)


def build_memory(
    emb: Array,
    variant: Variant,
    *,
    coreset_rate: float,
    limit: int,
    rng: np.random.Generator,
    backend: Backend = "auto",
    src: NDArray[np.int32] | None = None,
    progress: Progress | None = None,
) -> PatchCoreMemory:
    """The memory of a coreset of `emb` (N, D) under `variant`; the coreset is chosen in the space that measures."""
    if not variant:
        return PatchCoreMemory.build(
            emb, coreset_rate, limit=limit, rng=rng, backend=backend, src=src, progress=progress
        )
    spans, n = variant.spans(emb.shape[1]), coreset_size(len(emb), coreset_rate, limit)
    whiten = _whitening_of(emb, spans) if variant.distance == "mahalanobis" else None
    chosen = [kcenter_greedy(_measured(emb, span, spans, whiten), n, rng=rng, progress=progress) for span in spans]
    n = min(len(coreset.indices) for coreset in chosen)
    rows = [coreset.indices[:n] for coreset in chosen]
    joined = [
        emb[own, span] if len(spans) == 1 else l2_normalize(emb[own, span])
        for own, span in zip(rows, spans, strict=True)
    ]
    memory = VariantMemory(
        np.concatenate(joined, axis=1) / np.float32(len(spans) ** 0.5),
        variant,
        whiten=whiten,
        part_src=None if src is None or len(spans) == 1 else np.stack([src[own] for own in rows], axis=1),
        backend=backend,
        src=None if src is None else src[rows[0]],
    )
    memory.radius, memory.indices, memory.n_embeddings = max(c.radius for c in chosen), rows[0], len(emb)
    return memory


def _whitening_of(emb: Array, spans: Sequence[slice]) -> Array:
    whiten = np.zeros((emb.shape[1], emb.shape[1]), np.float32)
    for span in spans:
        whiten[span, span] = whitening(_measured(emb, span, spans, None))
    return whiten


def stored_memory(
    emb: Array, extras: Mapping[str, NDArray[Any]], *, backend: Backend = "auto", src: NDArray[np.int32] | None = None
) -> PatchCoreMemory:
    """The memory that rows and what was stored beside them make."""
    whiten, widths = extras.get("whiten"), extras.get("widths")
    variant = Variant(
        distance="l2" if whiten is None else "mahalanobis",
        widths=() if widths is None else tuple(int(width) for width in widths),
    )
    if not variant:
        return PatchCoreMemory(emb, backend=backend, src=src)
    return VariantMemory(emb, variant, whiten=whiten, part_src=extras.get("part_src"), backend=backend, src=src)

"""PatchCore's memory bank: a coreset of good patches, and how far other patches are from it.

Roth et al., "Towards Total Recall in Industrial Anomaly Detection" (CVPR 2022), section 3. A distance is Euclidean and
between unit vectors, so 0 … 2, whichever library searches, unless a memory was made to measure otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from backend.base.arrays import Float as Array
from backend.base.arrays import blocks, l2_normalize, square_norms
from backend.memory.chunked import ChunkedCoreset, kcenter_greedy_chunked
from backend.memory.compact import CompactRows, Rows, RowsDtype, in_float32
from backend.memory.coreset import BLOCK, Coreset, Progress, coreset_of, coreset_size, kcenter_greedy
from backend.memory.density import Spacing
from backend.memory.foreground import Foreground
from backend.memory.on_device import Seen, View, look
from backend.memory.search import Backend, CandidateIndex, ExactSearch, candidate_index, serialised_index
from backend.memory.whitening import whitening

__all__ = [
    "Array",
    "Backend",
    "CandidateIndex",
    "ChunkedCoreset",
    "CompactRows",
    "Coreset",
    "Distance",
    "Foreground",
    "NothingLeft",
    "PatchCoreMemory",
    "Reserve",
    "Rows",
    "RowsDtype",
    "checked_extras",
    "coreset_size",
    "covering_radius",
    "kcenter_greedy",
    "kcenter_greedy_chunked",
    "l2_normalize",
]

Distance = Literal["l2", "cosine", "mahalanobis"]


class NothingLeft(ValueError):
    """Every row of the memory is of the image that is to be left out."""


@dataclass(frozen=True)
class Reserve:
    """Rows that a memory left out and a growth may still take: those farthest from it, the farthest first.

    Attributes:
        emb: (R, D) float32.
        image_ids: (R,) int32, as of a memory.
        beyond: no embedding seen so far that is in neither the memory nor the reserve is farther from the memory.
    """

    emb: Array
    image_ids: NDArray[np.int32]
    beyond: float


class PatchCoreMemory:
    """The good patches that other patches are compared with.

    Args:
        rows: (N, D) float32 unit rows, kept as given, not copied; or CompactRows.
        backend: the library that searches; auto: FAISS where it is installed, else scikit-learn.
        image_ids: (N,) numbers of the images that the rows came from, negative where several images share a row.
        whiten: (D, D) float32, a linear map that rows and patches go through before they are compared.
        cosine: distances are 1 − cos, which is half the square of the Euclidean one.
        foreground: tells background tokens, whose distance is 0.

    Attributes:
        rows: as given.
        radius: the covering radius of the coreset; None for rows that came as they are.
        indices: (N,) int64, which embeddings the coreset chose; None for rows that came as they are.
        n_embeddings: how many it was chosen from.
        reserve: rows for a growth, see `build`.

    Raises:
        ValueError: there is no row, rows are not finite, or `image_ids` has another length.
        BackendUnavailable: the library is not installed.
    """

    radius: float | None = None
    reserve: Reserve | None = None
    indices: NDArray[np.int64] | None = None

    def __init__(
        self,
        rows: Rows,
        *,
        backend: Backend = "auto",
        image_ids: NDArray[np.int32] | None = None,
        whiten: Array | None = None,
        cosine: bool = False,
        foreground: Foreground | None = None,
    ) -> None:
        # The search below looks at the values.
        self.rows = rows if isinstance(rows, CompactRows) else np.ascontiguousarray(rows, np.float32)
        self._search = ExactSearch(self.rows if whiten is None else _mapped(self.emb, whiten), backend)
        self.image_ids = None if image_ids is None else np.asarray(image_ids, dtype=np.int32)
        if self.image_ids is not None and self.image_ids.shape != (len(self.rows),):
            raise ValueError(f"{len(self.rows)} rows have image numbers of shape {self.image_ids.shape}")
        self.whiten, self.cosine, self.foreground = whiten, cosine, foreground
        self.n_embeddings = len(self.rows)
        self._spacings: dict[int, Spacing] = {}

    @classmethod
    def build(  # noqa: PLR0913 - the options of one step, by name
        cls,
        emb: Array,
        coreset_rate: float = 0.02,
        *,
        limit: int = 25_600,
        rng: np.random.Generator | None = None,
        backend: Backend = "auto",
        image_ids: NDArray[np.int32] | None = None,
        distance: Distance = "l2",
        foreground: Foreground | None = None,
        growing: bool = False,
        progress: Progress | None = None,
    ) -> PatchCoreMemory:
        """The memory of a coreset of embeddings, chosen where distances are measured.

        Args:
            emb: (M, D) float32 unit rows; with `foreground`, all tokens of every image, in order.
            coreset_rate, limit: rows of the coreset, see `coreset_size`.
            rng: draws the first row; without it that is row 0.
            backend, image_ids: as of the memory; `image_ids` (M,).
            distance: l2; cosine; or mahalanobis, l2 after a whitening that is learnt from `emb`.
            foreground: leaves background tokens out.
            growing: keep a reserve of as many rows as the memory has, which takes `image_ids`. A memory that measures
                otherwise than by l2 of all tokens does not grow, and keeps none.
            progress: see `kcenter_greedy`.

        Raises:
            ValueError: there is nothing to choose from, or values are not finite.
        """
        n_embeddings = len(emb)
        if foreground is not None:
            part = foreground.of_images(emb)
            emb, image_ids = emb[part], None if image_ids is None else np.asarray(image_ids)[part]
        whiten = whitening(emb) if distance == "mahalanobis" else None
        n = coreset_size(len(emb), coreset_rate, limit)
        keeps = growing and image_ids is not None and distance == "l2" and foreground is None
        coreset = coreset_of(_mapped(emb, whiten), n, left=n if keeps else 0, rng=rng, progress=progress)
        ids = None if image_ids is None else np.asarray(image_ids, np.int32)
        memory = cls(
            emb[coreset.indices],
            backend=backend,
            image_ids=None if ids is None else ids[coreset.indices],
            whiten=whiten,
            cosine=distance == "cosine",
            foreground=foreground,
        )
        memory.radius, memory.indices, memory.n_embeddings = coreset.radius, coreset.indices, n_embeddings
        if keeps and ids is not None:
            memory.reserve = Reserve(emb[coreset.left], ids[coreset.left], coreset.beyond)
        return memory

    @classmethod
    def stored(
        cls,
        rows: Rows,
        grid: tuple[int, int],
        extras: Mapping[str, NDArray[Any]],
        *,
        backend: Backend = "auto",
        image_ids: NDArray[np.int32] | None = None,
    ) -> PatchCoreMemory:
        """The memory that measures as the one whose rows and `extras` these are.

        Args:
            grid: token rows and columns of an image.
            extras: what `checked_extras` gives.
        """
        foreground = extras.get("foreground")
        return cls(
            rows,
            backend=backend,
            image_ids=image_ids,
            whiten=extras.get("whiten"),
            cosine="cosine" in extras,
            foreground=None if foreground is None else Foreground.from_array(foreground, grid),
        )

    def kept_as(self, dtype: RowsDtype) -> PatchCoreMemory:
        """The same memory with its rows kept as MEMORY_DTYPE asks, from then on the rows that distances are to."""
        if dtype == "float32":
            return self
        memory = PatchCoreMemory(
            CompactRows.of(self.emb, dtype),
            backend=self.backend,
            image_ids=self.image_ids,
            whiten=self.whiten,
            cosine=self.cosine,
            foreground=self.foreground,
        )
        memory.radius, memory.reserve, memory.indices = self.radius, self.reserve, self.indices
        memory.n_embeddings = self.n_embeddings
        return memory

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def emb(self) -> Array:
        """(N, D) float32: the rows, a copy of them where they are kept in fewer digits."""
        return in_float32(self.rows)

    @property
    def dim(self) -> int:
        """Numbers in a row."""
        return int(self.rows.shape[1])

    @property
    def backend(self) -> Literal["faiss", "sklearn"]:
        """The library that searches."""
        return self._search.backend

    @property
    def nbytes(self) -> int:
        """Bytes that the memory holds in RAM."""
        ids = 0 if self.image_ids is None else self.image_ids.nbytes
        return self._search.nbytes + ids + (0 if self.whiten is None else self.whiten.nbytes + self.rows.nbytes)

    @property
    def kind(self) -> str:
        """How the memory measures, as `cosine,foreground`; empty for Euclidean distances of all tokens."""
        own = "mahalanobis" if self.whiten is not None else "cosine" if self.cosine else ""
        return ",".join(part for part in (own, "foreground" if self.foreground else "") if part)

    @property
    def extras(self) -> dict[str, NDArray[Any]]:
        """The arrays that memory.npz holds beside the rows, so that `stored` measures in the same way."""
        known = {
            "whiten": self.whiten,
            "cosine": np.array(True) if self.cosine else None,
            "foreground": self.foreground.as_array() if self.foreground else None,
        }
        return {name: array for name, array in known.items() if array is not None}

    def attach_index(self, make: Callable[[Array], CandidateIndex | None] = candidate_index) -> None:
        """See `ExactSearch.attach_index`."""
        self._search.attach_index(make)

    def distances(self, q: Array, k: int = 1, *, leave_out: int | None = None, density: int = 0) -> Array:
        """Mean distance of each patch to its `k` nearest rows.

        Args:
            q: (T, D) float32 unit rows. Where the memory has a foreground, as many as an image has tokens are taken for
                the tokens of an image, in order.
            k: neighbours that are averaged; all rows where there are fewer.
            leave_out: the number of an image whose rows are not neighbours.
            density: distances are divided by how far the nearest row is from so many rows of other images, as a
                multiple of what is typical of the memory (`density.Spacing`); 0: they are not. The square of that
                divides cosine distances.

        Returns:
            (T,) float32: 0 … 2 between unit vectors, up to twice that with `density`, not bounded with `whiten`.

        Raises:
            NothingLeft: `leave_out` leaves no row.
            ValueError: another width, not finite, k < 1, or `leave_out` in a memory that does not know its images.
        """
        keep = self._kept(leave_out)
        near, rows = self._search.neighbours(_mapped(q, self.whiten), k, keep)
        spacing = self._spacing(density, keep)(rows[:, 0]) if density else np.ones(len(rows), np.float32)
        if not self.kind:
            mean: Array = near.mean(axis=1) / spacing
            return mean
        near = near / spacing[:, None]
        mean = (near**2 / 2 if self.cosine else near).mean(axis=1)
        if self.foreground is not None:
            mean[~self.foreground.of(q)] = 0.0
        return mean

    def looking(self, view: View) -> Callable[[Any], Seen | None] | None:
        """What looks at tokens on the device that holds the memory's rows, as `on_device.look` does.

        None where no device holds them, or where a distance is more than the plain one of two rows.
        """
        rows = self._search.on_device
        return None if rows is None or self.kind else partial(look, rows, view)

    def nearest(self, q: Array, k: int = 1) -> NDArray[np.int64]:
        """(T, k) which rows lie nearest to each patch of `q` (T, D), the nearest first; fewer where there are fewer."""
        return self._search.neighbours(_mapped(q, self.whiten), k, None)[1]

    def weight(self, q: Array, neighbours: int, *, leave_out: int | None = None) -> float:
        """How much the patch `q` (D,) counts as the score of its image (Roth et al. 2022, section 3.3, eq. 7).

        1 − exp‖q − m*‖ / Σ exp‖q − m‖, where m* is the row nearest to q and m are the `neighbours` rows nearest to m*,
        itself among them: the farther the nearest row is from the other rows, the more the patch weighs. Rows of the
        image `leave_out` are neither. Raises NothingLeft, ValueError: as `distances`.
        """
        keep = self._kept(leave_out)
        rows = self._search.rows if keep is None else self._search.rows[keep]
        to_q = np.sqrt(_squares(rows, _mapped(q[None], self.whiten)[0]))
        nearest = int(to_q.argmin())
        around = np.argsort(_squares(rows, rows[nearest]), kind="stable")[:neighbours]
        return float(1.0 - 1.0 / np.exp(to_q[around].astype(np.float64) - to_q[nearest]).sum())

    def index_bytes(self) -> bytes:
        """The rows as index.faiss holds them. Raises BackendUnavailable where FAISS is not installed."""
        return serialised_index(self.rows)

    def _kept(self, leave_out: int | None) -> NDArray[np.int64] | None:
        """Numbers of the rows that are not of the image `leave_out`; None: all."""
        if leave_out is None:
            return None
        if self.image_ids is None:
            raise ValueError(f"image {leave_out} is to be left out of a memory that does not know its images")
        keep = np.flatnonzero(self.image_ids != leave_out)
        if len(keep) == 0:
            raise NothingLeft(f"without image {leave_out} no row is left")
        return None if len(keep) == len(self) else keep

    def _spacing(self, n: int, keep: NDArray[np.int64] | None) -> Spacing:
        """The spacing of the rows among `n` neighbours, kept for the next call unless an image is left out."""
        if keep is not None:
            return Spacing(self._search, n, self.image_ids, keep)
        if n not in self._spacings:
            self._spacings[n] = Spacing(self._search, n, self.image_ids)
        return self._spacings[n]


def _mapped(rows: Array, whiten: Array | None) -> Array:
    """Rows (N, D) as they are compared."""
    return rows if whiten is None else np.ascontiguousarray(rows, np.float32) @ whiten


def _squares(rows: Rows, q: Array) -> Array:
    """(N,) squared distances of rows (N, D) to `q` (D,), without a copy of the rows."""
    return np.concatenate([square_norms(rows[block] - q) for block in blocks(len(rows), BLOCK)])


def covering_radius(chunks: Iterable[Array], centres: Array) -> float:
    """The largest Euclidean distance of any row of `chunks` (N_i, D) to the nearest of `centres` (M, D)."""
    memory = PatchCoreMemory(centres)
    return max(float(memory.distances(chunk).max()) for chunk in chunks)


def checked_extras(extras: Mapping[str, NDArray[Any]], dim: int) -> dict[str, NDArray[Any]]:
    """The arrays among `extras` that a memory of rows (N, dim) stores beside them; others are left out.

    Raises:
        ValueError: an array has another shape, dtype or values than fit the rows; or the rows are those of
            PATCHCORE_MEMORIES=separate, which only an earlier release can read.
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

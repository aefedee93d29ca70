"""ModelCache: models in memory, as many as CACHE_MB holds, read again when their files change."""

from __future__ import annotations

import logging
import math
import threading
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from cachetools import LRUCache

from backend.base.arrays import square_norms
from backend.base.errors import (
    ExtractorMismatch,
    FitInProgress,
    InvalidShape,
    MemoryNotFound,
    PartNotAlone,
    ReadOnlyReplica,
    StorageFailed,
)
from backend.base.keys import ModelKey
from backend.base.messages import Notice
from backend.extractors.protocol import Extractor
from backend.patchcore import Backend, PatchCoreMemory
from backend.roi_mask import Shape, build_mask, parse_shape
from backend.storage import ModelStore, Stamp, StoredMemory

logger = logging.getLogger(__name__)

SAME_PIXELS = 0.03  # an ROI that differs by less in size was cut out anew, not taken with other pixels


@dataclass(frozen=True)
class FittedModel:
    """A memory ready to be searched."""

    memory: PatchCoreMemory
    stored: StoredMemory
    stamp: Stamp | None

    @property
    def nbytes(self) -> int:
        """Bytes that the cache counts for it."""
        return self.memory.nbytes

    @cached_property
    def longest_row(self) -> float:
        """Length of the memory's longest row; 1 but for files of the older layout."""
        return float(np.sqrt(square_norms(self.memory.emb).max()))

    @property
    def roi_px(self) -> tuple[int, int] | None:
        """Height and width of the first image of the fit, px; None where a file of the older layout does not say."""
        known = self.stored.metadata.get("roi_px")
        if not (isinstance(known, list) and len(known) == 2 and all(isinstance(n, int) and n > 0 for n in known)):
            return None
        return known[0], known[1]

    @cached_property
    def shape(self) -> Shape | None:
        """Where the part is in an ROI of the fit's size; None where the fit's images had no shape, or several."""
        try:
            return parse_shape(self.stored.metadata.get("shape"))
        except InvalidShape as err:
            logger.warning("the shape of a memory cannot be used: %s", err)
            return None

    def shape_in(self, height: int, width: int) -> Shape | None:
        """The model's shape in an ROI of (height, width) pixels, scaled where its size is clearly another."""
        if self.shape is None or self.roi_px is None:
            return self.shape
        factor = float(np.sqrt(height * width / math.prod(self.roi_px)))
        return self.shape if abs(factor - 1) < SAME_PIXELS else self.shape.scaled(factor)

    @cached_property
    def area_mm2(self) -> float:
        """What is inspected of the fit's ROI, mm²; infinite where a file of the older layout does not say."""
        mm_per_px = self.stored.number("mm_per_px", 0.0)
        if self.roi_px is None or mm_per_px <= 0:
            return math.inf
        mask = build_mask(self.shape, *self.roi_px)
        return float(math.prod(self.roi_px) if mask is None else mask.sum()) * mm_per_px**2

    @property
    def knows_part_only(self) -> bool:
        """Whether what lies beside the part is in none of the memory's rows, because every image had a shape."""
        return bool(self.stored.metadata.get("masked"))


class ModelCache:
    """The newest memory and calibration of a key; a file is read only when its stamp changed.

    Models leave, the least recently used first, when they take more bytes than `cache_mb` together.

    Args:
        cache_mb: bytes that the memories held may take, in units of 2^20.
        knn_backend: the library that searches them.
    """

    def __init__(
        self,
        store: ModelStore,
        *,
        cache_mb: float,
        knn_backend: Backend,
    ) -> None:
        self.store = store
        self.knn_backend = knn_backend
        self._models: LRUCache[ModelKey, FittedModel] = LRUCache(cache_mb * 2**20, getsizeof=lambda m: m.nbytes)
        self._calibrations: LRUCache[ModelKey, tuple[tuple[Stamp | None, ...], dict[str, Any]]] = LRUCache(4096)
        self._lock = threading.Lock()
        # One load at a time, or requests that all miss the same model would each hold a copy of it.
        self._loading = threading.Lock()

    def model(self, key: ModelKey) -> FittedModel:
        """The fitted model of `key`. Raises MemoryNotFound, DamagedFile."""
        known = self._current(key)
        if known is not None:
            return known
        with self._loading:
            known = self._current(key)
            return known if known is not None else self._load(key)

    def _current(self, key: ModelKey) -> FittedModel | None:
        stamp = self.store.stamp(key)
        if stamp is None:
            raise MemoryNotFound(key=key)
        with self._lock:
            known = self._models.get(key)
        return known if known is not None and known.stamp == stamp else None

    def _load(self, key: ModelKey) -> FittedModel:
        # Before the read: if the file is replaced meanwhile, the stamp is outdated and the next request reads again.
        stamp = self.store.stamp(key)
        stored = self.store.load_memory(key)
        return self.put(key, self._searchable(key, stored, stamp), stored, stamp)

    def put(self, key: ModelKey, memory: PatchCoreMemory, stored: StoredMemory, stamp: Stamp | None) -> FittedModel:
        """Remember a model; one larger than the whole cache is only returned."""
        memory.attach_index()
        model = FittedModel(memory, stored, stamp)
        with self._lock:
            self._models.pop(key, None)
            if model.nbytes <= self._models.maxsize:
                self._models[key] = model
        return model

    def calibration(self, key: ModelKey) -> dict[str, Any] | None:
        """calib.json of `key`, or None. Raises DamagedFile."""
        stamp = self.store.calibration_stamp(key)
        if stamp is None:
            return None
        with self._lock:
            known = self._calibrations.get(key)
        if known is not None and known[0] == stamp:
            return known[1]
        given = self.store.load_calibration(key)
        if given is not None:
            with self._lock:
                self._calibrations[key] = (stamp, given)
        return given

    @property
    def nbytes(self) -> int:
        """Bytes of the memories held."""
        with self._lock:
            return int(self._models.currsize)

    def _searchable(self, key: ModelKey, stored: StoredMemory, stamp: Stamp | None) -> PatchCoreMemory:
        memory = memory_of(stored, self.knn_backend)
        if not self.store.derived_is_current(key, stored.generation, indexed=memory.backend == "faiss"):
            self._rebuild_derived(key, stored, stamp, index_bytes(memory))
        return memory

    def _rebuild_derived(self, key: ModelKey, stored: StoredMemory, stamp: Stamp | None, index: bytes | None) -> None:
        try:
            with self.store.writing(key, timeout=0):
                if self.store.stamp(key) == stamp:
                    self.store.write_derived(key, stored, index)
                    logger.info("rebuilt index and manifest of %s", key)
        except (FitInProgress, ReadOnlyReplica, StorageFailed, OSError) as err:
            logger.warning("index and manifest of %s are not rebuilt now: %s", key, err)


def memory_of(stored: StoredMemory, backend: Backend) -> PatchCoreMemory:
    """The memory that measures as `stored` was fitted."""
    return PatchCoreMemory.stored(stored.rows, stored.grid, stored.extras, backend=backend, image_ids=stored.image_ids)


def check_extractor(key: ModelKey, model: FittedModel, extractor: Extractor) -> list[Notice]:
    """Whether `extractor` made this memory, with a notice when an older file cannot say so.

    Raises:
        ExtractorMismatch: another extractor made it.
        PartNotAlone: the extractor cannot see the part alone, as that one did.
    """
    theirs = model.stored.fingerprint
    if theirs == extractor.fingerprint_of(part_alone=model.stored.part_alone):
        if model.stored.part_alone and not extractor.leaves_out:
            raise PartNotAlone(model=extractor.name)
        return []
    name = model.stored.metadata.get("extractor")
    dim = model.memory.dim
    if theirs is not None or dim != extractor.dim:
        raise ExtractorMismatch(
            key=key,
            theirs=", ".join(str(part) for part in (name, f"{dim} dims", theirs) if part),
            ours=f"{extractor.name}, {extractor.dim} dims, {extractor.fingerprint}",
        )
    return [Notice("older_memory")]


def index_bytes(memory: PatchCoreMemory) -> bytes | None:
    """What index.faiss holds for `memory`; None where FAISS is not in use."""
    return memory.index_bytes() if memory.backend == "faiss" else None

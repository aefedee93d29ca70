"""Journal: told of every fit, calibration and inspection, so that samples, records and debug pictures are kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from backend.base.config import Settings
from backend.base.errors import DatasetsFull, DiskFull, FitInProgress, InspectionError, ReadOnlyStore
from backend.base.keys import ModelKey
from backend.base.messages import Notice
from backend.infer import Inspection, heatmap_png, heatmap_range
from backend.samples.debug import DebugFolder
from backend.samples.history import FitHistory
from backend.samples.store import Draft, SampleStore
from backend.service.fitting import ImageFile

logger = logging.getLogger(__name__)

_STORE_TROUBLE = (DatasetsFull, DiskFull, ReadOnlyStore, FitInProgress)


class Journal:
    """Keeps quiet; `Recorder` does not."""

    def keep(self, key: ModelKey, files: Sequence[ImageFile], mm_per_px: float) -> list[Notice]:
        """The good parts of a fit that is about to be committed."""
        return []

    def fitted(self, key: ModelKey, metadata: Mapping[str, Any]) -> list[Notice]:
        """The metadata of a memory just committed; the caller holds the model's lock."""
        return []

    def calibrated(self, key: ModelKey, values: Mapping[str, Any]) -> list[Notice]:
        """The calibration just written; the caller holds the model's lock."""
        return []

    def inspected(self, key: ModelKey, name: str, inspection: Inspection, threshold: float | None) -> None:
        """One image was inspected."""


class Recorder(Journal):
    """Stores what was fitted as samples, writes the record beside them, and the debug pictures.

    None of it is worth failing a request for: what cannot be written becomes a warning.
    """

    def __init__(self, settings: Settings, samples: SampleStore, history: FitHistory) -> None:
        self.settings = settings
        self.samples = samples
        self.history = history
        self.debug = DebugFolder(settings.debug_dir, settings.debug_max_files) if settings.debug_heatmaps else None

    def keep(self, key: ModelKey, files: Sequence[ImageFile], mm_per_px: float) -> list[Notice]:
        """Store the images as OK samples, unless STORE_SAMPLES is off."""
        if not self.settings.store_samples:
            return []
        try:
            self.samples.add(key, "ok", [_draft(file, mm_per_px) for file in files])
        except _STORE_TROUBLE as err:
            return [self._trouble("samples_not_kept", key, err)]
        return []

    def fitted(self, key: ModelKey, metadata: Mapping[str, Any]) -> list[Notice]:
        """Record the fit or growth."""
        return self._record(key, lambda: self.history.record_memory(key, metadata))

    def calibrated(self, key: ModelKey, values: Mapping[str, Any]) -> list[Notice]:
        """Record the calibration."""
        return self._record(key, lambda: self.history.append(key, "calibrate", {"values": values}))

    def inspected(self, key: ModelKey, name: str, inspection: Inspection, threshold: float | None) -> None:
        """Write the heatmap and its numbers, with DEBUG_HEATMAPS."""
        if self.debug is None:
            return
        low, high = heatmap_range(inspection, "relative", threshold)
        numbers = {
            "role_id": key.role_id,
            "roi_id": key.roi_id,
            "recipe_id": key.recipe_id,
            "name": name,
            "score": inspection.score,
            "threshold": threshold,
            "heatmap_range": [low, high],
            "stats": inspection.stats,
            "regions": [{"bbox": region.bbox, "area_mm2": region.area_mm2} for region in inspection.regions],
        }
        try:
            self.debug.write(f"{key}_{name}", heatmap_png(inspection, "relative", low, high), numbers)
        except (DiskFull, ReadOnlyStore) as err:
            logger.warning("the debug heatmap of %s cannot be written: %s", key, err)

    def _record(self, key: ModelKey, write: Callable[[], None]) -> list[Notice]:
        if not (self.settings.store_samples or self.samples.folder(key).is_dir()):
            return []
        try:
            write()
        except (DiskFull, ReadOnlyStore) as err:
            return [self._trouble("record_not_written", key, err)]
        return []

    @staticmethod
    def _trouble(code: str, key: ModelKey, err: InspectionError) -> Notice:
        logger.warning("%s: %s", key, err)
        return Notice(code, {"reason": err})


def _draft(file: ImageFile, mm_per_px: float) -> Draft:
    return Draft(file.name, file.read, "fit_ok", mm_per_px, file.shape.as_dict() if file.shape else None)

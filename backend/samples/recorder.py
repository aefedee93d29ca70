"""Recorder: keeps samples, the history of fits and debug pictures of what the service did."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from backend.base.config import Settings
from backend.base.errors import (
    DamagedFile,
    DatasetsFull,
    FitInProgress,
    InspectionError,
    SampleNotFound,
    StorageFailed,
)
from backend.base.files import write_atomic, write_json
from backend.base.keys import ModelKey
from backend.base.messages import Notice
from backend.calib import GoodScores
from backend.infer import Inspection, heatmap_png, heatmap_range
from backend.samples.history import FitHistory
from backend.samples.store import Draft, SampleStore
from backend.service.images import ImageFile

logger = logging.getLogger(__name__)

_STORE_TROUBLE = (DatasetsFull, StorageFailed, FitInProgress)


class DebugFolder:
    """Pairs of <utc>_<title>.png and .json; when there are more than `limit` the oldest go."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._lock = threading.Lock()

    def write(self, title: str, png: bytes, values: Mapping[str, Any]) -> None:
        """Keep one picture and its numbers. Raises DiskFull, ReadOnlyStore."""
        moment = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S%fZ")
        stem = f"{moment}_{re.sub(r'[^0-9A-Za-z.-]+', '_', title)[:120]}"
        with self._lock:
            write_json(self.folder / f"{stem}.json", dict(values))
            write_atomic(self.folder / f"{stem}.png", lambda file: file.write(png))
            for old in sorted(self.folder.glob("*.png"))[: -self.limit]:
                old.with_suffix(".json").unlink(missing_ok=True)
                old.unlink(missing_ok=True)


class Recorder:
    """The Journal that stores what was fitted as samples, writes the history beside them, and the debug pictures.

    A request does not fail because of it: what cannot be written becomes a warning.
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

    def restored(self, key: ModelKey, metadata: Mapping[str, Any], values: Mapping[str, Any] | None) -> list[Notice]:
        """Record the restore, and take the samples back that teaching stored for a memory that is no longer in use."""
        calibration = {} if values is None else {"values": plain_calibration(values)}
        event = {"generation": metadata.get("generation", ""), **calibration}
        # The record comes last: where it is missing, the next start does both again.
        notices = self._taken_back(key, {image["sha256"] for image in metadata.get("images", ())})
        return [*notices, *self._record(key, lambda: self.history.append(key, "restore", event))]

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
        except StorageFailed as err:
            logger.warning("the debug heatmap of %s cannot be written: %s", key, err)

    def _taken_back(self, key: ModelKey, learnt: Collection[str]) -> list[Notice]:
        try:
            back = self.samples.take_back(key, learnt)
        except (*_STORE_TROUBLE, DamagedFile, SampleNotFound) as err:
            return [self._trouble("taught_not_taken_back", key, err)]
        return [Notice("taught_taken_back", {"n": len(back)})] if back else []

    def _record(self, key: ModelKey, write: Callable[[], None]) -> list[Notice]:
        if not (self.settings.store_samples or self.samples.folder(key).is_dir()):
            return []
        try:
            write()
        except StorageFailed as err:
            return [self._trouble("record_not_written", key, err)]
        return []

    @staticmethod
    def _trouble(code: str, key: ModelKey, err: InspectionError) -> Notice:
        logger.warning("%s: %s", key, err)
        return Notice(code, {"reason": err})


def plain_calibration(values: Mapping[str, Any]) -> dict[str, Any]:
    """A calibration as JSON holds it."""
    return {name: one.as_dict() if isinstance(one, GoodScores) else one for name, one in values.items()}


def _draft(file: ImageFile, mm_per_px: float) -> Draft:
    return Draft(file.name, file.read, "fit_ok", mm_per_px, file.shape.as_dict() if file.shape else None)

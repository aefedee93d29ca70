"""The use cases calibrate and infer, of one (role, roi)."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from backend import __version__
from backend.base.arrays import few_threads_each
from backend.base.config import Settings
from backend.base.decoding import ImageOptions
from backend.base.errors import DamagedFile
from backend.base.keys import ModelKey
from backend.base.messages import Notice
from backend.calib import FEW_OK, choose_threshold
from backend.extractors.protocol import Extractor
from backend.infer import Criteria, HeatmapScale, Roi, Scoring, heatmap_png, heatmap_range
from backend.service.calibration import apply_calibration
from backend.service.host import ExtractorHost
from backend.service.images import ImageFile
from backend.service.jobs import Job
from backend.service.models import FittedModel, ModelCache, check_extractor
from backend.service.pipeline import Pipeline
from backend.service.results import CalibrationResult, Clock, InferResult, Journal, NoJournal
from backend.service.warmup import rehearse
from backend.storage import ModelStore

logger = logging.getLogger(__name__)


class Inspector:
    """Inspects and calibrates; safe to call from many threads. What fits memories is `service.fitting.Fitter`.

    Args:
        settings: the service's settings.
        extractor: used instead of the one the settings name (tests, embedding in other programs).
        journal: told of every fit, calibration and inspection.
    """

    def __init__(self, settings: Settings, extractor: Extractor | None = None, journal: Journal | None = None) -> None:
        self.settings = settings
        self.journal: Journal = journal or NoJournal()
        self.store = ModelStore(settings.models_dir, read_only=settings.read_only, min_free_mb=settings.min_free_mb)
        self.cache = ModelCache(self.store, cache_mb=settings.cache_mb, knn_backend=settings.knn_backend)
        self.host = ExtractorHost(settings, extractor, lambda queue: rehearse(queue, self.cache))

    def start(self) -> None:
        """Bring the extractor up. Raises WeightsUnavailable when REQUIRE_PRETRAINED is set."""
        few_threads_each()
        self.host.start()

    def close(self) -> None:
        """Stop the queue; waiting requests are cancelled."""
        self.host.close()

    def busy(self) -> bool:
        """Whether inspections are waiting for their answer."""
        return self.host.depth > 0

    def health(self) -> dict[str, Any]:
        """status, device, model, version, and while degraded the notice that says why as `reason`."""
        extractor = self.host.extractor
        known = {
            "status": self.host.status,
            "device": extractor.device if extractor else self.settings.device,
            "model": extractor.name if extractor else self.settings.model_name,
            "version": __version__,
        }
        return known | ({"reason": self.host.degraded} if self.host.degraded else {})

    def warnings(self) -> list[Notice]:
        """Notices that every answer carries: the degraded state."""
        return [self.host.degraded] if self.host.degraded else []

    def fitted(self, key: ModelKey) -> tuple[FittedModel, list[Notice]]:
        """The model of `key`, if the running extractor made it; with a notice when an older file cannot say so.

        Raises:
            MemoryNotFound, ExtractorMismatch, DamagedFile.
        """
        model = self.cache.model(key)
        return model, check_extractor(key, model, self.host.queue().extractor)

    def criteria(self, key: ModelKey, model: FittedModel) -> tuple[Criteria, list[Notice]]:
        """What `model` is judged by now, and what is to be said of its calibration. Raises DamagedFile."""
        return apply_calibration(
            self.cache.calibration(key),
            Scoring.of(self.settings, model.memory.kind),
            area_mm2_thr=self.settings.area_mm2_thr,
            generation=model.stored.generation,
            fingerprint=self.host.queue().extractor.fingerprint,
        )

    def calibrate(
        self,
        key: ModelKey,
        *,
        ok_scores: Sequence[float],
        ng_scores: Sequence[float] = (),
        mm_per_px: float,
        area_mm2_thr: float | None = None,
        score_percentile: float | None = None,
        scored_at: float | None = None,
    ) -> CalibrationResult:
        """Choose the threshold from scores and write calib.json, bound to the memory, extractor and scoring.

        `scored_at` is the percentile that the scores were made with; None: the one that /infer uses.

        Raises:
            MemoryNotFound, ExtractorMismatch, DamagedFile, FitInProgress, DiskFull, ReadOnlyStore.
        """
        model, notices = self.fitted(key)
        former = scored_at or self._former_percentile(key, model)
        percentile = score_percentile or self.settings.score_percentile
        chosen = choose_threshold(ok_scores, ng_scores, percentile=percentile, margin=self.settings.threshold_margin)
        values = {
            "threshold": chosen.value,
            "p99_ok": chosen.p_ok,
            "p5_ng": chosen.p5_ng,
            "mm_per_px": mm_per_px,
            "area_mm2_thr": self.settings.area_mm2_thr if area_mm2_thr is None else area_mm2_thr,
            "score_percentile": percentile,
            "ok_mean": chosen.ok_mean,
            **({} if chosen.ng_mean is None else {"ng_mean": chosen.ng_mean}),
            "n_ok": len(ok_scores),
            "n_ng": len(ng_scores),
            "generation": model.stored.generation,
            "fingerprint": self.host.queue().extractor.fingerprint,
            "scoring": Scoring.of(self.settings, model.memory.kind).remembered(),
        }
        with self.store.writing(key, self.settings.fit_wait_s):
            self.store.save_calibration(key, values)
            recorded = self.journal.calibrated(key, values)
        if chosen.overlap:
            notices.append(Notice("scores_overlap", {"p_ok": chosen.p_ok, "p5_ng": chosen.p5_ng}))
        if len(ok_scores) < FEW_OK:
            notices.append(Notice("few_ok_scores", {"n": len(ok_scores)}))
        if percentile != former:
            notices.append(Notice("percentile_changed", {"former": former, "new": percentile}))
        return CalibrationResult(values, [*self.warnings(), *notices, *recorded])

    def _former_percentile(self, key: ModelKey, model: FittedModel) -> float:
        try:
            criteria, _ = self.criteria(key, model)
        except DamagedFile as err:
            logger.warning("a damaged calibration is replaced: %s", err)
            return self.settings.score_percentile
        return criteria.scoring.percentile

    def infer(
        self,
        key: ModelKey,
        file: ImageFile,
        *,
        mm_per_px: float,
        heatmap: HeatmapScale | None = None,
        job: Job | None = None,
    ) -> InferResult:
        """Inspect one image of the canonical ROI.

        Args:
            file: the image; score and regions speak of its shape alone, if it has one.
            mm_per_px: millimetres per pixel of the sent image.
            heatmap: how to draw the heatmap; HEATMAP_SCALE when None.

        Raises:
            MemoryNotFound, ExtractorMismatch, TokenGridMismatch, BadImage, MaskEmpty, QueueFull,
            Cancelled, DamagedFile.
        """
        clock, queue = Clock(), self.host.queue()
        with queue.slot():
            model, older = self.fitted(key)
            criteria, of_calibration = self.criteria(key, model)
            pipeline = Pipeline(queue, model, criteria, ImageOptions.of(self.settings))
            image, inspection = pipeline.run(file, mm_per_px=mm_per_px, job=job or Job(), mark=clock.mark)
            scale = heatmap or self.settings.heatmap_scale
            low, high = heatmap_range(inspection, scale, criteria.threshold)
            png = b"" if scale == "none" else heatmap_png(inspection, scale, low, high)
            clock.mark("png")
        self.journal.inspected(key, file.name, inspection, criteria.threshold)
        return InferResult(
            inspection=inspection,
            threshold=criteria.threshold,
            is_anomaly=None if criteria.threshold is None else inspection.score > criteria.threshold,
            heatmap=png,
            heatmap_range=(low, high),
            token_shape=image.grid,
            params=_params(queue.extractor, model, criteria, mm_per_px, self.settings),
            timings_ms=clock.report(),
            warnings=[
                *self.warnings(),
                *older,
                *_about_origin(key, model),
                *image.notices,
                *of_calibration,
                *_about_roi(inspection.roi, model),
            ],
        )


def _about_origin(key: ModelKey, model: FittedModel) -> list[Notice]:
    """A notice when the memory's file was made for another model and copied here."""
    theirs = model.stored.metadata.get("model", str(key))
    return [] if theirs == str(key) else [Notice("memory_of_other_model", {"theirs": theirs, "key": key})]


def _about_roi(roi: Roi, model: FittedModel) -> list[Notice]:
    """What is to be said of an image's size, scale and shape beside those the memory was fitted with."""
    notices = []
    if roi.size.scale < 1:
        notices.append(Notice("image_downscaled", {"megapixels": roi.size.height * roi.size.width / 1e6}))
    fitted = model.stored.metadata.get("mm_per_px")
    if isinstance(fitted, float) and abs(roi.mm_per_px - fitted) > 0.01 * fitted:
        notices.append(Notice("mm_per_px_differs", {"got": roi.mm_per_px, "expected": fitted}))
    if model.knows_part_only and roi.mask is None:
        notices.append(Notice("shape_missing"))
    return notices


def _params(
    extractor: Extractor, model: FittedModel, criteria: Criteria, mm_per_px: float, settings: Settings
) -> dict[str, Any]:
    """What /infer says of how it inspected."""
    rate = model.stored.number("coreset_rate", settings.coreset_rate)
    return {
        "extractor": extractor.name,
        "input_size": extractor.input_size,
        "patch_size": extractor.patch,
        "coreset_rate": rate,
        "coreset_rate_applied": model.stored.number("coreset_rate_applied", rate),
        **criteria.scoring.reported(),
        "mm_per_px": mm_per_px,
        "area_mm2_thr": criteria.area_mm2_thr,
        "model_version": str(model.stored.metadata.get("model_version", "")),
        "device": extractor.device,
        "runtime": extractor.runtime,
    }

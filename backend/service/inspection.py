"""The use cases: fit, calibrate and infer for one (role, roi)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import replace
from typing import Any

import numpy as np

from backend import __version__
from backend.base.config import Settings
from backend.base.errors import DamagedFile, Language, NoImages, Notice
from backend.base.images import few_threads_each
from backend.base.keys import ModelKey
from backend.calib import FEW_OK, choose_threshold
from backend.extractors.protocol import Extractor, Grid
from backend.infer import (
    HeatmapScale,
    InferenceEngine,
    RoiSize,
    Scoring,
    heatmap_png,
    heatmap_range,
    part_mask,
)
from backend.memory.variants import build_memory
from backend.patchcore import PatchCoreMemory
from backend.roi_mask import Shape
from backend.samples.recorder import Journal
from backend.service.augment import Augmentation
from backend.service.calibration import Applied, apply_calibration, fit_settings_of, scoring_id, settings_under
from backend.service.fitting import Embeddings, ImageFile, embed_good_parts, fit_metadata, prepare_image
from backend.service.host import ExtractorHost, proposer
from backend.service.models import FittedModel, ModelCache, check_extractor, index_bytes
from backend.service.passes import Budget, one_at_a_time
from backend.service.queue import InferenceQueue, Job
from backend.service.reserve import keep_reserve
from backend.service.results import (
    CalibrationResult,
    Clock,
    FitResult,
    InferResult,
    about_coreset,
    about_frame,
    about_origin,
    params_of,
    variant_of,
)
from backend.service.warmup import rehearse
from backend.storage import ModelStore, StoredMemory

logger = logging.getLogger(__name__)


class Inspector:
    """Fits, calibrates and inspects; safe to call from many threads.

    Args:
        settings: the service's settings.
        extractor: used instead of the one the settings name (tests, embedding in other programs).
        journal: told of every fit, calibration and inspection.
    """

    def __init__(self, settings: Settings, extractor: Extractor | None = None, journal: Journal | None = None) -> None:
        self.settings = settings
        self.journal = journal or Journal()
        self.store = ModelStore(settings.models_dir, read_only=settings.read_only, min_free_mb=settings.min_free_mb)
        self.cache = ModelCache(
            self.store, cache_mb=settings.cache_mb, knn_backend=settings.knn_backend, rough=proposer(settings)
        )
        self.host = ExtractorHost(settings, extractor, lambda queue: rehearse(queue, self.cache))
        self._fitting = threading.Lock()

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

    def health(self, language: Language = "en") -> dict[str, str]:
        """status, device, model, version, and `reason` while degraded."""
        extractor = self.host.extractor
        known = {
            "status": self.host.status,
            "device": extractor.device if extractor else self.settings.device,
            "model": extractor.name if extractor else self.settings.model_name,
            "version": __version__,
        }
        return known | ({"reason": self.host.degraded.text(language)} if self.host.degraded else {})

    def warnings(self) -> list[Notice]:
        """Notices that every answer carries: the degraded state."""
        return [self.host.degraded] if self.host.degraded else []

    def fit(
        self,
        key: ModelKey,
        files: Sequence[ImageFile],
        *,
        mm_per_px: float,
        job: Job | None = None,
        keep: bool = True,
    ) -> FitResult:
        """Build the memory of `key` from images of good parts, replacing the former one in one step.

        Nothing is written before every image was decoded and embedded. `keep`: the journal is shown the images.

        Raises:
            NoImages, BadImage, TokenGridMismatch, FitInProgress, Cancelled, DiskFull, ReadOnlyStore.
        """
        if not files:
            raise NoImages()
        job, clock = job or Job(), Clock()
        queue = self.host.queue()
        with self.one_fit(key, job):
            embedded = self.embed(files, queue, job, in_passes=True)
            clock.mark("extract")
            memory = self.remember(embedded, job)
            clock.mark("coreset")
            metadata = self.metadata_of(files, embedded, memory, queue.extractor, mm_per_px)
            job.check()
            with self.store.writing(key, self.settings.fit_wait_s):
                stored, notices = self.commit(key, memory, embedded.grid, metadata, files if keep else ())
            clock.mark("store")
        notices = self.warnings() + about_coreset(embedded, self.settings) + notices
        return FitResult(len(memory), embedded.grid, stored.metadata, clock.report(), notices)

    def embed(
        self,
        files: Sequence[ImageFile],
        queue: InferenceQueue,
        job: Job,
        *,
        expected: Grid | None = None,
        in_passes: bool = False,
    ) -> Embeddings:
        """Embeddings of good parts, augmented as set; `in_passes`: a coreset of them beyond FIT_MEMORY_MB."""
        settings = self.settings
        return embed_good_parts(
            files,
            queue,
            job,
            augmentation=Augmentation(rotation_deg=settings.augment_rotation_deg, jitter=settings.augment_jitter),
            seed=settings.seed,
            expected=expected,
            max_megapixels=settings.max_image_mp,
            budget=Budget.of(settings) if in_passes else None,
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
        extractor = self.host.queue().extractor
        model, older = self.fitted(key, extractor)
        former = scored_at or self._former_percentile(key, model, extractor)
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
            "fingerprint": extractor.fingerprint,
            "scoring": scoring_id(self.scoring_with(model)),
        }
        with self.store.writing(key, self.settings.fit_wait_s):
            self.store.save_calibration(key, values)
            recorded = self.journal.calibrated(key, values)
        notices = [
            older,
            Notice("scores_overlap", {"p_ok": chosen.p_ok, "p5_ng": chosen.p5_ng}) if chosen.overlap else None,
            Notice("few_ok_scores", {"n": len(ok_scores)}) if len(ok_scores) < FEW_OK else None,
            Notice("percentile_changed", {"former": former, "new": percentile}) if percentile != former else None,
        ]
        return CalibrationResult(values, self.warnings() + [notice for notice in notices if notice] + recorded)

    def infer(
        self,
        key: ModelKey,
        file: ImageFile,
        *,
        mm_per_px: float,
        shape: Shape | None = None,
        heatmap: HeatmapScale | None = None,
        job: Job | None = None,
    ) -> InferResult:
        """Inspect one image of the canonical ROI.

        Args:
            mm_per_px: millimetres per pixel of the sent image.
            shape: the part inside the ROI, in the sent image's pixels; score and regions speak of it alone.
            heatmap: how to draw the heatmap; HEATMAP_SCALE when None.

        Raises:
            MemoryNotFound, ExtractorMismatch, TokenGridMismatch, BadImage, MaskEmpty, QueueFull,
            Cancelled, DamagedFile.
        """
        job, clock = job or Job(), Clock()
        queue = self.host.queue()
        with queue.slot():
            model, older = self.fitted(key, queue.extractor)
            image = prepare_image(
                file,
                queue.extractor,
                expected=model.stored.grid,
                max_megapixels=self.settings.max_image_mp,
                digested=False,
            )
            frame = RoiSize(*image.size)
            mask = part_mask(shape, frame)
            clock.mark("decode")
            tokens = job.wait(queue.submit(image.pixels))
            clock.mark("forward")
            applied = self.applied(key, model, queue.extractor)
            engine = InferenceEngine(applied.scoring)
            part = mask if model.knows_part_only else None
            token_map = engine.token_map(tokens, image.grid, model.memory, part=part)
            clock.mark("knn")
            inspection = engine.run(
                token_map,
                frame,
                mask=mask,
                threshold=applied.threshold,
                mm_per_px=mm_per_px,
                area_mm2_thr=applied.area_mm2_thr,
                weigher=engine.weigher(tokens, model.memory),
            )
            clock.mark("post")
            scale = heatmap or self.settings.heatmap_scale
            low, high = heatmap_range(inspection, scale, applied.threshold)
            png = b"" if scale == "none" else heatmap_png(inspection, scale, low, high)
            clock.mark("png")
        self.journal.inspected(key, file.name, inspection, applied.threshold)
        notices = [
            *([older] if older else []),
            *about_origin(key, model),
            *image.notices,
            *applied.notices,
            *about_frame(frame, mm_per_px, model, masked=mask is not None),
        ]
        return InferResult(
            inspection=inspection,
            threshold=applied.threshold,
            is_anomaly=None if applied.threshold is None else inspection.score > applied.threshold,
            heatmap=png,
            heatmap_range=(low, high),
            token_shape=image.grid,
            params=params_of(queue.extractor, model, applied, mm_per_px, self.settings),
            timings_ms=clock.report(),
            warnings=self.warnings() + notices,
        )

    @property
    def scoring(self) -> Scoring:
        """How the settings say that heatmaps are scored."""
        return Scoring(
            method=self.settings.score_method,
            percentile=self.settings.score_percentile,
            blur_sigma=self.settings.blur_sigma,
            k=self.settings.patchcore_knn_k,
            where=self.settings.score_map,
            top_share=self.settings.score_top_share,
            power=self.settings.score_power,
            reweight=self.settings.patchcore_reweight,
            token_blur=self.settings.token_blur,
            density=self.settings.patchcore_density_k,
        )

    def scoring_with(self, model: FittedModel) -> Scoring:
        """How the settings say that heatmaps are scored, with the memory that measures."""
        return replace(self.scoring, memory=model.memory.kind)

    def fitted(self, key: ModelKey, extractor: Extractor) -> tuple[FittedModel, Notice | None]:
        """The model of `key`, if `extractor` made it; a notice when it cannot say.

        Raises:
            MemoryNotFound, ExtractorMismatch, DamagedFile.
        """
        model = self.cache.model(key)
        return model, check_extractor(key, model, extractor)

    def applied(self, key: ModelKey, model: FittedModel, extractor: Extractor) -> Applied:
        """The calibration that holds for `model` now. Raises DamagedFile."""
        return apply_calibration(
            self.cache.calibration(key),
            self.scoring_with(model),
            area_mm2_thr=self.settings.area_mm2_thr,
            generation=model.stored.generation,
            fingerprint=extractor.fingerprint,
        )

    def uncalibrated(self, percentile: float) -> Applied:
        """What holds while scores for a new calibration are taken."""
        return Applied(replace(self.scoring, percentile=percentile), None, self.settings.area_mm2_thr, [])

    def _former_percentile(self, key: ModelKey, model: FittedModel, extractor: Extractor) -> float:
        try:
            return self.applied(key, model, extractor).scoring.percentile
        except DamagedFile as err:
            logger.warning("a damaged calibration is replaced: %s", err)
            return self.settings.score_percentile

    def one_fit(self, key: ModelKey, job: Job) -> AbstractContextManager[None]:
        """One fit at a time in this process, so that FIT_MEMORY_MB holds. Raises FitInProgress, Cancelled."""
        return one_at_a_time(self._fitting, key, job, self.settings.fit_wait_s)

    def remember(self, embedded: Embeddings, job: Job) -> PatchCoreMemory:
        """The memory of a fit's embeddings, with the settings' coreset unless passes have chosen it."""
        settings, passes = self.settings, embedded.passes
        memory = build_memory(
            embedded.emb,
            variant_of(settings, self.host.queue().extractor, embedded),
            embedded.grid,
            coreset_rate=1.0 if passes else settings.coreset_rate,
            limit=settings.max_coreset,
            rng=np.random.default_rng(settings.seed),
            backend=settings.knn_backend,
            src=embedded.src,
            progress=job.stage("coreset"),
        )
        if passes:
            memory.n_embeddings, memory.radius = passes.n_seen, passes.radius + (memory.radius or 0.0)
        return memory

    def metadata_of(
        self,
        files: Sequence[ImageFile],
        embedded: Embeddings,
        memory: PatchCoreMemory,
        extractor: Extractor,
        mm_per_px: float,
    ) -> dict[str, Any]:
        """The metadata of a memory fitted with the settings."""
        settings = self.settings
        own = fit_metadata(
            extractor,
            files,
            embedded,
            memory,
            coreset_rate=settings.coreset_rate,
            seed=settings.seed,
            mm_per_px=mm_per_px,
        )
        return {**own, **self.fit_settings}

    def under(self, fit_settings: Mapping[str, Any]) -> Inspector:
        """The same service, without its journal, with the settings that an earlier fit was made with."""
        other = copy(self)
        other.settings = settings_under(self.settings, fit_settings)
        other.journal = Journal()
        return other

    @property
    def fit_settings(self) -> dict[str, Any]:
        """The settings that a fit depends on, as the metadata of its memory holds them."""
        return fit_settings_of(self.settings)

    def commit(
        self,
        key: ModelKey,
        memory: PatchCoreMemory,
        grid: Grid,
        metadata: dict[str, Any],
        files: Sequence[ImageFile] = (),
    ) -> tuple[StoredMemory, list[Notice]]:
        """Write a memory, with `files` and what was done told to the journal. The caller holds the store's lock."""
        src = memory.src if memory.src is not None else np.full(len(memory), -1, np.int32)
        notices = self.journal.keep(key, files, float(metadata["mm_per_px"])) if files else []
        stored = self.store.save_memory(key, memory.emb, grid, src, metadata, index_bytes(memory), memory.extras)
        keep_reserve(self.store.folder(key), stored.generation, memory)
        self.cache.put(key, memory, stored, self.store.stamp(key))
        return stored, notices + self.journal.fitted(key, stored.metadata)

"""The use cases: fit, calibrate and infer for one (role, roi)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic, perf_counter
from typing import Any

import numpy as np

from backend import __version__
from backend.binding import Applied, apply_calibration, scoring_id
from backend.cache import FittedModel, ModelCache, check_extractor, index_bytes
from backend.calib import FEW_OK, choose_threshold
from backend.config import Settings
from backend.errors import DamagedFile, FitInProgress, MaskEmpty, NoImages, Notice
from backend.features import Extractor, Grid
from backend.fitting import Embedded, ImageFile, embed_images, fit_metadata, prepare_image
from backend.host import ExtractorHost
from backend.infer import (
    Frame,
    HeatmapScale,
    InferenceEngine,
    Inspection,
    Mask,
    Scoring,
    heatmap_png,
    heatmap_range,
)
from backend.lane import Job
from backend.patchcore import PatchCoreMemory
from backend.roi_mask import Shape, build_mask
from backend.storage import ModelKey, ModelStore, StoredMemory

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FitResult:
    """What a fit made: the metadata of its memory, and sizes in rows (embeddings)."""

    coreset_size: int
    token_shape: Grid
    metadata: dict[str, Any]
    timings_ms: dict[str, float]
    warnings: list[Notice]


@dataclass(frozen=True)
class CalibrationResult:
    """The calibration as it was written to calib.json."""

    values: dict[str, Any]
    warnings: list[Notice]


@dataclass(frozen=True)
class InferResult:
    """The verdict on one image. `threshold` and `is_anomaly` are None without a calibration that applies."""

    inspection: Inspection
    threshold: float | None
    is_anomaly: bool | None
    heatmap: bytes
    heatmap_range: tuple[float, float]
    token_shape: Grid
    params: dict[str, Any]
    timings_ms: dict[str, float]
    warnings: list[Notice]


class Inspector:
    """Fits, calibrates and inspects; safe to call from many threads.

    Args:
        settings: the service's settings.
        extractor: used instead of the one the settings name (tests, embedding in other programs).
    """

    def __init__(self, settings: Settings, extractor: Extractor | None = None) -> None:
        self.settings = settings
        self.store = ModelStore(settings.models_dir, read_only=settings.read_only, min_free_mb=settings.min_free_mb)
        self.cache = ModelCache(self.store, cache_mb=settings.cache_mb, knn_backend=settings.knn_backend)
        self.host = ExtractorHost(settings, extractor)
        self._fitting = threading.Lock()

    def start(self) -> None:
        """Bring the extractor up. Raises WeightsUnavailable when REQUIRE_PRETRAINED is set."""
        self.host.start()

    def close(self) -> None:
        """Stop the lane; waiting requests are cancelled."""
        self.host.close()

    def health(self) -> dict[str, str]:
        """status, device, model, version, and `reason` while degraded."""
        extractor = self.host.extractor
        known = {
            "status": self.host.status,
            "device": extractor.device if extractor else self.settings.device,
            "model": extractor.name if extractor else self.settings.model_name,
            "version": __version__,
        }
        return known | ({"reason": self.host.degraded.text("en")} if self.host.degraded else {})

    def warnings(self) -> list[Notice]:
        """Notices that every answer carries: the degraded state."""
        return [self.host.degraded] if self.host.degraded else []

    def fit(self, key: ModelKey, files: Sequence[ImageFile], *, mm_per_px: float, job: Job | None = None) -> FitResult:
        """Build the memory of `key` from images of good parts, replacing the former one in one step.

        Nothing is written before every image was decoded and embedded.

        Raises:
            NoImages, BadImage, TokenGridMismatch, FitInProgress, Cancelled, DiskFull, ReadOnlyStore.
        """
        if not files:
            raise NoImages()
        job, clock = job or Job(), _Clock()
        lane = self.host.lane()
        with self._one_fit(key, job):
            embedded = embed_images(files, lane, job, max_megapixels=self.settings.max_image_mp)
            clock.mark("extract")
            memory = self._remember(embedded, job)
            clock.mark("coreset")
            metadata = fit_metadata(
                lane.extractor,
                files,
                embedded,
                memory,
                coreset_rate=self.settings.coreset_rate,
                seed=self.settings.seed,
                mm_per_px=mm_per_px,
            )
            job.check()
            stored = self._commit(key, memory, embedded.grid, metadata)
            clock.mark("store")
        notices = self.warnings() + self._capped(len(embedded.emb))
        return FitResult(len(memory), embedded.grid, stored.metadata, clock.report(), notices)

    def calibrate(
        self,
        key: ModelKey,
        *,
        ok_scores: Sequence[float],
        ng_scores: Sequence[float] = (),
        mm_per_px: float,
        area_mm2_thr: float | None = None,
        score_percentile: float | None = None,
    ) -> CalibrationResult:
        """Choose the threshold from scores and write calib.json, bound to the memory, extractor and scoring.

        Raises:
            MemoryNotFound, ExtractorMismatch, DamagedFile, FitInProgress, DiskFull, ReadOnlyStore.
        """
        extractor = self.host.lane().extractor
        model = self.cache.model(key)
        older = check_extractor(key, model, extractor)
        former = self._former_percentile(key, model, extractor)
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
            "scoring": scoring_id(self.scoring),
        }
        with self.store.writing(key, self.settings.fit_wait_s):
            self.store.save_calibration(key, values)
        notices = [
            older,
            Notice("scores_overlap", {"p_ok": chosen.p_ok, "p5_ng": chosen.p5_ng}) if chosen.overlap else None,
            Notice("few_ok_scores", {"n": len(ok_scores)}) if len(ok_scores) < FEW_OK else None,
            Notice("percentile_changed", {"former": former, "new": percentile}) if percentile != former else None,
        ]
        return CalibrationResult(values, self.warnings() + [notice for notice in notices if notice])

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
        job, clock = job or Job(), _Clock()
        lane = self.host.lane()
        with lane.slot():
            model = self.cache.model(key)
            older = check_extractor(key, model, lane.extractor)
            image = prepare_image(
                file, lane.extractor, expected=model.stored.grid, max_megapixels=self.settings.max_image_mp
            )
            frame = Frame(*image.size)
            mask = _part_mask(shape, frame)
            clock.mark("decode")
            tokens = job.wait(lane.submit(image.pixels))
            clock.mark("forward")
            applied = self.applied(key, model, lane.extractor)
            engine = InferenceEngine(applied.scoring)
            token_map = engine.token_map(tokens, image.grid, model.memory)
            clock.mark("knn")
            inspection = engine.run(
                token_map,
                frame,
                mask=mask,
                threshold=applied.threshold,
                mm_per_px=mm_per_px,
                area_mm2_thr=applied.area_mm2_thr,
            )
            clock.mark("post")
            scale = heatmap or self.settings.heatmap_scale
            low, high = heatmap_range(inspection, scale, applied.threshold)
            png = b"" if scale == "none" else heatmap_png(inspection, scale, low, high)
            clock.mark("png")
        notices = [
            *([older] if older else []),
            *_about_origin(key, model),
            *image.notices,
            *applied.notices,
            *_about_size(frame, mm_per_px, model),
        ]
        return InferResult(
            inspection=inspection,
            threshold=applied.threshold,
            is_anomaly=None if applied.threshold is None else inspection.score > applied.threshold,
            heatmap=png,
            heatmap_range=(low, high),
            token_shape=image.grid,
            params=_params(lane.extractor, model, applied, mm_per_px, self.settings),
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
        )

    def applied(self, key: ModelKey, model: FittedModel, extractor: Extractor) -> Applied:
        """The calibration that holds for `model` now. Raises DamagedFile."""
        return apply_calibration(
            self.cache.calibration(key),
            self.scoring,
            area_mm2_thr=self.settings.area_mm2_thr,
            generation=model.stored.generation,
            fingerprint=extractor.fingerprint,
        )

    def _former_percentile(self, key: ModelKey, model: FittedModel, extractor: Extractor) -> float:
        try:
            return self.applied(key, model, extractor).scoring.percentile
        except DamagedFile as err:
            logger.warning("a damaged calibration is replaced: %s", err)
            return self.settings.score_percentile

    @contextmanager
    def _one_fit(self, key: ModelKey, job: Job) -> Iterator[None]:
        """One fit at a time in this process, so that FIT_MEMORY_MB holds. Raises FitInProgress, Cancelled."""
        deadline = monotonic() + self.settings.fit_wait_s
        while not self._fitting.acquire(timeout=0.1):
            job.check()
            if monotonic() >= deadline:
                raise FitInProgress(key=key, retry_after=5)
        try:
            yield
        finally:
            self._fitting.release()

    def _remember(self, embedded: Embedded, job: Job) -> PatchCoreMemory:
        def progress(done: int, total: int) -> None:
            job.check()
            job.report("coreset", done, total)

        return PatchCoreMemory.build(
            embedded.emb,
            self.settings.coreset_rate,
            limit=self.settings.max_coreset,
            rng=np.random.default_rng(self.settings.seed),
            backend=self.settings.knn_backend,
            src=embedded.src,
            progress=progress,
        )

    def _commit(self, key: ModelKey, memory: PatchCoreMemory, grid: Grid, metadata: dict[str, Any]) -> StoredMemory:
        src = memory.src if memory.src is not None else np.full(len(memory), -1, np.int32)
        with self.store.writing(key, self.settings.fit_wait_s):
            stored = self.store.save_memory(key, memory.emb, grid, src, metadata, index_bytes(memory))
            self.cache.put(key, memory, stored, self.store.stamp(key))
        return stored

    def _capped(self, n_embeddings: int) -> list[Notice]:
        wanted = round(n_embeddings * self.settings.coreset_rate)
        limit = self.settings.max_coreset
        return [Notice("coreset_capped", {"limit": limit, "wanted": wanted})] if wanted > limit else []


class _Clock:
    """Milliseconds by stage."""

    def __init__(self) -> None:
        self._started = self._last = perf_counter()
        self._stages: dict[str, float] = {}

    def mark(self, stage: str) -> None:
        now = perf_counter()
        self._stages[stage] = round(1000 * (now - self._last), 3)
        self._last = now

    def report(self) -> dict[str, float]:
        return {**self._stages, "total": round(1000 * (perf_counter() - self._started), 3)}


def _part_mask(shape: Shape | None, frame: Frame) -> Mask | None:
    """The mask at working resolution. Raises MaskEmpty, which speaks of the sender's pixels."""
    try:
        return build_mask(shape.scaled(frame.scale) if shape else None, *frame.working)
    except MaskEmpty as err:
        raise MaskEmpty(width=frame.width, height=frame.height) from err


def _about_origin(key: ModelKey, model: FittedModel) -> list[Notice]:
    theirs = model.stored.metadata.get("model", str(key))
    return [] if theirs == str(key) else [Notice("memory_of_other_model", {"theirs": theirs, "key": key})]


def _about_size(frame: Frame, mm_per_px: float, model: FittedModel) -> list[Notice]:
    notices = []
    if frame.scale < 1:
        notices.append(Notice("image_downscaled", {"megapixels": frame.height * frame.width / 1e6}))
    fitted = model.stored.metadata.get("mm_per_px")
    if isinstance(fitted, float) and abs(mm_per_px - fitted) > 0.01 * fitted:
        notices.append(Notice("mm_per_px_differs", {"got": mm_per_px, "expected": fitted}))
    return notices


def _params(
    extractor: Extractor, model: FittedModel, applied: Applied, mm_per_px: float, settings: Settings
) -> dict[str, Any]:
    metadata = model.stored.metadata
    rate = float(metadata.get("coreset_rate", settings.coreset_rate))
    return {
        "extractor": extractor.name,
        "input_size": extractor.input_size,
        "patch_size": extractor.patch,
        "coreset_rate": rate,
        "coreset_rate_applied": float(metadata.get("coreset_rate_applied", rate)),
        "k": applied.scoring.k,
        "score_percentile": applied.scoring.percentile,
        "score_method": applied.scoring.method,
        "blur_sigma": applied.scoring.blur_sigma,
        "mm_per_px": mm_per_px,
        "area_mm2_thr": applied.area_mm2_thr,
        "model_version": str(metadata.get("model_version", "")),
        "device": extractor.device,
        "runtime": extractor.runtime,
    }

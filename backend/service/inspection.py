"""The use cases calibrate and infer, of one (role, roi)."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from backend import __version__
from backend.base.arrays import few_threads_each
from backend.base.config import Settings
from backend.base.decoding import ImageOptions
from backend.base.errors import DamagedFile, ExtractorMismatch, FitInProgress, VersionUnusable
from backend.base.images import LARGE_PIXELS
from backend.base.keys import ModelKey, twins
from backend.base.messages import Notice
from backend.calib import FEW_OK, GoodScores, Wanted, decide
from backend.extractors.protocol import Aspect, Extractor
from backend.infer import Criteria, HeatmapScale, Inspection, Roi, Scoring, heatmap_png, heatmap_range
from backend.service.appearance import appearance_of
from backend.service.calibration import Terms, about_promise, apply_calibration, doubts_of, promised_values
from backend.service.host import ExtractorHost
from backend.service.images import SAME_SIZE, ImageFile
from backend.service.jobs import Job
from backend.service.models import FittedModel, ModelCache, check_extractor, memory_of
from backend.service.packing import Packed, put, refuse_existing
from backend.service.pipeline import Pipeline
from backend.service.results import CalibrationResult, Clock, InferResult, Journal, NoJournal, Provenance
from backend.service.warmup import rehearse
from backend.storage import Change, ModelStore, StoredMemory, Version, read_calibration

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Judge:
    """A model, the criteria that hold for it, and what is to be said of the two."""

    model: FittedModel
    criteria: Criteria
    notices: list[Notice]


@dataclass(frozen=True)
class Decided:
    """A calibration that is not written yet: what calib.json would hold, and what is to be said of it.

    `doubts`: what about it can hardly be meant.
    """

    values: dict[str, Any]
    criteria: Criteria
    notices: list[Notice]
    doubts: list[Notice]

    @property
    def read(self) -> dict[str, Any]:
        """As it would be read back."""
        return {**self.values, "good_scores": self.criteria.good}


class Gate(Protocol):
    """Is asked before a model changes, and before each inspection."""

    def change(
        self, key: ModelKey, model: FittedModel, calibration: Mapping[str, Any] | None
    ) -> Callable[[], list[Notice]]:
        """The model and calibration that are about to take effect; the caller holds the model's lock.

        Returns:
            What is called once they have, and gives what is to be said of it.

        Raises:
            GoldenFlipped: they may not.
        """
        ...

    def inspection(self, key: ModelKey) -> None:
        """An inspection is about to begin. Raises GoldenStopped."""
        ...


class OpenGate:
    """The Gate of a service without golden samples."""

    def change(
        self, key: ModelKey, model: FittedModel, calibration: Mapping[str, Any] | None
    ) -> Callable[[], list[Notice]]:
        """See Gate."""
        return list

    def inspection(self, key: ModelKey) -> None:
        """See Gate."""


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
        self.gate: Gate = OpenGate()
        self.store = ModelStore(
            settings.models_dir,
            read_only=settings.read_only,
            min_free_mb=settings.min_free_mb,
            versions=settings.model_versions,
            versions_max_gb=settings.versions_max_gb,
        )
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
        """status, device, model, version, once it is loaded what runs it, and while degraded the notice that says why.

        The runtime is `torch`, `openvino` or `numpy`, the precision `fp32`, `bf16` or `fp16`, the notice is `reason`.
        """
        extractor = self.host.extractor
        known = {
            "status": self.host.status,
            "device": extractor.device if extractor else self.settings.device,
            "model": extractor.name if extractor else self.settings.model_name,
            "version": __version__,
        }
        if extractor:
            known |= {"runtime": extractor.runtime, "precision": getattr(extractor, "precision", "fp32")}
        return known | ({"reason": self.host.degraded} if self.host.degraded else {})

    def warnings(self) -> list[Notice]:
        """Notices that every answer carries: the degraded state."""
        return [self.host.degraded] if self.host.degraded else []

    def fitted(self, key: ModelKey) -> tuple[FittedModel, list[Notice]]:
        """The model of `key`, if the running extractor made it, and what about it is in doubt.

        That is an older file that cannot say who made it, or a fit that read images with another PIXEL_BITS.

        Raises:
            MemoryNotFound, ExtractorMismatch, DamagedFile.
        """
        model = self.cache.model(key)
        notices = check_extractor(key, model, self.host.queue().extractor)
        return model, [*notices, *_about_pixels(model, self.settings)]

    def judge(self, key: ModelKey) -> Judge:
        """The model of `key` with its calibration: both of before a change by others, or both of after it.

        Raises:
            MemoryNotFound, ExtractorMismatch, DamagedFile.
        """
        while True:
            model, older = self.fitted(key)
            criteria, said = self.criteria(key, model)
            if self.store.stamp(key) == model.stamp:
                return Judge(model, criteria, [*older, *said])

    def judge_of(self, key: ModelKey, model: FittedModel, calibration: Mapping[str, Any] | None) -> Judge:
        """A model that is not in use, with a calibration. Raises ExtractorMismatch."""
        older = check_extractor(key, model, self.host.queue().extractor)
        criteria, said = self._applied(model, calibration)
        return Judge(model, criteria, [*older, *said])

    def known_calibration(self, key: ModelKey) -> dict[str, Any] | None:
        """The calibration of `key`; None without one that can be read."""
        try:
            return self.cache.calibration(key)
        except DamagedFile as err:
            logger.warning("a damaged calibration: %s", err)
            return None

    def criteria(self, key: ModelKey, model: FittedModel) -> tuple[Criteria, list[Notice]]:
        """What `model` is judged by now, and what is to be said of its calibration. Raises DamagedFile."""
        return self._applied(model, self.cache.calibration(key))

    def _applied(self, model: FittedModel, calibration: Mapping[str, Any] | None) -> tuple[Criteria, list[Notice]]:
        return apply_calibration(
            calibration,
            Scoring.of(self.settings, model.memory.kind),
            area_mm2_thr=self.settings.area_mm2_thr,
            generation=model.stored.generation,
            fingerprint=self._fingerprint(model),
            most=Scoring.of(self.settings, model.memory.kind).most(model.longest_row),
            most_mm2=model.area_mm2,
        )

    def _fingerprint(self, model: FittedModel) -> str:
        """The fingerprint of the embeddings that `model` is asked about."""
        return self.host.queue().extractor.fingerprint_of(part_alone=model.stored.part_alone)

    def provenance(self, key: ModelKey, model: FittedModel, criteria: Criteria) -> Provenance:
        """What `model` inspects with under `criteria`. Raises DamagedFile."""
        found = self.cache.calibration(key) or {}
        applied = criteria.threshold is not None and found.get("threshold") == criteria.threshold
        known = {name: value for name, value in found.items() if not isinstance(value, list | dict | GoodScores)}
        return Provenance(
            generation=model.stored.generation,
            model_version=str(model.stored.metadata.get("model_version", "")),
            fingerprint=self._fingerprint(model),
            criteria=criteria,
            calibration=known if applied else None,
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
        terms: Terms | None = None,
    ) -> CalibrationResult:
        """Choose the threshold from scores and write calib.json, bound to the memory, extractor and scoring.

        Raises:
            MemoryNotFound, ExtractorMismatch, DamagedFile, FitInProgress, DiskFull, ReadOnlyStore.
        """
        terms, (model, notices) = terms or Terms(), self.fitted(key)
        former = terms.scored_with or self._former_criteria(key, model)
        decided = self.decided(
            model,
            ok_scores=ok_scores,
            ng_scores=ng_scores,
            mm_per_px=mm_per_px,
            area_mm2_thr=area_mm2_thr,
            score_percentile=score_percentile,
            terms=terms,
        )
        with self.store.writing(key, self.settings.fit_wait_s):
            if self.store.stamp(key) != model.stamp:
                raise FitInProgress(key=key, retry_after=1)
            recorded = self.commit_calibration(key, model, decided, Change("calibrate", terms.author, terms.note))
        said = [*notices, *decided.notices, *_about_scoring(former, decided.criteria), *decided.doubts]
        return CalibrationResult(decided.values, [*self.warnings(), *said, *recorded])

    def commit_calibration(self, key: ModelKey, model: FittedModel, decided: Decided, change: Change) -> list[Notice]:
        """Write a calibration, tell the journal, and what is to be said. The caller holds the store's `writing(key)`.

        Raises:
            GoldenFlipped, DiskFull, ReadOnlyStore: nothing was changed.
        """
        guarded = self.gate.change(key, model, decided.read)
        self.store.save_calibration(key, decided.values, change)
        return [*self.journal.calibrated(key, decided.values), *guarded()]

    def decided(
        self,
        model: FittedModel,
        *,
        ok_scores: Sequence[float],
        ng_scores: Sequence[float] = (),
        mm_per_px: float,
        area_mm2_thr: float | None = None,
        score_percentile: float | None = None,
        terms: Terms,
    ) -> Decided:
        """What a calibration of `model` with these scores is; nothing is written."""
        percentile = score_percentile or self.settings.score_percentile
        scoring = replace(Scoring.of(self.settings, model.memory.kind), percentile=percentile)
        area = self.settings.area_mm2_thr if area_mm2_thr is None else area_mm2_thr
        wanted = Wanted(
            percentile=percentile,
            margin=self.settings.threshold_margin,
            max_false_reject=terms.max_false_reject,
            confidence=terms.confidence,
            threshold=terms.threshold,
            at_or_above=scoring.rejects_at_threshold,
        )
        decision = decide(ok_scores, ng_scores, wanted)
        chosen = decision.by_rule
        values: dict[str, Any] = {
            "threshold": decision.value,
            "p99_ok": chosen.p_ok,
            "p5_ng": chosen.p5_ng,
            "mm_per_px": mm_per_px,
            "area_mm2_thr": area,
            "score_percentile": percentile,
            "ok_mean": chosen.ok_mean,
            **({} if chosen.ng_mean is None else {"ng_mean": chosen.ng_mean}),
            "n_ok": len(ok_scores),
            "n_ng": len(ng_scores),
            "generation": model.stored.generation,
            "fingerprint": self._fingerprint(model),
            "scoring": scoring.remembered(),
            **promised_values(decision, terms),
            "good_scores": GoodScores.of(ok_scores).as_dict(),
        }
        criteria = Criteria(scoring, decision.value, area, GoodScores.of(ok_scores))
        notices = []
        if chosen.overlap:
            notices.append(Notice("scores_overlap", {"p_ok": chosen.p_ok, "p5_ng": chosen.p5_ng}))
        if len(ok_scores) < FEW_OK:
            notices.append(Notice("few_ok_scores", {"n": len(ok_scores)}))
        doubts = doubts_of(criteria, scoring.most(model.longest_row), model.area_mm2)
        return Decided(values, criteria, [*notices, *about_promise(decision, terms)], doubts)

    def restore(self, key: ModelKey, name: str, change: Change) -> tuple[Version, list[Notice]]:
        """Bring a version back: its memory, its calibration and its shape in one step, bit for bit.

        Raises:
            VersionNotFound, VersionUnusable: another extractor made it.
            GoldenFlipped, DamagedFile, FitInProgress, DiskFull, ReadOnlyStore.
        """
        with self.store.writing(key, self.settings.fit_wait_s):
            version = self.store.version(key, name)
            model, calibration = self.version_of(key, version)
            guarded = self.gate.change(key, model, calibration)
            self.store.restore(key, version, change)
            recorded = [*self.journal.restored(key, model.stored.metadata, calibration), *guarded()]
        self.cache.model(key)  # which makes its index again
        logger.info("restored %s of %s%s", version.name, key, f" for {change.author}" if change.author else "")
        return version, [*self.warnings(), *recorded]

    def unpack(
        self, key: ModelKey, packed: Packed, change: Change, *, overwrite: bool = False
    ) -> tuple[StoredMemory, list[Notice]]:
        """Put a packed model in place under `key`, in one step; until then nothing has changed.

        Raises:
            ExtractorMismatch: another extractor made it.
            ModelExists: there is one, and it is not to be replaced.
            GoldenFlipped, FitInProgress, DiskFull, ReadOnlyStore.
        """
        model = FittedModel(memory_of(packed.memory, self.settings.knn_backend), packed.memory, None)
        older = check_extractor(key, model, self.host.queue().extractor)
        refuse_existing(self.store, key, overwrite=overwrite)
        calibration = None if packed.calibration is None else read_calibration(packed.calibration)
        with self.store.writing(key, self.settings.fit_wait_s):
            guarded = self.gate.change(key, model, calibration)
            stored = put(self.store, packed, key, change, overwrite=overwrite)
            recorded = self.journal.fitted(key, stored.metadata)
            if packed.calibration is not None:
                recorded = [*recorded, *self.journal.calibrated(key, packed.calibration)]
            recorded = [*recorded, *guarded()]
        self.cache.model(key)  # which makes its index
        logger.info("unpacked %s%s", key, f" for {change.author}" if change.author else "")
        return stored, [*self.warnings(), *older, *recorded]

    def version_of(self, key: ModelKey, version: Version) -> tuple[FittedModel, dict[str, Any] | None]:
        """The model of a version and its calibration. Raises VersionUnusable, VersionNotFound, DamagedFile."""
        stored, calibration = self.store.load_version(key, version)
        model = FittedModel(memory_of(stored, self.settings.knn_backend), stored, None)
        try:
            check_extractor(key, model, self.host.queue().extractor)
        except ExtractorMismatch as err:
            raise VersionUnusable(
                key=key, version=version.name, theirs=err.values["theirs"], ours=err.values["ours"]
            ) from err
        return model, calibration

    def _former_criteria(self, key: ModelKey, model: FittedModel) -> Criteria:
        try:
            return self.criteria(key, model)[0]
        except DamagedFile as err:
            logger.warning("a damaged calibration is replaced: %s", err)
            return Criteria(Scoring.of(self.settings, model.memory.kind), None, self.settings.area_mm2_thr)

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
        self.gate.inspection(key)
        with queue.slot():
            judge = self.judge(key)
            model, criteria = judge.model, judge.criteria
            pipeline = Pipeline(queue, model, criteria, ImageOptions.of(self.settings))
            scale = heatmap or self.settings.heatmap_scale
            image, inspection = pipeline.run(
                file, mm_per_px=mm_per_px, job=job or Job(), heatmap=scale, mark=clock.mark
            )
            low, high = heatmap_range(inspection, scale, criteria.threshold)
            appearance = appearance_of(image.pixels)
            png = b"" if scale == "none" else heatmap_png(inspection, scale, low, high)
            clock.mark("png")
        self.journal.inspected(key, file.name, inspection, criteria.threshold)
        return InferResult(
            inspection=inspection,
            criteria=criteria,
            heatmap=png,
            heatmap_range=(low, high),
            token_shape=image.grid,
            params=_params(queue.extractor, model, criteria, mm_per_px, self.settings),
            area_resolution_mm2=queue.extractor.reach**2 * inspection.roi.token_mm2,
            provenance=self.provenance(key, model, criteria),
            timings_ms=clock.report(),
            appearance=appearance,
            warnings=[
                *self.warnings(),
                *_about_origin(key, model),
                *_about_twins(self.store.root, key),
                *image.notices,
                *judge.notices,
                *about_roi(inspection.roi, model, queue.extractor.input_aspect),
                *about_verdict(inspection, criteria),
            ],
        )


def about_verdict(inspection: Inspection, criteria: Criteria) -> list[Notice]:
    """A notice when verdict and regions disagree, which only scoring by area rules out."""
    rejected = criteria.rejects(inspection.score)
    if rejected is None or rejected == bool(inspection.regions):
        return []
    if rejected:
        return [Notice("ng_without_region", {"area": f"{criteria.smallest_mm2:g}"})]
    return [Notice("ok_with_region", {"area": f"{inspection.regions[0].area_mm2:.4g}"})]


def _about_scoring(former: Criteria, new: Criteria) -> list[Notice]:
    """A notice when the scores of a calibration were made otherwise than those of the inspections to come."""
    if new.scoring.method == "percentile" and former.scoring.percentile != new.scoring.percentile:
        return [Notice("percentile_changed", {"former": former.scoring.percentile, "new": new.scoring.percentile})]
    if new.scoring.method == "area" and former.smallest_mm2 != new.smallest_mm2:
        return [Notice("area_changed", {"former": f"{former.smallest_mm2:g}", "new": f"{new.smallest_mm2:g}"})]
    return []


def _about_pixels(model: FittedModel, settings: Settings) -> list[Notice]:
    """A notice when the memory's images were read with another PIXEL_BITS than images are now."""
    ours, theirs = settings.pixel_bits, model.stored.metadata.get("pixel_bits", settings.pixel_bits)
    if ours == theirs:
        return []
    return [Notice("pixel_bits_differ", {"got": ours or "auto", "expected": theirs or "auto"})]


def _about_origin(key: ModelKey, model: FittedModel) -> list[Notice]:
    """A notice when the memory's file was made for another model and copied here."""
    theirs = model.stored.metadata.get("model", str(key))
    return [] if theirs == str(key) else [Notice("memory_of_other_model", {"theirs": theirs, "key": key})]


def _about_twins(root: Path, key: ModelKey) -> list[Notice]:
    """A notice for each folder beside the model's own whose name differs from it in case alone."""
    return [Notice("id_twin_exists", {"twin": twin, "own": str(key)}) for twin in twins(root, key)]


def about_roi(roi: Roi, model: FittedModel, aspect: Aspect) -> list[Notice]:
    """What is to be said of an image's size, scale and shape beside those the memory was fitted with."""
    notices = []
    if roi.size.height * roi.size.width > LARGE_PIXELS:
        notices.append(Notice("image_downscaled", {"megapixels": roi.size.height * roi.size.width / 1e6}))
    if len(model.stored.images) and len(model.stored.known_images) == 1:
        notices.append(Notice("one_image"))
    fitted = model.stored.metadata.get("mm_per_px")
    if isinstance(fitted, float) and abs(roi.mm_per_px - fitted) > 0.01 * fitted:
        notices.append(Notice("mm_per_px_differs", {"got": roi.mm_per_px, "expected": fitted}))
    elif aspect == "keep":  # else crops are meant to differ
        notices += _about_size(roi, model)
    if model.knows_part_only and roi.mask is None:
        notices.append(Notice("shape_missing"))
    return notices


def _about_size(roi: Roi, model: FittedModel) -> list[Notice]:
    """A notice when the ROI is larger or smaller in mm than that of the fit by more than SAME_SIZE."""
    if model.roi_px is None:
        return []
    expected = [side * model.stored.number("mm_per_px", roi.mm_per_px) for side in model.roi_px]
    got = [side * roi.mm_per_px for side in (roi.size.height, roi.size.width)]
    if all(1 / SAME_SIZE <= ours / theirs <= SAME_SIZE for ours, theirs in zip(got, expected, strict=True)):
        return []
    shown = {"got": f"{got[1]:.4g} × {got[0]:.4g}", "expected": f"{expected[1]:.4g} × {expected[0]:.4g}"}
    return [Notice("roi_size_differs", shown)]


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
        "area_mm2_thr": criteria.smallest_mm2,
        "model_version": str(model.stored.metadata.get("model_version", "")),
        "device": extractor.device,
        "runtime": extractor.runtime,
    }

"""The use cases of stored samples: keep them, fit, calibrate and score with them, and say what is there."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from backend.base.config import Settings
from backend.base.errors import (
    FitInProgress,
    InspectionError,
    MemoryNotFound,
    NgRequired,
    NotEnoughSamples,
    OnlyImage,
    StorageFailed,
)
from backend.base.keys import ModelKey
from backend.base.messages import Notice
from backend.calib import Basis
from backend.extractors.protocol import Extractor
from backend.infer import Criteria
from backend.samples.history import FitHistory
from backend.samples.rebuild import Rebuilder
from backend.samples.recorder import Recorder
from backend.samples.scoring import Sample, SampleScorer, Scored
from backend.samples.store import LABELS, Draft, Kept, SampleStore
from backend.service.calibration import Terms
from backend.service.fitting import Fitter
from backend.service.images import ImageFile
from backend.service.inspection import Inspector, Judge
from backend.service.jobs import Job
from backend.service.results import CalibrationResult, FitResult, Provenance
from backend.service.sidecars import Sidecar
from backend.storage import Change

logger = logging.getLogger(__name__)

NAMED = 5  # samples that a warning names


@dataclass(frozen=True)
class Scores:
    """A scoring of samples that is under way: iterate `items` once."""

    n_total: int
    criteria: Criteria
    notices: list[Notice]
    items: Generator[Scored]
    provenance: Provenance


class Collector:
    """Stored samples and what can be done with them, around one Inspector and its Fitter."""

    def __init__(self, settings: Settings, extractor: Extractor | None = None) -> None:
        self.settings = settings
        self.samples = SampleStore(
            settings.datasets_dir, max_gb=settings.datasets_max_gb, min_free_mb=settings.min_free_mb
        )
        self.history = FitHistory(settings.datasets_dir)
        self.inspector = Inspector(settings, extractor, Recorder(settings, self.samples, self.history))
        self.fitter = Fitter(self.inspector)
        self.rebuilder = Rebuilder(self.fitter, self.samples, self.history)

    def start(self) -> None:
        """Bring the extractor up, empty the trash and rebuild what is lost, in the background."""
        self.inspector.start()
        self.inspector.store.empty_trash(self.settings.trash_days)
        self.rebuilder.start()

    def close(self) -> None:
        """Stop the rebuild and the queue."""
        self.rebuilder.close()
        self.inspector.close()

    def keep(self, key: ModelKey, label: str, drafts: Sequence[Draft]) -> tuple[list[Kept], list[Notice]]:
        """Store samples, all or none.

        Raises:
            DatasetsFull, DiskFull, ReadOnlyStore, FitInProgress.
        """
        kept = self.samples.add(key, label, drafts)
        other = LABELS[1 - LABELS.index(label)]
        twice = {k.sha256 for k in kept if k.new} & set(self.samples.digests(key, other).values())
        again = sum(not k.new for k in kept)
        notices = [Notice("labelled_twice", {"n": len(twice)})] if twice else []
        return kept, notices + ([Notice("duplicates_left_out", {"n": again})] if again else [])

    def fit(
        self,
        key: ModelKey,
        files: Sequence[ImageFile],
        *,
        mm_per_px: float,
        memory_fit: bool = False,
        use_dataset: bool = False,
        change: Change | None = None,
        job: Job | None = None,
    ) -> FitResult:
        """Fit from what was sent, or with `use_dataset` from the stored OK samples and what was sent.

        `memory_fit` adds to the memory that there is instead of replacing it. `change`: who does it, and why.

        Raises:
            NotEnoughSamples: fewer than MIN_OK_SAMPLES images with `use_dataset`.
            MemoryMismatch, and whatever Fitter.fit does.
        """
        notices: list[Notice] = []
        if use_dataset:
            stored, notices = self._stored(key)
            files = [*stored, *files]
            if len(files) < self.settings.min_ok_samples:
                raise NotEnoughSamples(key=key, n=len(files), wanted=self.settings.min_ok_samples, reasons=[])
        fit = self.fitter.grow if memory_fit else self.fitter.fit
        result = fit(key, files, mm_per_px=mm_per_px, job=job, change=change)
        return replace(result, warnings=[*result.warnings, *_few_of_each(notices)])

    def calibrate(
        self,
        key: ModelKey,
        *,
        score_percentile: float | None = None,
        area_mm2_thr: float | None = None,
        default_mm_per_px: float | None = None,
        require_ng: bool = False,
        terms: Terms | None = None,
        job: Job | None = None,
    ) -> CalibrationResult:
        """Score the stored samples with the current memory and calibrate with the scores.

        An OK sample that the memory was fitted on is scored without its own rows: with them it would score lower than a
        new part does.

        Raises:
            NotEnoughSamples: no OK sample could be scored. NgRequired: there is no NG sample although there must be.
            MemoryNotFound, ExtractorMismatch, Cancelled, FitInProgress, DiskFull, ReadOnlyStore.
        """
        percentile = score_percentile or self.settings.score_percentile
        area = self.settings.area_mm2_thr if area_mm2_thr is None else area_mm2_thr
        scorer = SampleScorer(
            self.inspector,
            self.samples,
            key,
            default_mm_per_px=default_mm_per_px,
            leave_out=True,
            anew=(percentile, area),
        )
        scored = list(scorer.run(self._chosen(key, LABELS), job or Job()))
        ok, ng = ([s.inspection.score for s in scored if s.inspection and s.sample.label == label] for label in LABELS)
        if not ok:
            alone = next((s.error for s in scored if isinstance(s.error, OnlyImage)), None)
            reasons = [s.error for s in scored if s.error and s.sample.label == "ok"]
            raise alone or NotEnoughSamples(key=key, n=0, wanted=1, reasons=reasons[:NAMED])
        if require_ng and not ng:
            raise NgRequired(key=key)
        if self.inspector.cache.model(key).stored.generation != scorer.model.stored.generation:
            raise FitInProgress(key=key, retry_after=1)
        result = self.inspector.calibrate(
            key,
            ok_scores=ok,
            ng_scores=ng,
            mm_per_px=scorer.mm_per_px,
            area_mm2_thr=area,
            score_percentile=percentile,
            terms=replace(terms or Terms(), basis=basis_of(scored), scored_with=scorer.criteria),
        )
        return replace(result, warnings=[*result.warnings, *about_left_out(scored), *about_each(scored)])

    def score(
        self,
        key: ModelKey,
        labels: Sequence[str] = LABELS,
        *,
        default_mm_per_px: float | None = None,
        leave_out: bool = False,
        job: Job | None = None,
    ) -> Scores:
        """Score the stored samples of `labels` as /infer would; with `leave_out` as /calibrate_dataset does.

        Raises:
            GoldenStopped, MemoryNotFound, ExtractorMismatch, DamagedFile: before the first item.
        """
        self.inspector.gate.inspection(key)
        scorer = SampleScorer(
            self.inspector, self.samples, key, default_mm_per_px=default_mm_per_px, leave_out=leave_out
        )
        chosen = self._chosen(key, labels)
        notices = [*self.inspector.warnings(), *scorer.notices]
        items = scorer.run(chosen, job or Job())
        return Scores(len(chosen), scorer.criteria, notices, items, scorer.provenance)

    def compare(
        self, key: ModelKey, one: str, other: str | None = None, *, job: Job | None = None
    ) -> tuple[list[tuple[Scored, Scored]], tuple[Judge, Judge]]:
        """Score the stored samples with two versions, the second that in use when None, and what each is.

        Raises:
            VersionNotFound, VersionUnusable, MemoryNotFound, ExtractorMismatch, DamagedFile, Cancelled.
        """
        judges = self.judge(key, one), self.judge(key, other)
        chosen = self._chosen(key, LABELS)
        scored = [
            list(SampleScorer(self.inspector, self.samples, key, judge=judge).run(chosen, job or Job()))
            for judge in judges
        ]
        return list(zip(*scored, strict=True)), judges

    def judge(self, key: ModelKey, version: str | None) -> Judge:
        """A version and what it is judged by; what is in use when None, or `current`."""
        if version is None or version == "current":
            return self.inspector.judge(key)
        model, calibration = self.inspector.version_of(key, self.inspector.store.version(key, version))
        return self.inspector.judge_of(key, model, calibration)

    def listing(self, key: ModelKey) -> dict[str, Any]:
        """What is stored: for each label the count, the names, and which have metadata."""
        names = {label: self.samples.names(key, label) for label in LABELS}
        return {
            label: {
                "count": len(files),
                "files": files,
                "meta": {name: self.samples.has_meta(key, label, name) for name in files},
            }
            for label, files in names.items()
        }

    def state(self, key: ModelKey) -> dict[str, Any]:
        """Whether there is a memory and a calibration, how many samples, and a rebuild under way; reads no memory."""
        store, extractor = self.inspector.store, self.inspector.host.extractor
        fitted = store.stamp(key) is not None
        usable = extractor is None or extractor.made(store.manifest(key).get("fingerprint"))
        rebuild = self.rebuilder.status(key)
        return {
            "status": self.inspector.host.status,
            "memory_fitted": fitted,
            "memory_usable": fitted and usable,
            "calib_present": store.calibration_stamp(key) is not None,
            "n_ok": len(self.samples.names(key, "ok")),
            "n_ng": len(self.samples.names(key, "ng")),
            **({"rebuild": rebuild} if rebuild else {}),
        }

    def manifest(self, key: ModelKey) -> dict[str, Any]:
        """Memory, calibration, samples, extractor, and what of it is out of date, with the reasons.

        Raises:
            DamagedFile.
        """
        extractor = self.inspector.host.queue().extractor
        try:
            model = self.inspector.cache.model(key)
        except MemoryNotFound:
            model = None
        calibration = self.inspector.cache.calibration(key)
        known = model.stored.known_images if model else {}
        stored = list(self.samples.digests(key, "ok").values())
        in_memory = sum(digest in known for digest in stored)
        notices: list[Notice] = []
        reasons: list[InspectionError | Notice] = []
        if model:
            _, notices = self.inspector.criteria(key, model)
            reasons = self._unusable(key)
        return {
            "memory_fitted": model is not None,
            "calib_present": calibration is not None,
            **({"memory": _memory(self.inspector.store.manifest(key), model.stored.grid)} if model else {}),
            **({"calibration": _calibration(calibration)} if calibration else {}),
            "samples": {
                "ok": len(stored),
                "ng": len(self.samples.names(key, "ng")),
                "ok_in_memory": in_memory,
                "ok_not_in_memory": len(stored) - in_memory,
            },
            "extractor": {"name": extractor.name, "fingerprint": extractor.fingerprint},
            "stale": {
                "memory": bool(reasons),
                "calibration": any(notice.code != "not_calibrated" for notice in notices),
                "reasons": [*reasons, *notices],
            },
        }

    def models(self) -> list[dict[str, Any]]:
        """Every model: whose it is, and what its manifest says in short."""
        keys = self.inspector.store.keys()
        return [self._entry(key) for key in keys]

    def delete_model(self, key: ModelKey) -> str:
        """Move a model to the trash; the folder there, relative to MODELS_DIR.

        Raises:
            MemoryNotFound, FitInProgress, DiskFull, ReadOnlyStore.
        """
        store = self.inspector.store
        if not any(store.stamp(key, name) for name in ("memory.npz", "calib.json")):
            raise MemoryNotFound(key=key)
        with store.writing(key, self.settings.fit_wait_s):
            folder = store.move_to_trash(key)
            if self.samples.folder(key).is_dir():
                try:
                    self.history.append(key, "delete", {})
                except StorageFailed as err:
                    logger.warning("the deletion of %s is not recorded: %s", key, err)
        store.empty_trash(self.settings.trash_days)
        return folder.relative_to(store.root).as_posix()

    def _stored(self, key: ModelKey) -> tuple[list[ImageFile], list[Notice]]:
        """The stored OK samples, and what of their metadata is not understood."""
        files: list[ImageFile] = []
        notices: list[Notice] = []
        for name in self.samples.names(key, "ok"):
            known = Sidecar.read(name, self.samples.meta(key, "ok", name))
            files.append(ImageFile(name, self._reader(key, name), known.shape))
            notices += known.notices
        return files, notices

    def _reader(self, key: ModelKey, name: str) -> Callable[[], bytes]:
        return lambda: self.samples.read(key, "ok", name)

    def _chosen(self, key: ModelKey, labels: Sequence[str]) -> list[Sample]:
        return [Sample(label, name) for label in labels for name in self.samples.names(key, label)]

    def _unusable(self, key: ModelKey) -> list[InspectionError | Notice]:
        """Why the memory of `key` cannot be inspected with, or is in doubt; empty when all is well."""
        try:
            _, older = self.inspector.fitted(key)
        except InspectionError as err:
            return [err]
        return [*older]

    def _entry(self, key: ModelKey) -> dict[str, Any]:
        store = self.inspector.store
        known = store.manifest(key)
        shown = ("model_version", "created_utc", "extractor", "n_images", "coreset_size", "token_shape", "mm_per_px")
        return {
            "role_id": key.role_id,
            "roi_id": key.roi_id,
            "recipe_id": key.recipe_id,
            "calib_present": store.calibration_stamp(key) is not None,
            **{name: known[name] for name in shown if name in known},
        }


def _memory(manifest: dict[str, Any], grid: tuple[int, int]) -> dict[str, Any]:
    """The manifest without the list of images, which may be long."""
    return {"token_shape": list(grid), **{name: value for name, value in manifest.items() if name != "images"}}


def _calibration(values: dict[str, Any]) -> dict[str, Any]:
    """A calibration without its good scores, which may be many."""
    return {name: value for name, value in values.items() if name != "good_scores"}


def basis_of(scored: Sequence[Scored]) -> Basis:
    """What a promise about good parts rests on: one part that the memory has seen makes it leave-one-out."""
    good = [s for s in scored if s.inspection and s.sample.label == "ok"]
    return "leave_one_out" if any(s.left_out for s in good) else "held_out"


def about_each(scored: Sequence[Scored]) -> list[Notice]:
    """What is to be said of the samples themselves."""
    return _few_of_each(notice for one in scored for notice in one.notices)


def _few_of_each(notices: Iterable[Notice]) -> list[Notice]:
    """Each code for NAMED of the samples at most, each sentence once."""
    found: dict[str, list[Notice]] = {}
    for notice in notices:
        alike = found.setdefault(notice.code, [])
        if notice not in alike:
            alike.append(notice)
    return [notice for notices in found.values() for notice in notices[:NAMED]]


def about_left_out(scored: Sequence[Scored]) -> list[Notice]:
    """A notice that names the samples that could not be used, if there are any."""
    errors = [s.error for s in scored if s.error]
    return [Notice("samples_left_out", {"n": len(errors), "reasons": errors[:NAMED]})] if errors else []

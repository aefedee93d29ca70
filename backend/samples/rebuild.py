"""Rebuilding memories: the fits and growths of a model's history are done again from the stored samples."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from filelock import FileLock, Timeout

from backend.base.config import Settings
from backend.base.errors import InspectionError, MemoryNotFound, NotEnoughSamples, ShapeNeeded, WeightsUnavailable
from backend.base.keys import ModelKey
from backend.base.messages import Notice
from backend.roi_mask import parse_shape
from backend.samples.history import FitHistory, Plan
from backend.samples.store import TAKEN_BACK, SampleStore
from backend.service.fitting import FitOptions, Fitter, NewMemory, embed
from backend.service.images import ImageFile
from backend.service.jobs import Job, TrackedJob
from backend.service.sidecars import Sidecar, known_mm_per_px
from backend.storage import Change

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rebuilt:
    """A memory that was rebuilt: its rows, the images it was made from, and those of its history that are gone."""

    coreset_size: int
    n_images: int
    n_missing: int
    notices: list[Notice]

    def __str__(self) -> str:
        return f"{self.n_images} images, {self.coreset_size} rows"


class Rebuilder:
    """Rebuilds memories, one at a time; `start` does so in the background for those that are lost."""

    def __init__(self, fitter: Fitter, samples: SampleStore, history: FitHistory) -> None:
        self.fitter = fitter
        self.inspector = fitter.inspector
        self.samples = samples
        self.history = history
        self._jobs: dict[ModelKey, TrackedJob] = {}
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def settings(self) -> Settings:
        """The service's settings."""
        return self.inspector.settings

    def start(self) -> None:
        """In the background, bring histories up to date and, with REBUILD_ON_START, rebuild lost memories."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="rebuild", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop. What is not rebuilt yet waits for the next start."""
        self._stop.set()
        for job in list(self._jobs.values()):
            job.cancel()
        self.wait(60)

    def wait(self, timeout: float | None = None) -> None:
        """Wait for the end of the work that `start` began, or for `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)

    def status(self, key: ModelKey) -> dict[str, Any] | None:
        """How far the rebuild of `key` is; None when there is none."""
        job = self._jobs.get(key)
        return job.snapshot().as_dict() if job else None

    def lost(self) -> list[ModelKey]:
        """Models with OK samples and without a memory that nobody deleted."""
        return [
            key
            for key in self.samples.all_keys()
            if self.inspector.store.stamp(key) is None
            and self.samples.names(key, "ok")
            and not self.history.plan(key).deleted
        ]

    def foreign(self) -> list[ModelKey]:
        """Models whose memory another extractor made."""
        extractor = self.inspector.host.queue().extractor
        manifests = {key: self.inspector.store.manifest(key) for key in self.samples.all_keys()}
        return [key for key, manifest in manifests.items() if not extractor.made(manifest.get("fingerprint"))]

    def rebuild(self, key: ModelKey, job: Job | None = None, *, replace: bool = False) -> Rebuilt | None:
        """Make the memory of `key` again from its samples, in the steps of its history and with their options.

        Args:
            replace: also when there is a memory. Otherwise that one stays, and None is returned.

        Raises:
            WeightsUnavailable: the service is degraded, so it would make another memory than the one that was lost.
            NotEnoughSamples: none of the images is stored.
            ShapeNeeded: it was fitted with the part alone, and an image has no shape any more.
            BadImage, TokenGridMismatch, Cancelled, FitInProgress, DiskFull, ReadOnlyStore.
        """
        self.inspector.host.queue()
        degraded = self.inspector.host.degraded
        if degraded and degraded.code == "degraded":  # a GPU that ran out of memory leaves the same network
            raise WeightsUnavailable(**degraded.values)
        job, plan = job or Job(), self.history.plan(key)
        with self.fitter.turn(key, job):
            if not replace and self.inspector.store.stamp(key) is not None:
                return None
            steps = plan.steps or [self._everything(key)]
            new, missing = self._retrace(key, steps, job)
            job.check()
            with self.inspector.store.writing(key, self.settings.fit_wait_s):
                if not replace and self.inspector.store.stamp(key) is not None:
                    return None
                generation = self._commit(key, new, plan, missing)
                self._calibrate(key, plan, generation, missing)
        notices = [Notice("rebuilt_in_part", {"n": missing})] if missing else []
        return Rebuilt(len(new.memory), len(new.metadata["images"]), missing, notices)

    def reconcile(self, key: ModelKey) -> None:
        """Add the line of a memory to the history, if the process that committed it died before it could."""
        recorded = self.history.plan(key).generation
        if not self.samples.folder(key).is_dir() or self.inspector.store.manifest(key).get("generation") == recorded:
            return
        with self.inspector.store.writing(key, self.settings.fit_wait_s):
            try:
                metadata = self.inspector.store.load_memory(key).metadata
            except MemoryNotFound:
                return
            if metadata.get("images") and metadata["generation"] != self.history.plan(key).generation:
                logger.info("recording the memory of %s that was not recorded yet", key)
                self.samples.take_back(key, _digests(metadata))
                self.history.record_memory(key, metadata)

    def drop_unlearnt(self, key: ModelKey) -> list[str]:
        """Take what was stored to be taught out of the samples, if whoever stored it died before a memory learnt it.

        Returns:
            The names in the folder of what was taken back.

        Raises:
            DamagedFile, FitInProgress, DiskFull, ReadOnlyStore.
        """
        if not self.samples.taught_beyond(key, _digests(self.inspector.store.manifest(key))):
            return []
        with self.inspector.store.writing(key, self.settings.fit_wait_s):  # a lesson that is under way has it
            ever = self.history.images(key)
            with suppress(MemoryNotFound):
                ever |= _digests(self.inspector.store.metadata(key))
            names = self.samples.taught_beyond(key, ever)
            moved = [self.samples.move(key, name, "ok", TAKEN_BACK) for name in names]
        if moved:
            logger.warning("%s: a lesson ended before it was learnt: %s are in taken_back", key, ", ".join(moved))
        return moved

    def _run(self) -> None:
        if self.inspector.settings.read_only:
            return
        self._each(self.inspector.store.keys(), self.reconcile)
        self._each(self.samples.all_keys(), self.drop_unlearnt)
        if not self.settings.rebuild_on_start:
            return
        while (status := self.inspector.host.status) == "warming" and not self._stop.wait(0.1):
            pass
        if status != "ok":
            logger.warning("the service is %s: no memory is rebuilt", status)
            return
        for key in self.foreign():
            logger.warning("the memory of %s was made with another extractor: python -m backend rebuild", key)
        if not self.samples.root.is_dir():
            return
        try:
            with FileLock(self.samples.root / ".rebuild.lock", timeout=0, thread_local=False):
                self._each(self.lost(), self._rebuild_lost)
        except Timeout:
            logger.info("another process rebuilds the lost memories")

    def _each(self, keys: Sequence[ModelKey], work: Any) -> None:
        for key in keys:
            if self._stop.is_set():
                return
            try:
                work(key)
            except (InspectionError, OSError) as err:
                logger.warning("%s: %s", key, err)

    def _rebuild_lost(self, key: ModelKey) -> None:
        job = self._jobs[key] = _LoggedJob(key)
        with job.ending():
            done = self.rebuild(key, job)
        if done:
            logger.info("rebuilt %s: %s", key, done)
            for notice in done.notices:
                logger.warning("%s: %s", key, notice)

    def _everything(self, key: ModelKey) -> dict[str, Any]:
        """One fit of all stored OK samples, with the settings that hold now: for samples without a history."""
        names = self.samples.names(key, "ok")
        scales = [known_mm_per_px(self.samples.meta(key, "ok", name)) for name in names]
        mm_per_px = next((scale for scale in scales if scale), 1.0)
        digests, options = self.samples.digests(key, "ok"), self.fitter.options
        alone = options.part_alone and all(self._file(key, name).shape for name in names)
        images = [digests[name] for name in names]
        return {**options.metadata(), "part_alone": alone, "mm_per_px": mm_per_px, "images": images}

    def _retrace(self, key: ModelKey, steps: Sequence[Mapping[str, Any]], job: Job) -> tuple[NewMemory, int]:
        """The memory after all `steps`, each with the options it was taken with, and how many images are gone."""
        names = {digest: name for name, digest in self.samples.digests(key, "ok").items()}
        new: NewMemory | None = None
        missing = 0
        for step in steps:
            if step.get("patchcore_memories") == "separate":
                logger.warning("%s had a memory for each block, which is no longer made: it gets a joint one", key)
            files = [self._file(key, names[digest]) for digest in step["images"] if digest in names]
            missing += len(step["images"]) - len(files)
            if files:
                new = self._step(step, files, new, job)
        if new is None:
            raise NotEnoughSamples(key=key, n=0, wanted=1, reasons=[])
        return new, missing

    def _file(self, key: ModelKey, name: str) -> ImageFile:
        return ImageFile(
            name,
            lambda: self.samples.read(key, "ok", name),
            Sidecar.read(name, self.samples.meta(key, "ok", name)).shape,
        )

    def _step(self, step: Mapping[str, Any], files: list[ImageFile], before: NewMemory | None, job: Job) -> NewMemory:
        """The fit or growth of `step`, once more.

        Raises:
            ShapeNeeded: it was of the part alone, and an image has no shape any more.
        """
        queue, progress = self.inspector.host.queue(), job.stage("coreset")
        options = FitOptions.of_step(step, self.settings)
        if before is None:
            if options.part_alone and (whole := next((file.name for file in files if not file.shape), None)):
                raise ShapeNeeded(name=whole)
            embeddings, mm_per_px = embed(files, queue, job, options), float(step["mm_per_px"])
            return NewMemory.fitted(files, embeddings, options, queue.extractor, mm_per_px, progress)
        shape = parse_shape(before.metadata.get("shape"))  # as `Fitter.grow` does
        files = [replace(file, shape=file.shape or shape) for file in files]
        # A growth that had no reserve to choose from has none again.
        old = before.stored if step.get("n_reserve") else replace(before.stored, reserve=None)
        return NewMemory.grown(old, files, embed(files, queue, job, options, old), options, progress)

    def _commit(self, key: ModelKey, new: NewMemory, plan: Plan, missing: int) -> str:
        metadata = {**new.metadata, "rebuilt_from": plan.generation, "n_missing": missing}
        stored, notices = self.fitter.commit(key, replace(new, metadata=metadata), change=Change("rebuild"))
        for notice in notices:
            logger.warning("%s: %s", key, notice)
        return stored.generation

    def _calibrate(self, key: ModelKey, plan: Plan, generation: str, missing: int) -> None:
        """Write the last calibration again, for the new generation if that is the very memory it was made for."""
        if not plan.calibration or self.inspector.store.calibration_stamp(key) is not None:
            return
        same = not missing and plan.calibration.get("generation") == plan.generation
        own = {"generation": generation} if same else {}
        self.inspector.store.save_calibration(key, {**plan.calibration, **own})


def _digests(metadata: Mapping[str, Any]) -> set[str]:
    """The SHA-256 of the images that a memory was made from."""
    return {image["sha256"] for image in metadata.get("images", ())}


class _LoggedJob(TrackedJob):
    """A job whose progress is in the log, every tenth of a stage."""

    def __init__(self, key: ModelKey) -> None:
        super().__init__()
        self._key = key

    def report(self, stage: str, done: int, total: int) -> None:
        super().report(stage, done, total)
        if total and done * 10 // total != (done - 1) * 10 // total:
            logger.info("rebuilding %s: %s %d of %d", self._key, stage, done, total)

"""The use cases fit and grow: images of good parts become the memory of a model, or join it, and are committed."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from time import monotonic
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from backend.base.config import Settings
from backend.base.decoding import ImageOptions
from backend.base.errors import (
    ExtractorMismatch,
    FitInProgress,
    MemoryMismatch,
    MemoryNotFound,
    NoImages,
    ShapeNeeded,
    TokenGridMismatch,
)
from backend.base.keys import ModelKey
from backend.base.messages import Notice
from backend.base.options import filled, option
from backend.extractors.protocol import Extractor, Grid
from backend.memory.chunked import Budget
from backend.memory.coreset import Progress, coreset_of, coreset_size
from backend.memory.foreground import Foreground
from backend.memory.left_out import LeftOut
from backend.patchcore import Backend, Distance, PatchCoreMemory, Reserve, RowsDtype
from backend.service.appearance import Appearance
from backend.service.embedding import Augmentation, Embeddings, embed_images, rows_of_several
from backend.service.images import ImageFile, about_pixels
from backend.service.inspection import Decided, Inspector
from backend.service.jobs import Job
from backend.service.leaving_out import images_left_out
from backend.service.models import FittedModel, index_bytes
from backend.service.queue import InferenceQueue
from backend.service.results import Clock, FitResult
from backend.storage import Change, StoredMemory


@dataclass(frozen=True, kw_only=True)
class FitOptions:
    """What a fit does with its images, as the settings have it or as an earlier fit had it.

    An option is declared in its field and nowhere else: the setting that fills it and, with `recorded`, that the
    metadata of the memory holds it under the setting's name, so that the memory can be made again.
    """

    coreset_rate: float = option(0.02, "coreset_rate", recorded=True)
    max_coreset: int = option(25_600, "max_coreset", recorded=True)
    seed: int = option(0, "seed", recorded=True)
    distance: Distance = option("l2", "patchcore_distance", recorded=True)
    foreground: Literal["none", "pca"] = option("none", "foreground_mask", recorded=True)
    rotation_deg: float = option(0.0, "augment_rotation_deg")
    jitter: float = option(0.0, "augment_jitter")
    part_alone: bool = option(False, "part_alone", recorded=True)
    dtype: RowsDtype = option("float32", "memory_dtype", recorded=True)
    backend: Backend = option("auto", "knn_backend")
    memory_mb: float = option(4096, "fit_memory_mb")
    images: ImageOptions = field(default_factory=ImageOptions)

    @classmethod
    def of(cls, settings: Settings) -> FitOptions:
        """As `settings` have it."""
        return cls(**filled(cls, settings), images=ImageOptions.of(settings))

    @classmethod
    def of_step(cls, recorded: Mapping[str, Any], settings: Settings) -> FitOptions:
        """As `recorded`, the metadata of an earlier fit or growth, has it; what that does not say, as `settings` do.

        Where nothing is said of JPEGs, the release of then decoded them at their full size, and where nothing is said
        of the part alone, the extractor saw all of each image.
        """
        known = {own: recorded[name] for own, name in cls._recorded().items() if name in recorded}
        own = replace(cls.of(settings), part_alone=False)
        bits, scaled = recorded.get("pixel_bits", own.images.pixel_bits), recorded.get("jpeg_scaled") is True
        images = replace(own.images, pixel_bits=bits, scaled=scaled)
        return replace(own, **known, **recorded.get("augment", {}), images=images)

    def metadata(self) -> dict[str, Any]:
        """What the metadata of a memory holds of it."""
        recorded = {name: getattr(self, own) for own, name in self._recorded().items()}
        images = {"pixel_bits": self.images.pixel_bits, "jpeg_scaled": self.images.scaled}
        return {**recorded, **images, "augment": asdict(self.augmentation)}

    def growing(self, old: StoredMemory) -> FitOptions:
        """These for images that join `old`: they are decoded, and seen by the extractor, as those of its fit were."""
        return replace(self, images=replace(self.images, scaled=old.jpeg_scaled), part_alone=old.part_alone)

    @classmethod
    def _recorded(cls) -> dict[str, str]:
        """The fields that metadata hold, each with its name there."""
        return {own.name: own.metadata["setting"] for own in fields(cls) if own.metadata.get("recorded")}

    @property
    def augmentation(self) -> Augmentation:
        """How far a second view of each image differs from it."""
        return Augmentation(rotation_deg=self.rotation_deg, jitter=self.jitter)

    @property
    def budget(self) -> Budget:
        """The memory for embeddings, and the coreset of what goes beyond it."""
        return Budget(megabytes=self.memory_mb, rate=self.coreset_rate, limit=self.max_coreset, seed=self.seed)

    def learnt_foreground(self, embeddings: Embeddings) -> Foreground | None:
        """What tells background tokens. It is learnt from whole images, which shapes and passes do not leave."""
        whole = not any(embeddings.shaped) and embeddings.passes is None
        return Foreground.learnt(embeddings.emb, embeddings.grid) if whole and self.foreground == "pca" else None


def embed(
    files: Sequence[ImageFile],
    queue: InferenceQueue,
    job: Job,
    options: FitOptions,
    old: StoredMemory | None = None,
) -> Embeddings:
    """Embeddings of images that become a memory or join `old`, on its grid; in passes if need be.

    Raises:
        BadImage, TokenGridMismatch, MaskEmpty, PartNotAlone, Cancelled.
        ShapeNeeded: `old` was fitted with the part alone, and an image has no shape.
    """
    options = options.growing(old) if old else options
    if old and old.part_alone and (whole := next((file.name for file in files if not file.shape), None)):
        raise ShapeNeeded(name=whole)
    return embed_images(
        files,
        queue,
        job,
        augmentation=options.augmentation,
        seed=options.seed,
        expected=old.grid if old else None,
        images=options.images,
        budget=replace(options.budget, centres=old.emb) if old else options.budget,
        part_alone=options.part_alone,
    )


@dataclass(frozen=True)
class NewMemory:
    """A memory that was fitted or grown and is not written yet, and its metadata."""

    memory: PatchCoreMemory
    grid: Grid
    metadata: dict[str, Any]

    @classmethod
    def fitted(
        cls,
        files: Sequence[ImageFile],
        embeddings: Embeddings,
        options: FitOptions,
        extractor: Extractor,
        mm_per_px: float,
        progress: Progress | None = None,
    ) -> NewMemory:
        """The memory of the coreset of a fit's embeddings, unless passes have chosen it already."""
        passes = embeddings.passes
        memory = PatchCoreMemory.build(
            embeddings.emb,
            1.0 if passes else options.coreset_rate,
            limit=options.max_coreset,
            rng=np.random.default_rng(options.seed),
            backend=options.backend,
            image_ids=embeddings.image_ids,
            distance=options.distance,
            foreground=options.learnt_foreground(embeddings),
            growing=True,
            progress=progress,
        )
        if passes:
            memory.n_embeddings, memory.radius = passes.n_seen, passes.radius + (memory.radius or 0.0)
        metadata = {
            "extractor": extractor.name,
            "fingerprint": extractor.fingerprint_of(part_alone=embeddings.part_alone),
            "input_size": extractor.input_size,
            "patch_size": extractor.patch,
            "n_images": len(files),
            "n_embeddings": embeddings.n_embeddings,
            **options.metadata(),
            "part_alone": embeddings.part_alone,
            "coreset_rate_applied": len(memory) / embeddings.n_embeddings,
            "radius": memory.radius or 0.0,
            **({"in_passes": True} if passes else {}),
            "mm_per_px": mm_per_px,
            "roi_px": list(embeddings.roi_px),
            **_one_shape(files),
            **({"masked": True} if embeddings.masked else {}),
            "images": _images(files, embeddings),
        }
        return cls(memory.kept_as(options.dtype), embeddings.grid, metadata)

    @classmethod
    def grown(
        cls,
        old: StoredMemory,
        files: Sequence[ImageFile],
        embeddings: Embeddings,
        options: FitOptions,
        progress: Progress | None = None,
    ) -> NewMemory:
        """The memory `old`, with its reserve if it has one, after the images of `files` joined it."""
        grown = grown_memory(
            old,
            embeddings,
            rate=options.coreset_rate,
            limit=options.max_coreset,
            backend=options.backend,
            progress=progress,
        )
        memory, images, options = grown.memory, _images(files, embeddings), options.growing(old)
        left = {"masked"} if not embeddings.masked else set[str]()
        left |= {"shape"} if old.metadata.get("shape") != _one_shape(files).get("shape") else set()
        known = {name: value for name, value in old.metadata.items() if name not in left}
        metadata = {
            **known,
            **options.metadata(),
            "n_images": len(old.images) + len(images),
            "n_embeddings": memory.n_embeddings,
            "n_added": len(images),
            "coreset_rate_applied": len(memory) / memory.n_embeddings,
            **({"in_passes": True} if embeddings.passes else {}),
            "radius": grown.radius,
            "radius_before": grown.radius_before,
            "n_reserve": grown.n_reserve,
            "grown_from": old.generation,
            "images": [*old.images, *images],
        }
        return cls(memory.kept_as(options.dtype), embeddings.grid, metadata)

    @property
    def stored(self) -> StoredMemory:
        """The memory as a store takes it and a growth goes on from."""
        memory = self.memory
        image_ids = memory.image_ids if memory.image_ids is not None else np.full(len(memory), -1, np.int32)
        return StoredMemory(memory.rows, self.grid, image_ids, self.metadata, memory.extras, memory.reserve)


def _one_shape(files: Sequence[ImageFile]) -> dict[str, Any]:
    """The shape of the model that `files` make: the one that they all have, if they have one."""
    shape = files[0].shape
    return {"shape": shape.as_dict()} if shape and all(file.shape == shape for file in files) else {}


def _images(files: Sequence[ImageFile], embeddings: Embeddings) -> list[dict[str, str]]:
    return [{"name": f.name, "sha256": digest} for f, digest in zip(files, embeddings.digests, strict=True)]


@dataclass(frozen=True)
class Grown:
    """A memory after it grew, and how far its centres covered all embeddings ever seen, before and after.

    `radius` bounds the covering radius: that of the new embeddings and the reserve, or what bounds the distances of old
    ones that are in neither, whichever is larger.
    `n_reserve`: rows of earlier images that were to choose from.
    """

    memory: PatchCoreMemory
    radius: float
    radius_before: float
    n_reserve: int


def grown_memory(
    old: StoredMemory,
    embeddings: Embeddings,
    *,
    rate: float,
    limit: int,
    backend: Backend = "auto",
    progress: Progress | None = None,
) -> Grown:
    """The memory `old` with the coreset of new embeddings added: k-center greedy that starts from the old centres.

    Of embeddings that were chosen in passes, which started from these centres too, the choice is among the chosen ones.

    The new rows and what earlier images have in `old.reserve` are chosen from alike: as in one fit of all images whose
    first centres were the old ones, as far as the reserve reaches. Without one, from the new rows alone.

    Args:
        embeddings: of the new images; their `image_ids` are counted on from the images of `old`.
        rate: share of the new embeddings that is added, rounded so that however many growths share out the images,
            their shares add up to that of one fit.
        limit: rows of the whole memory at most.

    Returns:
        The old rows, then the new ones.
    """
    n_old, beyond = len(old.rows), old.reserve.beyond if old.reserve else old.number("radius", 0.0)
    n_new, passed = embeddings.n_embeddings, embeddings.passes.radius if embeddings.passes else 0.0
    emb, image_ids = _everything(old, embeddings)
    n = max(0, min(_share(int(old.metadata["n_embeddings"]), n_new, rate), limit - n_old))
    coreset = coreset_of(emb[n_old:], n, centres=emb[:n_old], left=n_old + n, progress=progress)
    kept, left = np.concatenate([np.arange(n_old), n_old + coreset.indices]), n_old + coreset.left
    memory = PatchCoreMemory(emb[kept], backend=backend, image_ids=image_ids[kept])
    memory.reserve = Reserve(emb[left], image_ids[left], max(beyond, coreset.beyond + passed))
    memory.n_embeddings = int(old.metadata["n_embeddings"]) + n_new
    n_reserve = len(old.reserve.emb) if old.reserve else 0
    after, before = (max(beyond, radius + passed) for radius in (coreset.radius, coreset.radius_before))
    return Grown(memory, after, before, n_reserve)


def _everything(old: StoredMemory, embeddings: Embeddings) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Rows (N, D) of `old`, of its reserve and of new images, in this order, and (N,) the images they came from."""
    new = np.where(embeddings.image_ids < 0, -1, embeddings.image_ids + len(old.images)).astype(np.int32)
    reserved = [(old.reserve.emb, old.reserve.image_ids)] if old.reserve else []
    rows, images = zip((old.emb, old.image_ids), *reserved, (embeddings.emb, new), strict=True)
    emb, image_ids = np.concatenate(rows), np.concatenate(images)
    image_ids[rows_of_several(emb, image_ids)] = -1
    return emb, image_ids


def _share(n_before: int, n_new: int, rate: float) -> int:
    """Rows that a memory of `n_before` embeddings takes of `n_new` more."""
    n = n_before + n_new
    return coreset_size(n, rate, n) - coreset_size(n_before, rate, n)


@dataclass(frozen=True)
class Growth:
    """A growth that is not committed.

    Attributes:
        model: as it is.
        new: the memory as it would be; None where `fresh` is empty.
        fresh: the images that the memory has not seen.
        n_duplicates: images that it has.
        notices: what is to be said of it.
        appearances: how images of `fresh` look.
    """

    model: FittedModel
    new: NewMemory | None
    fresh: list[ImageFile]
    n_duplicates: int
    notices: list[Notice]
    appearances: Sequence[Appearance] = ()

    @property
    def grown(self) -> FittedModel:
        """The model as it would be."""
        return self.model if self.new is None else FittedModel(self.new.memory, self.new.stored, None)


class Fitter:
    """Fits, grows and commits the memories of the models that `inspector` inspects with.

    One fit at a time, so that FIT_MEMORY_MB holds. The images are embedded before the model is locked.
    """

    def __init__(self, inspector: Inspector) -> None:
        self.inspector = inspector
        self.options = FitOptions.of(inspector.settings)
        self._fitting = threading.Lock()
        self._fitted_now: ModelKey | None = None

    def fit(
        self,
        key: ModelKey,
        files: Sequence[ImageFile],
        *,
        mm_per_px: float,
        job: Job | None = None,
        keep: bool = True,
        change: Change | None = None,
    ) -> FitResult:
        """Build the memory of `key` from images of good parts, replacing the former one in one step.

        Nothing is written before every image was decoded and embedded. `keep`: the journal is shown the images.
        `change`: who fits, and why.

        Raises:
            GoldenFlipped: with GOLDEN_BLOCKS.
            NoImages, IdTwin, BadImage, TokenGridMismatch, FitInProgress, Cancelled, DiskFull, ReadOnlyStore.
        """
        if not files:
            raise NoImages()
        self.inspector.store.folder(key)  # an id with a twin is refused before an image is read
        job, clock, queue = job or Job(), Clock(), self.inspector.host.queue()
        with self.turn(key, job):
            embeddings = embed(files, queue, job, self.options)
            clock.mark("extract")
            new = NewMemory.fitted(
                files, embeddings, self.options, queue.extractor, mm_per_px, progress=job.stage("coreset")
            )
            clock.mark("coreset")
            job.check()
            with self.inspector.store.writing(key, self.inspector.settings.fit_wait_s):
                stored, recorded = self.commit(key, new, files if keep else (), change or Change("fit"))
            clock.mark("store")
            left_out = images_left_out(new.memory, embeddings, progress=job.stage("suspects"))
            clock.mark("suspects")
        notices = [*self._about(new.memory, embeddings), *recorded]
        return self._result(stored, clock, 0, notices, left_out, embeddings.appearances)

    def grow(
        self,
        key: ModelKey,
        files: Sequence[ImageFile],
        *,
        mm_per_px: float,
        job: Job | None = None,
        keep: bool = True,
        change: Change | None = None,
    ) -> FitResult:
        """Add images of good parts to the memory of `key`; without a memory yet this is a fit.

        Images that the memory has seen, by content, add nothing. The memory that grows is the one that is there once
        the new images are embedded. `keep`: the journal is shown the images. `change`: who adds them, and why. Images
        without a shape have that of the model, if it has one.

        Raises:
            GoldenFlipped: with GOLDEN_BLOCKS.
            MemoryMismatch: the memory has another grid, extractor or mm_per_px.
            NoImages, BadImage, FitInProgress, Cancelled, DamagedFile, DiskFull, ReadOnlyStore.
        """
        if not files:
            raise NoImages()
        store, options = self.inspector.store, self.options
        job, clock, queue = job or Job(), Clock(), self.inspector.host.queue()
        with self.turn(key, job):
            model = self._growable(key, mm_per_px)
            files, of_model = with_shape(files, model)
            digests = [hashlib.sha256(file.read()).hexdigest() for file in files]
            fresh = [files[n] for n in _unknown(digests, model)]
            clock.mark("compare")
            if model and not fresh:
                return self._unchanged(model.stored, clock, len(files))
            begun = model.stored.generation if model else None
            embeddings = self._embed_fresh(key, fresh, model, queue, job)
            clock.mark("extract")
            with store.writing(key, self.inspector.settings.fit_wait_s):
                model = self._growable(key, mm_per_px, embeddings.grid)
                if model:
                    if model.stored.part_alone != embeddings.part_alone:  # they do not compare
                        raise FitInProgress(key=key, retry_after=1)
                    if embeddings.passes and model.stored.generation != begun:  # another process fitted meanwhile
                        raise FitInProgress(key=key, retry_after=1)
                    numbers = _unknown(embeddings.digests, model)
                    fresh, embeddings = [fresh[n] for n in numbers], embeddings.only(numbers)
                    if not fresh:
                        return self._unchanged(model.stored, clock, len(files))
                    old = replace(model.stored, reserve=store.load_reserve(key, model.stored))
                    new = NewMemory.grown(old, fresh, embeddings, options, job.stage("coreset"))
                else:
                    new = NewMemory.fitted(fresh, embeddings, options, queue.extractor, mm_per_px, job.stage("coreset"))
                clock.mark("coreset")
                job.check()
                stored, recorded = self.commit(key, new, fresh if keep else (), change or Change("grow"))
            clock.mark("store")
            first = len(model.stored.images) if model else 0
            left_out = images_left_out(new.memory, embeddings, first=first, progress=job.stage("suspects"))
            clock.mark("suspects")
        notices = [*of_model, *self._about(new.memory, embeddings, model), *recorded]
        return self._result(stored, clock, len(files) - len(fresh), notices, left_out, embeddings.appearances)

    def _result(
        self,
        stored: StoredMemory,
        clock: Clock,
        n_duplicates: int,
        notices: Sequence[Notice],
        left_out: LeftOut | None = None,
        appearances: Sequence[Appearance] = (),
    ) -> FitResult:
        duplicates = [Notice("duplicates_left_out", {"n": n_duplicates})] if n_duplicates else []
        warnings = [*self.inspector.warnings(), *duplicates, *notices]
        return FitResult(
            len(stored.rows),
            stored.grid,
            stored.metadata,
            clock.report(),
            warnings,
            left_out,
            appearances=appearances,
        )

    def _unchanged(self, stored: StoredMemory, clock: Clock, n_duplicates: int) -> FitResult:
        """What a growth gives that brings nothing: the memory keeps its generation, its version and its time."""
        return replace(self._result(stored, clock, n_duplicates, [Notice("nothing_new")]), changed=False)

    @contextmanager
    def turn(self, key: ModelKey, job: Job) -> Iterator[None]:
        """One fit at a time in this process.

        Raises:
            FitInProgress: another one took longer than FIT_WAIT_S; the error names its model.
            Cancelled.
        """
        deadline = monotonic() + self.inspector.settings.fit_wait_s
        while not self._fitting.acquire(timeout=0.1):
            job.check()
            if monotonic() >= deadline:
                raise FitInProgress(key=self._fitted_now or key, retry_after=5)
        try:
            self._fitted_now = key
            yield
        finally:
            self._fitting.release()

    def growth(self, key: ModelKey, files: Sequence[ImageFile], job: Job) -> Growth:
        """What `grow` would make of the model with `files`; nothing is written. The caller has the `turn`.

        Raises:
            MemoryNotFound: there is nothing to grow.
            MemoryMismatch, BadImage, Cancelled, DamagedFile.
        """
        queue = self.inspector.host.queue()
        found, _ = self.inspector.fitted(key)
        model = self._growable(key, found.stored.number("mm_per_px", 1.0))
        if model is None:
            raise MemoryNotFound(key=key)
        files, notices = with_shape(files, model)
        numbers = _unknown([hashlib.sha256(file.read()).hexdigest() for file in files], model)
        fresh = [files[n] for n in numbers]
        if not fresh:
            return Growth(model, None, [], len(files), notices)
        embeddings = self._embed_fresh(key, fresh, model, queue, job)
        old = replace(model.stored, reserve=self.inspector.store.load_reserve(key, model.stored))
        new = NewMemory.grown(old, fresh, embeddings, self.options, job.stage("coreset"))
        notices += self._about(new.memory, embeddings, model)
        return Growth(model, new, fresh, len(files) - len(fresh), notices, embeddings.appearances)

    def commit(
        self,
        key: ModelKey,
        new: NewMemory,
        files: Sequence[ImageFile] = (),
        change: Change | None = None,
        calibration: Decided | None = None,
    ) -> tuple[StoredMemory, list[Notice]]:
        """Write a memory, and tell the journal of it and of `files`. The caller holds the store's `writing(key)`.

        `calibration`: takes effect with it, in the same step; without one, that of before goes on.

        Raises:
            GoldenFlipped, DiskFull, ReadOnlyStore: nothing was changed.
        """
        inspector, memory = self.inspector, new.memory
        known = calibration.read if calibration else inspector.known_calibration(key)
        guarded = inspector.gate.change(key, FittedModel(memory, new.stored, None), known)
        notices = inspector.journal.keep(key, files, float(new.metadata["mm_per_px"])) if files else []
        values = calibration.values if calibration else None
        stored = inspector.store.save_memory(key, new.stored, index_bytes(memory), change, values)
        memory.reserve = None  # the store has it, and inspections need none
        inspector.cache.put(key, memory, stored, inspector.store.stamp(key))
        notices += inspector.journal.fitted(key, stored.metadata)
        if values is not None:
            notices += inspector.journal.calibrated(key, {**values, "generation": stored.generation})
        return stored, [*notices, *guarded()]

    def _growable(self, key: ModelKey, mm_per_px: float, grid: Grid | None = None) -> FittedModel | None:
        """The memory that may grow, or None when there is none yet. Raises MemoryMismatch, DamagedFile."""
        extractor = self.inspector.host.queue().extractor
        try:
            model, doubts = self.inspector.fitted(key)
        except MemoryNotFound:
            return None
        except ExtractorMismatch as err:
            raise _mismatch(key, "extractor", err.values["ours"], err.values["theirs"]) from err
        if model.memory.kind:
            raise _mismatch(key, "PATCHCORE_DISTANCE", "l2", model.memory.kind)
        for doubt in doubts:
            if doubt.code == "pixel_bits_differ":
                raise _mismatch(key, "PIXEL_BITS", doubt.values["got"], doubt.values["expected"])
            raise _mismatch(key, "extractor", f"{extractor.name}, {extractor.fingerprint}", "?")
        fitted = float(model.stored.metadata["mm_per_px"])
        if abs(fitted - mm_per_px) > 1e-6 * fitted:
            raise _mismatch(key, "mm_per_px", mm_per_px, fitted)
        if grid and grid != model.stored.grid:
            raise _mismatch(key, "token_shape", grid, model.stored.grid)
        return model

    def _embed_fresh(
        self, key: ModelKey, files: Sequence[ImageFile], model: FittedModel | None, queue: InferenceQueue, job: Job
    ) -> Embeddings:
        try:
            return embed(files, queue, job, self.options, model.stored if model else None)
        except TokenGridMismatch as err:
            if model is None:
                raise
            raise _mismatch(key, "token_shape", err.values["got"], err.values["expected"]) from err

    def _about(self, memory: PatchCoreMemory, embeddings: Embeddings, model: FittedModel | None = None) -> list[Notice]:
        """What is to be said of how the rows of `memory` were chosen from `embeddings`; `model`: what grew."""
        options, notices = self.options, list(embeddings.notices)
        wanted = round(memory.n_embeddings * options.coreset_rate)
        if wanted > options.max_coreset <= len(memory):
            notices.append(Notice("coreset_capped", {"limit": options.max_coreset, "wanted": wanted}))
        if embeddings.passes:
            limit = {"limit": f"{options.memory_mb:g}"}
            notices.append(Notice("fitted_in_passes", limit))
            if options.foreground == "pca" and not any(embeddings.shaped):
                notices.append(Notice("foreground_not_learnt", limit))
        if len({*embeddings.digests, *(model.stored.known_images if model else ())}) == 1:
            notices.append(Notice("one_image"))
        if model and (fitted := model.roi_px):
            notices += about_pixels(embeddings.roi_px, fitted, self.inspector.host.queue().extractor.input_aspect)
        if embeddings.mixed or (model is not None and model.knows_part_only != embeddings.masked):
            notices.append(Notice("shapes_differ"))
        return notices


def with_shape(files: Sequence[ImageFile], model: FittedModel | None) -> tuple[Sequence[ImageFile], list[Notice]]:
    """`files`, those without a shape with that of `model`, and a notice if there are such."""
    shape = model.shape if model else None
    if shape is None or all(file.shape for file in files):
        return files, []
    return [replace(file, shape=file.shape or shape) for file in files], [Notice("shape_of_model")]


def _unknown(digests: Sequence[str], model: FittedModel | None) -> list[int]:
    """Positions of the digests of images that `model` was not made from, the first of equal ones only."""
    known: Collection[str] = model.stored.known_images if model else ()
    first = {digest: n for n, digest in reversed(list(enumerate(digests))) if digest not in known}
    return sorted(first.values())


def _mismatch(key: ModelKey, field: str, got: object, expected: object) -> MemoryMismatch:
    return MemoryMismatch(key=key, field=field, got=got, expected=expected)

"""Memories that grow: new images join what is remembered, and nothing starts over."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.base.errors import ExtractorMismatch, FitInProgress, MemoryNotFound, NoImages, Notice, TokenGridMismatch
from backend.base.errors_samples import MemoryMismatch
from backend.base.keys import ModelKey
from backend.extractors.protocol import Grid
from backend.memory.coreset import Progress, coreset_of, coreset_size
from backend.patchcore import Backend, PatchCoreMemory, Reserve
from backend.service.fitting import Embeddings, ImageFile, rows_of_several
from backend.service.inspection import Inspector
from backend.service.models import FittedModel
from backend.service.queue import Job
from backend.service.reserve import load_reserve
from backend.service.results import Clock, FitResult, capped, in_passes
from backend.storage import StoredMemory


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


def grow(
    inspector: Inspector,
    key: ModelKey,
    files: Sequence[ImageFile],
    *,
    mm_per_px: float,
    job: Job | None = None,
    keep: bool = True,
) -> FitResult:
    """Add images of good parts to the memory of `key`; without a memory yet this is a fit.

    Images that the memory has seen, by content, add nothing. New ones are embedded before the model is locked; the
    memory that grows is the one that is there then. `keep`: the journal is shown the images.

    Raises:
        MemoryMismatch: the memory has another grid, extractor or mm_per_px.
        NoImages, BadImage, FitInProgress, Cancelled, DamagedFile, DiskFull, ReadOnlyStore.
    """
    if not files:
        raise NoImages()
    job = job or Job()
    with inspector.one_fit(key, job):
        return _Growth(inspector, key, mm_per_px, job).run(files, keep)


def grown_memory(
    old: StoredMemory,
    embedded: Embeddings,
    *,
    rate: float,
    limit: int,
    backend: Backend = "auto",
    progress: Progress | None = None,
) -> Grown:
    """The memory `old` with the coreset of new embeddings added: k-center greedy that starts from the old centres.

    The new rows and what earlier images have in `old.reserve` are chosen from alike: as in one fit of all images whose
    first centres were the old ones, as far as the reserve reaches. Without one, from the new rows alone.

    Args:
        embedded: the new images; their `src` is counted on from the images of `old`.
        rate: share of the new embeddings that is added, rounded so that however many growths share out the images,
            their shares add up to that of one fit.
        limit: rows of the whole memory at most.

    Returns:
        The old rows, then the new ones.
    """
    n_old, beyond = len(old.emb), old.reserve.beyond if old.reserve else old.number("radius", 0.0)
    emb, src = _everything(old, embedded)
    n = max(0, min(_share(int(old.metadata["n_embeddings"]), len(embedded.emb), rate), limit - n_old))
    coreset = coreset_of(emb[n_old:], n, centres=old.emb, left=n_old + n, progress=progress)
    kept, left = np.concatenate([np.arange(n_old), n_old + coreset.indices]), n_old + coreset.left
    memory = PatchCoreMemory(emb[kept], backend=backend, src=src[kept])
    memory.reserve = Reserve(emb[left], src[left], max(beyond, coreset.beyond))
    memory.n_embeddings = int(old.metadata["n_embeddings"]) + len(embedded.emb)
    n_reserve = len(old.reserve.emb) if old.reserve else 0
    return Grown(memory, max(beyond, coreset.radius), max(beyond, coreset.radius_before), n_reserve)


def _everything(old: StoredMemory, embedded: Embeddings) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
    """Rows (N, D) of `old`, of its reserve and of new images, in this order, and (N,) the images they came from."""
    new = np.where(embedded.src < 0, -1, embedded.src + image_count(old.metadata)).astype(np.int32)
    reserved = [(old.reserve.emb, old.reserve.src)] if old.reserve else []
    rows, images = zip((old.emb, old.src), *reserved, (embedded.emb, new), strict=True)
    emb, src = np.concatenate(rows), np.concatenate(images)
    src[rows_of_several(emb, src)] = -1
    return emb, src


def _share(n_before: int, n_new: int, rate: float) -> int:
    """Rows that a memory of `n_before` embeddings takes of `n_new` more."""
    n = n_before + n_new
    return coreset_size(n, rate, n) - coreset_size(n_before, rate, n)


def grown_metadata(
    old: StoredMemory, grown: Grown, images: Sequence[Mapping[str, str]], settings: Mapping[str, Any], *, masked: bool
) -> dict[str, Any]:
    """Metadata of `old` after it grew by `images` (name, sha256) under `settings` (coreset_rate, seed, …).

    `masked`: all these images came with a shape.
    """
    everything = [*old.metadata["images"], *images]
    memory = grown.memory
    known = {name: value for name, value in old.metadata.items() if name != "masked" or masked}
    return {
        **known,
        **settings,
        "n_images": len(everything),
        "n_embeddings": memory.n_embeddings,
        "n_added": len(images),
        "coreset_rate_applied": len(memory) / memory.n_embeddings,
        "radius": grown.radius,
        "radius_before": grown.radius_before,
        "n_reserve": grown.n_reserve,
        "grown_from": old.generation,
        "images": everything,
    }


def seen(metadata: Mapping[str, Any]) -> dict[str, int]:
    """SHA-256 of every image that a memory was made from, with the number that its rows carry."""
    numbers: dict[str, int] = {}
    for number, image in enumerate(metadata.get("images", ())):
        numbers.setdefault(image["sha256"], number)
    return numbers


def image_count(metadata: Mapping[str, Any]) -> int:
    """Images that the memory's metadata lists."""
    return len(metadata.get("images", ()))


class _Growth:
    """One request to grow."""

    def __init__(self, inspector: Inspector, key: ModelKey, mm_per_px: float, job: Job) -> None:
        self.inspector, self.key, self.mm_per_px, self.job = inspector, key, mm_per_px, job
        self.queue = inspector.host.queue()
        self.clock = Clock()

    def run(self, files: Sequence[ImageFile], keep: bool) -> FitResult:
        model = self._present()
        fresh = _unseen(files, seen(model.stored.metadata) if model else ())
        self.clock.mark("compare")
        if model and not fresh:
            return self._unchanged(model, len(files))
        embedded = self._embed(fresh, model)
        self.clock.mark("extract")
        with self.inspector.store.writing(self.key, self.inspector.settings.fit_wait_s):
            model = self._present(embedded.grid)
            if model and embedded.passes:  # another process has fitted meanwhile: this was to be the first fit
                raise FitInProgress(key=self.key, retry_after=1)
            if model:
                numbers = _numbers_unseen(embedded.digests, seen(model.stored.metadata))
                fresh, embedded = [fresh[n] for n in numbers], _only(embedded, numbers)
            if model and not fresh:
                return self._unchanged(model, len(files))
            memory, metadata = self._grown(model.stored, fresh, embedded) if model else self._fitted(fresh, embedded)
            self.clock.mark("coreset")
            self.job.check()
            kept = fresh if keep else ()
            stored, notices = self.inspector.commit(self.key, memory, embedded.grid, metadata, kept)
        self.clock.mark("store")
        notices = self._seen_before(len(files) - len(fresh)) + self._about(model, memory, embedded) + notices
        return FitResult(len(memory), embedded.grid, stored.metadata, self.clock.report(), notices)

    def _about(self, model: FittedModel | None, memory: PatchCoreMemory, embedded: Embeddings) -> list[Notice]:
        settings = self.inspector.settings
        full = capped(memory.n_embeddings, settings) if len(memory) >= settings.max_coreset else []
        mixed = embedded.mixed or (model is not None and model.knows_part_only != embedded.masked)
        return [*full, *in_passes(embedded, settings), *[Notice("shapes_differ")] * mixed]

    def _present(self, grid: Grid | None = None) -> FittedModel | None:
        """The memory that may grow, or None when there is none yet. Raises MemoryMismatch, DamagedFile."""
        extractor = self.queue.extractor
        try:
            model, older = self.inspector.fitted(self.key, extractor)
        except MemoryNotFound:
            return None
        except ExtractorMismatch as err:
            raise self._mismatch("extractor", err.values["ours"], err.values["theirs"]) from err
        if model.memory.kind:
            raise self._mismatch("PATCHCORE_DISTANCE", "l2", model.memory.kind)
        if older:
            raise self._mismatch("extractor", f"{extractor.name}, {extractor.fingerprint}", "?")
        fitted = float(model.stored.metadata["mm_per_px"])
        if abs(fitted - self.mm_per_px) > 1e-6 * fitted:
            raise self._mismatch("mm_per_px", self.mm_per_px, fitted)
        if grid and grid != model.stored.grid:
            raise self._mismatch("token_shape", grid, model.stored.grid)
        return model

    def _mismatch(self, field: str, got: object, expected: object) -> MemoryMismatch:
        return MemoryMismatch(key=self.key, field=field, got=got, expected=expected)

    def _embed(self, files: Sequence[ImageFile], model: FittedModel | None) -> Embeddings:
        expected = model.stored.grid if model else None
        try:
            return self.inspector.embed(files, self.queue, self.job, expected=expected, in_passes=model is None)
        except TokenGridMismatch as err:
            if model is None:
                raise
            raise self._mismatch("token_shape", err.values["got"], err.values["expected"]) from err

    def _fitted(self, files: Sequence[ImageFile], embedded: Embeddings) -> tuple[PatchCoreMemory, dict[str, Any]]:
        memory = self.inspector.remember(embedded, self.job)
        extractor = self.queue.extractor
        return memory, self.inspector.metadata_of(files, embedded, memory, extractor, self.mm_per_px)

    def _grown(
        self, old: StoredMemory, files: Sequence[ImageFile], embedded: Embeddings
    ) -> tuple[PatchCoreMemory, dict[str, Any]]:
        settings = self.inspector.settings
        rate, limit, backend = settings.coreset_rate, settings.max_coreset, settings.knn_backend
        old = replace(old, reserve=load_reserve(self.inspector.store.folder(self.key), old))
        grown = grown_memory(old, embedded, rate=rate, limit=limit, backend=backend, progress=self.job.stage("coreset"))
        images = [{"name": f.name, "sha256": d} for f, d in zip(files, embedded.digests, strict=True)]
        metadata = grown_metadata(old, grown, images, self.inspector.fit_settings, masked=embedded.masked)
        return grown.memory, metadata

    def _unchanged(self, model: FittedModel, n_files: int) -> FitResult:
        stored = model.stored
        notices = [*self._seen_before(n_files), Notice("nothing_new")]
        return FitResult(len(stored.emb), stored.grid, stored.metadata, self.clock.report(), notices)

    def _seen_before(self, n: int) -> list[Notice]:
        return self.inspector.warnings() + ([Notice("duplicates_left_out", {"n": n})] if n else [])


def _unseen(files: Sequence[ImageFile], known: Collection[str]) -> list[ImageFile]:
    digests = [hashlib.sha256(file.read()).hexdigest() for file in files]
    return [files[n] for n in _numbers_unseen(digests, known)]


def _numbers_unseen(digests: Sequence[str], known: Collection[str]) -> list[int]:
    """Positions of the digests that are not `known`, the first of equal ones only."""
    first = {digest: n for n, digest in reversed(list(enumerate(digests))) if digest not in known}
    return sorted(first.values())


def _only(embedded: Embeddings, numbers: Sequence[int]) -> Embeddings:
    """What `embedded` says of the images `numbers` alone, numbered anew."""
    if len(numbers) == len(embedded.digests):
        return embedded
    starts = np.concatenate([[0], np.cumsum(embedded.counts)])
    rows = np.concatenate([np.arange(starts[n], starts[n + 1]) for n in numbers] or [np.empty(0, np.int64)])
    counts = [embedded.counts[n] for n in numbers]
    own = np.repeat(np.arange(len(numbers), dtype=np.int32), counts)
    src = np.where(embedded.src[rows] < 0, -1, own).astype(np.int32)
    digests, shaped = [embedded.digests[n] for n in numbers], [embedded.shaped[n] for n in numbers]
    return replace(embedded, emb=embedded.emb[rows], src=src, digests=digests, counts=counts, shaped=shaped)

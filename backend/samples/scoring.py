"""Scoring what is stored: many samples against one memory, each on its own, errors and all."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from backend.base.errors import InspectionError, InvalidShape, InvalidValue, Notice
from backend.base.errors_samples import OnlyImage
from backend.base.keys import ModelKey
from backend.infer import InferenceEngine, Inspection, RoiSize, part_mask
from backend.samples.store import known_mm_per_px, known_shape
from backend.service.fitting import DECODERS, ImageFile, PreparedImage, ahead, prepare_image
from backend.service.growing import image_count, seen
from backend.service.inspection import Inspector
from backend.service.queue import InferenceQueue, Job


@dataclass(frozen=True)
class Sample:
    """A stored image by its label and name."""

    label: str
    name: str


@dataclass(frozen=True)
class Scored:
    """What scoring says of one sample: an inspection or an error.

    `in_memory`: the memory was fitted on this very image; `left_out`: and was asked without it.
    """

    sample: Sample
    mm_per_px: float
    inspection: Inspection | None = None
    error: InspectionError | None = None
    in_memory: bool = False
    left_out: bool = False
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True)
class _Read:
    sample: Sample
    meta: dict[str, Any]
    image: PreparedImage | None
    error: InspectionError | None


class SampleSource(Protocol):
    """Where samples are read: a SampleStore, or files that are scored as if they were stored."""

    def meta(self, key: ModelKey, label: str, name: str, /) -> dict[str, Any]:
        """What is known of a sample."""

    def read(self, key: ModelKey, label: str, name: str, /) -> bytes:
        """The bytes of its image."""


class SampleScorer:
    """Scores samples of one model with one engine.

    Args:
        default_mm_per_px: for samples that do not say; the memory's own when None.
        leave_out: a sample that the memory was fitted on is scored as if the memory did not have its rows.
        percentile: score for a new calibration with this percentile, whatever calib.json says; it is not read.

    Raises:
        MemoryNotFound, ExtractorMismatch, DamagedFile: from the start, before any sample is read.
    """

    def __init__(
        self,
        inspector: Inspector,
        samples: SampleSource,
        key: ModelKey,
        *,
        default_mm_per_px: float | None = None,
        leave_out: bool = False,
        percentile: float | None = None,
    ) -> None:
        self.inspector, self.samples, self.key = inspector, samples, key
        self.queue = inspector.host.queue()
        self.model, self.older = inspector.fitted(key, self.queue.extractor)
        self.applied = (
            inspector.uncalibrated(percentile)
            if percentile
            else inspector.applied(key, self.model, self.queue.extractor)
        )
        self.scoring = self.applied.scoring
        self.threshold = self.applied.threshold
        self.leave_out = leave_out
        self.mm_per_px = default_mm_per_px or self.model.stored.number("mm_per_px", 1.0)
        self._numbers = seen(self.model.stored.metadata)

    def run(self, chosen: Sequence[Sample], job: Job) -> Generator[Scored]:
        """Score `chosen` in order; the next ones are read and embedded meanwhile. Raises Cancelled."""
        engine = InferenceEngine(self.scoring)
        for number, (read, tokens) in enumerate(self._embedded(chosen, job)):
            job.check()
            try:
                scored = self._score(engine, read, tokens)
            except InspectionError as err:
                scored = Scored(read.sample, self._mm_per_px(read), error=err)
            job.report("score", number + 1, len(chosen))
            yield scored

    def _embedded(self, chosen: Sequence[Sample], job: Job) -> Iterator[tuple[_Read, NDArray[np.float32] | None]]:
        waiting: deque[tuple[_Read, Future[NDArray[np.float32]] | None]] = deque()
        queue: InferenceQueue = self.queue
        with ThreadPoolExecutor(DECODERS, thread_name_prefix="read-samples") as pool:
            try:
                for read in ahead((pool.submit(self._read, sample) for sample in chosen), 2 * DECODERS):
                    waiting.append((read, queue.submit(read.image.pixels, bulk=True) if read.image else None))
                    if len(waiting) > queue.max_batch:
                        yield self._waited(*waiting.popleft(), job)
                while waiting:
                    yield self._waited(*waiting.popleft(), job)
            finally:
                for _, future in waiting:
                    if future:
                        future.cancel()

    @staticmethod
    def _waited(
        read: _Read, future: Future[NDArray[np.float32]] | None, job: Job
    ) -> tuple[_Read, NDArray[np.float32] | None]:
        return read, job.wait(future) if future else None

    def _read(self, sample: Sample) -> _Read:
        meta: dict[str, Any] = {}
        try:
            meta = self.samples.meta(self.key, sample.label, sample.name)
            data = self.samples.read(self.key, sample.label, sample.name)
            image = prepare_image(
                ImageFile(sample.name, lambda: data),
                self.queue.extractor,
                expected=self.model.stored.grid,
                max_megapixels=self.inspector.settings.max_image_mp,
            )
        except InspectionError as err:
            return _Read(sample, meta, None, err)
        return _Read(sample, meta, image, None)

    def _score(self, engine: InferenceEngine, read: _Read, tokens: NDArray[np.float32] | None) -> Scored:
        if read.image is None or tokens is None:
            assert read.error
            raise read.error
        number = self._numbers.get(read.image.digest)
        leave_out = number if self.leave_out else None
        notices = list(read.image.notices)
        try:
            shape = known_shape(read.meta)
        except InvalidShape as err:
            shape = None
            notices.append(Notice("shape_not_understood", {"name": read.sample.name, "reason": err}))
        frame = RoiSize(*read.image.size)
        mask = part_mask(shape, frame)
        mm_per_px = self._mm_per_px(read)
        inspection = engine.run(
            self._token_map(engine, read, tokens, leave_out, mask),
            frame,
            mask=mask,
            threshold=self.threshold,
            mm_per_px=mm_per_px,
            area_mm2_thr=self.applied.area_mm2_thr,
            weigher=engine.weigher(tokens, self.model.memory),
        )
        known = number is not None
        return Scored(read.sample, mm_per_px, inspection, None, known, leave_out is not None, tuple(notices))

    def _token_map(
        self,
        engine: InferenceEngine,
        read: _Read,
        tokens: NDArray[np.float32],
        leave_out: int | None,
        mask: NDArray[np.bool_] | None,
    ) -> NDArray[np.float32]:
        assert read.image
        part = mask if self.model.knows_part_only else None
        memory = self.model.memory
        if leave_out is not None and image_count(self.model.stored.metadata) == 1:
            raise OnlyImage(name=read.sample.name)
        try:
            return engine.token_map(tokens, read.image.grid, memory, leave_out, part=part)
        except InvalidValue as err:
            if leave_out is None or memory.src is None or (memory.src != leave_out).any():
                raise
            raise OnlyImage(name=read.sample.name) from err

    def _mm_per_px(self, read: _Read) -> float:
        return known_mm_per_px(read.meta) or self.mm_per_px

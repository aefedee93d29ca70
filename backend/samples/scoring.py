"""Scores of stored samples: many against one memory, each on its own, with an error where one cannot be scored."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from backend.base.decoding import ImageOptions
from backend.base.errors import InspectionError, OnlyImage
from backend.base.keys import ModelKey
from backend.base.messages import Notice
from backend.infer import Criteria, Inspection, Roi, Scoring
from backend.roi_mask import Shape
from backend.service.images import DECODERS, ImageFile, PreparedImage
from backend.service.inspection import Inspector, Judge, about_roi, about_verdict
from backend.service.jobs import Job, ahead
from backend.service.pipeline import Pipeline
from backend.service.results import Provenance
from backend.service.sidecars import Sidecar

Tokens = NDArray[np.float32]


@dataclass(frozen=True)
class Sample:
    """A stored image by its label and name."""

    label: str
    name: str


@dataclass(frozen=True)
class Scored:
    """One sample's inspection, or why there is none.

    `file`: the image, and its shape as far as it is understood.
    `in_memory`: the memory was fitted on this very image; `left_out`: its own rows were no neighbours.
    """

    sample: Sample
    mm_per_px: float
    inspection: Inspection | None = None
    error: InspectionError | None = None
    in_memory: bool = False
    left_out: bool = False
    notices: tuple[Notice, ...] = ()
    file: ImageFile | None = None


@dataclass(frozen=True)
class Read:
    """A sample that was read: ready to be inspected, or why it cannot be."""

    sample: Sample
    mm_per_px: float
    ready: tuple[PreparedImage, Roi] | None = None
    error: InspectionError | None = None
    notices: list[Notice] = field(default_factory=list)
    shape: Shape | None = None


class SampleSource(Protocol):
    """Where samples are read: a SampleStore, or files that are scored as if they were stored."""

    def meta(self, key: ModelKey, label: str, name: str, /) -> dict[str, Any]:
        """What is known of a sample."""

    def read(self, key: ModelKey, label: str, name: str, /) -> bytes:
        """The bytes of its image."""


class SampleScorer:
    """Scores samples of one model, all by the same criteria.

    Args:
        default_mm_per_px: for samples that do not say; the memory's own when None.
        leave_out: a sample that the memory was fitted on is scored as if the memory did not have its rows.
        anew: score for a new calibration with this percentile and smallest region (mm²), whatever calib.json says; it
            is not read.
        judge: a model that is not in use and what it is judged by, in place of those that are.

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
        anew: tuple[float, float] | None = None,
        judge: Judge | None = None,
    ) -> None:
        settings, self._inspector = inspector.settings, inspector
        self.samples, self.key, self.leave_out = samples, key, leave_out
        if judge or not anew:
            judge = judge or inspector.judge(key)
            self.model, criteria, self.notices = judge.model, judge.criteria, list(judge.notices)
        else:
            self.model, self.notices = inspector.fitted(key)
        if anew:
            scoring = replace(Scoring.of(settings, self.model.memory.kind), percentile=anew[0])
            criteria = Criteria(scoring, None, anew[1])
        self.pipeline = Pipeline(inspector.host.queue(), self.model, criteria, ImageOptions.of(settings))
        self.mm_per_px = default_mm_per_px or self.model.stored.number("mm_per_px", 1.0)
        self._numbers = self.model.stored.known_images

    @property
    def provenance(self) -> Provenance:
        """What samples are inspected with. Raises DamagedFile."""
        return self._inspector.provenance(self.key, self.model, self.criteria)

    @property
    def criteria(self) -> Criteria:
        """What samples are judged by."""
        return self.pipeline.criteria

    def run(self, chosen: Sequence[Sample], job: Job) -> Generator[Scored]:
        """Score `chosen` in order; the next ones are read and embedded meanwhile. Raises Cancelled."""
        for number, (read, tokens) in enumerate(self.embedded(chosen, job)):
            job.check()
            scored = self.judged(read, tokens)
            job.report("score", number + 1, len(chosen))
            yield scored

    def embedded(self, chosen: Sequence[Sample], job: Job) -> Iterator[tuple[Read, Tokens | None]]:
        """Each sample with its tokens, in order, while later ones are read and wait in the queue. Raises Cancelled."""
        waiting: deque[tuple[Read, Future[Tokens] | None]] = deque()

        def oldest() -> tuple[Read, Tokens | None]:
            read, future = waiting.popleft()
            return read, job.wait(future) if future else None

        with ThreadPoolExecutor(DECODERS, thread_name_prefix="read-samples") as pool:
            try:
                for read in ahead((pool.submit(self._read, sample) for sample in chosen), 2 * DECODERS):
                    waiting.append((read, self._submit(*read.ready) if read.ready else None))
                    if len(waiting) > self.pipeline.queue.max_batch:
                        yield oldest()
                while waiting:
                    yield oldest()
            finally:
                for _, future in waiting:
                    if future:
                        future.cancel()

    def _submit(self, image: PreparedImage, roi: Roi) -> Future[Tokens]:
        return self.pipeline.submit(image.pixels, roi, bulk=True)

    def _read(self, sample: Sample) -> Read:
        mm_per_px = self.mm_per_px
        try:
            known = Sidecar.read(sample.name, self.samples.meta(self.key, sample.label, sample.name))
            mm_per_px = known.mm_per_px or mm_per_px
            data = self.samples.read(self.key, sample.label, sample.name)
            ready = self.pipeline.prepare(ImageFile(sample.name, lambda: data, known.shape), mm_per_px, digested=True)
        except InspectionError as err:
            return Read(sample, mm_per_px, error=err)
        return Read(sample, mm_per_px, ready, notices=[*ready[0].notices, *known.notices], shape=known.shape)

    def judged(self, read: Read, tokens: Tokens | None, *, leave_out: bool | None = None) -> Scored:
        """What this scorer makes of a sample that was read, by this one or by another of the same grid.

        `leave_out`: as the scorer's own; that when None.
        """
        try:
            return self._score(read, tokens, self.leave_out if leave_out is None else leave_out)
        except InspectionError as err:
            return Scored(read.sample, read.mm_per_px, error=err)

    def _score(self, read: Read, tokens: Tokens | None, without_own: bool) -> Scored:
        if read.ready is None or tokens is None:
            assert read.error
            raise read.error
        _, roi = read.ready
        number = self.number_of(read)
        leave_out = number if without_own else None
        if leave_out is not None and self._is_alone(leave_out):
            raise OnlyImage(name=read.sample.name)
        inspection = self.pipeline.judge(tokens, roi, leave_out=leave_out)
        sample = read.sample
        return Scored(
            sample,
            read.mm_per_px,
            inspection,
            in_memory=number is not None,
            left_out=leave_out is not None,
            notices=(
                *read.notices,
                *about_roi(roi, self.model, self.pipeline.queue.extractor.input_aspect),
                *about_verdict(inspection, self.criteria),
            ),
            file=ImageFile(sample.name, lambda: self.samples.read(self.key, sample.label, sample.name), read.shape),
        )

    def number_of(self, read: Read) -> int | None:
        """The number in the memory of a sample that the memory was fitted on."""
        return self._numbers.get(read.ready[0].digest) if read.ready else None

    def _is_alone(self, number: int) -> bool:
        """Whether the memory has no row but those of the image `number`."""
        stored = self.model.stored
        return len(stored.images) == 1 or bool((stored.image_ids == number).all())

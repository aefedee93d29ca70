"""Good parts that a model is tried on, and the scores that changed pictures of them get."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from backend.base.decoding import ImageOptions
from backend.base.errors import (
    BadRequest,
    CalibrationNeeded,
    InspectionError,
    NotEnoughSamples,
    OnlyImage,
    SampleNotFound,
    ShapeNeeded,
)
from backend.base.keys import ModelKey
from backend.base.messages import Notice
from backend.calib import Basis
from backend.extractors.protocol import prepare
from backend.infer import Roi, RoiSize, working_mask
from backend.roi_mask import build_mask
from backend.samples.collector import Collector
from backend.service.images import ImageFile, decoded, fitted_grid
from backend.service.inspection import Inspector
from backend.service.jobs import Job, ahead
from backend.service.pipeline import Pipeline
from backend.service.sidecars import Sidecar

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]

FEWEST = 5
FEWEST_HELD_OUT = 10
"""Parts outside the fit that are enough to do without those of the fit."""


@dataclass(frozen=True)
class GoodPart:
    """A part known to be good.

    `number`: that of its image in the memory, whose rows are left out when it is scored; None: it was not fitted on.
    """

    file: ImageFile
    mm_per_px: float
    number: int | None = None


@dataclass(frozen=True)
class Parts:
    """Good parts to try a model on, and what their scores rest on."""

    chosen: list[GoodPart]
    basis: Basis
    notices: list[Notice]

    @classmethod
    def of(
        cls, inspector: Inspector, key: ModelKey, files: Sequence[ImageFile], *, mm_per_px: float, most: int
    ) -> Parts:
        """Up to `most` of `files`, evenly spread over them; those that the memory was fitted on are known by content.

        Raises:
            MemoryNotFound, ExtractorMismatch, DamagedFile.
            NotEnoughSamples: there are fewer than five.
        """
        model, notices = inspector.fitted(key)
        if len(files) < FEWEST:
            raise NotEnoughSamples(key=key, n=len(files), wanted=FEWEST, reasons=[])
        known = model.stored.known_images
        places = np.unique(np.linspace(0, len(files) - 1, most).round().astype(int)).tolist()
        chosen = [GoodPart(files[n], mm_per_px, known.get(hashlib.sha256(files[n].read()).hexdigest())) for n in places]
        return cls(chosen, _basis(chosen), notices)

    @classmethod
    def stored(cls, collector: Collector, key: ModelKey, *, most: int, seed: int) -> Parts:
        """Up to `most` of the stored OK samples: those that the memory was not fitted on, if there are ten of them.

        Raises:
            MemoryNotFound, ExtractorMismatch, DamagedFile.
            NotEnoughSamples: there are fewer than five.
        """
        model, notices = collector.inspector.fitted(key)
        known, samples = model.stored.known_images, collector.samples
        numbers = {name: known.get(digest) for name, digest in samples.digests(key, "ok").items()}
        held_out = [name for name, number in numbers.items() if number is None]
        names = held_out if len(held_out) >= FEWEST_HELD_OUT else list(numbers)
        if len(names) < FEWEST:
            raise NotEnoughSamples(key=key, n=len(names), wanted=FEWEST, reasons=[])
        drawn = sorted(np.random.default_rng(seed).permutation(len(names))[:most].tolist())
        default, chosen = model.stored.number("mm_per_px", 1.0), []
        for name in (names[n] for n in drawn):
            about = Sidecar.read(name, samples.meta(key, "ok", name))
            notices += about.notices
            file = ImageFile(name, partial(samples.read, key, "ok", name), about.shape)
            chosen.append(GoodPart(file, about.mm_per_px or default, numbers[name]))
        return cls(chosen, _basis(chosen), notices)


def _basis(parts: Sequence[GoodPart]) -> Basis:
    return "leave_one_out" if any(part.number is not None for part in parts) else "held_out"


@dataclass(frozen=True)
class Seen:
    """A part's picture (H, W, 3) uint8 BGR as it was sent, where the part is in it, and what an inspection needs."""

    part: GoodPart
    picture: Picture
    mask: Mask | None
    roi: Roi


class PartScorer:
    """Scores pictures of good parts, as they are and changed, as /infer would.

    JPEGs are decoded whole, whatever the model's fit did: defects are drawn on all of their pixels.

    Raises:
        MemoryNotFound, ExtractorMismatch, DamagedFile.
        CalibrationNeeded: no threshold applies.
    """

    def __init__(self, inspector: Inspector, key: ModelKey) -> None:
        self.model, self.notices = inspector.fitted(key)
        self.criteria, of_calibration = inspector.criteria(key, self.model)
        if self.criteria.threshold is None:
            raise CalibrationNeeded(key=key)
        self.notices += of_calibration
        self.images = ImageOptions.of(inspector.settings)
        self.pipeline = Pipeline(inspector.host.queue(), self.model, self.criteria, self.images)

    def see(self, part: GoodPart) -> Seen:
        """Decode a part. Raises BadImage, TokenGridMismatch, MaskEmpty, ShapeNeeded: as an inspection."""
        with decoded(part.file, self.images) as (_, found):
            picture = found.pixels
        grid, _ = fitted_grid(part.file.name, found.size, self.pipeline.queue.extractor, self.model.stored.grid)
        size = RoiSize(*picture.shape[:2])
        shape = part.file.shape or self.model.shape_in(size.height, size.width)
        if self.model.stored.part_alone and shape is None:
            raise ShapeNeeded(name=part.file.name)
        roi = Roi(size, grid, working_mask(shape, size), part.mm_per_px, shape)
        return Seen(part, picture, build_mask(shape, size.height, size.width), roi)

    def readable(
        self, parts: Sequence[GoodPart], job: Job
    ) -> tuple[list[GoodPart], list[float], list[InspectionError]]:
        """The parts that can be scored, their scores as they are, and what is wrong with the others."""
        fine, scores, errors = list[GoodPart](), list[float](), list[InspectionError]()
        for done, part in enumerate(parts, start=1):
            try:
                seen = self.see(part)
                scores += self.score(seen, [seen.picture], job)
                fine.append(part)
            except (BadRequest, SampleNotFound) as err:
                errors.append(err)
            job.stage("parts")(done, len(parts))
        return fine, scores, errors

    def score(self, seen: Seen, pictures: Iterable[Picture], job: Job) -> Iterator[float]:
        """The scores of `pictures` of one part, all as large as its own. Raises OnlyImage, Cancelled."""
        queue, number = self.pipeline.queue, seen.part.number
        if number is not None and (self.model.stored.image_ids == number).all():
            raise OnlyImage(name=seen.part.file.name)

        def submitted() -> Iterator[Future[NDArray[np.float32]]]:
            for picture in pictures:
                pixels = prepare(picture, seen.roi.grid, queue.extractor.patch)
                yield self.pipeline.submit(pixels, seen.roi, bulk=True)

        for tokens in ahead(submitted(), queue.max_batch + 1, job):
            yield self.pipeline.judge(tokens, seen.roi, leave_out=number).score

    def rejects(self, score: float) -> bool:
        """Whether a part with this score is rejected."""
        return bool(self.criteria.rejects(score))

"""The stored good parts of a model, the most suspect first: to look at, to relabel, to leave out of the next fit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from backend.assurance.suspects import FEWEST, Suspect, suspects
from backend.base.images import decode_image
from backend.base.keys import ModelKey
from backend.base.messages import Notice
from backend.infer import Inspection, heatmap_png, heatmap_range, inspect_map
from backend.memory.left_out import Alone, LeftOut, RowsByImage
from backend.roi_mask import token_mask
from backend.samples.collector import Collector, about_left_out
from backend.samples.scoring import Read, Sample, SampleScorer, Scored
from backend.service.jobs import Job

_STRANGER = -1


@dataclass(frozen=True)
class Reviewed:
    """A stored part and how it compares with the others.

    Attributes:
        in_memory: the memory was fitted on it.
        inspection: what it looks like without its own rows, and without those of the images that it stands out with.
        picture: (h, w, 3) uint8 BGR, as the extractor sees it.
    """

    name: str
    suspect: Suspect
    in_memory: bool
    inspection: Inspection
    picture: NDArray[np.uint8]

    def heatmap(self) -> NDArray[np.uint8]:
        """What sets it apart, (h, w, 3) uint8 BGR in colours, of the ROI's size."""
        low, high = heatmap_range(self.inspection, "relative", None)
        return decode_image(heatmap_png(self.inspection, "color", low, high), max_megapixels=math.inf)


@dataclass(frozen=True)
class Review:
    """The most suspect parts, how many were compared, and what is to be said."""

    parts: list[Reviewed]
    n_images: int
    notices: list[Notice]


class Reviewer:
    """Compares the stored OK samples of a model with its memory as it would be without them.

    Raises:
        MemoryNotFound, ExtractorMismatch, DamagedFile: from the start, before any sample is read.
    """

    def __init__(self, collector: Collector, key: ModelKey) -> None:
        self.scorer = SampleScorer(collector.inspector, collector.samples, key)
        self.names = collector.samples.names(key, "ok")
        memory = self.scorer.model.memory
        ids = np.full(len(memory), _STRANGER) if memory.image_ids is None else memory.image_ids
        self.rows = RowsByImage(memory.emb, ids)
        self.depth = self.rows.depth(len(self.names))
        self.notices = [notice for notice in self.scorer.notices if notice.code != "not_calibrated"]

    def review(self, limit: int, job: Job) -> Review:
        """The `limit` samples that stand out most. Raises Cancelled."""
        if np.count_nonzero(self.rows.images != _STRANGER) < 2:
            return Review([], 0, [*self.notices, Notice("images_of_rows_unknown")])
        looked_at, errors = [], []
        for read, tokens in self._embedded(self.names, job):
            if read.error or tokens is None:
                errors.append(Scored(read.sample, read.mm_per_px, error=read.error))
            else:
                looked_at.append((read.sample.name, self._alone(read, tokens)))
        names = [name for name, _ in looked_at]
        found = LeftOut(np.array([one.scores for _, one in looked_at]), [one.companions for _, one in looked_at])
        ranked = suspects(found)[:limit] if looked_at else []
        parts = self._shown({names[one.place]: one for one in ranked}, job)
        few = [Notice("too_few_to_compare", {"n": len(names), "wanted": FEWEST})] if len(names) < FEWEST else []
        return Review(parts, len(names), [*self.notices, *about_left_out(errors), *few])

    def _shown(self, ranked: dict[str, Suspect], job: Job) -> list[Reviewed]:
        """The parts with their maps, for which they are read once more: the maps of all would not fit in memory."""
        shown = []
        for read, tokens in self._embedded(list(ranked), job):
            if read.ready is None or tokens is None:  # it went away in the meantime
                continue
            image, roi = read.ready
            suspect = ranked[read.sample.name]
            distances = np.zeros(len(tokens), np.float32)
            distances[self._inside(read, tokens)] = self._alone(read, tokens).distances[suspect.n_companions]
            inspection = inspect_map(distances.reshape(roi.grid), roi, self.scorer.criteria)
            known, picture = self.scorer.number_of(read) is not None, np.ascontiguousarray(image.pixels[:, :, ::-1])
            shown.append(Reviewed(read.sample.name, suspect, known, inspection, picture))
        return shown

    def _embedded(self, names: Sequence[str], job: Job) -> Iterator[tuple[Read, NDArray[np.float32] | None]]:
        samples = [Sample("ok", name) for name in names]
        for number, one in enumerate(self.scorer.embedded(samples, job)):
            job.report("suspects", number + 1, len(samples))
            yield one

    def _alone(self, read: Read, tokens: NDArray[np.float32]) -> Alone:
        number = self.scorer.number_of(read)
        own = _STRANGER if number is None else number
        return self.rows.without(tokens[self._inside(read, tokens)], own, self.depth)

    def _inside(self, read: Read, tokens: NDArray[np.float32]) -> NDArray[np.bool_]:
        """(T,) bool, the tokens that the memory compares at all."""
        assert read.ready
        _, roi = read.ready
        model = self.scorer.model
        if model.memory.foreground is not None:
            return model.memory.foreground.of(tokens)
        if model.knows_part_only and roi.mask is not None:
            return token_mask(roi.mask, roi.grid).ravel()
        return np.ones(len(tokens), np.bool_)

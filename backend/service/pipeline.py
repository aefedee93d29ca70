"""The inspection pipeline: from an image file to its Inspection, with the extractor's queue in between.

Whatever inspects goes this way: /infer, stored samples, labelled sets, the rehearsal before the first request, and the
bench.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.base.decoding import ImageOptions
from backend.base.errors import MaskEmpty, ShapeNeeded
from backend.base.messages import Notice
from backend.extractors.protocol import RGB
from backend.infer import Criteria, HeatmapScale, Inspection, Roi, inspect, view_of, working_mask
from backend.memory.on_device import Seen
from backend.roi_mask import Shape
from backend.service.images import ImageFile, PreparedImage, prepare_image
from backend.service.jobs import Job
from backend.service.models import FittedModel
from backend.service.queue import InferenceQueue

SAME_PART = 0.9  # of the tokens of two shapes, the share that both have, from which on they show one part


@dataclass(frozen=True)
class Pipeline:
    """One model and the criteria that hold for it, behind the extractor's queue.

    `run` inspects one image. Who inspects many calls the steps, so that images are prepared and embedded while others
    are judged: `prepare`, `submit`, `judge`.
    """

    queue: InferenceQueue
    model: FittedModel
    criteria: Criteria
    images: ImageOptions = field(default_factory=ImageOptions)

    def run(
        self,
        file: ImageFile,
        *,
        mm_per_px: float,
        job: Job,
        heatmap: HeatmapScale = "none",
        mark: Callable[[str], None] = lambda _: None,
    ) -> tuple[PreparedImage, Inspection]:
        """Inspect one image, of `mm_per_px` millimetres per pixel, inside its shape.

        Where the extractor's device holds the memory's rows too, all that follows the forward pass is made there, and
        counts for the stage `forward`.

        Args:
            heatmap: the one that will be drawn.
            mark: told when the stages `decode`, `forward`, `knn` and `post` are over.

        Raises:
            BadImage, TokenGridMismatch, MaskEmpty, ShapeNeeded, Cancelled, NotReady.
        """
        image, roi = self.prepare(file, mm_per_px)
        mark("decode")
        found = job.wait(self._asked(image.pixels, roi, heatmap))
        mark("forward")
        return image, self.judge(found, roi, mark=mark)

    def prepare(self, file: ImageFile, mm_per_px: float, *, digested: bool = False) -> tuple[PreparedImage, Roi]:
        """The pixels to submit on the model's own grid, and what `judge` needs to know of the image.

        A file without a shape has the model's, if that has one. A JPEG is decoded as those of the model's fit were.

        Raises:
            BadImage, TokenGridMismatch, MaskEmpty.
            ShapeNeeded: the model was fitted with the part alone, and neither has a shape.
        """
        image = prepare_image(
            file,
            self.queue.extractor,
            expected=self.model.stored.grid,
            options=replace(self.images, scaled=self.model.stored.jpeg_scaled),
            digested=digested,
        )
        of_model = self.model.shape_in(image.size.height, image.size.width)
        shape = file.shape or of_model
        roi = Roi(image.size, image.grid, working_mask(shape, image.size), mm_per_px, shape)
        notices = list(image.notices)
        if of_model and not file.shape:
            notices.append(Notice("shape_of_model"))
        if self.model.stored.part_alone:
            if roi.inside is None:
                raise ShapeNeeded(name=file.name)
            if of_model and not _same_part(roi, of_model):
                notices.append(Notice("part_differs"))
        return replace(image, notices=tuple(notices)), roi

    def submit(self, pixels: RGB, roi: Roi, *, bulk: bool = False) -> Future[NDArray[np.float32]]:
        """Queue prepared pixels; the extractor sees of them what it saw in the model's fit. Raises NotReady."""
        return self.queue.submit(pixels, inside=roi.inside if self.model.stored.part_alone else None, bulk=bulk)

    def _asked(self, pixels: RGB, roi: Roi, heatmap: HeatmapScale) -> Future[Any]:
        """Queue prepared pixels for what the memory's device says of their tokens, or for these."""
        if self.model.stored.part_alone:  # the tokens that were left out have no place on the device
            return self.submit(pixels, roi)
        view = view_of(roi, self.criteria, heatmap, part_only=self.model.knows_part_only)
        return self.queue.look(pixels, None if view is None else self.model.memory.looking(view))

    def judge(
        self,
        tokens: NDArray[np.float32] | Seen,
        roi: Roi,
        *,
        leave_out: int | None = None,
        mark: Callable[[str], None] = lambda _: None,
    ) -> Inspection:
        """The inspection of tokens (rows · columns, D) or of what a device said of them: see infer.inspect."""
        part_only = self.model.knows_part_only
        return inspect(
            tokens, self.model.memory, roi, self.criteria, part_only=part_only, leave_out=leave_out, mark=mark
        )


def _same_part(roi: Roi, of_model: Shape) -> bool:
    """Whether the tokens that touch the part are those of the model's shape; it may lie beside the image."""
    try:
        theirs = replace(roi, mask=working_mask(of_model, roi.size)).inside
    except MaskEmpty:
        return False
    inside = roi.inside
    assert inside is not None and theirs is not None
    return bool(np.count_nonzero(inside & theirs) >= SAME_PART * np.count_nonzero(inside | theirs))

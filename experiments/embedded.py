"""Images of labelled sets that are embedded once, so that many memories and thresholds can be tried on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from backend.base.config import Settings, load_settings
from backend.evaluation.sets import InspectionSet, LabelledImage
from backend.extractors.protocol import Extractor
from backend.infer import Criteria, Roi, Scoring, inspect
from backend.patchcore import PatchCoreMemory
from backend.service.host import extractor_for
from backend.service.images import ImageFile, prepare_image

Sets = Annotated[list[Path], typer.Option(exists=True, file_okay=False, help="Folders in MVTec AD's layout.")]
Model = Annotated[str, typer.Option(help="NAME or NAME=WEIGHTS.")]
InputSize = Annotated[int, typer.Option(help="INPUT_SIZE.")]


def settings_of(model: str, input_size: int, **changed: Any) -> Settings:
    """The defaults with this model, at this size, and with something changed."""
    name, _, weights = model.partition("=")
    return load_settings(**{"model_name": name, "weights": weights or "auto", "input_size": input_size, **changed})


@dataclass(frozen=True)
class Embedded:
    """An image, its tokens (T, D) float32 unit rows, and where they lie."""

    image: LabelledImage
    tokens: NDArray[np.float32]
    roi: Roi


class EmbeddedSet:
    """The images of a set, each embedded once: the good ones, those to fit on first, and the bad ones."""

    def __init__(self, given: InspectionSet, settings: Settings, extractor: Extractor | None = None) -> None:
        self.name, self.settings, self.scoring = given.name, settings, Scoring.of(settings)
        network = extractor or extractor_for(settings)
        grid: tuple[int, int] | None = None
        self.good, self.bad = list[Embedded](), list[Embedded]()
        for image in (*given.train, *given.test):
            file = ImageFile.named(image.path.name, image.path.read_bytes)
            ready = prepare_image(file, network, expected=grid)
            grid = grid or ready.grid
            tokens = network.extract([ready.pixels])[0]
            one = Embedded(image, tokens, Roi(ready.size, ready.grid, mm_per_px=image.mm_per_px or 1.0))
            (self.bad if image.defective else self.good).append(one)

    def memory(self, numbers: Sequence[int], seed: int = 0) -> PatchCoreMemory:
        """The memory of the good images of these numbers, which its rows know."""
        chosen = [self.good[n].tokens for n in numbers]
        return PatchCoreMemory.build(
            np.concatenate(chosen),
            self.settings.coreset_rate,
            limit=self.settings.max_coreset,
            rng=np.random.default_rng(seed),
            image_ids=np.repeat(np.asarray(numbers, np.int32), [len(tokens) for tokens in chosen]),
        )

    def scores(
        self, memory: PatchCoreMemory, numbers: Sequence[int], *, leave_out: bool = False
    ) -> NDArray[np.float64]:
        """(n,) the scores of the good images of these numbers; `leave_out`: each without its own rows."""
        criteria = Criteria(self.scoring)
        return np.array(
            [
                inspect(one.tokens, memory, one.roi, criteria, leave_out=n if leave_out else None).score
                for n, one in ((n, self.good[n]) for n in numbers)
            ]
        )

"""Under changes of light, focus and position: what augmentation and an even light are worth.

    python -m experiments.light --sets SET … --model resnet18=WEIGHTS --input-size 256

Each way repeats what `evaluate --perturb` does. `even light` gives each channel of a picture the mean that it has over
the good parts of the fit, by a gain, before the network sees it; it is no setting of the service. A cell has the means
over a change's steps.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray

from backend.base.config import load_settings
from backend.base.images import decode_image
from backend.evaluation.results import UnderChange
from backend.evaluation.runner import Evaluator
from backend.evaluation.sets import InspectionSet, read_set
from backend.extractors.neighbourhood import Wrapped
from backend.extractors.protocol import RGB, Extractor, Rows
from backend.service.host import extractor_for
from experiments.accuracy import Model, Sets, changed_by, line, settings_base

app = typer.Typer(add_completion=False)

EVEN = "even light"
WAYS = ("", "AUGMENT_JITTER=0.15", "AUGMENT_JITTER=0.3", "AUGMENT_ROTATION_DEG=5", EVEN)


class EvenLight(Wrapped):
    """Brings the mean of each channel of an image to what it usually is, and hands it on.

    Args:
        usual: (3,) mean R, G and B, 0 … 255.
    """

    def __init__(self, inner: Extractor, usual: NDArray[np.float64]) -> None:
        super().__init__(inner, f"even light {np.round(usual, 1).tolist()}")
        self.usual = usual

    def extract(self, images: Sequence[RGB]) -> Rows:
        """See Extractor."""
        return self.inner.extract([self.lit(image) for image in images])

    def lit(self, image: RGB) -> RGB:
        """The image (H, W, 3) with the usual mean of each channel, as far as 0 … 255 allows."""
        gains = self.usual / np.maximum(image.mean(axis=(0, 1)), 1.0)
        return np.asarray(np.clip(np.rint(image * gains), 0, 255), np.uint8)


def usual_light(given: InspectionSet) -> NDArray[np.float64]:
    """(3,) mean R, G and B of the good parts that a fit sees."""
    means = [decode_image(one.path.read_bytes()).mean(axis=(0, 1))[::-1] for one in given.train]
    return np.asarray(np.mean(means, axis=0))


def under_changes(given: InspectionSet, model: str, input_size: int, way: str) -> list[UnderChange]:
    """The figures of a set in one of WAYS, without a change and under each."""
    changed = changed_by(way) if way and way != EVEN else {}
    settings = load_settings(**{**settings_base(model, input_size), **changed})
    extractor = extractor_for(settings)
    if way == EVEN:
        extractor = EvenLight(extractor, usual_light(given))
    with Evaluator(settings, extractor) as evaluator:
        return evaluator.run(given, perturb=True).changed


@app.command()
def compare(
    sets: Sets,
    model: Model,
    input_size: int = 448,
    only: Annotated[list[str] | None, typer.Option(help="These ways alone: NAME=VALUE, or `even light`.")] = None,
) -> None:
    """A table of ways: AUROC, good parts rejected and bad ones missed, means over the steps of each change."""
    header_due = True
    for given in map(read_set, sets):
        for way in only or WAYS:
            by_kind = _by_kind(under_changes(given, model, input_size, way))
            if header_due:
                line(["set", "way", *by_kind])
                line(["---"] * (2 + len(by_kind)))
                header_due = False
            line([given.name, way if way in {"", EVEN} else f"`{way}`", *map(_cell, by_kind.values())])


def _by_kind(found: Sequence[UnderChange]) -> dict[str, list[UnderChange]]:
    kinds = itertools.groupby(found, key=lambda one: one.change.split()[0])
    return {kind: list(steps) for kind, steps in kinds}


def _cell(steps: Sequence[UnderChange]) -> str:
    rejected, missed = (np.mean([getattr(one, name) for one in steps]) for name in ("false_reject", "miss"))
    return f"{np.mean([one.auroc for one in steps]):.4f}, {rejected:.0%}, {missed:.0%}"


if __name__ == "__main__":
    app()

"""How large is a defect said to be? Discs of known size on good parts, and what regions say of them.

    python -m experiments.areas discs --sets SET … --model resnet18=WEIGHTS --input-size 256

Discs are dark, on held-out good parts, one at a time in the middle half; the threshold is the 99th percentile of the
held-out good parts.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import Annotated

import numpy as np
import typer

from backend.base.images import decode_image
from backend.evaluation.sets import InspectionSet, read_set
from backend.infer import Criteria, inspect
from backend.service.host import extractor_for
from backend.service.images import ImageFile, prepare_image
from experiments.accuracy import with_spot
from experiments.embedded import EmbeddedSet, InputSize, Model, Sets, settings_of

app = typer.Typer(add_completion=False)

AREAS = (0.00025, 0.001, 0.004, 0.016, 0.064)
DARK = (20, 20, 20)


@app.callback()
def main() -> None:
    """How large a defect is said to be."""


@app.command()
def discs(
    sets: Sets,
    model: Model,
    input_size: InputSize = 448,
    images: Annotated[int, typer.Option(min=1, help="Good parts that get discs.")] = 10,
) -> None:
    """The area of the region that a disc is in, as a multiple of the disc's, by size."""
    titles = [
        "set",
        "disc, share of the ROI",
        "in tokens",
        "with a region",
        "area_mm2 / true",
        "area_mm2_estimate / true",
    ]
    _line(titles)
    _line(["---"] * len(titles))
    for given in map(read_set, sets):
        _discs(given, EmbeddedSet(given, settings_of(model, input_size)), images)


def _discs(given: InspectionSet, one: EmbeddedSet, images: int) -> None:
    network, learnt = extractor_for(one.settings), len(given.train)
    memory, held_out = one.memory(range(learnt)), range(learnt, len(one.good))
    threshold = float(np.percentile(one.scores(memory, held_out), 99))
    criteria = Criteria(one.scoring, threshold)
    chosen = [one.good[n] for n in list(held_out)[:: max(1, len(held_out) // images)][:images]]
    for share in AREAS:
        counted, estimated = list[float](), list[float]()
        for number, part in enumerate(chosen):
            picture = decode_image(part.image.path.read_bytes())
            data = with_spot(picture, share, DARK, np.random.default_rng(number))
            ready = prepare_image(ImageFile.named("disc.png", partial(bytes, data)), network, expected=part.roi.grid)
            regions = inspect(network.extract([ready.pixels])[0], memory, part.roi, criteria).regions
            if regions:
                true = share * picture.shape[0] * picture.shape[1]
                counted.append(regions[0].area_px / true)
                estimated.append(regions[0].area_mm2_estimate / part.roi.mm_per_px**2 / true)
        cells = [one.name, f"{share:.3%}", f"{share * np.prod(part.roi.grid):.2g}", f"{len(counted)} of {len(chosen)}"]
        _line([*cells, _spread(counted), _spread(estimated)])


def _spread(ratios: list[float]) -> str:
    """The median, and the middle half of them."""
    if not ratios:
        return "–"
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return f"{middle:.2g} ({low:.2g} – {high:.2g})"


def _line(cells: list[str]) -> None:
    typer.echo(f"| {' | '.join(cells)} |")
    sys.stdout.flush()


if __name__ == "__main__":
    app()

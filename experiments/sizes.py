"""Maps of several input sizes, averaged over one memory each: do they pay, and what do they cost?

    python -m experiments.sizes --sets SET … --model resnet18=WEIGHTS --sizes 256,224,320,256+320,224+320
    python -m experiments.sizes --sets SET … --model lite --sizes 448,320,320+448 --only "PRESET=recommended"

The first of the sizes is what the others are compared with. Of several the token maps are brought to the finest of
their grids, bilinearly, and averaged; the score is that of the average. Chosen and reported is on halves of the test
images, as `experiments.families` has them. The time is that of the network and the search, beside the first row's,
taken in turn.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any

import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from backend.base.config import Settings
from backend.evaluation.results import ScoredImage
from backend.evaluation.runner import RememberingExtractor
from backend.evaluation.sets import InspectionSet, read_set
from backend.extractors.protocol import Extractor
from backend.infer import Criteria, Roi, Scoring, inspect_map, token_map
from backend.patchcore import PatchCoreMemory
from backend.service.host import extractor_for
from backend.service.images import ImageFile, prepare_image
from experiments.accuracy import Model, Sets, changed_by, line
from experiments.embedded import EmbeddedSet, settings_of
from experiments.families import cells_of_halves, every_other

app = typer.Typer(add_completion=False)
Map = NDArray[np.float32]

TIMED = 10


@dataclass(frozen=True)
class Scores:
    """The scores of test images."""

    scored: list[ScoredImage]

    def halves(self) -> tuple[Scores, Scores]:
        """Those to choose on, and those to report."""
        first, second = every_other([one.image for one in self.scored])
        return Scores([self.scored[n] for n in first]), Scores([self.scored[n] for n in second])


@dataclass(frozen=True)
class Seen:
    """A set at one input size: its extractor and memory, and the token map and ROI of each test image."""

    network: Extractor
    memory: PatchCoreMemory
    scoring: Scoring
    maps: list[tuple[Map, Roi]]

    def ms(self, file: ImageFile) -> float:
        """What the network and the search take for one image."""
        start = perf_counter()
        ready = prepare_image(file, self.network)
        token_map(self.network.extract([ready.pixels])[0], ready.grid, self.memory, self.scoring)
        return 1000 * (perf_counter() - start)


class Sizes:
    """Token maps of a set at several input sizes, each from a memory of its own.

    Args:
        changed: settings of all sizes.
        tokens: folder that keeps what was embedded; None: nothing is kept.
    """

    def __init__(
        self, given: InspectionSet, model: str, sizes: Iterable[int], changed: Mapping[str, Any], tokens: Path | None
    ) -> None:
        self.given = given
        self.seen = {size: _seen(given, settings_of(model, size, **changed), tokens) for size in sizes}

    def scores(self, sizes: Sequence[int]) -> Scores:
        """The scores of the averaged maps of these sizes."""
        criteria = Criteria(self.seen[sizes[0]].scoring)
        scored = []
        for number, image in enumerate(self.given.test):
            averaged, roi = mean_map([self.seen[size].maps[number] for size in sizes])
            scored.append(ScoredImage(image, inspect_map(averaged, roi, criteria).score, 0.0))
        return Scores(scored)

    def ms(self) -> dict[int, float]:
        """Milliseconds of an image at each size, the median of a few, the sizes in turn."""
        files = [ImageFile.named(image.path.name, image.path.read_bytes) for image in self.given.test[: TIMED + 1]]
        took = [{size: seen.ms(file) for size, seen in self.seen.items()} for file in files]
        return {size: float(np.median([one[size] for one in took[1:]])) for size in self.seen}


def _seen(given: InspectionSet, settings: Settings, tokens: Path | None) -> Seen:
    network = extractor_for(settings)
    embedded = EmbeddedSet(given, settings, network if tokens is None else _remembering(network, tokens))
    learnt = {image.path for image in given.train}
    memory = embedded.memory([n for n, one in enumerate(embedded.good) if one.image.path in learnt])
    of_path = {one.image.path: one for one in (*embedded.good, *embedded.bad)}
    tested = [of_path[image.path] for image in given.test]
    maps = [(token_map(one.tokens, one.roi.grid, memory, embedded.scoring), one.roi) for one in tested]
    return Seen(network, memory, embedded.scoring, maps)


def _remembering(network: Extractor, tokens: Path) -> Extractor:
    folder = tokens / network.fingerprint
    folder.mkdir(parents=True, exist_ok=True)
    return RememberingExtractor(network, folder)


def mean_map(maps: Sequence[tuple[Map, Roi]]) -> tuple[Map, Roi]:
    """The mean of token maps (rows, columns) on the finest of their grids, and the ROI of that one."""
    finest, roi = max(maps, key=lambda one: one[0].size)
    rows, columns = finest.shape
    resized = [cv2.resize(one, (columns, rows), interpolation=cv2.INTER_LINEAR) for one, _ in maps]
    return np.mean(resized, axis=0, dtype=np.float32), roi


def combinations(text: str) -> list[tuple[int, ...]]:
    """`256,256+320` as ((256,), (256, 320)). Raises typer.BadParameter for what is no number."""
    try:
        return [tuple(int(size) for size in one.split("+")) for one in text.split(",")]
    except ValueError as err:
        raise typer.BadParameter(f"{text!r}: write sizes as 256,256+320") from err


@app.command()
def compare(
    sets: Sets,
    model: Model,
    sizes: Annotated[str, typer.Option(help="Rows, as 256,320,256+320; the first is what others are compared with.")],
    only: Annotated[str, typer.Option(help="Settings of all rows, as NAME=VALUE, NAME=VALUE.")] = "",
    tokens: Annotated[Path | None, typer.Option(help="Folder that keeps the tokens between runs.")] = None,
) -> None:
    """A table of sizes: the mean on the half to choose on, each set's figures on the half to report, and the time."""
    rows = combinations(sizes)
    given = [read_set(folder) for folder in sets]
    line(["input size", "mean, chosen on", "mean, reported", *(f"{one.name}, reported" for one in given), "time"])
    line(["---"] * (len(given) + 4))
    every = dict.fromkeys(size for row in rows for size in row)
    changed = changed_by(only) if only else {}
    of_sets = [Sizes(one, model, every, changed, tokens) for one in given]
    took = [one.ms() for one in of_sets]
    first = [one.scores(rows[0]).halves() for one in of_sets]
    for row in rows:
        found = first if row == rows[0] else [one.scores(row).halves() for one in of_sets]
        times = np.mean([sum(ms[size] for size in row) / sum(ms[size] for size in rows[0]) for ms in took])
        line([" + ".join(map(str, row)), *cells_of_halves(found, first), f"{times:.1f} ×"])


if __name__ == "__main__":
    app()

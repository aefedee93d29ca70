"""Bad parts hidden among the good ones of a fit: are they named, and does leaving them out repair the model?

    python -m experiments.hidden suspects --sets SET … --model resnet18=WEIGHTS --input-size 256

Hidden are 1 to 5 bad parts of the set's test, each another (`alone`), or one that was photographed so many times
(`copies`: shifted by up to two pixels, lit by up to 3 % differently, with noise). All goes through the service's fit.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal, get_args

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from backend.assurance.suspects import suspects
from backend.base.config import Settings
from backend.base.images import decode_image, encode_png
from backend.base.keys import ModelKey
from backend.evaluation.runner import RememberingExtractor
from backend.evaluation.sets import InspectionSet, LabelledImage, read_set
from backend.service.fitting import Fitter
from backend.service.host import extractor_for
from backend.service.images import ImageFile
from backend.service.inspection import Inspector
from experiments.embedded import InputSize, Model, Sets, settings_of

app = typer.Typer(add_completion=False)

Way = Literal["alone", "copies"]
FIRST = 10
MOST = 5
KEY = ModelKey.of("hidden", "set")


@app.callback()
def main() -> None:
    """Bad parts hidden among the good ones of a fit."""


def photographed_again(picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """The part (H, W, 3) a little elsewhere, lit a little differently, with other noise."""
    right, down = rng.integers(-2, 3, 2).tolist()
    move = np.array([[1, 0, right], [0, 1, down]], np.float64)
    height, width = picture.shape[:2]
    moved = cv2.warpAffine(picture, move, (width, height), borderMode=cv2.BORDER_REFLECT_101)
    noisy = moved * rng.uniform(0.97, 1.03) + rng.normal(0, 2, moved.shape)
    return np.clip(np.rint(noisy), 0, 255).astype(np.uint8)


def hidden_parts(bad: Sequence[LabelledImage], n: int, way: Way, rng: np.random.Generator) -> list[ImageFile]:
    """`n` bad parts to hide: others, or one that was photographed so many times; named by the image they are of."""
    drawn = [bad[i] for i in rng.permutation(len(bad))[: n if way == "alone" else 1]]
    if way == "alone":
        return [ImageFile(f"bad {one.path}", one.path.read_bytes) for one in drawn]
    picture = decode_image(drawn[0].path.read_bytes())
    shots = [encode_png(photographed_again(picture, rng)) for _ in range(n)]
    return [ImageFile(f"bad {drawn[0].path}", partial(bytes, data)) for data in shots]


@dataclass(frozen=True)
class Named:
    """What a fit said of its images.

    Attributes:
        first: the most suspect files, FIRST at most.
        standing_out: those that the service names.
    """

    first: list[ImageFile]
    standing_out: list[ImageFile]

    @property
    def found(self) -> list[ImageFile]:
        """The bad ones among the first: those that a person who looks at these takes out."""
        return [file for file in self.first if is_bad(file)]


def is_bad(file: ImageFile) -> bool:
    """Whether it was hidden."""
    return file.name.startswith("bad ")


class Bench:
    """Fits and scores in a folder of its own."""

    def __init__(self, inspector: Inspector) -> None:
        self.inspector, self.fitter = inspector, Fitter(inspector)

    @classmethod
    @contextmanager
    def opened(cls, settings: Settings) -> Iterator[Bench]:
        """A bench whose models and tokens lie in a temporary folder."""
        with tempfile.TemporaryDirectory() as folder:
            own = settings.model_copy(update={"models_dir": Path(folder) / "models"})
            inspector = Inspector(own, RememberingExtractor(extractor_for(settings), Path(folder)))
            inspector.start()
            yield cls(inspector)
            inspector.close()

    def fit(self, files: Sequence[ImageFile]) -> Named:
        """Fit on these files, and what it says of them."""
        result = self.fitter.fit(KEY, files, mm_per_px=1.0)
        ranked = suspects(result.left_out) if result.left_out else []
        return Named(
            [files[one.place] for one in ranked[:FIRST]], [files[one.place] for one in ranked if one.stands_out]
        )

    def scores(self, tested: Sequence[LabelledImage]) -> dict[LabelledImage, float]:
        """The scores that the last fit gives."""
        files = {one: ImageFile.named(one.path.name, one.path.read_bytes) for one in tested}
        return {
            one: self.inspector.infer(KEY, file, mm_per_px=1.0, heatmap="none").inspection.score
            for one, file in files.items()
        }


def auroc(scores: dict[LabelledImage, float]) -> float:
    """Image AUROC of these scores."""
    return float(roc_auc_score([one.defective for one in scores], list(scores.values())))


@dataclass
class Counts:
    """Sums over the draws of a row."""

    hidden: int = 0
    found: int = 0
    named: int = 0
    named_good: int = 0


@app.command("suspects")
def hide_and_seek(
    sets: Sets,
    model: Model,
    input_size: InputSize = 448,
    draws: Annotated[int, typer.Option(min=1, help="Draws of hidden parts for each row.")] = 4,
    tested: Annotated[int, typer.Option(min=2, help="Test images at most, drawn at random, of which AUROC is.")] = 1000,
) -> None:
    """Recall among the first ten suspects, false discoveries, and the AUROC with, and without, what was found."""
    settings = settings_of(model, input_size)
    cells = ["set", "hidden", "how", f"among the first {FIRST}", "named by the fit", "of these good"]
    _line([*cells, "AUROC clean", "with them", "found ones left out"])
    _line(["---"] * (len(cells) + 3))
    for given in map(read_set, sets):
        with Bench.opened(settings) as bench:
            _of_set(given, bench, draws, tested)


def _of_set(given: InspectionSet, bench: Bench, draws: int, most: int) -> None:
    good = [ImageFile(str(one.path), one.path.read_bytes) for one in given.train]
    bad = [one for one in given.test if one.defective]
    clean = str(len(bench.fit(good).standing_out))
    _line([given.name, "0", "–", "–", clean, clean, "–", "–", "–"])
    test = [given.test[n] for n in sorted(np.random.default_rng(0).permutation(len(given.test))[:most].tolist())]
    scores = bench.scores(test)
    for n in range(1, MOST + 1):
        for way in get_args(Way) if n > 1 else ("alone",):
            counts, figures = Counts(), list[float]()
            for draw in range(draws):
                hidden = hidden_parts(bad, n, way, np.random.default_rng([draw, n]))
                named = bench.fit([*good, *hidden])
                counts.hidden += n
                counts.found += len(named.found)
                counts.named += len(named.standing_out)
                counts.named_good += sum(not is_bad(file) for file in named.standing_out)
                if draw == 0:
                    gone = {file.name for file in hidden}
                    left = {one: score for one, score in scores.items() if f"bad {one.path}" not in gone}
                    with_them = bench.scores(list(left))
                    bench.fit([*good, *(file for file in hidden if file not in named.found)])
                    figures = [auroc(left), auroc(with_them), auroc(bench.scores(list(left)))]
            recall = f"{counts.found}/{counts.hidden}"
            row = [given.name, str(n), way, recall, str(counts.named), str(counts.named_good)]
            _line([*row, *(f"{value:.4f}" for value in figures)])


def _line(cells: Sequence[str]) -> None:
    typer.echo(f"| {' | '.join(cells)} |")
    sys.stdout.flush()


if __name__ == "__main__":
    app()

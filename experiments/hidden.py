"""Bad parts hidden among the good ones of a fit: are they named, and does leaving them out repair the model?

    python -m experiments.hidden suspects --sets SET … --model resnet18=WEIGHTS --input-size 256
    python -m experiments.hidden each --sets SET … --model resnet18=WEIGHTS --input-size 256

`suspects` hides 1 to 5 bad parts of the set's test, each another (`alone`), or one that was photographed so many times
(`copies`: shifted by up to two pixels, lit by up to 3 % differently, with noise). All goes through the service's fit.
`each` takes every bad part alone and compares it with the memory of the good ones, as a fit does that leaves it out.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
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
from backend.memory.left_out import LeftOut, left_out
from backend.service.fitting import Fitter
from backend.service.host import extractor_for
from backend.service.images import ImageFile
from backend.service.inspection import Inspector
from experiments.embedded import EmbeddedSet, InputSize, Model, Sets, settings_of

app = typer.Typer(add_completion=False)

Way = Literal["alone", "copies"]
FIRST = 10
MOST = 5
NOT_OF_MEMORY = -1
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
    return np.asarray(np.clip(np.rint(noisy), 0, 255), np.uint8)


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
    def opened(cls, settings: Settings, tokens: Path | None = None) -> Iterator[Bench]:
        """A bench whose models lie in a temporary folder, and its tokens too if no folder is given for them."""
        with tempfile.TemporaryDirectory() as folder:
            own = settings.model_copy(update={"models_dir": Path(folder) / "models"})
            inspector = Inspector(own, RememberingExtractor(extractor_for(settings), tokens or Path(folder)))
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
    good: set[str] = field(default_factory=set)


@app.command("suspects")
def hide_and_seek(
    sets: Sets,
    model: Model,
    input_size: InputSize = 448,
    draws: Annotated[int, typer.Option(min=1, help="Draws of hidden parts for each row.")] = 4,
    tested: Annotated[int, typer.Option(min=2, help="Test images at most, drawn at random, of which AUROC is.")] = 1000,
    hidden: Annotated[list[int] | None, typer.Option(min=1, help="Rows of so many hidden parts alone.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="Folder that keeps the tokens between runs.")] = None,
) -> None:
    """Recall among the first ten suspects, false discoveries, and the AUROC with, and without, what was found."""
    settings = settings_of(model, input_size)
    cells = ["set", "hidden", "how", f"among the first {FIRST}", "named by the fit", "of these good", "images"]
    _line([*cells, "AUROC clean", "with them", "found ones left out"])
    _line(["---"] * (len(cells) + 3))
    for given in map(read_set, sets):
        with Bench.opened(settings, tokens) as bench:
            _of_set(given, bench, draws, tested, hidden or range(1, MOST + 1))


def _of_set(given: InspectionSet, bench: Bench, draws: int, most: int, rows: Iterable[int]) -> None:
    good = [ImageFile(str(one.path), one.path.read_bytes) for one in given.train]
    bad = [one for one in given.test if one.defective]
    clean = str(len(bench.fit(good).standing_out))
    _line([given.name, "0", "–", "–", clean, clean, clean, "–", "–", "–"])
    test = [given.test[n] for n in sorted(np.random.default_rng(0).permutation(len(given.test))[:most].tolist())]
    scores = bench.scores(test)
    for n in rows:
        for way in get_args(Way) if n > 1 else ("alone",):
            counts, figures = Counts(), list[float]()
            for draw in range(draws):
                hidden = hidden_parts(bad, n, way, np.random.default_rng([draw, n]))
                named = bench.fit([*good, *hidden])
                counts.hidden += n
                counts.found += len(named.found)
                counts.named += len(named.standing_out)
                of_good = [file.name for file in named.standing_out if not is_bad(file)]
                counts.named_good += len(of_good)
                counts.good.update(of_good)
                if draw == 0:
                    gone = {file.name for file in hidden}
                    left = {one: score for one, score in scores.items() if f"bad {one.path}" not in gone}
                    with_them = bench.scores(list(left))
                    bench.fit([*good, *(file for file in hidden if file not in named.found)])
                    figures = [auroc(left), auroc(with_them), auroc(bench.scores(list(left)))]
            recall = f"{counts.found}/{counts.hidden}"
            named_of = [str(counts.named), str(counts.named_good), str(len(counts.good))]
            row = [given.name, str(n), way, recall, *named_of]
            _line([*row, *(f"{value:.4f}" for value in figures)])


@app.command("each")
def each_alone(
    sets: Sets,
    model: Model,
    input_size: InputSize = 448,
    tokens: Annotated[Path | None, typer.Option(help="Folder that keeps the tokens between runs.")] = None,
) -> None:
    """How many of a set's bad parts would be among the first ten suspects, each hidden alone, and how many could be.

    Could be: those that score as high without companions as the tenth of the good ones, which no ranking changes much.
    """
    settings = settings_of(model, input_size)
    could = f"score as high as the {FIRST}th of the good"
    _line(["set", "bad parts", f"among the first {FIRST}", "named", could, "AUROC against the good, left out"])
    _line(["---"] * 6)
    for given in map(read_set, sets):
        network = extractor_for(settings)
        embedded = EmbeddedSet(given, settings, RememberingExtractor(network, tokens) if tokens else network)
        learnt = {image.path for image in given.train}
        numbers = [n for n, one in enumerate(embedded.good) if one.image.path in learnt]
        _line([given.name, *_each_of(embedded, numbers)])


def _each_of(embedded: EmbeddedSet, numbers: Sequence[int]) -> list[str]:
    memory, n = embedded.memory(numbers), len(numbers)
    assert memory.image_ids is not None
    images = [*((embedded.good[n].tokens, n) for n in numbers), *((one.tokens, NOT_OF_MEMORY) for one in embedded.bad)]
    found = left_out(images, memory.emb, memory.image_ids)
    alone = found.scores[:, 0]
    among_first = named = 0
    for bad in range(n, len(images)):
        chosen = [*range(n), bad]
        ranked = suspects(LeftOut(found.scores[chosen], [found.companions[one] for one in chosen]))
        place = next(place for place, suspect in enumerate(ranked) if suspect.place == n)
        among_first += place < FIRST
        named += ranked[place].stands_out
    could = np.count_nonzero(alone[n:] >= np.sort(alone[:n])[-FIRST])
    told = roc_auc_score(np.arange(len(images)) >= n, alone)
    return [str(len(embedded.bad)), str(among_first), str(named), str(could), f"{told:.4f}"]


def _line(cells: Sequence[str]) -> None:
    typer.echo(f"| {' | '.join(cells)} |")
    sys.stdout.flush()


if __name__ == "__main__":
    app()

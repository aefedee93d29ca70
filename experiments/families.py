"""Settings of each family of extractors, chosen on one half of the test images and reported on the other.

    python -m experiments.families halves --sets ../shared/data/{cookies,pills,coffee} --model lite
    python -m experiments.families crops --sets ../shared/data/pills --model lite
    python -m experiments.families compressed --sets ../shared/data/{cookies,pills,coffee} --model lite

A half has every other test image of each class, in the order of the names. The network runs once for all settings that
leave it alone.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from backend.base.images import decode_image, encode_png
from backend.evaluation.figures import auroc_interval
from backend.evaluation.results import SetResult
from backend.evaluation.sets import InspectionSet, LabelledImage, read_set
from experiments.accuracy import Bench, Model, Sets, Tested, changed_by, line, paired_interval, settings_base

app = typer.Typer(add_completion=False)
Tokens = Annotated[Path | None, typer.Option(help="Folder that keeps the tokens between runs.")]

CANDIDATES = (
    "PRESET=recommended",
    "SCORE_METHOD=top_mean, SCORE_MAP=tokens",
    "SCORE_METHOD=power_mean, SCORE_MAP=tokens",
    "SCORE_METHOD=power_mean, SCORE_MAP=tokens, TOKEN_BLUR=0.75",
    "SCORE_METHOD=power_mean, SCORE_MAP=tokens, TOKEN_BLUR=0.75, PATCHCORE_DENSITY_K=9, CORESET_RATE=0.03",
    "PATCHCORE_DENSITY_K=9",
    "TOKEN_BLUR=0.75",
    "CORESET_RATE=0.05",
)
COMPRESSED = ("MEMORY_DTYPE=float32", "MEMORY_DTYPE=float16", "PATCHCORE_FAISS_FP16=1", "MEMORY_DTYPE=int8")
# Width and height that are kept of an image, around its middle.
PROPORTIONS = ((1.0, 1.0), (1.0, 0.9), (0.9, 1.0), (1.0, 0.8), (0.8, 1.0))


@dataclass(frozen=True)
class Half:
    """Figures of one half of the test images of a set: AUROC and its 95 % bootstrap interval."""

    auroc: float
    low: float
    high: float


def every_other(images: Sequence[LabelledImage]) -> tuple[list[int], list[int]]:
    """The numbers of every other image of each class, and those of the rest."""
    seen: dict[str, int] = {}
    parts: tuple[list[int], list[int]] = ([], [])
    for number, image in enumerate(images):
        seen[image.label] = seen.get(image.label, -1) + 1
        parts[seen[image.label] % 2].append(number)
    return parts


def halves(result: SetResult) -> tuple[SetResult, SetResult]:
    """The result with every other test image of each class: the half to choose on, and the one to report."""
    first, second = every_other([scored.image for scored in result.scored])
    return _only(result, first), _only(result, second)


def _only(result: SetResult, numbers: list[int]) -> SetResult:
    return SetResult(**{**vars(result), "scored": [result.scored[n] for n in numbers]})


def _columns(result: Tested) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    return np.array([s.image.defective for s in result.scored]), np.array([s.score for s in result.scored])


def figures(result: Tested) -> Half:
    """AUROC of a result's scored images."""
    defective, scores = _columns(result)
    interval = auroc_interval(defective, scores, np.random.default_rng(0))
    return Half(float(roc_auc_score(defective, scores)), interval.low, interval.high)


@app.command(name="halves")
def compare_halves(
    sets: Sets,
    model: Model,
    input_size: int = 448,
    only: Annotated[list[str] | None, typer.Option(help="These candidates alone, as NAME=VALUE, NAME=VALUE.")] = None,
    tokens: Tokens = None,
) -> None:
    """A table of settings: the mean on the half to choose on, and each set's figures on the half to report."""
    given = [read_set(folder) for folder in sets]
    line(["setting", "mean, chosen on", "mean, reported", *(f"{one.name}, reported" for one in given)])
    line(["---"] * (len(given) + 3))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(tokens or Path(folder), settings_base(model, input_size))
        default: list[tuple[SetResult, SetResult]] = []
        for title in ("", *(only or CANDIDATES)):
            found = [halves(result) for result in bench.run(changed_by(title) if title else {}, given)]
            default = default or found
            line([f"`{title}`" if title else "default", *cells_of_halves(found, default)])


def cells_of_halves(found: Sequence[tuple[Tested, Tested]], default: Sequence[tuple[Tested, Tested]]) -> Iterator[str]:
    """The means over sets of the half to choose on and of the one to report, and each set's reported AUROC.

    It has its interval where it is the default's, else the interval of its difference from that.
    """
    for side in (0, 1):
        yield f"{np.mean([figures(both[side]).auroc for both in found]):.4f}"
    for (_, ours), (_, theirs) in zip(found, default, strict=True):
        half = figures(ours)
        if ours is theirs:
            yield f"{half.auroc:.4f} [{half.low:.3f}, {half.high:.3f}]"
        else:
            low, high = paired_interval(ours, theirs)
            yield f"{half.auroc:.4f}, {half.auroc - figures(theirs).auroc:+.4f} [{low:+.3f}, {high:+.3f}]"


def cropped(one: InspectionSet, folder: Path) -> InspectionSet:
    """The set with its images cut to PROPORTIONS around their middle, one after the other."""

    def cut(number: int, image: LabelledImage) -> LabelledImage:
        pixels = decode_image(image.path.read_bytes(), name=image.path.name)
        height, width = pixels.shape[:2]
        across, down = PROPORTIONS[number % len(PROPORTIONS)]
        w, h = round(width * across), round(height * down)
        x, y = (width - w) // 2, (height - h) // 2
        path = folder / f"{image.label}-{number}.png"
        path.write_bytes(encode_png(pixels[y : y + h, x : x + w]))
        return LabelledImage(path, image.label)

    train = tuple(cut(n, image) for n, image in enumerate(one.train))
    test = tuple(cut(len(train) + n, image) for n, image in enumerate(one.test))
    return InspectionSet(f"{one.name}, five proportions", train, test)


@app.command()
def crops(sets: Sets, model: Model, input_size: int = 448) -> None:
    """What INPUT_ASPECT=square makes of sets whose crops have five proportions, beside the sets as they are."""
    line(["set", "image AUROC", "95 %"])
    line(["---"] * 3)
    for folder in sets:
        with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as own:
            one = read_set(folder)
            bench = Bench(Path(scratch), {**settings_base(model, input_size), "input_aspect": "square"})
            for result in bench.run({}, [one, cropped(one, Path(own))]):
                low, high = result.interval.low, result.interval.high
                line([result.set_name, f"{result.figures.image.auroc:.4f}", f"[{low:.3f}, {high:.3f}]"])


@app.command()
def compressed(sets: Sets, model: Model, input_size: int = 448, tokens: Tokens = None) -> None:
    """What memories in fewer digits cost: RAM, image AUROC, and the scores of the test images."""
    line(["set", "rows", "bytes", "image AUROC", "largest difference of a score", "ms of float32's"])
    line(["---"] * 6)
    given = [read_set(folder) for folder in sets]
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(tokens or Path(folder), settings_base(model, input_size))
        found = {title: bench.run(changed_by(title), given) for title in COMPRESSED}
    for number, one in enumerate(given):
        whole = found[COMPRESSED[0]][number]
        for title, results in found.items():
            own, scores = results[number], _columns(whole)[1]
            differs = float(np.abs(_columns(own)[1] / scores - 1).max())
            ms = own.cost.inspect_ms / whole.cost.inspect_ms
            size = f"{own.cost.memory_mb * 2**20:,.0f}"
            line([one.name, f"`{title}`", size, f"{own.figures.image.auroc:.4f}", f"{differs:.3%}", f"{ms:.2f}"])


if __name__ == "__main__":
    app()

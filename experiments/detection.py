"""Are the sizes that a certificate assures of what it finds true? Tables of docs/ACCURACY.md.

    python -m experiments.detection curves
    python -m experiments.detection repeated --sets SET --model resnet18=WEIGHTS --input-size 256
    python -m experiments.detection real --sets SET_WITH_MASKS --model resnet18=WEIGHTS --input-size 256
    python -m experiments.detection certificate --sets SET --model resnet18=WEIGHTS --input-size 256 --out FOLDER

`curves` draws defects whose probability of being found is known; `repeated` certifies one real model again and again;
`real` looks at real defects with masks; `certificate` makes one, timed, with its pages.
"""

from __future__ import annotations

import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import cv2
import numpy as np
import typer
from numpy.typing import NDArray
from scipy.special import expit
from scipy.stats import norm, spearmanr

from backend.api import catalogue
from backend.assurance.certificate import CertificateOptions, certify_stored
from backend.assurance.defects import KINDS, Kind
from backend.assurance.detection import ROUNDS, Cell, Curve, Detection
from backend.assurance.page import page
from backend.assurance.parts import Parts, PartScorer
from backend.assurance.pod import HitMiss
from backend.base.config import Settings
from backend.base.images import decode_image
from backend.base.keys import ModelKey
from backend.evaluation.sets import InspectionSet, LabelledImage, read_set
from backend.samples.collector import Collector
from backend.samples.store import Draft
from backend.service.images import ImageFile
from backend.service.jobs import Job
from experiments.embedded import InputSize, Model, Sets, settings_of

app = typer.Typer(add_completion=False)

KEY = ModelKey.of("certified", "set")
Values = NDArray[np.float64]


@dataclass(frozen=True)
class World:
    """How likely defects are found.

    Attributes:
        found: of sizes, as shares of the part's area, the probability; its logit where parts differ.
        a90: the share from which nine of ten are, over all parts.
        of_part: standard deviation of what a part adds to the logit: defects on one part are found or missed together.
    """

    found: Callable[[Values], Values]
    a90: float
    of_part: float = 0.0

    @classmethod
    def logistic(cls, slope: float, of_part: float = 0.0) -> World:
        """A logistic curve of the logarithm of size; over all parts where they differ."""

        def logits(shares: Values) -> Values:
            return slope * np.log(shares / 0.002)

        if not of_part:
            return cls(lambda shares: expit(logits(shares)), 0.002 * 9 ** (1 / slope))
        effects = norm.ppf((np.arange(2000) + 0.5) / 2000) * of_part
        sizes = np.geomspace(1e-5, 0.1, 4000)
        over_all = np.array([expit(one + effects).mean() for one in logits(sizes)])
        return cls(logits, float(sizes[np.searchsorted(over_all, 0.9)]), of_part)

    @classmethod
    def probit(cls, spread: float) -> World:
        """The distribution function of a normal variable of the logarithm of size: steeper at the ends."""
        return cls(lambda shares: norm.cdf(np.log(shares / 0.002) / spread), 0.002 * math.exp(spread * norm.ppf(0.9)))

    @classmethod
    def late(cls) -> World:
        """A curve that is not symmetrical in the logarithm of size: it starts late and rises fast (Weibull)."""
        return cls(lambda shares: 1 - np.exp(-((shares / 0.003) ** 1.5)), 0.003 * math.log(10) ** (1 / 1.5))

    def tried(self, shares: Values, parts: NDArray[np.int64], effects: Values, rng: np.random.Generator) -> list[bool]:
        """Whether each of the defects of these sizes, on these parts, is found."""
        p = expit(self.found(shares) + effects[parts]) if self.of_part else self.found(shares)
        return (rng.random(len(shares)) < p).tolist()  # type: ignore[no-any-return]


WORLDS = {
    "logistic, slope 2": World.logistic(2),
    "logistic, slope 4": World.logistic(4),
    "logistic, slope 10": World.logistic(10),
    "logistic, slope 4, parts differ (σ = 1 logit)": World.logistic(4, of_part=1.0),
    "normal, σ = 0.6": World.probit(0.6),
    "Weibull, shape 1.5": World.late(),
}


@app.command()
def curves(
    draws: Annotated[int, typer.Option(min=10)] = 1000,
    trials: Annotated[list[int] | None, typer.Option(help="Defects of a curve.")] = None,
    parts: Annotated[int, typer.Option(min=5, help="Good parts that the defects are on.")] = 50,
) -> None:
    """How often the size that is stated as a90/95 is at least the true one, sizes chosen as a certificate does."""
    _line(
        ["curve", "defects", "a90/95 ≥ true a90", "none stated", "median a90/95 of the true", "median a90 of the true"]
    )
    _line(["---"] * 6)
    for name, world in WORLDS.items():
        for n in trials or (30, 60, 120):
            drawn = [_simulated(world, n, parts, np.random.default_rng([seed, n])) for seed in range(draws)]
            stated = [one.size_assured() for one in drawn]
            held = np.mean([size is None or size >= world.a90 for size in stated])
            ratios = [size / world.a90 for size in stated if size is not None]
            likely = [size / world.a90 for size in (one.size_found() for one in drawn) if size is not None]
            none = np.mean([size is None for size in stated])
            medians = [f"{np.median(each):.2f}" if each else "–" for each in (ratios, likely)]
            _line([name, str(n), f"{held:.1%}", f"{none:.1%}", *medians])


def _simulated(world: World, n: int, parts: int, rng: np.random.Generator) -> HitMiss:
    """Defects whose sizes are chosen round by round, as a certificate chooses them."""
    cell, effects, order = Cell("dark", "centre", "clear"), rng.normal(0, world.of_part, parts), rng.permutation(parts)
    for n_round in range(ROUNDS):
        first, last = (n * i // ROUNDS for i in (n_round, n_round + 1))
        shares = cell.next_shares(last - first, 2e-5, rng)
        on = order[np.arange(first, last) % parts]
        cell.shares += shares.tolist()
        cell.hits += world.tried(shares, on, effects, rng)
        cell.groups += on.tolist()
    return HitMiss.of(cell.shares, cell.hits, cell.groups)


@contextmanager
def fitted(given: InspectionSet, settings: Settings) -> Iterator[Collector]:
    """A service in a temporary folder: fitted on the set's train, calibrated on its test, whose good parts it keeps."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        own = settings.model_copy(
            update={"models_dir": root / "models", "datasets_dir": root / "datasets", "results_db": "none"}
        )
        collector = Collector(own)
        collector.inspector.start()
        scale = next((one.mm_per_px for one in given.train if one.mm_per_px), 1.0)
        collector.fit(KEY, [_file(one) for one in given.train], mm_per_px=scale)
        for label, defective in (("ok", False), ("ng", True)):
            kept = [one for one in given.test if one.defective == defective]
            collector.samples.add(KEY, label, [_draft(one) for one in kept])
        collector.calibrate(KEY)
        yield collector
        collector.inspector.close()


def _file(one: LabelledImage) -> ImageFile:
    return ImageFile("-".join(one.path.parts[-2:]), one.path.read_bytes, one.shape)


def _draft(one: LabelledImage) -> Draft:
    return Draft("-".join(one.path.parts[-2:]), one.path.read_bytes, "upload", one.mm_per_px or 1.0)


@app.command()
def repeated(
    sets: Sets,
    model: Model,
    input_size: InputSize = 448,
    n: Annotated[int, typer.Option(min=2, help="Certificates.")] = 12,
    parts: Annotated[int, typer.Option(min=5, help="Held-out good parts of each, drawn anew.")] = 25,
    trials: int = 60,
    kinds: Annotated[
        list[str] | None, typer.Option(help="dark, bright, colour, scratch, dent, patch, missing.")
    ] = None,
) -> None:
    """How often certificates of one model state a size that is at least what all of them together find."""
    asked = [kind for kind in KINDS if kind in (kinds or ("dark", "scratch"))]
    _line(
        ["set", "defect", "zone", "grade", "a90 of all together, mm²", "defects", "stated a90/95, median mm²", "held"]
    )
    _line(["---"] * 8)
    for given in map(read_set, sets):
        with fitted(given, settings_of(model, input_size)) as collector:
            _repeated(given.name, collector, asked, n, parts, trials)


def _repeated(name: str, collector: Collector, kinds: Sequence[Kind], n: int, most: int, trials: int) -> None:
    scorer, made, pooled = PartScorer(collector.inspector, KEY), list[list[Curve]](), dict[str, Cell]()
    for seed in range(n):
        parts, _, _ = scorer.readable(Parts.stored(collector, KEY, most=most, seed=seed).chosen, Job())
        detection = Detection(scorer, parts, trials=trials, seed=seed, kinds=kinds)
        made.append(detection.curves(Job()))
        for cell in detection.cells:
            every = pooled.setdefault(f"{cell.kind} {cell.zone} {cell.grade}", Cell(cell.kind, cell.zone, cell.grade))
            every.areas += cell.areas
            every.hits += cell.hits
    held_of_all = stated_of_all = 0
    for cell, *of_cell in zip(pooled.values(), *made, strict=True):
        curves_of: list[Curve] = of_cell
        truth = HitMiss.of(cell.areas, cell.hits).size_found()
        stated = [curve.a90_95 for curve in curves_of if curve.a90_95 is not None]
        held = [size for size in stated if truth is not None and size >= truth]
        held_of_all, stated_of_all = held_of_all + len(held), stated_of_all + len(stated)
        sizes = [f"{np.median(stated):.3g}" if stated else "–", f"{len(held)} of {len(stated)} stated"]
        of_all = "not reached" if truth is None else f"{truth:.3g}"
        _line([name, cell.kind, cell.zone, cell.grade, of_all, str(len(cell.hits)), *sizes])
    _line(
        [
            name,
            "all",
            "",
            "",
            "",
            "",
            "",
            f"{held_of_all} of {stated_of_all} stated ({held_of_all / stated_of_all:.1%})",
        ]
    )


@app.command()
def real(sets: Sets, model: Model, input_size: InputSize = 448) -> None:
    """Real defects with masks by their size: how many are found, and what their scores go with."""
    _line(["set", "area of the defect, % of the ROI", "defects", "found", "median score over the threshold"])
    _line(["---"] * 5)
    for given in map(read_set, sets):
        with fitted(given, settings_of(model, input_size)) as collector:
            _real(given, collector)


def _real(given: InspectionSet, collector: Collector) -> None:
    masked = [one for one in given.test if one.masks]
    shares, contrasts, scores, threshold = [], [], [], 0.0
    for one in masked:
        result = collector.inspector.infer(KEY, _file(one), mm_per_px=one.mm_per_px or 1.0, heatmap="none")
        size = result.inspection.roi.size
        defect = one.defect(size.height, size.width)
        shares.append(float(defect.mean()))
        contrasts.append(contrast(decode_image(one.path.read_bytes()), defect))
        scores.append(result.inspection.score)
        threshold = result.criteria.threshold or math.nan
    by_size = np.argsort(shares)
    for third in np.array_split(by_size, 3):
        own = [scores[n] for n in third]
        found = sum(score > threshold for score in own)
        span = f"{100 * shares[third[0]]:.2g} – {100 * shares[third[-1]]:.2g}"
        _line([given.name, span, str(len(third)), str(found), f"{np.median(own) / threshold:.2f}"])
    area, sharp, score = np.array(shares), np.array(contrasts), np.array(scores)
    ways = {"size": area, "contrast": sharp, "size × contrast": area * sharp, "√size × contrast": np.sqrt(area) * sharp}
    typer.echo("")
    for what, values in ways.items():
        low, high = _bootstrap(values, score)
        typer.echo(f"Spearman of {what} and score: {spearmanr(values, score).statistic:.2f} [{low:.2f}, {high:.2f}]")


def contrast(picture: NDArray[np.uint8], defect: NDArray[np.bool_]) -> float:
    """How far the mean colour (BGR, 0 … 255) of a defect (h, w) is from that of what surrounds it.

    The surroundings are as wide as a hundredth of the picture's smaller side, two pixels at least.
    """
    width = max(2, round(min(defect.shape) / 100))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * width + 1, 2 * width + 1))
    around = cv2.dilate(defect.astype(np.uint8), kernel).astype(bool) & ~defect
    return float(np.linalg.norm(picture[defect].mean(axis=0) - picture[around].mean(axis=0)))


def _bootstrap(x: Values, y: Values, draws: int = 2000) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    drawn = (rng.integers(0, len(x), len(x)) for _ in range(draws))
    low, high = np.percentile([spearmanr(x[n], y[n]).statistic for n in drawn], [2.5, 97.5])
    return float(low), float(high)


@app.command()
def certificate(
    sets: Sets,
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for a JSON and two pages of each set.")],
    input_size: InputSize = 448,
    parts: int = 50,
    trials: int = 60,
) -> None:
    """A certificate of each set, its time, and its pages in both languages."""
    out.mkdir(parents=True, exist_ok=True)
    _line(["set", "parts", "defects", "seconds", "processor seconds", "cores", "stages that were reported"])
    _line(["---"] * 7)
    for given in map(read_set, sets):
        with fitted(given, settings_of(model, input_size)) as collector:
            job, start, own = _Followed(), time.monotonic(), time.process_time()
            options = CertificateOptions(most_parts=parts, trials=trials)
            made = certify_stored(collector, KEY, options, job)
            took, busy = time.monotonic() - start, time.process_time() - own
        (out / f"{given.name}.json").write_text(json.dumps(made), "utf-8")
        for language in ("es", "en"):
            html = page(made, "es" if language == "es" else "en", catalogue.sentence)
            (out / f"{given.name}.{language}.html").write_text(html, "utf-8")
        defects = sum(curve["n"] for curve in made["detection"]["curves"])
        cores = str(len(os.sched_getaffinity(0)))
        cells = [given.name, str(made["parts"]["n"]), str(defects), f"{took:.0f}", f"{busy:.0f}", cores]
        _line([*cells, ", ".join(job.stages)])


class _Followed(Job):
    """Remembers which stages told how far they are."""

    def __init__(self) -> None:
        super().__init__()
        self.stages: dict[str, int] = {}

    def report(self, stage: str, done: int, total: int) -> None:
        self.stages[stage] = self.stages.get(stage, 0) + 1
        super().report(stage, done, total)


def _line(cells: Sequence[str]) -> None:
    typer.echo(f"| {' | '.join(cells)} |")
    sys.stdout.flush()


if __name__ == "__main__":
    app()

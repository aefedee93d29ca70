"""Drift on real parts: false alarms, delays and causes. Tables of docs/ACCURACY.md.

    python -m experiments.drift sequences              # the half of the images that figures are reported on
    python -m experiments.drift sequences --half 0     # the half that settings were chosen on
    python -m experiments.drift cost                   # processor time of one part

A model of each set is fitted on some of its good parts (the weight-free extractor); sequences of 2,000 parts are drawn
with replacement from the others, and in each something changes after 1,000 parts, at once or by and by. All of it goes
the way that /infer goes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time
from typing import Annotated, get_args

import cv2
import numpy as np
import typer
from numpy.typing import NDArray

from backend.assurance.drift import Cause, Chart, cause_of, distances_of
from backend.assurance.likeness import features_of
from backend.assurance.reference import N_DISTANCES, Gauge, Reference
from backend.base.config import Settings
from backend.base.images import list_images
from backend.base.keys import ModelKey
from backend.service.appearance import appearance_of
from backend.service.fitting import Fitter
from backend.service.images import ImageFile
from backend.service.inspection import Inspector

app = typer.Typer(add_completion=False)
BGR = NDArray[np.float32]
Change = Callable[[BGR], BGR]
Floats = NDArray[np.float64]
KEY = ModelKey.of("Master1", "Pattern")
BAD = {"pills": ("dirt", "chip"), "cookies": ("crack",), "coffee": ("bad",)}
LEARNT, STEADY, LENGTH, LATER = 100, 1000, 2000, 10
RAMP = 300


def gain(factor: float) -> Change:
    """Another exposure."""
    return lambda image: image * np.float32(factor)


def gamma(exponent: float) -> Change:
    """Another response of the camera."""
    return lambda image: np.asarray(255 * (image / 255) ** exponent, np.float32)


def warmer(factor: float) -> Change:
    """More red and less blue."""
    return lambda image: image * np.array([1 / factor, 1, factor], np.float32)


def blur(sigma: float) -> Change:
    """Out of focus, by so many pixels."""
    return lambda image: np.asarray(cv2.GaussianBlur(image, (0, 0), sigma), np.float32)


def moved(right: float = 0.0, down: float = 0.0, degrees: float = 0.0) -> Change:
    """Displaced by shares of the sides, and turned."""

    def apply(image: BGR) -> BGR:
        height, width = image.shape[:2]
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0)
        matrix[:, 2] += round(right * width), round(down * height)
        how = {"flags": cv2.INTER_LANCZOS4, "borderMode": cv2.BORDER_REFLECT_101}
        return np.asarray(cv2.warpAffine(image, matrix, (width, height), **how), np.float32)

    return apply


def smudge(depth: float, x: float = 0.3, y: float = 0.35, radius: float = 0.1) -> Change:
    """A soft spot that takes this share of the light, in one place of the picture."""

    def apply(image: BGR) -> BGR:
        height, width = image.shape[:2]
        down, right = np.mgrid[:height, :width]
        away = ((right / width - x) ** 2 + (down / height - y) ** 2) / radius**2
        share = (depth * np.exp(-(away**2))).astype(np.float32)[..., None]
        veiled = cv2.GaussianBlur(image, (0, 0), 0.02 * max(height, width))
        return np.asarray(image * (1 - share) + 0.25 * share * veiled, np.float32)

    return apply


# Each change by its steps, from little to all of it, and the cause that it has.
CHANGES: dict[str, tuple[str, tuple[Change, ...]]] = {
    "gain −20 %": ("light", (gain(0.93), gain(0.87), gain(0.8))),
    "gain +20 %": ("light", (gain(1.07), gain(1.13), gain(1.2))),
    "gamma 1.25": ("light", (gamma(1.08), gamma(1.16), gamma(1.25))),
    "red +10 %, blue −10 %": ("colour", (warmer(1.03), warmer(1.06), warmer(1.1))),
    "red −5 %, blue +5 %": ("colour", (warmer(0.98), warmer(0.965), warmer(0.95))),
    "blur 1.5 px": ("focus", (blur(0.6), blur(1.0), blur(1.5))),
    "shift 3 % right": ("position", (moved(0.01), moved(0.02), moved(0.03))),
    "shift 3 % up": ("position", (moved(0, -0.01), moved(0, -0.02), moved(0, -0.03))),
    "turn 10°": ("turn", (moved(degrees=3), moved(degrees=6), moved(degrees=10))),
    "smudge of half the light": ("dirt", (smudge(0.17), smudge(0.33), smudge(0.5))),
    "smudge elsewhere": ("dirt", (smudge(0.17, 0.62, 0.7), smudge(0.33, 0.62, 0.7), smudge(0.5, 0.62, 0.7))),
}
# Other ways to lay all parts, and the cause that each has. A quarter of a turn wants square pictures.
LAID: dict[str, tuple[str, Change]] = {
    "half a turn": ("turn", lambda image: np.ascontiguousarray(np.rot90(image, 2))),
    "a quarter of a turn": ("turn", lambda image: np.ascontiguousarray(np.rot90(image))),
    "mirrored": ("parts", lambda image: np.ascontiguousarray(image[:, ::-1])),
}
NAMED = {"gain −20 %", "gain +20 %", "blur 1.5 px", "shift 3 % right", "shift 3 % up"}


@dataclass(frozen=True)
class Pool:
    """Parts to draw from: features (n, F) and distances (n, D)."""

    features: Floats
    distances: Floats

    def draw(self, rng: np.random.Generator, n: int) -> Iterator[tuple[Floats, Floats]]:
        """Parts drawn with replacement."""
        for number in rng.integers(len(self.features), size=n):
            yield self.features[number], self.distances[number]


@dataclass(frozen=True)
class Run:
    """A sequence.

    Attributes:
        false_alarms: in STEADY parts.
        delay: changed parts until it was found; None if it was not.
        at_once, later: the cause that was named then, and LATER parts afterwards.
    """

    false_alarms: int
    delay: int | None
    at_once: str
    later: str


@dataclass(frozen=True)
class Row:
    """A sequence, of which set, and what changed in it."""

    name: str
    what: str
    cause: str
    run: Run


@dataclass(frozen=True)
class Results:
    """All sequences; `steady`: false alarms in LENGTH unchanged parts by set."""

    steps: list[Row] = field(default_factory=list)
    ramps: list[Row] = field(default_factory=list)
    steady: dict[str, list[int]] = field(default_factory=dict)

    def add(
        self, name: str, bench: Bench, none: Pool, pools: dict[str, tuple[str, list[Pool]]], seed: list[int]
    ) -> None:
        """Sequences of one set."""
        rng = np.random.default_rng(seed)
        gauge = bench.gauge(none, rng)
        self.steady.setdefault(name, []).append(false_alarms(gauge, none, rng))
        for what, (cause, changed) in pools.items():
            self.steps.append(Row(name, what, cause, run(gauge, none, changed, rng)))
            if len(changed) > 1:
                self.ramps.append(Row(name, what, cause, run(gauge, none, changed, rng, RAMP)))


def image_file(image: BGR) -> ImageFile:
    """The image as a station sends it."""
    data = cv2.imencode(".bmp", np.clip(np.rint(image), 0, 255).astype(np.uint8))[1].tobytes()
    return ImageFile("part.bmp", lambda: data)


def read(path: Path) -> BGR:
    """An image, float32."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise typer.BadParameter(f"{path} is no image")
    return image.astype(np.float32)


class Bench:
    """A model fitted on good parts, and what it measures of others."""

    def __init__(self, folder: Path, fitted: Sequence[Path]) -> None:
        settings = Settings(
            model_name="texture",
            models_dir=folder,
            datasets_dir=folder / "datasets",
            store_samples=False,
            heatmap_scale="none",
        )
        self.inspector = Inspector(settings)
        self.inspector.start()
        result = Fitter(self.inspector).fit(KEY, [image_file(read(path)) for path in fitted], mm_per_px=1)
        self.reference = Reference.of(result.appearances)

    def pool(self, paths: Sequence[Path], change: Change = lambda image: image) -> Pool:
        """Parts with `change`."""
        found = [self.inspector.infer(KEY, image_file(change(read(path))), mm_per_px=1) for path in paths]
        return Pool(
            np.array([features_of(one.appearance, self.reference.placing) for one in found]),
            np.array([distances_of(one.inspection.token_map) for one in found]),
        )

    def gauge(self, steady: Pool, rng: np.random.Generator) -> Gauge:
        """After LEARNT parts."""
        features, distances = zip(*steady.draw(rng, LEARNT), strict=True)
        return self.reference.joined(np.array(features), np.array(distances).reshape(-1, N_DISTANCES)).gauge


def run(gauge: Gauge, steady: Pool, changed: Sequence[Pool], rng: np.random.Generator, ramp: int = 0) -> Run:
    """One sequence. `ramp`: parts that the change takes to come."""
    chart, false_alarms, before = Chart(), 0, 0
    for number, (features, distances) in enumerate(steady.draw(rng, STEADY)):
        chart.add(gauge, features, distances, number)
        false_alarms += bool(chart.since_us and not before)
        before = chart.since_us
    chart.since_us, delay, at_once = 0, None, "–"
    for number in range(LENGTH - STEADY):
        pool = changed[min(len(changed) - 1, number * len(changed) // ramp)] if ramp else changed[-1]
        features, distances = next(pool.draw(rng, 1))
        chart.add(gauge, features, distances, STEADY + number)
        if delay is None and chart.since_us:
            delay, at_once = number + 1, cause_of(chart, gauge)[0]
        if delay is not None and number + 1 >= delay + LATER:
            break
    return Run(false_alarms, delay, at_once, cause_of(chart, gauge)[0] if delay else "–")


def false_alarms(gauge: Gauge, steady: Pool, rng: np.random.Generator) -> int:
    """In LENGTH parts of which none has changed."""
    chart, found, before = Chart(), 0, 0
    for number, (features, distances) in enumerate(steady.draw(rng, LENGTH)):
        chart.add(gauge, features, distances, number + 1)
        found += bool(chart.since_us and not before)
        before = chart.since_us
    return found


def good(folder: Path, half: int) -> list[Path]:
    """Every second good part of a set."""
    paths = [*list_images(folder / "train" / "good"), *list_images(folder / "test" / "good")]
    return paths[half::2]


def designs(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Parts of most designs, and of one that is less common, by the colour of their middle."""
    tints = []
    for path in paths:
        image = read(path)
        height, width = image.shape[:2]
        middle = image[height // 3 : 2 * height // 3, width // 3 : 2 * width // 3].mean(axis=(0, 1))
        tints.append(np.log(middle + 4))
    cv2.setRNGSeed(0)
    criteria = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 50, 1e-4)
    samples = np.array(tints, np.float32)
    _, labels, _ = cv2.kmeans(samples, 4, None, criteria, 8, cv2.KMEANS_PP_CENTERS)  # type: ignore[call-overload]
    counts = Counter(labels.ravel().tolist())
    rare = min((label for label, n in counts.items() if n >= 8), key=lambda label: counts[label])
    of_rare = labels.ravel() == rare
    return [p for p, r in zip(paths, of_rare, strict=True) if not r], [
        p for p, r in zip(paths, of_rare, strict=True) if r
    ]


@app.command()
def sequences(
    data: Annotated[Path, typer.Option(help="The folder with pills, cookies and coffee.")] = Path("../shared/data"),
    half: Annotated[int, typer.Option(help="Which half of the images.", min=0, max=1)] = 1,
    seeds: Annotated[int, typer.Option(help="Sequences of each kind and set.")] = 4,
    most: Annotated[int, typer.Option(help="Good parts of a set that sequences are drawn from.")] = 30,
) -> None:
    """Print the tables as Markdown."""
    cv2.setNumThreads(1)
    results = Results()
    for name, bad in BAD.items():
        rng = np.random.default_rng([half, *name.encode()])
        paths = [Path(path) for path in rng.permutation([str(path) for path in good(data / name, half)])]
        fitted, drawn = paths[: len(paths) // 2], paths[len(paths) // 2 :][:most]
        with TemporaryDirectory() as folder:
            bench = Bench(Path(folder), fitted)
            none = bench.pool(drawn)
            pools = {what: (cause, [bench.pool(drawn, one) for one in own]) for what, (cause, own) in CHANGES.items()}
            worse = [path for kind in bad for path in list_images(data / name / "test" / kind)][half::2][:most]
            pools["bad parts alone"] = "parts", [bench.pool(worse)]
            height, width = read(drawn[0]).shape[:2]
            for what, (cause, laid) in LAID.items():
                if height == width or "quarter" not in what:
                    pools[what] = cause, [bench.pool(drawn, laid)]
            for seed in range(seeds):
                results.add(name, bench, none, pools, [seed, half])
            bench.inspector.close()
        typer.echo(f"{name} done", err=True)
    common, rare = designs(good(data / "coffee", half))
    with TemporaryDirectory() as folder:
        bench = Bench(Path(folder), common[::2])
        none, other = bench.pool(common[1::2][:most]), {"another design": ("parts", [bench.pool(rare)])}
        for seed in range(seeds):
            results.add("coffee, designs", bench, none, other, [seed, half])
        bench.inspector.close()
    report(results)


@app.command()
def cost(data: Annotated[Path, typer.Option(help="The folder with coffee.")] = Path("../shared/data")) -> None:
    """Print the processor time that one part takes, by step, on one thread."""
    cv2.setNumThreads(1)
    images = [read(path).astype(np.uint8) for path in good(data / "coffee", 1)[:40]]
    pixels = [np.asarray(cv2.resize(image, (448, 448)), np.uint8) for image in images]
    seen = [appearance_of(one) for one in pixels]
    reference, chart = Reference.of(seen), Chart()
    features = [features_of(one, reference.placing) for one in seen]
    gauge, nowhere = reference.gauge, np.zeros(N_DISTANCES)
    steps: dict[str, Callable[[int], object]] = {
        "appearance, while it is inspected": lambda n: appearance_of(pixels[n]),
        "features, in the background": lambda n: features_of(seen[n], reference.placing),
        "charts, in the background": lambda n: chart.add(gauge, features[n], nowhere, 1),
        "state, once a second at most": lambda n: chart.to_bytes(),
    }
    typer.echo("| step | processor time, ms |\n| --- | --- |")
    for name, step in steps.items():
        started = process_time()
        for n in range(400):
            step(n % len(pixels))
        typer.echo(f"| {name} | {1000 * (process_time() - started) / 400:.2f} |")


def report(results: Results) -> None:
    """The tables."""
    steps, every = results.steps, [*results.steps, *results.ramps]
    typer.echo("| set | parts without a change | false alarms | per 1,000 |\n| --- | --- | --- | --- |")
    for name, found in results.steady.items():
        own = [row.run for row in every if row.name == name]
        parts = LENGTH * len(found) + STEADY * len(own)
        alarms = sum(found) + sum(one.false_alarms for one in own)
        typer.echo(f"| {name} | {parts:,} | {alarms} | {1000 * alarms / parts:.2f} |")
    report_delays("step", steps)
    report_delays(f"ramp over {RAMP} parts", results.ramps)
    report_causes("at once", [(row.cause, row.run.at_once) for row in steps])
    report_causes(f"{LATER} parts later", [(row.cause, row.run.later) for row in steps])
    named = [row.run.delay for row in steps if row.what in NAMED]
    soon = sum(delay is not None and delay <= 20 for delay in named)
    typer.echo(f"\n{soon} of {len(named)} steps of blur 1.5 px, shift 3 % and gain 20 % were found within 20 parts.")


def report_delays(title: str, rows: Sequence[Row]) -> None:
    """What was found, how soon, and whether the cause was right."""
    typer.echo(
        f"\n| {title} | set | found | within 20 | median delay | longest | cause at once | {LATER} parts later |"
    )
    typer.echo("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for what, name in dict.fromkeys((row.what, row.name) for row in rows):
        own = [row for row in rows if (row.what, row.name) == (what, name)]
        delays = [row.run.delay for row in own if row.run.delay]
        middle = f"{np.median(delays):.0f} | {max(delays)}" if delays else "– | –"
        counts = (
            sum(delay <= 20 for delay in delays),
            sum(row.run.at_once == row.cause for row in own),
            sum(row.run.later == row.cause for row in own),
        )
        soon, at_once, later = (f"{n}/{len(own)}" for n in counts)
        typer.echo(f"| {what} | {name} | {len(delays)}/{len(own)} | {soon} | {middle} | {at_once} | {later} |")


def report_causes(title: str, named: Sequence[tuple[str, str]]) -> None:
    """The confusion matrix of (true, named) causes."""
    causes = get_args(Cause)
    typer.echo(f"\n| true cause, {title} | " + " | ".join([*causes, "not found"]) + " |")
    typer.echo("| --- |" + " --- |" * (len(causes) + 1))
    counts = Counter(named)
    for cause in causes:
        typer.echo(f"| {cause} | " + " | ".join(str(counts[cause, one]) for one in [*causes, "–"]) + " |")
    found = [pair for pair in named if pair[1] != "–"]
    right = sum(true == said for true, said in found)
    typer.echo(f"\nThe cause is right in {right} of {len(found)} found ({100 * right / max(1, len(found)):.1f} %).")


if __name__ == "__main__":
    app()

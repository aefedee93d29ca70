"""What each option is worth: the tables of docs/ACCURACY.md.

    python -m experiments.accuracy options --sets ../shared/data/{cookies,pills,coffee} \
        --model resnet18=../shared/data/weights/resnet18_layers1-3.safetensors --input-size 256
    python -m experiments.accuracy spots --sets … --model … --input-size 448

Each option is the default with one thing changed, through the service's own code. The network runs once for all options
that leave it alone. A difference comes with the interval of a paired bootstrap over the test images.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import numpy as np
import typer
from numpy.typing import NDArray

from backend.base.config import Settings, load_settings
from backend.base.images import decode_image, encode_png
from backend.base.keys import ModelKey
from backend.evaluation.results import ScoredImage, SetResult
from backend.evaluation.runner import Evaluator, RememberingExtractor
from backend.evaluation.sets import InspectionSet, read_set
from backend.service.fitting import Fitter
from backend.service.host import extractor_for
from backend.service.images import ImageFile
from backend.service.inspection import Inspector

app = typer.Typer(add_completion=False)
Sets = Annotated[list[Path], typer.Option(exists=True, file_okay=False, help="Folders in MVTec AD's layout.")]
Model = Annotated[str, typer.Option(help="NAME or NAME=WEIGHTS.")]

# The rows of the table: what differs from the default, as one would write it in the environment.
COMMON = (
    "CORESET_RATE=0.005",
    "CORESET_RATE=0.01",
    "CORESET_RATE=0.1",
    "MAX_CORESET=1024",
    "PATCHCORE_KNN_K=3",
    "PATCHCORE_KNN_K=9",
    "PATCHCORE_DENSITY_K=9",
    "PATCHCORE_DISTANCE=mahalanobis",
    "PATCHCORE_DISTANCE=cosine",
    "FOREGROUND_MASK=pca",
    "SCORE_METHOD=max",
    "SCORE_METHOD=top_mean",
    "SCORE_METHOD=power_mean, SCORE_MAP=tokens",
    "SCORE_METHOD=max, SCORE_MAP=tokens",
    "SCORE_METHOD=max, PATCHCORE_REWEIGHT=9",
    "SCORE_METHOD=max, TOKEN_BLUR=0.5",
    "SCORE_METHOD=max, TOKEN_BLUR=1",
    "SCORE_METHOD=max, TOKEN_BLUR=1.5",
    "SCORE_METHOD=max, TOKEN_BLUR=2",
    "TOKEN_BLUR=1",
    "BLUR_SIGMA=4",
    "FIT_MEMORY_MB=32",
    "SEED=1",
    "SEED=2",
    "TILES=2",
    "INPUT_SIZE=448",
    "PRESET=recommended",
    "PRESET=recommended, TOKEN_BLUR=0",
    "PRESET=recommended, FOREGROUND_MASK=pca",
    "PRESET=recommended, SCORE_METHOD=max",
    "PRESET=recommended, SCORE_METHOD=top_mean, SCORE_TOP_SHARE=0.005",
    "PRESET=recommended, SCORE_POWER=16",
    "PRESET=recommended, SCORE_POWER=64",
    "PRESET=recommended, CORESET_RATE=0.02",
    "PRESET=recommended, CORESET_RATE=0.05",
    "PRESET=recommended, PATCHCORE_DENSITY_K=0",
    "PRESET=recommended, PATCHCORE_DENSITY_K=5",
    "PRESET=recommended, SEED=1",
    "PRESET=recommended, SEED=2",
)
RESNET = (
    "RESNET_OFFSET=0",
    "RESNET_OFFSET=0.4",
    "RESNET_OFFSET=1.6",
    "PATCHCORE_PATCH_SIZE=1",
    "PATCHCORE_PATCH_SIZE=5",
    "PATCHCORE_STRIDE=2",
    "PRESET=recommended, RESNET_OFFSET=0.8",
    "PRESET=recommended, PATCHCORE_PATCH_SIZE=5",
)
VIT = (
    "PATCHCORE_PATCH_SIZE=3",
    "BLOCKS=-1",
    "BLOCKS=5,8,11",
    "BLOCKS=7,9",
)


class Bench:
    """Evaluates settings over sets, and runs each extractor once for all settings that share it."""

    def __init__(self, folder: Path, base: dict[str, Any]) -> None:
        self.folder, self.base = folder, base

    def settings(self, changed: Mapping[str, str]) -> Settings:
        """The base with something changed."""
        return load_settings(**{**self.base, **changed})

    def extractor(self, settings: Settings) -> RememberingExtractor:
        """The extractor of the settings, with what it embedded before."""
        extractor = extractor_for(settings)
        tokens = self.folder / f"{extractor.fingerprint}-{extractor.runtime}-{settings.precision}"
        tokens.mkdir(parents=True, exist_ok=True)
        return RememberingExtractor(extractor, tokens)

    def run(self, changed: Mapping[str, str], sets: Sequence[InspectionSet]) -> list[SetResult]:
        """The figures of each set with something changed."""
        settings = self.settings(changed)
        with Evaluator(settings, self.extractor(settings)) as evaluator:
            return [evaluator.run(one) for one in sets]


class Tested(Protocol):
    """Whatever has scored test images."""

    @property
    def scored(self) -> list[ScoredImage]:
        """Each image with its score."""
        ...


def paired_interval(ours: Tested, theirs: Tested, draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the difference of image AUROC, the same images drawn for both."""
    rng = np.random.default_rng(0)
    defective = np.array([s.image.defective for s in ours.scored])
    n_good, n_bad = int((~defective).sum()), int(defective.sum())
    of_good = rng.multinomial(n_good, np.full(n_good, 1 / n_good), size=draws) / n_good
    of_bad = rng.multinomial(n_bad, np.full(n_bad, 1 / n_bad), size=draws) / n_bad
    gain = _wins(ours, defective) - _wins(theirs, defective)
    low, high = np.percentile(np.einsum("db,bg,dg->d", of_bad, gain, of_good, optimize=True), [2.5, 97.5])
    return float(low), float(high)


def _wins(result: Tested, defective: NDArray[np.bool_]) -> NDArray[np.float64]:
    scores = np.array([s.score for s in result.scored])
    good, bad = scores[~defective], scores[defective]
    wins: NDArray[np.float64] = (bad[:, None] > good) + 0.5 * (bad[:, None] == good)
    return wins


@app.command()
def options(
    sets: Sets,
    model: Model,
    input_size: int = 448,
    only: Annotated[list[str] | None, typer.Option(help="These rows alone, as NAME=VALUE, NAME=VALUE.")] = None,
    tokens: Annotated[Path | None, typer.Option(help="Folder that keeps the tokens between runs.")] = None,
) -> None:
    """A table of what each option changes, as Markdown on standard output."""
    base = settings_base(model, input_size)
    given = [read_set(folder) for folder in sets]
    rows = {title: changed_by(title) for title in only or (*COMMON, *(RESNET if "resnet" in model else VIT))}
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(tokens or Path(folder), base)
        default = bench.run({}, given)
        _header(given)
        _row("default", default, default)
        for title, changed in rows.items():
            _row(title, bench.run(changed, given), default)


def settings_base(model: str, input_size: int) -> dict[str, Any]:
    """The settings that NAME or NAME=WEIGHTS and an input size stand for."""
    name, _, weights = model.partition("=")
    return {"model_name": name, "weights": weights or "auto", "input_size": input_size}


def changed_by(title: str) -> dict[str, str]:
    """The settings in `NAME=VALUE, NAME=VALUE`. Raises typer.BadParameter for a name that is no setting."""
    pairs = [pair.partition("=") for pair in title.split(", ")]
    for name, equals, _ in pairs:
        if not equals or name.lower() not in Settings.model_fields:
            raise typer.BadParameter(f"{name!r} in {title!r} is no setting: write NAME=VALUE, NAME=VALUE")
    return {name.lower(): value for name, _, value in pairs}


def _header(sets: Sequence[InspectionSet]) -> None:
    cells = [cell for one in sets for cell in [f"{one.name}: AUROC", "against the default"]]
    line(["option", *cells, "pixel AUROC", "AUPRO", "ms"])
    line(["---"] * (len(cells) + 4))


def _row(title: str, results: list[SetResult], default: list[SetResult]) -> None:
    cells = []
    for ours, theirs in zip(results, default, strict=True):
        auroc = ours.figures.image.auroc
        if results is default:
            cells += [f"{auroc:.4f}", f"[{ours.interval.low:.3f}, {ours.interval.high:.3f}]"]
        else:
            low, high = paired_interval(ours, theirs)
            cells += [f"{auroc:.4f}", f"{auroc - theirs.figures.image.auroc:+.4f} [{low:+.3f}, {high:+.3f}]"]
    pixels = next((r.figures.pixels for r in results if r.figures.pixels), None)
    more = [f"{pixels.auroc:.4f}", f"{pixels.aupro:.4f}"] if pixels else ["–", "–"]
    ms = float(np.mean([r.cost.inspect_ms for r in results]))
    line([f"`{title}`" if "=" in title else title, *cells, *more, f"{ms:.0f}"])


def line(cells: Sequence[str]) -> None:
    """A row of a table in Markdown, on standard output at once."""
    typer.echo(f"| {' | '.join(cells)} |")
    sys.stdout.flush()


AREAS = (0.000075, 0.00015, 0.0003, 0.0006, 0.00125, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08)
SPOTS = {"dark": (20, 20, 20), "bright": (235, 235, 235), "red": (40, 40, 200)}
WAYS = ("PRESET=recommended", "PRESET=recommended, FOREGROUND_MASK=pca")
Rates = NDArray[np.float64]


def with_spot(image: NDArray[np.uint8], share: float, colour: Sequence[int], rng: np.random.Generator) -> bytes:
    """PNG of a (H, W, 3) BGR image with a disc of `share` of its area, its edge a pixel soft, in its middle half."""
    height, width = image.shape[:2]
    radius = (share * height * width / np.pi) ** 0.5
    cy, cx = rng.uniform(0.3, 0.7) * height, rng.uniform(0.3, 0.7) * width
    y, x = np.mgrid[:height, :width]
    cover = np.clip(radius + 0.5 - np.hypot(y - cy, x - cx), 0, 1)[:, :, None]
    mixed = image * (1 - cover) + np.array(colour) * cover
    return encode_png(np.rint(mixed).astype(np.uint8))


@dataclass(frozen=True)
class Spotted:
    """Good parts, and pictures of some of them with a spot: `spots[kind][part][area]`, at one place on each part."""

    parts: list[Path]
    chosen: list[int]
    n_held: int
    spots: dict[str, list[list[bytes]]]

    @classmethod
    def of(cls, one: InspectionSet, images: int) -> Spotted:
        """The set's good parts, those of its test first; `images` of these get spots."""
        tested = [image.path for image in one.test if not image.defective]
        parts = [*tested, *(image.path for image in one.train)]
        if not tested:
            raise typer.BadParameter(f"{one.name} has no good part to test on: spots need some in test/good.")
        chosen = list(range(0, len(tested), max(1, len(tested) // images)))[:images]
        images_of = {n: decode_image(parts[n].read_bytes()) for n in chosen}
        spots = {
            kind: [
                [with_spot(image, area, colour, np.random.default_rng(n)) for area in AREAS]
                for n, image in images_of.items()
            ]
            for kind, colour in SPOTS.items()
        }
        return cls(parts, chosen, len(tested), spots)

    def held_out(self, split: int) -> set[int]:
        """As many parts as the set's own test has: these for split 0, else a draw that those with spots are in."""
        if split == 0:
            return set(range(self.n_held))
        others = [n for n in range(len(self.parts)) if n not in self.chosen]
        drawn = np.random.default_rng(split).choice(others, self.n_held - len(self.chosen), replace=False)
        return {*self.chosen, *drawn.tolist()}

    def found(self, inspector: Inspector, split: int) -> dict[str, Rates]:
        """Of each kind the share of parts (areas,) on which a spot scores above every good part held out."""
        key, held = ModelKey.of("spots", "set"), self.held_out(split)
        learnt = [path for n, path in enumerate(self.parts) if n not in held]
        files = [ImageFile.named(path.name, path.read_bytes) for path in learnt]
        Fitter(inspector).fit(key, files, mm_per_px=1.0)

        def score(data: bytes) -> float:
            file = ImageFile.named("x.png", lambda: data)
            return float(inspector.infer(key, file, mm_per_px=1.0, heatmap="none").inspection.score)

        threshold = max(score(self.parts[n].read_bytes()) for n in held)
        return {
            kind: np.mean([[score(data) > threshold for data in of_part] for of_part in pictures], axis=0)
            for kind, pictures in self.spots.items()
        }


def least_area(rates: Rates) -> float | None:
    """The share of the ROI from which a spot is found on half of the parts, and on no fewer at any larger area.

    Between two areas, by the logarithm of the area. The smallest where that is found; None where the largest is not.
    """
    missed = np.flatnonzero(rates < 0.5 - 1e-9)  # tenths that average a half add up to a little less
    if len(missed) == 0:
        return AREAS[0]
    n = int(missed[-1])
    if n == len(AREAS) - 1:
        return None
    step = (0.5 - rates[n]) / (rates[n + 1] - rates[n])
    return float(AREAS[n] * (AREAS[n + 1] / AREAS[n]) ** step)


@app.command()
def spots(
    sets: Sets,
    model: Model,
    input_size: int = 448,
    images: Annotated[int, typer.Option(min=1, help="Held-out good parts that get spots.")] = 10,
    splits: Annotated[int, typer.Option(min=1, help="Draws of held-out parts, each with a seed of its own.")] = 4,
    only: Annotated[list[str] | None, typer.Option(help="These beside the default, as NAME=VALUE, NAME=VALUE.")] = None,
) -> None:
    """How large a spot must be to score above every held-out good part, by the default and by what is to be better."""
    ways: dict[str, dict[str, str]] = {"default": {}, **{title: changed_by(title) for title in only or WAYS}}
    line(["set", "spot", "scored as", *[f"{share:.4%}" for share in AREAS], "area found", "of the default's"])
    line(["---"] * (len(AREAS) + 5))
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(Path(folder), settings_base(model, input_size))
        ratios: dict[str, list[float | None]] = {}
        for one in map(read_set, sets):
            spotted = Spotted.of(one, images)
            by_default: dict[str, float | None] = {}
            for way, changed in ways.items():
                for kind, rates in _found(spotted, bench, changed, splits).items():
                    area = least_area(rates)
                    ratio = _ratio(area, by_default.setdefault(kind, area))
                    ratios.setdefault(way, []).append(ratio)
                    line([one.name, kind, way, *[f"{r:.0%}" for r in rates], _area(area), _bound(area, ratio)])
    for way, of_kinds in list(ratios.items())[1:]:
        known = [ratio for ratio in of_kinds if ratio is not None]
        mean = f"at most {np.exp(np.mean(np.log(known))):.2f}" if known else "not known"
        typer.echo(f"{way}, area of the default's: {mean} (geometric, {len(known)} of {len(of_kinds)} kinds)")


def _found(spotted: Spotted, bench: Bench, changed: Mapping[str, str], splits: int) -> dict[str, Rates]:
    """Of each kind the share of parts (areas,) on which a spot is found with something changed, mean of the splits."""
    settings = bench.settings(changed)
    extractor = bench.extractor(settings)
    every = []
    for split in range(splits):
        with tempfile.TemporaryDirectory() as models:
            own = settings.model_copy(update={"models_dir": Path(models), "seed": split})
            inspector = Inspector(own, extractor)
            every.append(spotted.found(inspector, split))
            inspector.close()
    return {kind: np.mean([found[kind] for found in every], axis=0) for kind in SPOTS}


def _ratio(area: float | None, default: float | None) -> float | None:
    """Area over area; None where either is not known, or the default finds the smallest."""
    return None if area is None or default is None or default == AREAS[0] else area / default


def _bound(area: float | None, ratio: float | None) -> str:
    """The ratio, at most that where the smallest area is found."""
    return "–" if ratio is None else f"≤ {ratio:.2f}" if area == AREAS[0] else f"{ratio:.2f}"


def _area(area: float | None) -> str:
    return "none" if area is None else f"≤ {area:.4%}" if area == AREAS[0] else f"{area:.4%}"


if __name__ == "__main__":
    app()

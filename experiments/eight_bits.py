"""A network in eight-bit integers: is an inspection quicker than in what the runtime takes, and does it see the same?

    pip install nncf
    python -m experiments.eight_bits --sets SET … --model resnet18=WEIGHTS --input-size 256
    python -m experiments.eight_bits --sets SET … --model vit_tiny_patch16_224=WEIGHTS

NNCF quantises the network that OpenVINO runs, after its training, on pictures of the good parts of each set; a ViT with
SmoothQuant. What it leaves in floats is computed in fp32 or in bf16. Times are medians, all arithmetics in turn, beside
that of the arithmetic which the service takes by itself; an inspection is all of /infer but HTTP and JSON. The image
AUROC is the mean over coresets of several seeds. Coresets choose other rows where rounding differs, and move it by
themselves, so it is asked again with the rows that the service's own arithmetic chose.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from backend.base.arrays import cpu_name, instruction_set
from backend.base.config import Settings
from backend.base.keys import ModelKey
from backend.evaluation.runner import Evaluator
from backend.evaluation.sets import InspectionSet, LabelledImage, read_set
from backend.extractors.agreement import Agreement
from backend.extractors.network import NetworkFeatures
from backend.extractors.openvino_runtime import OpenVinoFeatures, model_of, with_openvino
from backend.extractors.protocol import RGB, Extractor, ExtractorOptions, Rows
from backend.extractors.weights import write_random_weights
from backend.features import DinoV2Features, torch_network
from backend.infer import Criteria, inspect
from backend.patchcore import PatchCoreMemory
from backend.service.images import ImageFile, prepare_image
from experiments.accuracy import Model, Sets, line
from experiments.embedded import EmbeddedSet, settings_of
from experiments.turns import Took, Work, forward, in_turn

app = typer.Typer(add_completion=False)

FLOATS = ("fp32", "bf16")
SEEDS = (0, 1, 2)
PICTURES = 64
ROUNDS = 60
SHOWN = 8
FIGURES = ("cosine, mean and least", "image AUROC", "moved", "with the same rows")
KEY = ModelKey.of("eight-bits", "set")
ModelOf = Callable[[int, int], Any]


class EightBits(OpenVinoFeatures):
    """A network whose products are of eight-bit integers.

    Args:
        network: as it was trained.
        precision: of what stays in floats, `fp32` or `bf16`.
        models: gives the quantised OpenVINO model for images of (height, width) px.
    """

    def __init__(self, network: NetworkFeatures, precision: str, models: ModelOf) -> None:
        super().__init__(network, precision)
        self._models = lru_cache(1)(models)


def quantised(model: Any, pictures: Sequence[RGB], *, transformer: bool) -> Any:
    """An OpenVINO model whose products are of eight-bit integers, with scales from what `pictures` show in it."""
    nncf = import_module("nncf")
    data = nncf.Dataset([picture[None] for picture in pictures])
    kind = nncf.ModelType.TRANSFORMER if transformer else None
    with redirect_stdout(sys.stderr):  # where its progress belongs
        return nncf.quantize(model, data, subset_size=len(pictures), model_type=kind)


def arithmetics(network: NetworkFeatures, pictures: Sequence[RGB]) -> dict[str, OpenVinoFeatures]:
    """The network in floats and in eight bits, for images of the pictures' size."""
    floats = {name: OpenVinoFeatures(network, name) for name in FLOATS}

    @lru_cache(1)
    def models(height: int, width: int) -> Any:
        plain = model_of(network, height, width)
        return quantised(plain, pictures, transformer=isinstance(network, DinoV2Features))

    return {**floats, **{f"int8, rest {name}": EightBits(network, name, models) for name in FLOATS}}


@dataclass(frozen=True)
class Seen:
    """What one arithmetic makes of a set.

    Attributes:
        tokens: of some test pictures.
        rows: for each of SEEDS, which embeddings the coreset chose.
        auroc: image AUROC, the mean over SEEDS.
        auroc_same_rows: the same with memories of the embeddings that another arithmetic's coresets chose.
    """

    tokens: Rows
    rows: list[NDArray[np.int64]]
    auroc: float
    auroc_same_rows: float


def seen(
    given: InspectionSet,
    settings: Settings,
    extractor: OpenVinoFeatures,
    shown: Sequence[RGB],
    rows: Sequence[NDArray[np.int64]] | None,
) -> Seen:
    """Fit on the set and score its test images, once for each seed; the extractor runs once.

    `rows`: what another arithmetic's coresets chose; None: there is none.
    """
    embedded = EmbeddedSet(given, settings, extractor)
    tested = {image.path for image in given.test}
    learnt = [n for n, one in enumerate(embedded.good) if one.image.path not in tested]
    images = [one for one in (*embedded.good, *embedded.bad) if one.image.path in tested]
    embeddings = np.concatenate([embedded.good[n].tokens for n in learnt])

    def mean_auroc(memories: Sequence[PatchCoreMemory]) -> float:
        criteria, defective = Criteria(embedded.scoring), [one.image.defective for one in images]
        found = [[inspect(one.tokens, memory, one.roi, criteria).score for one in images] for memory in memories]
        return float(np.mean([roc_auc_score(defective, scores) for scores in found]))

    own = [embedded.memory(learnt, seed) for seed in SEEDS]
    chosen = [memory.indices for memory in own if memory.indices is not None]
    auroc = mean_auroc(own)
    same = auroc if rows is None else mean_auroc([PatchCoreMemory(embeddings[numbers]) for numbers in rows])
    return Seen(np.stack([extractor.extract([picture])[0] for picture in shown]), chosen, auroc, same)


@contextmanager
def inspecting(given: InspectionSet, settings: Settings, extractor: OpenVinoFeatures) -> Iterator[Work]:
    """Inspects the n-th test image of a set, whose memory this extractor made."""
    files = [ImageFile.named(image.path.name, image.path.read_bytes) for image in (*given.train, *given.test)]
    learnt, tested = files[: len(given.train)], files[len(given.train) :]
    with Evaluator(settings, extractor) as evaluator:
        evaluator.fitter.fit(KEY, learnt, mm_per_px=1.0)
        infer = evaluator.inspector.infer
        yield lambda n: infer(KEY, tested[n % len(tested)], mm_per_px=1.0, heatmap="relative")


def times(
    given: InspectionSet, settings: Settings, ways: Mapping[str, OpenVinoFeatures], pictures: Sequence[RGB]
) -> tuple[dict[str, Took], dict[str, Took]]:
    """What a bare forward and what an inspection takes, in each of `ways`."""
    forwards = in_turn({name: forward(one, pictures) for name, one in ways.items()}, ROUNDS)
    with ExitStack() as stack:
        works = {name: stack.enter_context(inspecting(given, settings, one)) for name, one in ways.items()}
        return forwards, in_turn(works, ROUNDS)


def prepared(images: Sequence[LabelledImage], network: Extractor) -> list[RGB]:
    """The pixels that the extractor sees of labelled images, all on the grid of the first."""
    found: list[RGB] = []
    grid = None
    for image in images:
        ready = prepare_image(ImageFile.named(image.path.name, image.path.read_bytes), network, expected=grid)
        grid = ready.grid
        found.append(ready.pixels)
    return found


def figures(found: Mapping[str, Seen], name: str, taken: str, shared: Rows | None) -> list[str]:
    """Cosine of the tokens with the service's, mean and least, image AUROC, and how far that is from the service's."""
    own, service = found[name], found[taken]
    agreement = Agreement.of(own.tokens, service.tokens, shared)
    moved, same = own.auroc - service.auroc, own.auroc_same_rows - service.auroc
    return [f"{agreement.mean:.4f}, {agreement.least:.4f}", f"{own.auroc:.4f}", f"{moved:+.4f}", f"{same:+.4f}"]


def quickness(took: Mapping[str, Took], name: str, taken: str) -> list[str]:
    """Milliseconds that passed, and those of the service's arithmetic in terms of these."""
    return [f"{took[name].ms:.1f}", f"{took[taken].ms / took[name].ms:.2f} ×"]


@app.command()
def compare(
    sets: Sets,
    model: Model,
    input_size: int = 448,
    untrained: Annotated[bool, typer.Option(help="Draw the weights at random, and measure times alone.")] = False,
) -> None:
    """A table of arithmetics: cosine of tokens with fp32's, image AUROC, and times of a forward and an inspection."""
    if find_spec("nncf") is None:
        raise typer.BadParameter("NNCF is not installed: pip install nncf")
    with TemporaryDirectory() as folder:
        if untrained:
            drawn = write_random_weights(model, Path(folder) / "random.safetensors", np.random.default_rng(0))
            model = f"{model}={drawn}"
        settings = settings_of(model, input_size)
        options = ExtractorOptions.of(settings)
        network = torch_network(options)
    taken = getattr(with_openvino(network, options), "precision", "fp32")
    typer.echo(f"{cpu_name()}, {instruction_set()}; the service takes {taken} here")
    of_tokens = () if untrained else FIGURES
    line(["set", "arithmetic", *of_tokens, "forward, ms", "as quick", "inspection, ms", "as quick"])
    line(["---"] * (6 + len(of_tokens)))
    for one in map(read_set, sets):
        shown = prepared(one.test[:: max(1, len(one.test) // SHOWN)][:SHOWN], network)
        ways = arithmetics(network, prepared(one.train[:PICTURES], network))
        forwards, inspections = times(one, settings, ways, shown)
        found: dict[str, Seen] = {}
        for name in [] if untrained else sorted(ways, key=lambda name: name != taken):
            found[name] = seen(one, settings, ways[name], shown, found[taken].rows if found else None)
        for name in ways:
            cells = [] if untrained else figures(found, name, taken, network.shared)
            took = [*quickness(forwards, name, taken), *quickness(inspections, name, taken)]
            line([one.name, name, *cells, *took])


if __name__ == "__main__":
    app()

"""What growing a memory costs against fitting the same images at once: the table of docs/ACCURACY.md.

    python -m experiments.growing --sets ../shared/data/coffee --sets ../shared/data/pills \
        --model resnet18=../shared/data/weights/resnet18_layers1-3.safetensors --input-size 256

The good parts come in the order of their files' names, then in several random ones. Each order is fitted at once, its
greedy starting from another row, and grown, a few images at a time, and both memories score the test images. Fits at
once differ among themselves too, and that spread is the measure of what a single sequence can show.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from backend.base.config import load_settings
from backend.base.decoding import ImageOptions
from backend.evaluation.sets import LabelledImage, read_set
from backend.extractors.protocol import Extractor
from backend.infer import Criteria, Roi, RoiSize, inspect
from backend.patchcore import PatchCoreMemory
from backend.service.embedding import Embeddings
from backend.service.fitting import grown_memory
from backend.service.host import extractor_for
from backend.service.images import ImageFile, prepare_image
from backend.storage import StoredMemory

app = typer.Typer(add_completion=False)
Rows = NDArray[np.float32]
Grid = tuple[int, int]


@dataclass(frozen=True)
class EmbeddedSet:
    """Tokens of every image of a set: train and test (images, tokens, D), and what is known of the test images."""

    train: Rows
    test: Rows
    grid: Grid
    sizes: list[RoiSize]
    defective: NDArray[np.bool_]

    @classmethod
    def of(cls, folder: Path, extractor: Extractor) -> EmbeddedSet:
        """Read and embed a folder. Raises SetNotUnderstood, BadImage."""
        given = read_set(folder)
        train, grid, _ = _embedded(given.train, extractor, None)
        test, grid, sizes = _embedded(given.test, extractor, grid)
        return cls(train, test, grid, sizes, np.array([image.defective for image in given.test]))

    def auroc(self, memory: PatchCoreMemory) -> float:
        """Image AUROC under the default scoring."""
        rois = [Roi(size, self.grid) for size in self.sizes]
        scores = [inspect(tokens, memory, roi, Criteria()).score for tokens, roi in zip(self.test, rois, strict=True)]
        return float(roc_auc_score(self.defective, scores))


def _embedded(
    images: Sequence[LabelledImage], extractor: Extractor, grid: Grid | None
) -> tuple[Rows, Grid, list[RoiSize]]:
    tokens, sizes = [], []
    for image in images:
        file = ImageFile(image.path.name, image.path.read_bytes)
        ready = prepare_image(file, extractor, expected=grid, options=ImageOptions())
        grid = ready.grid
        tokens.append(extractor.extract([ready.pixels])[0])
        sizes.append(ready.size)
    assert grid is not None
    return np.stack(tokens), grid, sizes


def grown(
    images: Rows, grid: Grid, batch: int, rate: float, rng: np.random.Generator, *, reserve: bool
) -> PatchCoreMemory:
    """The memory of `images` (n, tokens, D) that come `batch` at a time, offered what is in `reserve` or not."""
    image_ids = np.repeat(np.arange(batch, dtype=np.int32), images.shape[1])
    memory = PatchCoreMemory.build(np.concatenate(images[:batch]), rate, rng=rng, image_ids=image_ids, growing=reserve)
    for seen in range(batch, len(images), batch):
        assert memory.image_ids is not None
        old = StoredMemory(
            memory.emb,
            grid,
            memory.image_ids,
            {"n_embeddings": memory.n_embeddings, "images": [{}] * seen, "radius": 0.0},
            reserve=memory.reserve if reserve else None,
        )
        new = images[seen : seen + batch]
        image_ids = np.repeat(np.arange(len(new), dtype=np.int32), new.shape[1])
        embeddings = Embeddings(np.concatenate(new), image_ids, grid, [""] * len(new), [new.shape[1]] * len(new))
        memory = grown_memory(old, embeddings, rate=rate, limit=sys.maxsize).memory
    return memory


@app.command()
def main(
    sets: Annotated[list[Path], typer.Option(exists=True, file_okay=False, help="Folders in MVTec AD's layout.")],
    model: Annotated[str, typer.Option(help="NAME or NAME=WEIGHTS.")] = "texture",
    input_size: int = 448,
    rate: Annotated[float, typer.Option(help="CORESET_RATE.")] = 0.02,
    images: Annotated[int, typer.Option(help="Good parts, at most; a whole number of batches.")] = 100,
    batch: Annotated[int, typer.Option(help="Images that join at a time.")] = 10,
    orders: Annotated[int, typer.Option(min=2, help="Random orders of the good parts.")] = 8,
    reserve: Annotated[bool, typer.Option(help="Offer what earlier images left over again.")] = True,
) -> None:
    """A table of fits at once and memories grown, as Markdown on standard output."""
    name, _, weights = model.partition("=")
    extractor = extractor_for(load_settings(model_name=name, weights=weights or "auto", input_size=input_size))
    _line(
        [
            "set",
            "images",
            "rows at once",
            "rows grown",
            "by name",
            "AUROC at once",
            "AUROC grown",
            "means",
            "one by one",
        ]
    )
    _line(["---"] * 9)
    for folder in sets:
        given = EmbeddedSet.of(folder, extractor)
        n = min(images, len(given.train)) // batch * batch
        by_name = _one_order(given, np.arange(n), batch, rate, 0, reserve)
        orderings = [np.random.default_rng(seed).permutation(len(given.train))[:n] for seed in range(orders)]
        found = [_one_order(given, order, batch, rate, seed, reserve) for seed, order in enumerate(orderings)]
        _row(folder.name, n, by_name, np.array(found))


def _one_order(
    given: EmbeddedSet, order: NDArray[np.int64], batch: int, rate: float, seed: int, reserve: bool
) -> tuple[int, int, float, float]:
    chosen = given.train[order]
    once = PatchCoreMemory.build(np.concatenate(chosen), rate, rng=np.random.default_rng(seed))
    other = grown(chosen, given.grid, batch, rate, np.random.default_rng(seed), reserve=reserve)
    return len(once), len(other), given.auroc(once), given.auroc(other)


def _row(name: str, n: int, by_name: tuple[int, int, float, float], found: NDArray[np.float64]) -> None:
    rows_once, rows_grown, once, other = found.T
    relative = 100 * (other / once - 1)
    means = 100 * (other.mean() / once.mean() - 1)
    spread = [f"{aurocs.mean():.4f} ± {aurocs.std(ddof=1):.4f}" for aurocs in (once, other)]
    sizes = [f"{rows.mean():.0f}" for rows in (rows_once, rows_grown)]
    named = f"{by_name[2]:.4f} → {by_name[3]:.4f}, {100 * (by_name[3] / by_name[2] - 1):+.2f} %"
    _line([name, str(n), *sizes, named, *spread, f"{means:+.2f} %", f"{relative.min():+.2f} … {relative.max():+.2f} %"])


def _line(cells: Sequence[str]) -> None:
    typer.echo(f"| {' | '.join(cells)} |")
    sys.stdout.flush()


if __name__ == "__main__":
    app()

"""Teaching on real parts: is a defect that is taught as good objected to, and is a false alarm not? docs/ACCURACY.md.

    python -m experiments.teaching --sets SET … --model resnet18=WEIGHTS --input-size 256

A model is fitted on the good parts of a set; `known` of its bad parts are stored as NG, and it is calibrated with
what is stored. Then each of some other bad parts that it rejects is taught as good, in a dry run. For false alarms the
threshold is lowered to the 80th percentile of the good scores, and good parts of the test that it then rejects are
taught. In between three defects are forced upon the model and taken back, and every score is compared.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from backend.assurance.golden import GoldenSet
from backend.assurance.teaching import Lesson, Proof, Teacher
from backend.base.config import Settings
from backend.base.keys import ModelKey
from backend.evaluation.runner import RememberingExtractor
from backend.evaluation.sets import InspectionSet, LabelledImage, read_set
from backend.samples.collector import Collector
from backend.samples.store import Draft
from backend.service.calibration import Terms
from backend.service.host import extractor_for
from backend.service.images import ImageFile
from backend.storage import Change
from experiments.embedded import InputSize, Model, Sets, settings_of

KEY = ModelKey.of("teaching", "set")
LOWERED = 80.0


class Bench:
    """A calibrated model of a set in a folder of its own, and what is taught to it."""

    def __init__(self, collector: Collector) -> None:
        self.collector = collector
        self.teacher = Teacher(collector, GoldenSet(collector.inspector, collector.samples), None)
        self.threshold, self.good_scores = 0.0, list[float]()

    @classmethod
    @contextmanager
    def opened(cls, settings: Settings, good: Sequence[LabelledImage], bad: Sequence[LabelledImage]) -> Iterator[Bench]:
        """A bench whose model knows these parts."""
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder)
            own = {"models_dir": root / "models", "datasets_dir": root / "datasets", "results_db": None}
            collector = Collector(settings.model_copy(update=own), RememberingExtractor(extractor_for(settings), root))
            collector.inspector.start()
            collector.fit(KEY, [_file(one) for one in good], mm_per_px=1.0)
            collector.samples.add(KEY, "ng", [_draft(one) for one in bad])
            bench = cls(collector)
            bench.calibrate(Terms())
            yield bench
            collector.close()

    def calibrate(self, terms: Terms) -> None:
        """Calibrate with what is stored."""
        values = self.collector.calibrate(KEY, terms=terms).values
        self.threshold, self.good_scores = values["threshold"], values["good_scores"]["values"]

    def rejected(self, parts: Sequence[LabelledImage], most: int) -> list[LabelledImage]:
        """The first of `parts` that the model rejects."""
        found: list[LabelledImage] = []
        for one in parts:
            if len(found) < most and self.score(one) > self.threshold:
                found.append(one)
        return found

    def score(self, one: LabelledImage) -> float:
        """What /infer gives."""
        return self.collector.inspector.infer(KEY, _file(one), mm_per_px=1.0, heatmap="none").inspection.score

    def proof(self, one: LabelledImage) -> Proof:
        """The dry run of teaching this part alone."""
        (kept,) = self.collector.samples.add(KEY, "ok", [_draft(one)])
        try:
            return self.teacher.prove(KEY, Lesson(filenames=[kept.name]))
        finally:
            self.collector.samples.delete(KEY, "ok", kept.name)

    def proofs(self, what: str, parts: Sequence[LabelledImage]) -> list[Proof]:
        """The dry run of each, and on standard error how many were objected to so far."""
        found: list[Proof] = []
        for one in parts:
            found.append(self.proof(one))
            objected = sum(bool(proof.objections) for proof in found)
            typer.echo(f"{what}: {len(found)} of {len(parts)} taught, {objected} objected to", err=True)
        return found

    def comes_back(self, taught: Sequence[LabelledImage], scored: Sequence[LabelledImage]) -> bool:
        """Whether all scores are what they were after `taught` was forced upon the model and taken back."""
        store = self.collector.inspector.store
        before, generation = [self.score(one) for one in scored], store.manifest(KEY)["generation"]
        kept = self.collector.samples.add(KEY, "ok", [_draft(one) for one in taught])
        self.teacher.teach(KEY, Lesson(filenames=[one.name for one in kept], force=True), Change("teach"))
        changed = [self.score(one) for one in scored] != before
        self.collector.inspector.restore(KEY, generation, Change("restore"))
        for one in kept:
            self.collector.samples.delete(KEY, "ok", one.name)
        return changed and [self.score(one) for one in scored] == before


def _file(one: LabelledImage) -> ImageFile:
    return ImageFile.named(one.path.name, one.path.read_bytes)


def _draft(one: LabelledImage) -> Draft:
    return Draft(one.path.name, one.path.read_bytes, "upload", 1.0)


def main(
    sets: Sets,
    model: Model,
    input_size: InputSize = 448,
    known: Annotated[int, typer.Option(min=1, help="Bad parts that are stored as NG.")] = 20,
    tries: Annotated[int, typer.Option(min=1, help="Parts of each kind that are taught, at most.")] = 20,
    seed: Annotated[int, typer.Option(help="Of what is drawn.")] = 0,
) -> None:
    """How many lessons are objected to: defects, and false alarms."""
    settings = settings_of(model, input_size, model_versions=2)
    cells = ["set", "known bad", "defects taught", "objected to", "lost a verdict", "look like bad ones"]
    _line([*cells, "false alarms taught", "objected to", "would pass", "all scores come back"])
    _line(["---"] * (len(cells) + 4))
    for given in map(read_set, sets):
        _of_set(given, settings, known, tries, np.random.default_rng(seed))


def _of_set(given: InspectionSet, settings: Settings, known: int, tries: int, rng: np.random.Generator) -> None:
    good = [one for one in given.test if not one.defective]
    bad = [one for one in given.test if one.defective]
    bad = [bad[n] for n in rng.permutation(len(bad)).tolist()]
    with Bench.opened(settings, given.train, bad[:known]) as bench:
        defects = bench.rejected(bad[known:], tries)
        proofs = bench.proofs("defects", defects)
        objected = sum(bool(one.objections) for one in proofs)
        lost, alike = sum(bool(one.lost) for one in proofs), sum(bool(one.doubtful) for one in proofs)
        scored = [*bad[: known // 2], *good[:5]]
        back = bench.comes_back(defects[:3], scored) if defects else None
        bench.calibrate(Terms(threshold=float(np.percentile(bench.good_scores, LOWERED))))
        alarms = bench.proofs("false alarms", bench.rejected(good, tries))
        refused = sum(bool(one.objections) for one in alarms)
        passing = sum(one.taught[0].verdict_after == "ok" for one in (*proofs, *alarms))
        cells = [given.name, known, len(proofs), objected, lost, alike, len(alarms), refused]
        _line([*map(str, cells), f"{passing}/{len(proofs) + len(alarms)}", {True: "yes", False: "no", None: "–"}[back]])


def _line(cells: Sequence[str]) -> None:
    typer.echo(f"| {' | '.join(cells)} |")
    sys.stdout.flush()


if __name__ == "__main__":
    typer.run(main)

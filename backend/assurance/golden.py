"""Golden samples: stored parts with the verdict that they must get, whatever changes.

They are scored with every model that is about to take effect, at the start, and whenever somebody asks. A sample that
once got its verdict and does not get it any more has flipped. datasets/<role>/<roi>/golden.json holds them.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from backend import __version__
from backend.base.errors import GoldenFlipped, GoldenImageGone, GoldenStopped, InspectionError
from backend.base.files import one_writer, utc_now, write_json
from backend.base.keys import ModelKey
from backend.base.messages import Notice, Phrase
from backend.samples.collector import Collector
from backend.samples.scoring import Sample, SampleScorer, SampleSource
from backend.samples.store import LABELS
from backend.service.inspection import Judge
from backend.service.jobs import Job
from backend.service.models import FittedModel

logger = logging.getLogger(__name__)

Expected = Literal["ok", "ng"]
NAME = "golden.json"
NAMED = 5


@dataclass(frozen=True)
class Outcome:
    """A golden sample and what became of it.

    Attributes:
        former_score: that of the last time that it got its verdict; None: it never did.
        score, verdict: of now; None where it cannot be scored, or no threshold applies.
        error: why it cannot be scored.
    """

    filename: str
    expected: Expected
    former_score: float | None
    score: float | None = None
    verdict: Expected | None = None
    error: InspectionError | None = None

    @property
    def right(self) -> bool:
        """Whether it gets the verdict that it must."""
        return self.verdict == self.expected

    @property
    def flipped(self) -> bool:
        """Whether it once got its verdict and does not get it any more."""
        return self.former_score is not None and not self.right

    def told(self) -> Phrase:
        """Sample, former and present score in words."""
        if self.error is not None:
            return Phrase("golden_unscored", {"name": self.filename, "reason": self.error})
        values = {"name": self.filename, "former": self.former_score, "score": self.score}
        return Phrase("golden_scores", {name: _short(value) for name, value in values.items()})


@dataclass(frozen=True)
class Run:
    """The golden samples of a model, scored; `time` in UTC."""

    outcomes: list[Outcome]
    time: str
    generation: str

    @property
    def flips(self) -> list[Outcome]:
        """The samples that lost their verdict."""
        return [one for one in self.outcomes if one.flipped]


class GoldenSet:
    """The golden samples of all models, and the Gate that holds changes against them.

    Args:
        told: what records a flip; called with the model and the samples that flipped.
    """

    def __init__(self, collector: Collector, told: Callable[[ModelKey, Run], None] = lambda key, run: None) -> None:
        self.collector = collector
        self.blocks = collector.settings.golden_blocks
        self.runs: dict[ModelKey, Run] = {}
        self._told = told
        self._checked: dict[ModelKey, object] = {}
        self._lock = threading.Lock()

    def samples(self, key: ModelKey) -> dict[str, dict[str, Any]]:
        """The golden samples by their SHA-256, as golden.json has them."""
        try:
            found = json.loads((self.collector.samples.folder(key) / NAME).read_text("utf-8"))["samples"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return found if isinstance(found, dict) else {}

    def stored(self, key: ModelKey) -> list[tuple[dict[str, Any], Sample]]:
        """The golden samples whose images are there: what golden.json says of each, and where it is."""
        where = {d: Sample(label, name) for label in LABELS for name, d in self._digests(key, label).items()}
        return [(known, where[digest]) for digest, known in self.samples(key).items() if digest in where]

    def adopt(self, key: ModelKey, digest: str, known: Mapping[str, Any]) -> None:
        """Make a stored sample golden as it was on another machine, unless it is golden already."""
        samples = self.samples(key)
        if digest not in samples:
            self._write(key, {**samples, digest: dict(known)})

    def mark(self, key: ModelKey, filename: str, expected: Expected | None, *, golden: bool, **said: str) -> None:
        """Make a stored sample golden, or no longer so.

        `expected`: the verdict that it must get; that of its label when None. `said`: author and note.

        Raises:
            SampleNotFound, InvalidFilename: there is no such sample.
        """
        samples = self.samples(key)
        digest = next((one for one, known in samples.items() if known.get("filename") == filename), None)
        if not golden:
            if digest is None:
                self.collector.samples.path(key, "ok", filename)  # which says that there is none
            samples.pop(str(digest), None)
        else:
            stored = {label: self.collector.samples.digests(key, label) for label in LABELS}
            label = next((one for one in LABELS if filename in stored[one]), None)
            if label is None:
                self.collector.samples.path(key, "ok", filename)
            assert label is not None
            own = {"filename": filename, "expected": expected or label, "marked_utc": utc_now(), **said}
            samples[stored[label][filename]] = own
        self._write(key, samples)

    def score(self, key: ModelKey, judge: Judge | None = None, job: Job | None = None) -> Run:
        """Score the golden samples with the model in use, or with another one. Raises Cancelled, DamagedFile."""
        samples = self.samples(key)
        where = {d: Sample(label, name) for label in LABELS for name, d in self._digests(key, label).items()}
        outcomes = {
            digest: Outcome(
                one["filename"], one["expected"], one.get("score"), error=GoldenImageGone(name=one["filename"])
            )
            for digest, one in samples.items()
        }
        found = [digest for digest in samples if digest in where]
        try:
            source: SampleSource = self.collector.samples
            scorer = SampleScorer(self.collector.inspector, source, key, judge=judge) if found else None
        except InspectionError as err:
            failed = {digest: self._outcome(samples[digest], error=err) for digest in found}
            return Run([*{**outcomes, **failed}.values()], utc_now(), "")
        if scorer is not None:
            for digest, scored in zip(found, scorer.run([where[d] for d in found], job or Job()), strict=True):
                score = scored.inspection.score if scored.inspection else None
                rejected = None if score is None else scorer.criteria.rejects(score)
                verdict: Expected | None = None if rejected is None else "ng" if rejected else "ok"
                outcomes[digest] = self._outcome(samples[digest], score, verdict, scored.error)
        return Run(list(outcomes.values()), utc_now(), scorer.model.stored.generation if scorer else "")

    def run(self, key: ModelKey, job: Job | None = None) -> Run:
        """Score the golden samples with the model in use, and remember what came of it."""
        seal = self._seal(key)
        run = self.score(key, job=job)
        self._remember(key, run, seal)
        return run

    def start(self) -> None:
        """Score the golden samples of all models, in the background, once the extractor is there."""
        threading.Thread(target=self._run_all, name="golden", daemon=True).start()

    def change(
        self, key: ModelKey, model: FittedModel, calibration: Mapping[str, Any] | None
    ) -> Callable[[], list[Notice]]:
        """See Gate."""
        if not self.samples(key):
            return list
        run = self.score(key, self.collector.inspector.judge_of(key, model, calibration))
        if run.flips and self.blocks:
            raise GoldenFlipped(key=key, samples=told_of(run.flips))

        def done() -> list[Notice]:
            self._remember(key, run, None if self.blocks else self._seal(key))
            return about(run)

        return done

    def inspection(self, key: ModelKey) -> None:
        """See Gate: with GOLDEN_BLOCKS the samples are scored before the first verdict of whatever is new."""
        if not self.blocks or not self.samples(key):
            return
        with self._lock:
            if self._checked.get(key) != self._seal(key):
                self.run(key)
            run = self.runs[key]
        if run.flips:
            raise GoldenStopped(key=key, samples=told_of(run.flips), retry_after=60)

    def _run_all(self) -> None:
        for key in self.collector.samples.all_keys():
            if self.samples(key) and self.collector.inspector.store.stamp(key):
                self._run_one(key)

    def _run_one(self, key: ModelKey) -> None:
        try:
            self.run(key)
        except (InspectionError, OSError) as err:
            logger.warning("the golden samples of %s cannot be scored: %s", key, err)

    def _digests(self, key: ModelKey, label: str) -> dict[str, str]:
        return self.collector.samples.digests(key, label)

    @staticmethod
    def _outcome(
        sample: Mapping[str, Any],
        score: float | None = None,
        verdict: Expected | None = None,
        error: InspectionError | None = None,
    ) -> Outcome:
        return Outcome(sample["filename"], sample["expected"], sample.get("score"), score, verdict, error)

    def _seal(self, key: ModelKey) -> object:
        """What changes with anything that a verdict depends on."""
        inspector = self.collector.inspector
        extractor = inspector.host.queue().extractor
        store, path = inspector.store, self.collector.samples.folder(key) / NAME
        marked = path.stat().st_mtime_ns if path.exists() else 0
        return (
            store.stamp(key), store.calibration_stamp(key), extractor.fingerprint, extractor.device, extractor.runtime,
            __version__, marked,
        )  # fmt: skip

    def _remember(self, key: ModelKey, run: Run, seal: object) -> None:
        self.runs[key], self._checked[key] = run, seal
        for one in run.flips:
            logger.warning("golden sample of %s: %s must be %s: %s", key, one.filename, one.expected, one.told())
        if run.flips:
            self._told(key, run)
        if self.collector.settings.read_only:
            return
        samples = self.samples(key)
        fresh = dict(samples)
        right = {one.filename: one.score for one in run.outcomes if one.right}
        for digest, known in samples.items():
            score = right.get(known["filename"])
            if score is not None and known.get("score") != score:
                fresh[digest] = {**known, "score": score, "scored_utc": run.time}
        if fresh != samples:
            self._write(key, fresh)
            if seal is not None:
                self._checked[key] = self._seal(key)

    def _write(self, key: ModelKey, samples: Mapping[str, Any]) -> None:
        folder = self.collector.samples.folder(key)
        with one_writer(folder, key, timeout=60, left_overs="*/.*.tmp"):
            write_json(folder / NAME, {"samples": dict(samples)})


def told_of(outcomes: Sequence[Outcome]) -> list[Phrase]:
    """The first of them in words."""
    return [one.told() for one in outcomes[:NAMED]]


def about(run: Run) -> list[Notice]:
    """A notice that names the samples that flipped, if there are any."""
    return [Notice("golden_lost", {"samples": told_of(run.flips)})] if run.flips else []


def _short(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value

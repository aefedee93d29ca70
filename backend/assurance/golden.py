"""Golden samples: stored parts with the verdict that they must get, whatever changes.

They are scored with every model that is about to take effect, at the start, and whenever somebody asks. A sample that
once got its verdict and does not get it any more has flipped. A master is a part that is shown to the camera again: it
is held against what it got the first time. datasets/<role>/<roi>/golden.json holds both, for all workers.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from backend import __version__
from backend.base.errors import (
    GoldenFlipped,
    GoldenImageGone,
    GoldenStopped,
    InspectionError,
    InvalidId,
    NotRecorded,
    RecipeInvalid,
)
from backend.base.files import one_writer, utc_now, write_json
from backend.base.keys import ModelKey
from backend.base.messages import Notice, Phrase
from backend.records.ledger import Ledger
from backend.samples.scoring import Sample, SampleScorer, SampleSource
from backend.samples.store import LABELS, SampleStore
from backend.service.inspection import Inspector, Judge
from backend.service.jobs import Job
from backend.service.models import FittedModel
from backend.service.results import InferResult

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


@dataclass(frozen=True)
class Shown:
    """A master that was shown to the camera.

    Attributes:
        first_score, first_verdict: of the first time; None: this is the first time.
        score, verdict: of now; no verdict without a threshold.
        threshold: of now.
    """

    name: str
    first_score: float | None
    first_verdict: Expected | None
    score: float
    verdict: Expected | None
    threshold: float | None

    @property
    def flipped(self) -> bool:
        """Whether it gets another verdict than the first time."""
        return self.first_verdict is not None and self.verdict != self.first_verdict

    @property
    def nearing(self) -> bool:
        """Whether its score has come more than half of the way to the threshold since the first time."""
        if self.first_score is None or self.threshold is None or self.flipped:
            return False
        return abs(self.score - self.threshold) < abs(self.first_score - self.threshold) / 2

    def told(self) -> Phrase:
        """The master, its first and its present score in words."""
        values = {"name": self.name, "former": self.first_score, "score": self.score}
        return Phrase("golden_scores", {name: _short(value) for name, value in values.items()})

    @property
    def notices(self) -> list[Notice]:
        """What is to be said of it."""
        if self.flipped:
            return [Notice("golden_lost", {"samples": [self.told()]})]
        return [Notice("master_nearing", {"master": self.told()})] if self.nearing else []


class GoldenSet:
    """The golden samples of all models, and the Gate that holds changes against them.

    Args:
        stored: where the samples are.
        told: what records a flip; called with the model and the samples or the master that flipped.
    """

    def __init__(
        self,
        inspector: Inspector,
        stored: SampleStore,
        told: Callable[[ModelKey, Run | Shown], None] = lambda key, run: None,
    ) -> None:
        self.inspector, self.stored, self.settings = inspector, stored, inspector.settings
        self.blocks = inspector.settings.golden_blocks
        self.runs: dict[ModelKey, Run] = {}
        self._told = told
        self._checked: dict[ModelKey, object] = {}
        self._read: dict[ModelKey, tuple[object, _Known]] = {}
        self._lock = threading.Lock()

    def samples(self, key: ModelKey) -> dict[str, dict[str, Any]]:
        """The golden samples by their SHA-256, as golden.json has them."""
        return self._known(key).samples

    def masters(self, key: ModelKey) -> dict[str, dict[str, Any]]:
        """The masters by their name, as golden.json has them."""
        return self._known(key).masters

    def lost(self) -> dict[ModelKey, list[str]]:
        """For each model with golden samples or masters the names of those that lost their verdict.

        All workers see the same; what a read-only replica found is seen by itself alone.
        """
        found = {}
        root = self.stored.root
        for path in (*root.glob(f"*/*/{NAME}"), *root.glob(f"recipes/*/*/*/{NAME}")):
            parts = path.parent.relative_to(root).parts
            with suppress(InvalidId, RecipeInvalid):
                key = ModelKey.of(parts[-2], parts[-1], parts[1] if len(parts) == 4 else None)
                found[key] = self._known(key).lost
        if self.settings.read_only:
            for key, run in list(self.runs.items()):
                names = [one.filename for one in run.flips]
                found[key] = list(dict.fromkeys([*found.get(key, []), *names]))
        return found

    def found(self, key: ModelKey) -> list[tuple[dict[str, Any], Sample]]:
        """The golden samples whose images are there: what golden.json says of each, and where it is."""
        where = self._where(key)
        return [(known, where[digest]) for digest, known in self.samples(key).items() if digest in where]

    def adopt(self, key: ModelKey, digest: str, known: Mapping[str, Any]) -> None:
        """Make a stored sample golden as it was on another machine, unless it is golden already."""
        self._change(key, lambda now: now.samples.update({digest: now.samples.get(digest, dict(known))}))

    def mark(self, key: ModelKey, filename: str, expected: Expected | None, *, golden: bool, **said: str) -> None:
        """Make a stored sample golden, or no longer so.

        `expected`: the verdict that it must get; that of its label when None. `said`: author and note.

        Raises:
            SampleNotFound, InvalidFilename: there is no such sample.
        """
        digests = {label: self.stored.digests(key, label) for label in LABELS}
        label = next((one for one in LABELS if filename in digests[one]), None)
        known = self._known(key)
        marked = {one.get("filename") for one in known.samples.values()}
        if label is None and (golden or filename not in {*marked, *known.masters}):
            self.stored.path(key, "ok", filename)  # which says that there is none

        def change(now: _Known) -> None:
            if golden and label is not None:
                own = {"filename": filename, "expected": expected or label, "marked_utc": utc_now(), **said}
                now.samples[digests[label][filename]] = own
            else:
                now.masters.pop(filename, None)
                for digest in [one for one, about in now.samples.items() if about.get("filename") == filename]:
                    del now.samples[digest]

        self._change(key, change)

    def show(self, key: ModelKey, name: str, result: InferResult) -> Shown:
        """Hold a master that was just inspected against what it got the first time; the first time is now if never."""
        first = self.masters(key).get(name, {})
        rejected = result.is_anomaly
        verdict: Expected | None = None if rejected is None else "ng" if rejected else "ok"
        score = result.inspection.score
        shown = Shown(name, first.get("first_score"), first.get("first_verdict"), score, verdict, result.threshold)
        if shown.flipped:
            logger.warning("master of %s: %s must be %s: %s", key, name, shown.first_verdict, shown.told())
            self._told(key, shown)
        if not self.settings.read_only and verdict is not None:
            last = {"score": score, "decision": verdict, "shown_utc": utc_now(), "lost": shown.flipped}
            begun = {"first_score": score, "first_verdict": verdict, "first_utc": last["shown_utc"]}
            self._change(key, lambda now: now.masters.update({name: {**begun, **now.masters.get(name, {}), **last}}))
        return shown

    def score(self, key: ModelKey, judge: Judge | None = None, job: Job | None = None) -> Run:
        """Score the golden samples with the model in use, or with another one. Raises Cancelled, DamagedFile."""
        samples, where = self.samples(key), self._where(key)
        outcomes = {
            digest: Outcome(
                one["filename"], one["expected"], one.get("score"), error=GoldenImageGone(name=one["filename"])
            )
            for digest, one in samples.items()
        }
        found = [digest for digest in samples if digest in where]
        try:
            source: SampleSource = self.stored
            scorer = SampleScorer(self.inspector, source, key, judge=judge) if found else None
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
        run = self.score(key, self.inspector.judge_of(key, model, calibration))
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
        for key in self.stored.all_keys():
            if self.samples(key) and self.inspector.store.stamp(key):
                self._run_one(key)

    def _run_one(self, key: ModelKey) -> None:
        try:
            self.run(key)
        except (InspectionError, OSError) as err:
            logger.warning("the golden samples of %s cannot be scored: %s", key, err)

    def _where(self, key: ModelKey) -> dict[str, Sample]:
        """Where the image of each SHA-256 is stored."""
        return {d: Sample(label, name) for label in LABELS for name, d in self.stored.digests(key, label).items()}

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
        inspector = self.inspector
        extractor = inspector.host.queue().extractor
        store = inspector.store
        marked = tuple((digest, one.get("expected")) for digest, one in self.samples(key).items())
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
        if self.settings.read_only:
            return
        flips = {one.filename for one in run.flips}
        right = {one.filename: one.score for one in run.outcomes if one.right}

        def change(now: _Known) -> None:
            for digest, known in now.samples.items():
                name = str(known.get("filename"))
                own = {**known, "lost": True} if name in flips else {n: v for n, v in known.items() if n != "lost"}
                if right.get(name) is not None and known.get("score") != right[name]:
                    own |= {"score": right[name], "scored_utc": run.time}
                now.samples[digest] = own

        if run.outcomes:
            self._change(key, change)

    def _known(self, key: ModelKey) -> _Known:
        """What golden.json holds, read again when the file is another."""
        path = self.stored.folder(key) / NAME
        try:
            status = path.stat()
        except OSError:
            return _Known({}, {})
        stamp = status.st_ino, status.st_size, status.st_mtime_ns
        former = self._read.get(key)
        if former is None or former[0] != stamp:
            former = self._read[key] = stamp, _Known.read(path)
        return former[1]

    def _change(self, key: ModelKey, change: Callable[[_Known], None]) -> None:
        """Change golden.json, unless it is the same afterwards."""
        folder = self.stored.folder(key)
        with one_writer(folder, key, timeout=60, left_overs=f".{NAME}.*.tmp"):
            former = self._known(key)
            now = _Known(dict(former.samples), dict(former.masters))
            change(now)
            if now != former:
                write_json(folder / NAME, {"samples": now.samples, "masters": now.masters})


@dataclass(frozen=True)
class _Known:
    """What golden.json holds: samples by SHA-256, masters by name. Nobody changes what was read."""

    samples: dict[str, dict[str, Any]]
    masters: dict[str, dict[str, Any]]

    @classmethod
    def read(cls, path: Path) -> _Known:
        """The file, as far as it can be read."""
        try:
            found = json.loads(path.read_text("utf-8"))
            kept = [found.get(name, {}) for name in ("samples", "masters")]
        except (OSError, ValueError, AttributeError):
            return cls({}, {})
        return cls(*(one if isinstance(one, dict) else {} for one in kept))

    @property
    def lost(self) -> list[str]:
        """The names of those that lost their verdict."""
        samples = [str(one.get("filename")) for one in self.samples.values() if one.get("lost")]
        return [*samples, *(name for name, one in self.masters.items() if one.get("lost"))]


def record_flips(ledger: Ledger | None, key: ModelKey, found: Run | Shown) -> None:
    """Record that golden samples, or a master, lost their verdict."""
    ids = {"role_id": key.role_id, "roi_id": key.roi_id, "recipe_id": key.recipe_id}
    body: dict[str, Any]
    if isinstance(found, Shown):
        body = {**ids, "master": found.name, "expected": found.first_verdict, "former_score": found.first_score}
        body["score"] = found.score
    else:
        flips = [
            {"filename": one.filename, "expected": one.expected, "former_score": one.former_score, "score": one.score}
            for one in found.flips
        ]
        body = {**ids, "generation": found.generation, "flips": flips}
    try:
        if ledger is not None:
            ledger.tell("golden", body)
    except NotRecorded as err:
        logger.warning("that golden samples of %s flipped is not recorded: %s", key, err)


def told_of(outcomes: Sequence[Outcome]) -> list[Phrase]:
    """The first of them in words."""
    return [one.told() for one in outcomes[:NAMED]]


def about(run: Run) -> list[Notice]:
    """A notice that names the samples that flipped, if there are any."""
    return [Notice("golden_lost", {"samples": told_of(run.flips)})] if run.flips else []


def _short(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value

"""Teaching: parts that were rejected though they are good join the memory, after it is shown what that would change.

Every part whose truth is known (stored samples, golden samples, reviewed inspections) is scored with the model as it is
and as it would be. A part that would lose a right verdict stops the teaching unless it is forced. So does a part to
teach that looks like known bad ones: what stands out in it lies nearer to what stands out in them than to the memory.
"""

from __future__ import annotations

import hashlib
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from backend.assurance.golden import GoldenSet
from backend.base.errors import (
    CalibrationNeeded,
    FitInProgress,
    InspectionError,
    NothingToTeach,
    ReadOnlyReplica,
    RecordsOff,
    TaughtElsewhere,
    TaughtIsBad,
    TeachingRefused,
)
from backend.base.keys import ModelKey
from backend.base.messages import Notice, Phrase
from backend.calib import FalseReject, Misses, false_reject, misses
from backend.infer import Criteria, Inspection, level_of
from backend.memory.search import ExactSearch
from backend.records.ledger import Ledger
from backend.records.queries import MAX_LIMIT, Filters, Place, Whole, page
from backend.roi_mask import parse_shape, token_mask
from backend.samples.collector import Collector, about_left_out, basis_of
from backend.samples.scoring import Sample, SampleScorer, Scored, Tokens
from backend.samples.store import LABELS, TAUGHT, Draft
from backend.service.appearance import Appearance
from backend.service.calibration import Terms
from backend.service.fitting import Growth
from backend.service.images import ImageFile
from backend.service.inspection import Decided
from backend.service.jobs import Job
from backend.storage import Change, Stamp, StoredMemory

logger = logging.getLogger(__name__)

Verdict = Literal["ok", "ng"]
Kind = Literal["taught", "sample", "golden", "reviewed"]
MOST_REVIEWED = 1000
NAMED = 5
ALIKE = 0.1
"""Share of the tokens that stand out in a part to teach which may lie nearer to known bad parts than to good ones."""
FEW_BAD = 20
"""Known bad parts from which the proof is as good as docs/ACCURACY.md says; with fewer more defects pass it."""
_MOST_TOKENS = 256  # of one bad part, those that stand out most
_RECORD = "inspection"  # in place of a label: a picture that an inspection kept


@dataclass(frozen=True, kw_only=True)
class Lesson:
    """What is to be taught.

    Attributes:
        inspection_ids: inspections whose image is kept. One that was reviewed as bad and passed is a missed defect.
        filenames: stored OK samples.
        force: although known parts would lose a right verdict.
        recalibrate: None: the calibration stays as it is.
    """

    inspection_ids: Sequence[str] = ()
    filenames: Sequence[str] = ()
    force: bool = False
    recalibrate: Terms | None = None


@dataclass(frozen=True)
class Picture:
    """A picture of a part whose truth is known: a stored sample, or an inspection's by its identifier."""

    sample: Sample
    truth: Verdict
    kind: Kind
    sha256: str

    @property
    def name(self) -> str:
        """Its file's name, or the inspection's identifier."""
        return self.sample.name

    @property
    def is_record(self) -> bool:
        """Whether an inspection kept it."""
        return self.sample.label == _RECORD


@dataclass(frozen=True)
class Likeness:
    """How much of what stands out in a part lies nearer to known bad parts than to good ones.

    `share`: of its tokens, 0–1. `name`: the bad part that most of them are nearest to.
    """

    share: float
    name: str

    def told(self, name: str) -> Phrase:
        """Why the part `name` may be bad, in words."""
        return Phrase("taught_like_bad", {"name": name, "percent": f"{100 * self.share:.0f}", "bad": self.name})


@dataclass(frozen=True)
class Outcome:
    """What a picture gets now and would get; scores are None where it cannot be scored.

    `likeness`: of a part to teach, to bad ones; None where nothing of it is like them.
    """

    picture: Picture
    score: float | None = None
    verdict: Verdict | None = None
    score_after: float | None = None
    verdict_after: Verdict | None = None
    error: InspectionError | None = None
    likeness: Likeness | None = None

    @property
    def lost(self) -> bool:
        """Whether it has a right verdict that it would lose."""
        return self.verdict == self.picture.truth and self.verdict_after not in {None, self.picture.truth}

    @property
    def won(self) -> bool:
        """Whether it would get the right verdict, which it has not."""
        return self.verdict != self.picture.truth == self.verdict_after

    def told(self) -> Phrase:
        """The part and both scores in words."""
        former, score = f"{self.score:.6g}", f"{self.score_after:.6g}"
        return Phrase("taught_scores", {"name": self.picture.name, "former": former, "score": score})


@dataclass(frozen=True)
class Promise:
    """What a threshold says of good parts, and of bad ones where there are any."""

    threshold: float
    false_reject: FalseReject | None
    misses: Misses | None


@dataclass(frozen=True)
class Proof:
    """What a lesson would change.

    Attributes:
        taught: the pictures that would join the memory.
        known: all others whose truth is known.
        missed: missed defects, which become golden NG samples.
        before, after: what the thresholds promise.
        n_duplicates: pictures that the memory has seen already.
    """

    taught: list[Outcome]
    known: list[Outcome]
    missed: list[Outcome]
    before: Promise
    after: Promise
    n_duplicates: int
    notices: list[Notice]

    @property
    def lost(self) -> list[Outcome]:
        """Known parts that would lose a right verdict: none may, unless forced."""
        return [one for one in self.known if one.lost]

    @property
    def doubtful(self) -> list[Outcome]:
        """Parts to teach that look like bad ones: none may, unless forced."""
        return [one for one in self.taught if one.likeness is not None and one.likeness.share >= ALIKE]

    @property
    def objections(self) -> list[Phrase]:
        """What speaks against the lesson, in words."""
        doubts = [one.likeness.told(one.picture.name) for one in self.doubtful if one.likeness]
        return [*(one.told() for one in self.lost), *doubts]

    @property
    def changed(self) -> list[Outcome]:
        """Known parts that would get another verdict, those that lose a right one first."""
        return [*self.lost, *(one for one in self.known if one.won)]


@dataclass(frozen=True)
class Taught:
    """What a lesson did.

    Attributes:
        stored, golden: the names of the OK and the golden NG samples that it stored.
        metadata: of the memory now.
        appearances: how the images look that it learnt.
    """

    proof: Proof
    stored: list[str]
    golden: list[str]
    notices: list[Notice]
    metadata: dict[str, Any]
    appearances: Sequence[Appearance]


@dataclass(frozen=True)
class _Album:
    """Where pictures are read: stored samples, and what inspections kept. It is a SampleSource."""

    collector: Collector
    ledger: Ledger | None

    def inspection(self, name: str) -> Whole:
        """All that is kept of an inspection."""
        return self._ledger.inspection(name)

    def meta(self, key: ModelKey, label: str, name: str) -> dict[str, Any]:
        """See SampleSource."""
        if label != _RECORD:
            return self.collector.samples.meta(key, label, name)
        details = self.inspection(name).details
        return {"mm_per_px": details.get("mm_per_px"), "shape": details.get("shape")}

    def read(self, key: ModelKey, label: str, name: str) -> bytes:
        """See SampleSource."""
        if label != _RECORD:
            return self.collector.samples.read(key, label, name)
        return self._ledger.image(self.inspection(name))[0]

    def file(self, key: ModelKey, picture: Picture) -> ImageFile:
        """A picture as fits take it."""
        label, name = picture.sample.label, picture.name
        shape = self.meta(key, label, name).get("shape")
        return ImageFile(name, lambda: self.read(key, label, name), parse_shape(shape))

    @property
    def _ledger(self) -> Ledger:
        if self.ledger is None:
            raise RecordsOff()
        return self.ledger


class Teacher:
    """Teaches the models of a collector what was wrongly rejected, and what was missed."""

    def __init__(self, collector: Collector, golden: GoldenSet, ledger: Ledger | None) -> None:
        self.collector, self.golden, self.ledger = collector, golden, ledger
        self.inspector, self.fitter = collector.inspector, collector.fitter

    def prove(self, key: ModelKey, lesson: Lesson, job: Job | None = None) -> Proof:
        """What a lesson would change; nothing is written.

        Raises:
            NothingToTeach, TaughtIsBad, TaughtElsewhere, ImageNotKept, InspectionNotFound, SampleNotFound.
            MemoryNotFound, MemoryMismatch, CalibrationNeeded, BadImage, Cancelled, FitInProgress, DamagedFile.
        """
        job = job or Job()
        with self.fitter.turn(key, job):
            return self._study(key, lesson, job).proof

    def teach(self, key: ModelKey, lesson: Lesson, change: Change, job: Job | None = None) -> Taught:
        """Prove a lesson and carry it out: the memory grows, and its calibration changes with it if asked.

        Raises:
            ReadOnlyReplica.
            TeachingRefused: known parts would lose a right verdict, and it is not forced.
            GoldenFlipped: with GOLDEN_BLOCKS, forced or not.
            DatasetsFull, DiskFull, ReadOnlyStore, and whatever `prove` does: the model is as it was.
        """
        job = job or Job()
        if self.inspector.store.read_only:
            raise ReadOnlyReplica()
        with self.fitter.turn(key, job):
            study = self._study(key, lesson, job)
            if study.proof.objections and not lesson.force:
                raise TeachingRefused(key=key, parts=study.proof.objections[:NAMED])
            job.check()
            return self._carry_out(key, study, change)

    def _carry_out(self, key: ModelKey, study: _Study, change: Change) -> Taught:
        proof, store = study.proof, self.inspector.store
        fresh = {file.name for file in study.growth.fresh}
        taught = [one.picture for one in proof.taught if one.picture.name in fresh]
        # Samples are stored under the model's lock, or another process would take back what is not learnt yet.
        with store.writing(key, self.inspector.settings.fit_wait_s):
            stored, notices = self._keep(key, "ok", study, taught)
            try:
                missed, said = self._keep(key, "ng", study, [one.picture for one in proof.missed])
                memory, recorded = self._commit(key, study, change)
            except InspectionError:
                for name in stored:
                    self.collector.samples.delete(key, "ok", name)
                raise
        for name in missed:
            self.golden.mark(key, name, "ng", golden=True, **change.said())
        said = [*notices, *said, *recorded]
        return Taught(proof, stored, missed, said, memory.metadata, study.growth.appearances)

    def _commit(self, key: ModelKey, study: _Study, change: Change) -> tuple[StoredMemory, list[Notice]]:
        """Put the model of a study in place of the one that it was made for. The caller holds the lock."""
        store, growth = self.inspector.store, study.growth
        if (store.stamp(key), store.calibration_stamp(key)) != study.stamps:
            raise FitInProgress(key=key, retry_after=1)
        if growth.new is not None:
            return self.fitter.commit(key, growth.new, (), change, study.decided)
        memory = growth.model.stored
        if study.decided is None:
            return memory, []
        return memory, self.inspector.commit_calibration(key, growth.model, study.decided, change)

    def _keep(
        self, key: ModelKey, label: str, study: _Study, pictures: Sequence[Picture]
    ) -> tuple[list[str], list[Notice]]:
        """Store pictures of inspections as samples; the names that all of `pictures` have."""
        records = [one for one in pictures if one.is_record]
        drafts = [study.draft(key, one) for one in records]
        kept, notices = self.collector.keep(key, label, drafts) if drafts else ([], [])
        return [one.name for one in kept if label == "ng" or one.new], notices

    def _study(self, key: ModelKey, lesson: Lesson, job: Job) -> _Study:
        store = self.inspector.store
        stamps = store.stamp(key), store.calibration_stamp(key)
        album = _Album(self.collector, self.ledger)
        taught, missed = self._asked(key, lesson)
        growth = self.fitter.growth(key, [album.file(key, one) for one in taught], job)
        judge = self.inspector.judge(key)
        if judge.criteria.threshold is None:
            raise CalibrationNeeded(key=key)
        scoring = SampleScorer(self.inspector, album, key, judge=judge)
        after = replace(judge, model=growth.grown)
        both = _Both(scoring, SampleScorer(self.inspector, album, key, judge=after), job)
        own = {one.sha256 for one in (*taught, *missed)}
        known = [one for one in self._known(key) if one.sha256 not in own]
        seen = both.run([*taught, *missed, *known])
        decided = self._decided(key, growth, seen, judge.criteria, lesson.recalibrate)
        criteria = decided.criteria if decided else judge.criteria
        outcomes = [one.outcome(judge.criteria, criteria) for one in seen]
        n, m = len(taught), len(taught) + len(missed)
        bad = _Bad.of(seen)
        outcomes[:n] = [replace(one, likeness=bad.likeness(was)) for one, was in zip(outcomes[:n], seen, strict=False)]
        proof = Proof(
            outcomes[:n],
            outcomes[m:],
            outcomes[n:m],
            _promise(seen[m:], judge.criteria, after=False),
            _promise(seen, criteria, after=True),
            growth.n_duplicates,
            [
                *self.inspector.warnings(),
                *growth.notices,
                *([Notice("nothing_new")] if growth.new is None and not missed else []),
                *([Notice("few_known_bad", {"n": bad.n, "wanted": FEW_BAD})] if bad.n < FEW_BAD else []),
                *(decided.notices + decided.doubts if decided else []),
                *about_left_out([one.now for one in seen]),
            ],
        )
        return _Study(proof, growth, decided, stamps, album)

    def _decided(
        self, key: ModelKey, growth: Growth, seen: Sequence[_Seen], former: Criteria, terms: Terms | None
    ) -> Decided | None:
        """The calibration by the scores that stored parts would have."""
        if terms is None:
            return None
        used = [one for one in seen if not one.picture.is_record or one.picture.kind == "taught"]
        ok, ng = (
            [s for one in used if one.picture.truth == truth and (s := one.score_left_out) is not None]
            for truth in LABELS
        )
        known = self.inspector.known_calibration(key) or {}
        basis = basis_of([replace(one.left_out, sample=Sample("ok", "")) for one in used if one.picture.truth == "ok"])
        return self.inspector.decided(
            growth.grown,
            ok_scores=ok,
            ng_scores=ng,
            mm_per_px=float(known.get("mm_per_px") or growth.model.stored.number("mm_per_px", 1.0)),
            area_mm2_thr=former.area_mm2_thr,
            score_percentile=former.scoring.percentile,
            terms=replace(terms, basis=basis),
        )

    def _asked(self, key: ModelKey, lesson: Lesson) -> tuple[list[Picture], list[Picture]]:
        """The pictures to teach, and the missed defects among what is asked for."""
        if not lesson.inspection_ids and not lesson.filenames:
            raise NothingToTeach()
        bad = self._bad(key)
        taught: dict[str, Picture] = {}
        missed: dict[str, Picture] = {}
        stored = self.collector.samples.digests(key, "ok")
        for name in dict.fromkeys(lesson.filenames):
            if name in self.collector.samples.names(key, "ng"):
                raise TaughtIsBad(name=name, reason=Phrase("stored_as_ng"))
            self.collector.samples.path(key, "ok", name)  # which says that there is none
            picture = Picture(Sample("ok", name), "ok", "taught", stored[name])
            taught[picture.sha256] = picture
        for name in dict.fromkeys(lesson.inspection_ids):
            picture, reviewed, decision = self._record(key, name)
            if reviewed == "bad" and decision == "ok":
                missed[picture.sha256] = replace(picture, truth="ng")
            elif reviewed == "bad":
                raise TaughtIsBad(name=name, reason=Phrase("reviewed_as_bad"))
            else:
                taught.setdefault(picture.sha256, picture)
        for digest, picture in taught.items():
            if digest in bad or digest in missed:
                raise TaughtIsBad(name=picture.name, reason=Phrase(bad.get(digest, "reviewed_as_bad")))
        return [*taught.values()], [*missed.values()]

    def _bad(self, key: ModelKey) -> dict[str, str]:
        """Pictures that are known to be of bad parts, by content, and the phrase that says why."""
        golden = {digest: "golden_is_ng" for digest, one in self.golden.samples(key).items() if one["expected"] == "ng"}
        return {**golden, **dict.fromkeys(self.collector.samples.digests(key, "ng").values(), "stored_as_ng")}

    def _record(self, key: ModelKey, name: str) -> tuple[Picture, str | None, str | None]:
        """The picture of an inspection, what the last review says, and its verdict."""
        if self.ledger is None:
            raise RecordsOff()
        found = self.ledger.inspection(name)
        own = ModelKey.of(found.item["role_id"], found.item["roi_id"], found.item["recipe_id"])
        if own != key:
            raise TaughtElsewhere(id=name, theirs=own, key=key)
        data, _ = self.ledger.image(found)
        picture = Picture(Sample(_RECORD, name), "ok", "taught", hashlib.sha256(data).hexdigest())
        return picture, found.item.get("review"), found.item.get("decision")

    def _known(self, key: ModelKey) -> list[Picture]:
        """Every picture of the model whose truth is known, once by content: golden before stored before reviewed."""
        golden, found = self.golden.samples(key), dict[str, Picture]()
        for label in LABELS:
            for name, digest in self.collector.samples.digests(key, label).items():
                own = golden.get(digest)
                truth: Verdict = own["expected"] if own else "ok" if label == "ok" else "ng"
                found[digest] = Picture(Sample(label, name), truth, "golden" if own else "sample", digest)
        for picture in self._reviewed(key):
            found.setdefault(picture.sha256, picture)
        return [*found.values()]

    def _reviewed(self, key: ModelKey) -> Iterable[Picture]:
        """Inspections that people reviewed as good or bad and whose image is kept, the newest MOST_REVIEWED."""
        if self.ledger is None:
            return []
        filters = Filters(role_id=key.role_id, roi_id=key.roi_id, recipe_id=key.recipe_id, reviewed=True)
        pictures: list[Picture] = []
        after: Place | None = None
        with self.ledger.reading() as connection:
            while len(pictures) < MOST_REVIEWED:
                found = page(connection, filters, "newest", MAX_LIMIT, after)
                for item in found.items:
                    if item["image"]["kept"] and item["review"] in {"good", "bad"}:
                        truth: Verdict = "ok" if item["review"] == "good" else "ng"
                        sample = Sample(_RECORD, item["inspection_id"])
                        pictures.append(Picture(sample, truth, "reviewed", item["image"]["sha256"]))
                after = found.next
                if after is None:
                    break
        return pictures[:MOST_REVIEWED]


@dataclass(frozen=True)
class _Study:
    """A proof, and what carries it out.

    `stamps`: of the memory and the calibration that it holds for.
    """

    proof: Proof
    growth: Growth
    decided: Decided | None
    stamps: tuple[Stamp | None, tuple[Stamp | None, ...] | None]
    album: _Album

    def draft(self, key: ModelKey, picture: Picture) -> Draft:
        """The picture of an inspection as a sample to store."""
        found = self.album.inspection(picture.name)
        data = self.album.read(key, _RECORD, picture.name)
        about, name = found.details, str(found.item["image"]["filename"])
        own = {"inspection_id": picture.name}
        return Draft(name, lambda: data, TAUGHT, about.get("mm_per_px"), about.get("shape"), own)


@dataclass(frozen=True)
class _Seen:
    """A picture scored with the model as it is and as it would be, as an inspection and without its own rows.

    A stored good part that is not golden is scored without its own rows alone, as a calibration scores it.
    """

    picture: Picture
    now: Scored
    then: Scored
    now_left_out: Scored
    left_out: Scored
    standing_out: _StandingOut | None = None

    @property
    def is_bad(self) -> bool:
        """Whether the part is known to be bad."""
        return self.picture.truth == "ng"

    @property
    def score_left_out(self) -> float | None:
        """What a calibration takes."""
        return _score(self.left_out)

    def outcome(self, before: Criteria, after: Criteria) -> Outcome:
        """Verdicts by the criteria of before and after."""
        now, then = _score(self.now), _score(self.then)
        return Outcome(
            self.picture, now, _verdict(before, now), then, _verdict(after, then), self.now.error or self.then.error
        )


@dataclass(frozen=True)
class _StandingOut:
    """The tokens (n, D) of a picture that are at or above the threshold, and their distances (n,) to the memory."""

    tokens: Tokens
    distances: Tokens

    @classmethod
    def of(cls, tokens: Tokens, found: Inspection, criteria: Criteria) -> _StandingOut:
        """Of a picture's tokens (rows · columns, D) inside its mask, the farthest first."""
        distances = found.token_map.ravel()
        if found.roi.mask is not None:
            distances = np.where(token_mask(found.roi.mask, found.roi.grid).ravel(), distances, 0.0)
        level = level_of(criteria.threshold, found.weight)
        n = int(np.count_nonzero(distances >= level)) if level is not None else 0
        numbers = np.argsort(-distances, kind="stable")[:n]
        return cls(tokens[numbers], distances[numbers])


class _Bad:
    """What stands out in the known bad parts.

    `n`: bad parts in which something does.
    """

    def __init__(self, parts: Sequence[tuple[str, Tokens]]) -> None:
        self.n = len(parts)
        self._names = [name for name, tokens in parts for _ in tokens]
        self._search = ExactSearch(np.concatenate([tokens for _, tokens in parts])) if parts else None

    @classmethod
    def of(cls, seen: Sequence[_Seen]) -> _Bad:
        """Of the bad ones among the pictures that were scored."""
        bad = [(one.picture.name, one.standing_out.tokens) for one in seen if one.is_bad and one.standing_out]
        return cls([(name, tokens[:_MOST_TOKENS]) for name, tokens in bad if len(tokens)])

    def likeness(self, seen: _Seen) -> Likeness | None:
        """How much of what stands out in a picture is like them; None where nothing is."""
        own = seen.standing_out
        if self._search is None or own is None or not len(own.tokens):
            return None
        distances, rows = self._search.neighbours(own.tokens)
        nearer = distances[:, 0] < own.distances
        if not nearer.any():
            return None
        names = Counter(self._names[row] for row in rows[nearer, 0])
        return Likeness(float(nearer.mean()), names.most_common(1)[0][0])


class _Both:
    """Scores each picture with two models from one run of the extractor."""

    def __init__(self, before: SampleScorer, after: SampleScorer, job: Job) -> None:
        self.before, self.after, self.job = before, after, job
        self.both = before, after

    def run(self, pictures: Sequence[Picture]) -> list[_Seen]:
        """All of `pictures`, in order. Raises Cancelled."""
        seen = []
        chosen = [one.sample for one in pictures]
        for picture, (read, tokens) in zip(pictures, self.before.embedded(chosen, self.job), strict=True):
            self.job.check()
            bad, stored = picture.truth == "ng", picture.kind == "sample"
            left_out = plain = [one.judged(read, tokens, leave_out=not bad) for one in self.both]
            if not stored and any(one.left_out for one in left_out):
                plain = [one.judged(read, tokens) for one in self.both]
            out, found = None, plain[0].inspection
            if tokens is not None and found is not None and (bad or picture.kind == "taught"):
                out = _StandingOut.of(tokens, found, self.before.criteria)
            seen.append(_Seen(picture, plain[0], plain[1], left_out[0], left_out[1], out))
            self.job.report("score", len(seen), len(pictures))
        return seen


def _promise(seen: Sequence[_Seen], criteria: Criteria, *, after: bool) -> Promise:
    """What the stored and taught parts say of a threshold."""
    threshold = criteria.threshold
    assert threshold is not None
    how: dict[str, Any] = {"at_or_above": criteria.scoring.rejects_at_threshold}
    scores: dict[str, list[float]] = {label: [] for label in LABELS}
    for one in seen:
        if one.picture.kind != "reviewed":
            score = _score(one.left_out if after else one.now_left_out)
            scores[one.picture.truth] += [] if score is None else [score]
    good = false_reject(scores["ok"], threshold, **how) if scores["ok"] else None
    return Promise(threshold, good, misses(scores["ng"], threshold, **how) if scores["ng"] else None)


def _score(scored: Scored) -> float | None:
    return scored.inspection.score if scored.inspection else None


def _verdict(criteria: Criteria, score: float | None) -> Verdict | None:
    rejected = None if score is None else criteria.rejects(score)
    return None if rejected is None else "ng" if rejected else "ok"

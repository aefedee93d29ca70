"""Models that go from machine to machine with their golden samples, which must score here as they did there."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from backend.assurance.golden import GoldenSet
from backend.base.errors import BundleRefused, InspectionError, PackDisagrees
from backend.base.keys import ModelKey
from backend.base.messages import Notice, Phrase
from backend.samples.scoring import Sample, SampleScorer, SampleSource
from backend.samples.store import Draft
from backend.service.inspection import Inspector, Judge
from backend.service.jobs import Job
from backend.service.models import FittedModel, memory_of
from backend.service.packing import GoldenImage, Packed, counting, pack, refuse_existing, scored_by
from backend.service.sidecars import known_mm_per_px
from backend.storage import Change, StoredMemory, read_calibration

logger = logging.getLogger(__name__)

SCORE_GAP = 1e-3


@dataclass(frozen=True)
class Arrival:
    """How the golden samples that came with a model score on this machine.

    Attributes:
        n: how many have a score of the other machine.
        gap: the largest difference from it; 0.0: all are the same to the last bit.
        same_extractor: the same file of an extractor, or the same weights, run in the same way.
        same_processor: both machines have a processor of the same name.
        lost: those that got their verdict there and do not get it here.
    """

    n: int
    gap: float
    same_extractor: bool
    same_processor: bool
    lost: tuple[str, ...] = ()

    def told(self) -> Phrase:
        """It in words."""
        values = {
            "extractor": Phrase("the_same_extractor" if self.same_extractor else "another_extractor"),
            "processor": Phrase("the_same_processor" if self.same_processor else "another_processor"),
            "gap": f"{self.gap:.1e}",
        }
        return Phrase("golden_to_the_bit" if self.gap == 0 else "golden_within", values)


@dataclass(frozen=True)
class Received:
    """A model that was put in place; `arrival` is None when no golden sample with a score came with it."""

    stored: StoredMemory
    arrival: Arrival | None
    notices: list[Notice]


def send(golden: GoldenSet, key: ModelKey, extractor: bytes | None = None) -> bytes:
    """The model of `key` as the bytes of a .bdim, with its golden samples and the scores that they get now.

    Raises:
        MemoryNotFound, DamagedFile.
    """
    inspector, samples = golden.inspector, golden.stored
    chosen = golden.found(key)
    scores: dict[Sample, float | None] = {}
    own: dict[str, str] = {}
    if chosen:
        own = scored_by(inspector.host.queue().extractor, inspector.settings)
        try:
            scores = {sample: _score(inspector, samples, key, sample) for _, sample in chosen}
        except InspectionError as err:
            logger.warning("the golden samples of %s go without a score: %s", key, err)
    images = [
        GoldenImage(
            name=sample.name,
            label="ok" if sample.label == "ok" else "ng",
            known=known,
            meta=samples.meta(key, sample.label, sample.name),
            score=scores.get(sample),
            data=samples.read(key, sample.label, sample.name),
        )
        for known, sample in chosen
    ]
    return pack(inspector.store, key, extractor, settings=inspector.settings, golden=images, scored_by=own)


def receive(golden: GoldenSet, packed: Packed, key: ModelKey, change: Change, *, overwrite: bool = False) -> Received:
    """Put a packed model in place under `key`, once its golden samples scored here as they did there.

    Its golden samples become golden samples of `key`.

    Raises:
        PackDisagrees: one scores otherwise; nothing was changed.
        BundleRefused: one cannot be scored at all.
        ExtractorMismatch, ModelExists, GoldenFlipped, FitInProgress, DiskFull, ReadOnlyStore: as Inspector.unpack.
    """
    inspector = golden.inspector
    refuse_existing(inspector.store, key, overwrite=overwrite)
    arrival = _arrival(inspector, packed, key) if packed.golden else None
    stored, notices = inspector.unpack(key, packed, change, overwrite=overwrite)
    if arrival is not None and arrival.lost:
        notices = [*notices, Notice("golden_lost_on_arrival", {"names": ", ".join(arrival.lost)})]
    other = _other_settings(inspector, packed)
    if other:
        notices = [*notices, Notice("settings_of_the_pack", {"settings": other})]
    return Received(stored, arrival, [*notices, *_kept(golden, packed, key)])


class _PackedSamples:
    """The golden samples in a .bdim, as SampleSource."""

    def __init__(self, packed: Packed) -> None:
        self._golden = packed.golden

    def meta(self, _: ModelKey, label: str, name: str, /) -> dict[str, Any]:
        return {**self._one(label, name).meta}

    def read(self, _: ModelKey, label: str, name: str, /) -> bytes:
        return self._one(label, name).data

    def _one(self, label: str, name: str) -> GoldenImage:
        return next(one for one in self._golden if (one.label, one.name) == (label, name))


def _score(
    inspector: Inspector, samples: SampleSource, key: ModelKey, sample: Sample, judge: Judge | None = None
) -> float:
    """Of one sample alone, so that no other in the extractor's batch can change its last bit."""
    [scored] = SampleScorer(inspector, samples, key, judge=judge).run([sample], Job())
    if scored.inspection is None:
        assert scored.error is not None
        raise scored.error
    return scored.inspection.score


def _arrival(inspector: Inspector, packed: Packed, key: ModelKey) -> Arrival:
    calibration = None if packed.calibration is None else read_calibration(packed.calibration)
    model = FittedModel(memory_of(packed.memory, inspector.settings.knn_backend), packed.memory, None)
    judge = inspector.judge_of(key, model, calibration)
    source, gaps, lost = _PackedSamples(packed), [0.0], []
    for one in packed.golden:
        try:
            score = _score(inspector, source, key, Sample(one.label, one.name), judge)
        except InspectionError as err:
            reason = Phrase("golden_not_read", {"name": one.name[:60], "reason": err})
            raise BundleRefused(name=packed.file, reason=reason) from err
        if one.score is None:
            continue
        gap = abs(score - one.score)
        if not gap <= SCORE_GAP:
            raise PackDisagrees(
                key=key,
                name=one.name,
                theirs=f"{one.score:.6g}",
                ours=f"{score:.6g}",
                settings=_other_settings(inspector, packed) or [Phrase("settings_alike")],
            )
        gaps.append(gap)
        if judge.criteria.threshold is not None:
            right = "ng" if judge.criteria.rejects(one.score) else "ok"
            if right == one.known["expected"] and judge.criteria.rejects(one.score) != judge.criteria.rejects(score):
                lost.append(one.name)
    ours = scored_by(inspector.host.queue().extractor, inspector.settings)
    same = all(packed.scored_by.get(name) == ours[name] for name in ("fingerprint", "runtime", "device", "file"))
    return Arrival(
        n=len(gaps) - 1,
        gap=max(gaps),
        same_extractor=same,
        same_processor=packed.scored_by.get("processor") == ours["processor"],
        lost=tuple(lost),
    )


def _other_settings(inspector: Inspector, packed: Packed) -> list[Phrase]:
    """The settings that count for scores and are not those of the other machine."""
    ours, theirs = counting(inspector.settings), packed.settings
    other = [name for name in ours if name in theirs and theirs[name] != ours[name]]
    return [
        Phrase("setting_there", {"name": name.upper(), "ours": str(ours[name]), "theirs": str(theirs[name])[:60]})
        for name in other
    ]


def _kept(golden: GoldenSet, packed: Packed, key: ModelKey) -> list[Notice]:
    """Keep the golden samples that came along. The model is in place, so what fails here is only said."""
    samples = golden.stored
    try:
        for one in packed.golden:
            draft = Draft(one.name, one.read, "unpack", known_mm_per_px(one.meta), one.meta.get("shape"), one.meta)
            [kept] = samples.add(key, one.label, [draft])
            golden.adopt(key, kept.sha256, {**one.known, "filename": kept.name})
    except (InspectionError, OSError) as err:
        logger.warning("the golden samples that came with %s are not kept: %s", key, err)
        return [Notice("golden_not_kept", {"reason": str(err) if isinstance(err, OSError) else err})]
    return []

"""The certificate of one model: who it is, what it promises and finds, what disturbs it, and what that does not say."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from backend import __version__
from backend.assurance.defects import GRADES, KINDS, Kind
from backend.assurance.detection import Curve, Detection
from backend.assurance.parts import FEWEST, Parts, PartScorer, Picture
from backend.assurance.review import Review, Reviewed, Reviewer
from backend.assurance.stability import Stability, stability
from backend.assurance.suspects import FEWEST as FEWEST_COMPARED
from backend.assurance.suspects import SHOWN
from backend.base.errors import GoodPartsRejected, NotEnoughSamples, ReadOnlyReplica
from backend.base.files import utc_now
from backend.base.images import encode_jpeg, resize, to_base64
from backend.base.keys import ModelKey
from backend.base.messages import Notice
from backend.calib import upper_bound
from backend.records.notices import as_json, notice_of
from backend.samples.collector import Collector
from backend.service.inspection import Inspector
from backend.service.jobs import Job

VERSION = 1
CONFIDENCE = 0.95
THUMB = 160
_SAID_OF_CALIBRATION = (
    "threshold", "rule", "false_reject", "misses", "note", "created_utc", "generation", "score_percentile",
    "area_mm2_thr", "n_ok", "n_ng", "p99_ok", "p5_ng", "mm_per_px",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class CertificateOptions:
    """How much is tried.

    Attributes:
        most_parts: good parts at most.
        trials: defects of each kind, zone and grade.
    """

    most_parts: int = 50
    trials: int = 60
    seed: int = 0


def certify_stored(collector: Collector, key: ModelKey, options: CertificateOptions, job: Job) -> dict[str, Any]:
    """Certify a model on its stored good parts, look for suspects among them, and keep the certificate with it.

    It is not kept, and says so, where the model is another or none by then.

    Raises:
        MemoryNotFound, ExtractorMismatch, DamagedFile, CalibrationNeeded, NotEnoughSamples, GoodPartsRejected,
        Cancelled.
        ReadOnlyReplica, DiskFull, ReadOnlyStore, FitInProgress: it cannot be kept.
    """
    inspector = collector.inspector
    if inspector.store.read_only:
        raise ReadOnlyReplica()
    PartScorer(inspector, key)  # what is missing is said before anything is tried
    parts = Parts.stored(collector, key, most=options.most_parts, seed=options.seed)
    review = Reviewer(collector, key).review(SHOWN, job)
    made = certify(inspector, key, parts, review=review, options=options, job=job)
    with inspector.store.writing(key, inspector.settings.fit_wait_s):
        if inspector.store.manifest(key).get("generation") != made["model"]["generation"]:
            return {**made, "notices": [*made["notices"], as_json(Notice("certificate_not_kept"))]}
        inspector.store.save_certificate(key, made)
    return made


def certify(
    inspector: Inspector,
    key: ModelKey,
    parts: Parts,
    *,
    review: Review | None = None,
    options: CertificateOptions | None = None,
    job: Job | None = None,
) -> dict[str, Any]:
    """Try the model on good parts, as they are and changed, and say what was found: JSON values alone.

    Args:
        parts: what to try it on.
        review: the suspects among its samples, if they were looked for.

    Raises:
        MemoryNotFound, ExtractorMismatch, DamagedFile, Cancelled.
        CalibrationNeeded: no threshold applies.
        NotEnoughSamples: fewer than five of the parts can be scored.
        GoodPartsRejected: fewer than five of them are passed.
    """
    options, job = options or CertificateOptions(), job or Job()
    scorer = PartScorer(inspector, key)
    fine, scores, errors = scorer.readable(parts.chosen, job)
    passed = [part for part, score in zip(fine, scores, strict=True) if not scorer.rejects(score)]
    if len(fine) < FEWEST:
        raise NotEnoughSamples(key=key, n=len(fine), wanted=FEWEST, reasons=errors[:5])
    if len(passed) < FEWEST:
        raise GoodPartsRejected(key=key, n=len(fine), passed=len(passed), wanted=FEWEST)
    detection = Detection(scorer, passed, trials=options.trials, seed=options.seed)
    curves = detection.curves(job)
    sizes = {kind: _shown_size(kind, curves) for kind in KINDS}
    unreadable = [Notice("samples_left_out", {"n": len(errors), "reasons": errors[:5]})] if errors else []
    said = [*parts.notices, *scorer.notices, *unreadable, *(review.notices if review else [])]
    notices = [notice for n, notice in enumerate(said) if notice not in said[:n]]
    compared = review if review and review.n_images >= FEWEST_COMPARED else None
    return {
        "certificate_version": VERSION,
        "created_utc": utc_now(),
        "service_version": __version__,
        "model": _model(inspector, key, scorer),
        "calibration": _calibration(inspector, key),
        "parts": {
            "n": len(fine),
            "basis": parts.basis,
            "n_rejected": len(fine) - len(passed),
            "upper_bound": upper_bound(len(fine) - len(passed), len(fine), CONFIDENCE),
            "confidence": CONFIDENCE,
            "scores": sorted(scores),
        },
        "detection": {
            "trials": options.trials,
            "n_parts": len(passed),
            "zones_of": "part" if all(part.file.shape for part in passed) else "roi",
            "strength": GRADES,
            "curves": [_curve(curve) for curve in curves],
            "examples": [
                {"kind": one.kind, "area_mm2": one.area, "jpeg_base64": _thumb(one.picture)}
                for one in detection.examples(sizes.__getitem__)
            ],
        },
        "stability": [_stability(one) for one in stability(scorer, fine, job, seed=options.seed)],
        **({} if compared is None else {"suspects": _suspects(compared)}),
        "notices": [as_json(one) for one in notices],
    }


def notices_of(certificate: Mapping[str, Any]) -> list[Notice]:
    """What the service had to say while the certificate was made."""
    return [notice_of(one) for one in certificate.get("notices", [])]


def _shown_size(kind: Kind, curves: Sequence[Curve]) -> float:
    """The area that is shown of a kind: what is found nine times out of ten in the middle, or the largest tried."""
    (curve,) = [c for c in curves if (c.kind, c.zone, c.grade) == (kind, "centre", "clear")]
    return curve.a90_95 or curve.a90 or curve.largest or 0.0


def _model(inspector: Inspector, key: ModelKey, scorer: PartScorer) -> dict[str, Any]:
    stored = scorer.model.stored
    images = stored.images
    named = [{"name": str(image["name"]), "sha256": str(image["sha256"])} for image in images]
    together = hashlib.sha256("\n".join(sorted(image["sha256"] for image in named)).encode()).hexdigest()
    known = {name: value for name, value in inspector.store.manifest(key).items() if name != "images"}
    return {
        **known,
        "role_id": key.role_id,
        "roi_id": key.roi_id,
        "recipe_id": key.recipe_id,
        "generation": stored.generation,
        "scoring": asdict(scorer.criteria.scoring),
        "area_mm2_thr": scorer.criteria.smallest_mm2,
        "samples_sha256": together,
        "samples": named,
    }


def _calibration(inspector: Inspector, key: ModelKey) -> dict[str, Any]:
    values = inspector.cache.calibration(key) or {}
    return {name: values[name] for name in _SAID_OF_CALIBRATION if values.get(name) is not None}


def _curve(curve: Curve) -> dict[str, Any]:
    sizes = {"smallest": curve.smallest, "largest": curve.largest, "a50": curve.a50, "a90": curve.a90}
    sizes["a90_95"] = curve.a90_95
    stated = {f"{name}_mm2": area for name, area in sizes.items()}
    stated |= {f"{name}_mm": curve.extent(area) for name, area in sizes.items()}
    return {
        "kind": curve.kind,
        "zone": curve.zone,
        "grade": curve.grade,
        "n": curve.n,
        "n_found": curve.n_found,
        **{name: value for name, value in stated.items() if value is not None},
        "points": {"mm2": curve.areas, "pod": curve.pod, "lower_bound": curve.lower_bound},
    }


def _stability(one: Stability) -> dict[str, Any]:
    return {
        "what": one.change.what,
        "amount": one.change.amount,
        "n": one.n,
        "n_rejected": one.n_rejected,
        "rate": one.rate,
        "upper_bound": one.upper_bound,
    }


def _suspects(review: Review) -> dict[str, Any]:
    named = [part for part in review.parts if part.suspect.stands_out]
    return {"n_images": review.n_images, "parts": [_reviewed(part) for part in named]}


def _reviewed(part: Reviewed) -> dict[str, Any]:
    suspect = part.suspect
    return {
        "filename": part.name,
        "score": suspect.score,
        "p_value": suspect.p_value,
        "times": suspect.times,
        "n_companions": suspect.n_companions,
        "jpeg_base64": _thumb(part.picture),
        "heatmap_jpeg_base64": _thumb(part.heatmap()),
    }


def _thumb(picture: Picture) -> str:
    scale = THUMB / max(picture.shape[:2])
    return to_base64(encode_jpeg(resize(picture, *(max(1, round(side * scale)) for side in picture.shape[:2]))))

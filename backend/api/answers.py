"""What the answers say of one inspected image.

A new field of /infer alone is added in `infer_fields`, and one of every inspection in `inspection_fields`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import orjson
from starlette.responses import JSONResponse

from backend.api.catalogue import Language, sentence
from backend.assurance.golden import Shown
from backend.assurance.review import Reviewed
from backend.assurance.suspects import Suspect, why
from backend.assurance.teaching import Outcome, Promise, Proof, Taught
from backend.base.images import to_base64
from backend.base.keys import ModelKey
from backend.base.messages import Notice
from backend.calib import GoodScores
from backend.extractors.protocol import Extractor
from backend.infer import Criteria, Inspection, Region, heatmap_png, heatmap_range
from backend.samples.scoring import Scored
from backend.service.results import InferResult
from backend.storage import ModelStore, Version


class Answer(JSONResponse):
    """A JSON body that this service made itself, past FastAPI's check against the schema.

    An answer of /infer has half a megabyte of heatmap and contours, which orjson writes in a tenth of the time.
    """

    def render(self, content: Any) -> bytes:
        """UTF-8 JSON of dicts, lists and numbers of Python's own."""
        return orjson.dumps(content)


def infer_fields(result: InferResult, language: Language) -> dict[str, Any]:
    """The answer of /infer, without the ids. Without a calibration `threshold` and `is_anomaly` are null."""
    return {
        "threshold": None,
        "is_anomaly": None,
        **inspection_fields(result.inspection, result.criteria, result.warnings, language),
        **heatmap_fields(result.heatmap, result.heatmap_range),
        "area_resolution_mm2": result.area_resolution_mm2,
        "token_shape": list(result.token_shape),
        "inference_ms": result.timings_ms["total"],
        "timings_ms": result.timings_ms,
        "params": result.params,
    }


def shown_fields(shown: Shown) -> dict[str, Any]:
    """What /infer says of a master: what it got the first time, as far as there was one, and whether that is lost."""
    first = {"former_score": shown.first_score, "former_decision": shown.first_verdict}
    known = {name: value for name, value in first.items() if value is not None}
    return {"name": shown.name, **known, "flipped": shown.flipped}


def scored_fields(scored: Scored, criteria: Criteria, language: Language, *, heatmap: bool) -> dict[str, Any]:
    """One item of /infer_dataset: a stored sample with what /infer would say of it, or with its error."""
    sample = {
        "label": scored.sample.label,
        "filename": scored.sample.name,
        "mm_per_px": scored.mm_per_px,
        "in_memory": scored.in_memory,
        "n_regions": 0,
    }
    found = scored.inspection
    if found is None:
        assert scored.error
        return {**sample, "error": sentence(scored.error, language), "code": scored.error.code}
    picture = {}
    if heatmap:
        low, high = heatmap_range(found, "relative", criteria.threshold)
        picture = heatmap_fields(heatmap_png(found, "relative", low, high), (low, high))
    return {
        **sample,
        **inspection_fields(found, criteria, scored.notices, language),
        **picture,
        "n_regions": len(found.regions),
        "left_out": scored.left_out,
    }


def inspection_fields(
    found: Inspection, criteria: Criteria, notices: Sequence[Notice], language: Language
) -> dict[str, Any]:
    """What every answer says of an inspection; without a threshold there is no verdict, and no field for one."""
    verdict: dict[str, Any] = {}
    if criteria.threshold is not None:
        is_anomaly = criteria.rejects(found.score)
        verdict = {"threshold": criteria.threshold, "is_anomaly": is_anomaly, "decision": "ng" if is_anomaly else "ok"}
    return {
        "score": found.score,
        **verdict,
        **(rarity_fields(criteria.good, found.score) if criteria.good else {}),
        "regions": [region_fields(region) for region in found.regions],
        "stats": found.stats,
        "warnings": [sentence(notice, language) for notice in notices],
    }


def rarity_fields(good: GoodScores, score: float) -> dict[str, Any]:
    """How unusual a score is among the good ones of the calibration."""
    return {"p_value": good.p_value(score), "ok_as_high": good.as_high(score), "n_ok": good.n}


def suspect_fields(suspect: Suspect, names: Sequence[str], language: Language) -> dict[str, Any]:
    """A suspect among images of these names."""
    return {
        "filename": names[suspect.place],
        "score": suspect.score,
        "p_value": suspect.p_value,
        "why": sentence(why(suspect), language),
    }


def reviewed_fields(part: Reviewed, language: Language, *, heatmap: bool) -> dict[str, Any]:
    """One item of /datasets/suspects."""
    picture = {}
    if heatmap:
        low, high = heatmap_range(part.inspection, "relative", None)
        picture = heatmap_fields(heatmap_png(part.inspection, "relative", low, high), (low, high))
    return {
        "filename": part.name,
        "score": part.suspect.score,
        "p_value": part.suspect.p_value,
        "stands_out": part.suspect.stands_out,
        "in_memory": part.in_memory,
        "why": sentence(why(part.suspect), language),
        **picture,
    }


def proof_fields(proof: Proof, language: Language) -> dict[str, Any]:
    """What a lesson would change."""
    return {
        "allowed": not proof.objections,
        "objections": [sentence(one, language) for one in proof.objections],
        "n_taught": len(proof.taught) - proof.n_duplicates,
        "n_would_pass": sum(one.verdict_after == "ok" for one in proof.taught),
        "n_known": len(proof.known),
        "taught": [_outcome(one, language) for one in proof.taught],
        "missed": [_outcome(one, language) for one in proof.missed],
        "changes": [{**_outcome(one, language), "lost": one.lost} for one in proof.changed],
        "before": _promise(proof.before),
        "after": _promise(proof.after),
    }


def taught_fields(taught: Taught) -> dict[str, Any]:
    """What a lesson did, beside its proof."""
    return {
        "generation": taught.metadata.get("generation", ""),
        "model_version": taught.metadata.get("model_version", ""),
        "stored": taught.stored,
        "golden": taught.golden,
    }


def _outcome(one: Outcome, language: Language) -> dict[str, Any]:
    picture = one.picture
    named = {"inspection_id": picture.name} if picture.is_record else {"filename": picture.name}
    said: dict[str, Any] = {
        "score": one.score,
        "decision": one.verdict,
        "score_after": one.score_after,
        "decision_after": one.verdict_after,
    }
    error = {} if one.error is None else {"error": sentence(one.error, language)}
    if one.likeness is not None:
        said |= {"like_bad": one.likeness.share, "like_bad_name": one.likeness.name}
    known = {name: value for name, value in said.items() if value is not None}
    return {**named, "kind": picture.kind, "expected": picture.truth, **known, **error}


def _promise(promise: Promise) -> dict[str, Any]:
    return {name: value for name, value in asdict(promise).items() if value is not None}


def version_fields(store: ModelStore, extractor: Extractor, key: ModelKey) -> dict[str, Any]:
    """The model in use and what was replaced before it, the newest first. Raises DamagedFile."""
    kept = [one for one in store.versions(key) if not store.is_current(key, one)]
    current = store.about(key)
    versions = [
        {"version": one.name, **one.about, "restorable": extractor.made(one.about.get("fingerprint"))} for one in kept
    ]
    return {**({"current": current} if current else {}), "versions": versions}


def restored_fields(version: Version) -> dict[str, Any]:
    """What a restore brought back."""
    shown = ["model_version", "created_utc"]
    known = {name: version.about[name] for name in shown if name in version.about}
    return {"restored": version.name, "generation": version.generation, **known}


def heatmap_fields(png: bytes, limits: tuple[float, float]) -> dict[str, Any]:
    """A heatmap, empty where none was wanted, and the distances that 0 and 255 of it stand for."""
    return {"heatmap_png_base64": to_base64(png), "heatmap_range": list(limits)}


def region_fields(region: Region) -> dict[str, Any]:
    """A region, with its box both as a list and by its four names: clients read either."""
    x, y, w, h = region.bbox
    return {
        "x": x,
        "y": y,
        "w": w,
        "h": h,
        "bbox": [x, y, w, h],
        "area_px": region.area_px,
        "area_mm2": region.area_mm2,
        "area_mm2_estimate": region.area_mm2_estimate,
        "contour": region.contour,
    }

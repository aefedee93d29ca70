"""Teach a model the good parts that it rejected, after it is shown what that would change."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from backend.api.catalogue import Language, sentence
from backend.api.meant import BodyOf
from backend.api.problems import language_of
from backend.api.requests import (
    RESPONSES,
    CollectorDep,
    RecipeHeader,
    change_of,
    described,
    identity,
    run_tracked,
    terms_of,
    warned,
)
from backend.api.schemas import TeachRequest
from backend.api.uploads import UploadRoute
from backend.assurance.teaching import Lesson, Outcome, Promise, Proof, Teacher
from backend.assurance.watch import DriftWatch
from backend.base.keys import ModelKey

router = APIRouter(route_class=UploadRoute, tags=["models"])


@router.post("/teach", responses=RESPONSES, openapi_extra=described(TeachRequest))
async def teach(
    request: Request,
    collector: CollectorDep,
    body: Annotated[TeachRequest, Depends(BodyOf(TeachRequest))],
    x_recipe_id: RecipeHeader = None,
) -> dict[str, Any]:
    """Add parts that were rejected though they are good to the memory; with `dry_run` say what that would change.

    The model of before is kept as a version, so a restore takes it back. Defects that were missed become golden NG.
    """
    key = ModelKey.of(body.role_id, body.roi_id, body.recipe_id or x_recipe_id)
    change = change_of(request, "teach", body.author, body.note)
    lesson = Lesson(
        inspection_ids=body.inspection_ids,
        filenames=body.filenames,
        force=body.force,
        recalibrate=replace(terms_of(request, body), author=change.author) if body.recalibrate else None,
    )
    teacher = Teacher(collector, request.app.state.golden, request.app.state.ledger)
    language = language_of(request.headers)
    if body.dry_run:
        proof = await run_tracked(request, lambda job: teacher.prove(key, lesson, job))
        said = {"dry_run": True, **_told(proof, language)}
        return {**said, "warnings": warned(request, proof.notices), **identity(request, key)}
    done = await run_tracked(request, lambda job: teacher.teach(key, lesson, change, job))
    watch: DriftWatch = request.app.state.drift
    watch.fitted(key, done.metadata, done.appearances)
    return {
        "dry_run": False,
        **_told(done.proof, language),
        "generation": done.metadata.get("generation", ""),
        "model_version": done.metadata.get("model_version", ""),
        "stored": done.stored,
        "golden": done.golden,
        "warnings": warned(request, [*done.proof.notices, *done.notices]),
        **identity(request, key),
    }


def _told(proof: Proof, language: Language) -> dict[str, Any]:
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

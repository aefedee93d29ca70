"""Teach a model the good parts that it rejected, after it is shown what that would change."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request

from backend.api.answers import proof_fields, taught_fields
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
from backend.assurance.teaching import Lesson, Teacher
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
        said = {"dry_run": True, **proof_fields(proof, language)}
        return {**said, "warnings": warned(request, proof.notices), **identity(request, key)}
    done = await run_tracked(request, lambda job: teacher.teach(key, lesson, change, job))
    watch: DriftWatch = request.app.state.drift
    watch.fitted(key, done.metadata, done.appearances)
    return {
        "dry_run": False,
        **proof_fields(done.proof, language),
        **taught_fields(done),
        "warnings": warned(request, [*done.proof.notices, *done.notices]),
        **identity(request, key),
    }

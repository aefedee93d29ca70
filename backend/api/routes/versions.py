"""What a model was before: list its versions, compare two, bring one back."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Depends, Path, Query, Request
from pydantic import BaseModel, ConfigDict, Field

from backend.api.answers import restored_fields, version_fields
from backend.api.catalogue import sentence
from backend.api.meant import BodyOf
from backend.api.problems import language_of
from backend.api.requests import (
    RESPONSES,
    CollectorDep,
    InspectorDep,
    QueryKey,
    RecipeHeader,
    change_of,
    described,
    identity,
    run_job,
    run_tracked,
    warned,
)
from backend.api.uploads import UploadRoute
from backend.base.keys import ModelKey
from backend.infer import Criteria
from backend.samples.scoring import Scored

router = APIRouter(route_class=UploadRoute, tags=["models"])


class RestoreRequest(BaseModel):
    """Which model goes back, and who wants it."""

    model_config = ConfigDict(json_schema_extra={"example": {"role_id": "Master1", "roi_id": "Pattern"}})

    role_id: str
    roi_id: str
    recipe_id: str | None = None
    author: str | None = Field(None, max_length=128, description="Who restores; the API key's name without it.")
    note: str | None = Field(None, max_length=2000, description="Kept with what is replaced.")


@router.get("/versions", responses=RESPONSES)
def versions(request: Request, inspector: InspectorDep, key: QueryKey) -> dict[str, Any]:
    """The model in use and what was replaced before it, the newest first (MODEL_VERSIONS)."""
    known = version_fields(inspector.store, inspector.host.queue().extractor, key)
    return {**known, **identity(request, key)}


@router.get("/versions/compare", responses=RESPONSES)
async def compare(
    request: Request,
    collector: CollectorDep,
    key: QueryKey,
    one: Annotated[str, Query(description="A version, as /versions names it, or `current`.")],
    other: Annotated[str, Query(description="Another one.")] = "current",
) -> dict[str, Any]:
    """Score the stored samples with two versions: those whose verdicts differ, part by part."""
    pairs, judges = await run_tracked(request, lambda job: collector.compare(key, one, other, job=job))
    language = language_of(request.headers)

    def side(scored: Scored, criteria: Criteria) -> dict[str, Any]:
        if scored.inspection is None:
            return {"error": sentence(scored.error, language)} if scored.error else {}
        rejected = criteria.rejects(scored.inspection.score)
        verdict = {} if rejected is None else {"decision": "ng" if rejected else "ok"}
        return {"score": scored.inspection.score, **verdict}

    items: list[dict[str, Any]] = [
        {
            "label": first.sample.label,
            "filename": first.sample.name,
            "one": side(first, judges[0].criteria),
            "other": side(second, judges[1].criteria),
        }
        for first, second in pairs
    ]
    differ = [item for item in items if item["one"].get("decision") != item["other"].get("decision")]
    return {
        "one": one,
        "other": other,
        "n_total": len(items),
        "n_scores_differ": sum(item["one"].get("score") != item["other"].get("score") for item in items),
        "differ": differ,
        **identity(request, key),
    }


@router.post("/versions/{generation}/restore", responses=RESPONSES, openapi_extra=described(RestoreRequest))
async def restore(
    request: Request,
    inspector: InspectorDep,
    generation: Annotated[str, Path(description="A version, or the generation of its memory.")],
    body: Annotated[RestoreRequest, Depends(BodyOf(RestoreRequest))],
    x_recipe_id: RecipeHeader = None,
) -> dict[str, Any]:
    """Bring memory, calibration and shape of a version back in one step, bit for bit. What it replaces is kept."""
    key = ModelKey.of(body.role_id, body.roi_id, body.recipe_id or x_recipe_id)
    change = change_of(request, "restore", body.author, body.note)
    version, notices = await run_job(request, lambda _: inspector.restore(key, generation, change))
    return {
        **restored_fields(version),
        "warnings": warned(request, notices),
        **identity(request, key),
    }

"""Which models there are, in what state each is, and how one is deleted."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Request

from backend.api.requests import RESPONSES, CollectorDep, QueryKey, RecipeHeader, identity, sentences, warned
from backend.base.keys import ModelKey, check_recipe

router = APIRouter(tags=["models"])

RecipeQuery = Annotated[str | None, Query(description="Recipe of the model; the header X-Recipe-Id says the same.")]


@router.get("/state", responses=RESPONSES)
def state(
    request: Request,
    collector: CollectorDep,
    key: QueryKey,
    model_key: Annotated[
        str | None, Query(description="The station's own name of the ROI; roi_id is what counts.")
    ] = None,
) -> dict[str, Any]:
    """Whether there is a memory and a calibration, how many samples, and how far a rebuild is."""
    return {
        **collector.state(key),
        "model_key": model_key or key.roi_id,
        "warnings": warned(request),
        **identity(request, key),
    }


@router.get("/manifest", responses=RESPONSES)
def manifest(request: Request, collector: CollectorDep, key: QueryKey) -> dict[str, Any]:
    """Memory, calibration, samples and extractor of one model, and what of it is out of date and why."""
    found = collector.manifest(key)
    reasons = sentences(request, found["stale"]["reasons"])
    return {
        **found,
        "stale": {**found["stale"], "reasons": reasons},
        "warnings": warned(request),
        **identity(request, key),
    }


@router.get("/models", responses=RESPONSES)
def models(request: Request, collector: CollectorDep, x_recipe_id: RecipeHeader = None) -> dict[str, Any]:
    """Every model of every recipe, with the main figures of its memory."""
    recipe = check_recipe(x_recipe_id)
    own = {"recipe_id": recipe, "request_id": request.state.request_id}
    return {"models": collector.models(), "warnings": warned(request), **own}


@router.delete("/models/{role_id}/{roi_id}", responses=RESPONSES)
def delete_model(
    request: Request,
    collector: CollectorDep,
    role_id: Annotated[str, Path(description="Role, such as Master1.")],
    roi_id: Annotated[str, Path(description="ROI, such as Pattern.")],
    recipe_id: RecipeQuery = None,
    x_recipe_id: RecipeHeader = None,
) -> dict[str, Any]:
    """Move a model to the trash folder, which keeps it for TRASH_DAYS. Its samples stay."""
    key = ModelKey.of(role_id, roi_id, recipe_id or x_recipe_id)
    trash = collector.delete_model(key)
    return {"deleted": True, "trash": trash, "warnings": warned(request), **identity(request, key)}

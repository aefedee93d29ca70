"""Which models there are, in what state each is, how one goes to another machine, and how one is deleted."""

from __future__ import annotations

from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, File, Form, Path, Query, Request, Response, UploadFile

from backend.api.requests import (
    LEFT_OUT,
    RESPONSES,
    CollectorDep,
    QueryKey,
    RecipeHeader,
    change_of,
    identity,
    run_job,
    sentences,
    warned,
)
from backend.api.routes.golden import GoldenDep
from backend.api.uploads import UploadRoute, uploads
from backend.assurance.moving import Arrival, receive, send
from backend.base.keys import ModelKey, check_recipe
from backend.service.packing import read_packed
from backend.storage import Change

router = APIRouter(route_class=UploadRoute, tags=["models"])

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


@router.get("/models/pack", response_class=Response, responses=RESPONSES)
async def pack_model(request: Request, golden: GoldenDep, key: QueryKey) -> Response:
    """A model as one file (.bdim), with its golden samples and their scores, for `POST /models/unpack` elsewhere."""
    data = await run_job(request, lambda _: send(golden, key))
    name = quote(f"{key.role_id}_{key.roi_id}.bdim")
    headers = {"Content-Disposition": f"attachment; filename*=utf-8''{name}"}
    return Response(data, media_type="application/octet-stream", headers=headers)


async def _named(
    role_id: Annotated[str, Form(description="Another role than the packed one.", examples=LEFT_OUT)] = "",
    roi_id: Annotated[str, Form(description="Another ROI than the packed one.", examples=LEFT_OUT)] = "",
    recipe_id: Annotated[str, Form(description="Another recipe than the packed one.", examples=LEFT_OUT)] = "",
    x_recipe_id: RecipeHeader = None,
) -> tuple[str, str, str]:
    """Role, ROI and recipe that the request names; empty where it leaves the packed one."""
    return role_id, roi_id, recipe_id or x_recipe_id or ""


async def _unpacking(
    request: Request,
    author: Annotated[str, Form(description="Who did it.", examples=LEFT_OUT)] = "",
    note: Annotated[str, Form(description="Kept with the memory.", examples=LEFT_OUT)] = "",
) -> Change:
    return change_of(request, "unpack", author, note)


@router.post("/models/unpack", responses=RESPONSES)
async def unpack_model(
    request: Request,
    golden: GoldenDep,
    file: Annotated[UploadFile, File(description="A .bdim file.")],
    named: Annotated[tuple[str, str, str], Depends(_named)],
    change: Annotated[Change, Depends(_unpacking)],
    replace: Annotated[bool, Form(description="Even where there is such a model, which is kept as a version.")] = False,
) -> dict[str, Any]:
    """Check a packed model whole, score its golden samples, and put it in place in one step.

    Until then nothing has changed.
    """
    [sent] = uploads([file])
    packed = await run_job(request, lambda _: read_packed(sent.read(), sent.name))
    key = packed.key_of(*named)
    received = await run_job(request, lambda _: receive(golden, packed, key, change, overwrite=replace))
    stored, arrival = received.stored, received.arrival
    return {
        "unpacked": True,
        "generation": stored.generation,
        "model_version": stored.metadata["model_version"],
        "unpacked_from": stored.metadata["unpacked_from"],
        "coreset_size": len(stored.rows),
        "token_shape": list(stored.grid),
        "calib_present": packed.calibration is not None,
        "golden": None if arrival is None else _arrived(request, arrival),
        "warnings": warned(request, received.notices),
        **identity(request, key),
    }


def _arrived(request: Request, arrival: Arrival) -> dict[str, Any]:
    return {
        "n": arrival.n,
        "gap": arrival.gap,
        "same_extractor": arrival.same_extractor,
        "same_processor": arrival.same_processor,
        "says": sentences(request, [arrival.told()])[0],
    }


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

"""Which models there are, in what state each is, and how one is deleted."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, File, Form, Path, Query, Request, Response, UploadFile

from backend.api.requests import (
    RESPONSES,
    CollectorDep,
    InspectorDep,
    QueryKey,
    RecipeHeader,
    identity,
    run_job,
    sentences,
    warned,
)
from backend.api.uploads import UploadRoute
from backend.base.errors import ExtractorMismatch
from backend.base.keys import ModelKey, check_recipe
from backend.service.images import ImageFile
from backend.service.packing import Packed, pack, read_packed, unpack

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
async def pack_model(
    request: Request,
    inspector: InspectorDep,
    key: QueryKey,
    with_extractor: Annotated[bool, Query(description="Put the exported extractor in, too.")] = False,
) -> Response:
    """A model as one file (.bdim): memory, calibration and certificate, for `POST /models/unpack` elsewhere."""
    store, settings = inspector.store, inspector.settings
    data = await run_job(request, lambda _: pack(store, settings, key, with_extractor=with_extractor))
    name = f"{key.role_id}_{key.roi_id}.bdim"
    headers = {"content-disposition": f'attachment; filename="{name}"'}
    return Response(data, media_type="application/octet-stream", headers=headers)


@router.post("/models/unpack", responses=RESPONSES)
async def unpack_model(
    request: Request,
    inspector: InspectorDep,
    file: Annotated[UploadFile, File(description="A .bdim file.")],
    role_id: Annotated[str | None, Form(description="Another role than the packed one.")] = None,
    roi_id: Annotated[str | None, Form(description="Another ROI than the packed one.")] = None,
    recipe_id: Annotated[str | None, Form(description="Another recipe than the packed one.")] = None,
    replace: Annotated[bool, Form(description="Even where there is such a model.")] = False,
) -> dict[str, Any]:
    """Check a packed model whole, and put it in place in one step; until then nothing has changed."""
    name = ImageFile.named(file.filename, bytes).name
    packed = await run_job(request, lambda _: read_packed(file.file.read(), name))
    own = packed.key
    key = ModelKey.of(role_id or own.role_id, roi_id or own.roi_id, recipe_id or own.recipe_id)
    _check_fingerprint(packed, key, inspector)
    store, wait_s = inspector.store, inspector.settings.fit_wait_s
    stored = await run_job(request, lambda _: unpack(store, packed, key, overwrite=replace, wait_s=wait_s))
    return {
        "unpacked": True,
        "model_version": stored.metadata["model_version"],
        "unpacked_from": stored.metadata["unpacked_from"],
        "coreset_size": len(stored.emb),
        "token_shape": list(stored.grid),
        "calib_present": packed.calibration is not None,
        **identity(request, key),
    }


def _check_fingerprint(packed: Packed, key: ModelKey, inspector: InspectorDep) -> None:
    """Raises ExtractorMismatch when the running extractor did not make the memory."""
    extractor = inspector.host.queue().extractor
    if packed.memory.fingerprint != extractor.fingerprint:
        raise ExtractorMismatch(
            key=key,
            theirs=f"{packed.memory.metadata.get('extractor')}, {packed.memory.fingerprint}",
            ours=f"{extractor.name}, {extractor.dim} dims, {extractor.fingerprint}",
        )


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

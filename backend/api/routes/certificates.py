"""Certificates: what a model promises, finds and is disturbed by, as JSON and as a page to print."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import HTMLResponse

from backend.api.catalogue import Language, sentence
from backend.api.meant import BodyOf
from backend.api.problems import language_of
from backend.api.requests import (
    RESPONSES,
    CollectorDep,
    InspectorDep,
    QueryKey,
    RecipeHeader,
    described,
    identity,
    run_tracked,
    warned,
)
from backend.api.schemas import CertifyRequest
from backend.api.uploads import UploadRoute
from backend.assurance.certificate import CertificateOptions, certify_stored, notices_of
from backend.assurance.page import page
from backend.base.errors import CertificateNotFound
from backend.base.keys import ModelKey

router = APIRouter(route_class=UploadRoute, tags=["models"])


@router.post("/certify", responses=RESPONSES, openapi_extra=described(CertifyRequest))
async def certify(
    request: Request,
    collector: CollectorDep,
    body: Annotated[CertifyRequest, Depends(BodyOf(CertifyRequest))],
    x_recipe_id: RecipeHeader = None,
) -> dict[str, Any]:
    """Try a model on its stored good parts, as they are, with defects drawn on them and with small changes.

    It takes minutes: /progress says how far it is. The certificate is kept with the model, for `GET /certificate`.
    """
    key = ModelKey.of(body.role_id, body.roi_id, body.recipe_id or x_recipe_id)
    options = CertificateOptions(most_parts=body.parts, trials=body.trials, seed=body.seed)
    made = await run_tracked(request, lambda job: certify_stored(collector, key, options, job))
    return {**made, "warnings": warned(request, notices_of(made)), **identity(request, key)}


@router.get("/certificate", response_model=None, responses=RESPONSES)
def get_certificate(
    request: Request,
    inspector: InspectorDep,
    key: QueryKey,
    form: Annotated[Literal["json", "html"], Query(alias="format", description="json, or a page to print.")] = "json",
    lang: Annotated[Language | None, Query(description="Of the page; without it that of Accept-Language.")] = None,
) -> Response | dict[str, Any]:
    """The last certificate of a model, and whether it is of the memory and the calibration that are in use."""
    made = inspector.store.load_certificate(key)
    if made is None:
        raise CertificateNotFound(key=key)
    if form == "html":
        return HTMLResponse(page(made, lang or language_of(request.headers), sentence))
    calibration = inspector.cache.calibration(key) or {}
    current = made.get("model", {}).get("generation") == inspector.store.manifest(key).get("generation") and made.get(
        "calibration", {}
    ).get("created_utc") == calibration.get("created_utc")
    return {**made, "current": current, "warnings": warned(request, notices_of(made)), **identity(request, key)}

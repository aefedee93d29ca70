"""What operators and their tools ask: is the service alive, is it ready, how is it doing."""

from __future__ import annotations

import logging

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from backend.api.metrics import Metrics
from backend.api.requests import InspectorDep
from backend.api.schemas import ErrorBody
from backend.assurance.golden import GoldenSet
from backend.assurance.watch import DriftWatch
from backend.base.errors import NotReady, RecordsUnavailable

logger = logging.getLogger(__name__)
router = APIRouter(tags=["operations"])


class Alive(BaseModel):
    """The process answers."""

    status: str = "alive"


class Ready(BaseModel):
    """Requests will be served. `state` is `ok` or `degraded`.

    `golden`: samples and masters that lost their verdict, by model.
    """

    status: str = "ready"
    state: str
    golden: dict[str, list[str]] = {}


@router.get("/livez")
async def livez() -> Alive:
    """Whether the process answers at all; public."""
    return Alive()


@router.get("/readyz", responses={503: {"model": ErrorBody, "description": "Still loading, or failed."}})
def readyz(request: Request, inspector: InspectorDep) -> Ready:
    """Whether requests will be served now: 200 once the extractor has run, 503 before."""
    state = inspector.host.status
    if state not in {"ok", "degraded"}:
        raise NotReady(retry_after=5)
    golden: GoldenSet = request.app.state.golden
    flips = {str(key): names for key, names in golden.lost().items() if names}
    return Ready(state=state, golden=flips)


@router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
def metrics(request: Request, inspector: InspectorDep) -> Response:
    """Prometheus metrics of all workers."""
    counted: Metrics = request.app.state.metrics
    counted.state(inspector)
    golden: GoldenSet = request.app.state.golden
    counted.golden_flips({key: len(names) for key, names in golden.lost().items()})
    watch: DriftWatch = request.app.state.drift
    try:
        counted.drifts(watch.states())
    except RecordsUnavailable as err:
        logger.warning("/metrics cannot tell of drifts: %s", err)
    return Response(counted.render(), media_type="text/plain; version=0.0.4")

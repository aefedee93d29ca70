"""Long work on stored samples: calibrate with them, score them, and follow how far the work is."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from functools import partial
from time import monotonic
from typing import Annotated, Any

import anyio
import anyio.to_thread
from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import iterate_in_threadpool

from backend.api.answers import scored_fields
from backend.api.catalogue import sentence
from backend.api.meant import BodyOf
from backend.api.problems import language_of
from backend.api.recording import Recording, trace_of
from backend.api.requests import (
    RESPONSES,
    CollectorDep,
    ProgressDep,
    RecipeHeader,
    described,
    identity,
    run_tracked,
    terms_of,
    warned,
)
from backend.api.schemas import CalibrateDatasetRequest, CalibrateDatasetResponse, InferDatasetRequest
from backend.api.uploads import UploadRoute
from backend.base.errors import InspectionError, ProgressNotFound
from backend.base.keys import ModelKey
from backend.records.verdicts import Verdict
from backend.samples.collector import Scores
from backend.samples.scoring import Scored
from backend.samples.store import check_label
from backend.service.jobs import Job, TrackedJob

router = APIRouter(route_class=UploadRoute, tags=["samples"])

NDJSON = "application/x-ndjson"
SSE_PERIOD_S = 0.1
SSE_KEEPALIVE_S = 15.0
SSE_WAIT_S = 5.0


@router.post(
    "/calibrate_dataset",
    response_model=CalibrateDatasetResponse,
    response_model_exclude_unset=True,
    responses=RESPONSES,
    openapi_extra=described(CalibrateDatasetRequest),
)
async def calibrate_dataset(
    request: Request,
    collector: CollectorDep,
    body: Annotated[CalibrateDatasetRequest, Depends(BodyOf(CalibrateDatasetRequest))],
    x_recipe_id: RecipeHeader = None,
) -> dict[str, Any]:
    """Score the stored samples with the current memory and choose the threshold from the scores."""
    key = ModelKey.of(body.role_id, body.roi_id, body.recipe_id or x_recipe_id)
    calibrate = partial(
        collector.calibrate,
        key,
        score_percentile=body.score_percentile,
        area_mm2_thr=body.area_mm2_thr,
        default_mm_per_px=body.default_mm_per_px,
        require_ng=body.require_ng,
        terms=terms_of(request, body),
    )
    result = await run_tracked(request, lambda job: calibrate(job=job))
    known = {
        name: value
        for name, value in result.values.items()
        if name in CalibrateDatasetResponse.model_fields and value is not None
    }
    return {
        **known,
        "status": "ok",
        "score_percentile": round(result.values["score_percentile"]),
        "warnings": warned(request, result.warnings),
        **identity(request, key),
    }


@router.post("/infer_dataset", response_model=None, responses=RESPONSES, openapi_extra=described(InferDatasetRequest))
async def infer_dataset(
    request: Request,
    collector: CollectorDep,
    board: ProgressDep,
    body: Annotated[InferDatasetRequest, Depends(BodyOf(InferDatasetRequest))],
    x_recipe_id: RecipeHeader = None,
) -> Response | dict[str, Any]:
    """Score the stored samples. One that cannot be scored has an `error` in place of a score.

    With `stream` or `Accept: application/x-ndjson` each item is a line as soon as it is scored; the last line holds
    `status`, `n_total` and `n_errors`.
    """
    key = ModelKey.of(body.role_id, body.roi_id, body.recipe_id or x_recipe_id)
    labels = list(dict.fromkeys(check_label(label) for label in body.labels))
    said = {
        "part_id": body.part_id,
        "batch_id": body.batch_id,
        "station_id": body.station_id,
        "operator": body.operator,
    }
    recording = Recording(request, trace_of(request, "infer_dataset", said))
    answer = _Items(request, key, recording, include_heatmap=body.include_heatmap)
    score = partial(
        collector.score, key, labels, default_mm_per_px=body.default_mm_per_px, leave_out=body.leave_one_out
    )
    if body.stream or NDJSON in request.headers.get("accept", ""):
        job = board.begin(request.state.request_id)
        with job.failing():
            scores = await anyio.to_thread.run_sync(lambda: score(job=job), limiter=request.app.state.limiter)
        return StreamingResponse(answer.lines(scores, job), media_type=NDJSON)
    return await run_tracked(request, lambda job: answer.whole(score(job=job), job))


@router.get("/progress/{request_id:path}", response_model=None, responses=RESPONSES)
async def progress(
    request: Request,
    board: ProgressDep,
    request_id: str,
    stream: Annotated[bool, Query(description="Server-sent events; so does Accept: text/event-stream.")] = False,
) -> Response | dict[str, Any]:
    """How far the request with this X-Request-Id is: once, or as server-sent events until it ends."""
    if stream or "text/event-stream" in request.headers.get("accept", ""):
        give_up = monotonic() + SSE_WAIT_S
        while (job := board.get(request_id)) is None:
            if monotonic() > give_up:
                raise ProgressNotFound(job=request_id[:128])
            await anyio.sleep(SSE_PERIOD_S)
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        return StreamingResponse(_events(job, request_id), media_type="text/event-stream", headers=headers)
    job = board.get(request_id)
    if job is None:
        raise ProgressNotFound(job=request_id[:128])
    return {"request_id": request_id, **job.snapshot().as_dict()}


async def _events(job: TrackedJob, request_id: str) -> AsyncIterator[str]:
    shown, spoke = None, monotonic()
    while True:
        now = job.snapshot()
        if (now.state, now.stage, now.done) != shown:
            shown, spoke = (now.state, now.stage, now.done), monotonic()
            yield f"data: {json.dumps({'request_id': request_id, **now.as_dict()})}\n\n"
        elif monotonic() - spoke > SSE_KEEPALIVE_S:
            spoke = monotonic()
            yield ": still there\n\n"
        if now.state != "running":
            return
        await anyio.sleep(SSE_PERIOD_S)


class _Items:
    """The answer of /infer_dataset, whole or line by line."""

    def __init__(self, request: Request, key: ModelKey, recording: Recording, *, include_heatmap: bool) -> None:
        self.request, self.key, self.recording, self.include_heatmap = request, key, recording, include_heatmap
        self.language = language_of(request.headers)
        self.n_errors = 0

    def whole(self, scores: Scores, job: Job) -> dict[str, Any]:
        items = [self.item(scored, scores, job) for scored in scores.items]
        return {**self.summary(scores), "items": items}

    async def lines(self, scores: Scores, job: TrackedJob) -> AsyncIterator[str]:
        """One JSON object a line; a client that goes away stops the scoring."""
        try:
            with job.ending():
                async for item in iterate_in_threadpool(self.item(scored, scores, job) for scored in scores.items):
                    yield _line(item)
                yield _line(self.summary(scores))
        except InspectionError as err:
            text = sentence(err, self.language)
            yield _line({**self.summary(scores), "status": "error", "error": text, "code": err.code})
        finally:
            job.cancel()
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(scores.items.close)

    def summary(self, scores: Scores) -> dict[str, Any]:
        return {
            "status": "ok",
            "n_total": scores.n_total,
            "n_errors": self.n_errors,
            "warnings": warned(self.request, scores.notices),
            **identity(self.request, self.key),
        }

    def item(self, scored: Scored, scores: Scores, job: Job) -> dict[str, Any]:
        self.n_errors += scored.error is not None
        named: dict[str, Any] = {}
        if scored.inspection is not None and scored.file is not None:
            told = [*scores.notices, *scored.notices]
            verdict = Verdict(
                self.key, scored.file, scored.inspection, scores.provenance, told, left_out=scored.left_out
            )
            named, notices = self.recording.add(verdict, job)
            scored = replace(scored, notices=(*scored.notices, *notices))
        return {**scored_fields(scored, scores.criteria, self.language, heatmap=self.include_heatmap), **named}


def _line(value: dict[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False) + "\n"

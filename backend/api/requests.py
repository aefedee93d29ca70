"""What the routes share: ids, dependencies, sentences, and work in a thread that stops when the client leaves."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

import anyio
import anyio.to_thread
from fastapi import Depends, Form, Header, Query, Request
from pydantic import BaseModel, BeforeValidator
from pydantic_core import PydanticCustomError

from backend.api.catalogue import Said, sentence
from backend.api.meant import unmeant
from backend.api.problems import language_of
from backend.api.schemas import ErrorBody, Promise
from backend.base.errors import TimedOut
from backend.base.keys import ModelKey
from backend.calib import CONFIDENCE
from backend.records.verdicts import checked_text
from backend.samples.collector import Collector
from backend.service.calibration import Terms
from backend.service.inspection import Inspector
from backend.service.jobs import Job, ProgressBoard, TrackedJob
from backend.storage import Change

T = TypeVar("T")

RESPONSES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": meaning}
    for status, meaning in {
        400: "The request cannot be served as it is; `code` and `error` say why.",
        401: "The service asks for a key.",
        403: "This client or key may not do this.",
        404: "What is asked for is not there.",
        409: "It contradicts what is there; both values are named.",
        413: "The file or the request is too large.",
        422: "Fields are missing or not valid.",
        429: "Too many requests of this client: try again after `Retry-After` seconds.",
        500: "A fault of the service; the request's id is in its log.",
        503: "Busy: try again after `Retry-After` seconds.",
        507: "The disk is full; nothing was changed.",
    }.items()
}


# /docs fills a form with the first examples, and leaves a field out that is empty. Without one it would send "string".
LEFT_OUT = [""]
ShapeField = Annotated[
    str | None,
    Form(
        description=(
            'Where the part is inside the ROI, as JSON, such as {"kind":"circle","cx":192,"cy":192,"r":180}: nothing '
            "else is learnt or scored."
        ),
        examples=LEFT_OUT,
    ),
]

_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*")


def _as_a_station_writes(value: object) -> object:
    """Refuse what Python alone takes for a number, as `1_0`, and say of `0,2` what is wrong with it.

    Only what is written in digits is shown again: a text that went astray may be a key.
    """
    if not isinstance(value, str) or _NUMBER.fullmatch(value):
        return value
    if value.strip(" +-").lower() in {"nan", "inf", "infinity"}:
        raise PydanticCustomError("finite_number", "not finite")
    if re.fullmatch(r"[\d.,'_ +-]{1,20}", value):
        raise PydanticCustomError("not_a_number", "not a number", {"given": value.strip()})
    raise PydanticCustomError("float_parsing", "not a number")


MmPerPx = Annotated[
    float,
    BeforeValidator(_as_a_station_writes),
    Form(gt=0, le=1e6, allow_inf_nan=False, description="Millimetres per pixel of the ROI.", examples=[0.2]),
]
RoleId = Annotated[str, Form(description="Role, such as Master1.", examples=["Master1"])]
RoiId = Annotated[str, Form(description="ROI, such as Pattern.", examples=["Pattern"])]
ModelKeyField = Annotated[
    str | None, Form(description="The station's own name of the ROI; roi_id is what counts.", examples=LEFT_OUT)
]
RecipeField = Annotated[
    str | None, Form(description="Recipe of the model; the header X-Recipe-Id says the same.", examples=LEFT_OUT)
]
RecipeHeader = Annotated[
    str | None, Header(alias="X-Recipe-Id", description="Recipe of the model; `default` without one.")
]


async def get_inspector(request: Request) -> Inspector:
    """The app's inspector."""
    inspector: Inspector = request.app.state.inspector
    return inspector


InspectorDep = Annotated[Inspector, Depends(get_inspector)]


async def get_collector(request: Request) -> Collector:
    """The app's collector."""
    collector: Collector = request.app.state.collector
    return collector


CollectorDep = Annotated[Collector, Depends(get_collector)]


async def get_progress(request: Request) -> ProgressBoard:
    """The app's jobs."""
    board: ProgressBoard = request.app.state.progress
    return board


ProgressDep = Annotated[ProgressBoard, Depends(get_progress)]


async def form_key(
    role_id: RoleId,
    roi_id: RoiId,
    model_key: ModelKeyField = None,
    recipe_id: RecipeField = None,
    x_recipe_id: RecipeHeader = None,
) -> ModelKey:
    """The model that a form names. Raises InvalidId, RecipeInvalid."""
    return ModelKey.of(role_id, roi_id, recipe_id or x_recipe_id)


FormKey = Annotated[ModelKey, Depends(form_key)]


async def query_key(
    role_id: Annotated[str, Query(description="Role, such as Master1.", examples=["Master1"])],
    roi_id: Annotated[str, Query(description="ROI, such as Pattern.", examples=["Pattern"])],
    recipe_id: Annotated[
        str | None, Query(description="Recipe of the model; the header X-Recipe-Id says the same.")
    ] = None,
    x_recipe_id: RecipeHeader = None,
) -> ModelKey:
    """The model that a query names. Raises InvalidId, RecipeInvalid."""
    return ModelKey.of(role_id, roi_id, recipe_id or x_recipe_id)


QueryKey = Annotated[ModelKey, Depends(query_key)]


def terms_of(request: Request, body: Promise) -> Terms:
    """What a calibration is asked for. Raises ThresholdAndPromise."""
    return Terms(
        max_false_reject=body.max_false_reject,
        confidence=body.confidence or CONFIDENCE,
        threshold=body.threshold,
        note=(body.note or "").strip(),
        author=change_of(request, "calibrate", body.author, None).author,
    )


def change_of(request: Request, event: str, author: str | None, note: str | None) -> Change:
    """What a request does to a model, by whom (its API key's name where it does not say), and what they noted."""
    key_id = getattr(request.state, "key_id", None)
    who = checked_text(author, "author") or (f"key {key_id}" if key_id else "")
    return Change(event, who, checked_text(note, "note", 2000, lines=True) or "")


async def change_form(
    request: Request,
    memory_fit: Annotated[bool, Form(description="Add to the memory instead of replacing it.")] = False,
    note: Annotated[
        str | None, Form(description="Kept with the memory; at most 2000 characters.", examples=LEFT_OUT)
    ] = None,
    author: Annotated[
        str | None, Form(description="Who does it; the API key's name without it.", examples=LEFT_OUT)
    ] = None,
) -> Change:
    """What a form does to a memory, who sends it, and what they noted. Raises InvalidValue."""
    return change_of(request, "grow" if memory_fit else "fit", author, note)


def described(model: type[BaseModel]) -> dict[str, Any]:
    """What OpenAPI says of a body that `BodyOf` reads."""
    schema = model.model_json_schema()
    forms = ("application/json", "application/x-www-form-urlencoded", "multipart/form-data")
    return {"requestBody": {"required": True, "content": {form: {"schema": schema} for form in forms}}}


def sentences(request: Request, said: Sequence[Said]) -> list[str]:
    """Notices and errors in the client's language."""
    language = language_of(request.headers)
    return [sentence(one, language) for one in said]


def warned(request: Request, said: Sequence[Said] = ()) -> list[str]:
    """The `warnings` of an answer: what was noticed, and the names in the request that its route does not have."""
    return sentences(request, [*said, *unmeant(request)])


def identity(request: Request, key: ModelKey) -> dict[str, str]:
    """The ids that every answer about a model carries."""
    return {
        "role_id": key.role_id,
        "roi_id": key.roi_id,
        "recipe_id": key.recipe_id,
        "request_id": request.state.request_id,
    }


async def run_job(
    request: Request, work: Callable[[Job], T], job: Job | None = None, *, timeout_s: float | None = None
) -> T:
    """Run `work(job)` in a thread; when the client goes away the job is cancelled.

    There are a few more threads than MAX_QUEUE, so that a crowd is told so by the queue and does not wait for a thread.

    Raises:
        TimedOut: it took longer than `timeout_s`; the job was cancelled.
    """
    job = job or Job()
    limiter: anyio.CapacityLimiter = request.app.state.limiter

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        job.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        with anyio.move_on_after(timeout_s) as scope:
            return await anyio.to_thread.run_sync(work, job, limiter=limiter, abandon_on_cancel=timeout_s is not None)
        assert scope.cancelled_caught
        job.cancel()
        raise TimedOut(seconds=f"{timeout_s:g}", retry_after=1)
    finally:
        watcher.cancel()


async def run_tracked(request: Request, work: Callable[[TrackedJob], T]) -> T:
    """Like `run_job`, and the job can be followed at /progress/<the request's id>."""
    board: ProgressBoard = request.app.state.progress
    job = board.begin(request.state.request_id)
    with job.ending():
        return await run_job(request, lambda _: work(job), job)

"""What the routes share: bounded uploads, ids from the request, work in a thread that a leaving client cancels."""

from __future__ import annotations

import asyncio
import errno
import re
import tempfile
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Annotated, Any, TypeVar
from urllib.parse import unquote

import anyio
import anyio.to_thread
from fastapi import Depends, Form, Header, Query, Request, Response, UploadFile
from fastapi.routing import APIRoute
from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from backend.api.problems import Refused, language_of
from backend.api.schemas import ErrorBody
from backend.api.security import MB
from backend.base.config import Settings
from backend.base.errors import BadForm, BadRequest, DiskFull, FileTooLarge, Notice, QueueFull, TimedOut
from backend.base.keys import ModelKey
from backend.infer import Region
from backend.samples.collector import Collector
from backend.service.images import ImageFile
from backend.service.inspection import Inspector
from backend.service.jobs import Job, ProgressBoard, TrackedJob

T = TypeVar("T")

# Bytes of a request whose files stay in memory: on their way to the disk each piece of them would wait for a thread.
IN_MEMORY = 8 * MB

ERRORS: dict[int | str, dict[str, Any]] = {
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

MmPerPx = Annotated[float, Form(gt=0, le=1e6, allow_inf_nan=False, description="Millimetres per pixel of the ROI.")]
RoleId = Annotated[str, Form(description="Role, such as Master1.", examples=["Master1"])]
RoiId = Annotated[str, Form(description="ROI, such as Pattern.", examples=["Pattern"])]
ModelKeyField = Annotated[str | None, Form(description="The station's name of the ROI; roi_id is used.")]
RecipeField = Annotated[str | None, Form(description="Recipe; the X-Recipe-Id header says the same.")]
RecipeHeader = Annotated[str | None, Header(alias="X-Recipe-Id", description="Recipe; `default` without one.")]


# RFC 6266: beside a plain filename, which .NET writes in MIME's encoded words, this one is the name.
_FILENAME_STAR = re.compile(rb"filename\*=\"?utf-8'[^']*'([^;\"\s]+)", re.IGNORECASE)

_FILENAME = re.compile(rb";\s*filename=", re.IGNORECASE)  # without it the framework takes a part for a text


class _BoundedParser(MultiPartParser):
    """Refuses a file over the limit while it streams, and a body that ends before its last boundary."""

    max_upload_mb: float = 64
    spool_max_size = 256 * 2**10  # a thousand small files must not fill the memory that one large one may
    _whole = False

    async def parse(self) -> FormData:
        form = await super().parse()
        if not self._whole:
            for file in self._files_to_close_on_error:
                file.close()
            raise Refused(BadForm())
        return form

    def on_end(self) -> None:
        self._whole = True

    def on_part_begin(self) -> None:
        super().on_part_begin()
        self._part_bytes = 0

    def on_headers_finished(self) -> None:
        part = self._current_part
        extended = _FILENAME_STAR.search(part.content_disposition or b"")
        if extended is not None and not _FILENAME.search(part.content_disposition or b""):
            part.content_disposition = (part.content_disposition or b"") + b"; filename=upload"
        super().on_headers_finished()
        file = part.file
        if file is not None and extended is not None:
            file.filename = unquote(extended[1].decode("latin-1"), errors="replace")

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._part_bytes += end - start
        if self._part_bytes > self.max_upload_mb * MB:
            file = self._current_part.file
            name = ImageFile.named(file.filename if file else "", bytes).name
            raise Refused(FileTooLarge(name=name, limit=f"{self.max_upload_mb:g}"))
        super().on_part_data(data, start, end)


class _UploadRequest(Request):
    async def _get_form(self, **_: Any) -> FormData:
        if self._form is not None:
            return self._form
        if not self.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            self._form = await super()._get_form(max_files=1, max_fields=100, max_part_size=MB)
            return self._form
        settings: Settings = self.app.state.settings
        parser = _BoundedParser(Headers(scope=self.scope), self.stream(), max_files=settings.max_files, max_fields=2000)
        parser.max_upload_mb = settings.max_upload_mb
        if int(self.headers.get("content-length") or IN_MEMORY + 1) <= IN_MEMORY:
            parser.spool_max_size = IN_MEMORY
        try:
            self._form = await parser.parse()
        except MultiPartException as err:
            raise Refused(BadForm() if "boundary" in err.message else BadRequest(reason=err.message)) from err
        except OSError as err:
            raise _no_room(err, parser) from err
        return self._form


def _no_room(err: OSError, parser: MultiPartParser) -> Exception:
    """What to answer when a large upload could not be laid aside."""
    for file in parser._files_to_close_on_error:
        file.close()
    if err.errno in {errno.ENOSPC, getattr(errno, "EDQUOT", -1)}:
        return Refused(DiskFull(path=tempfile.gettempdir()))
    if err.errno in {errno.EMFILE, errno.ENFILE}:
        return Refused(QueueFull(waiting="?", retry_after=5))
    return err


class UploadRoute(APIRoute):
    """A route whose multipart body is held to MAX_UPLOAD_MB a file and MAX_FILES files, while it streams."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's hook for the request object."""
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            return await handle(_UploadRequest(request.scope, request.receive))

        return bounded


def get_inspector(request: Request) -> Inspector:
    """The app's inspector."""
    inspector: Inspector = request.app.state.inspector
    return inspector


InspectorDep = Annotated[Inspector, Depends(get_inspector)]


def get_collector(request: Request) -> Collector:
    """The app's collector."""
    collector: Collector = request.app.state.collector
    return collector


CollectorDep = Annotated[Collector, Depends(get_collector)]


def get_progress(request: Request) -> ProgressBoard:
    """The app's jobs."""
    board: ProgressBoard = request.app.state.progress
    return board


ProgressDep = Annotated[ProgressBoard, Depends(get_progress)]


def form_key(
    role_id: RoleId,
    roi_id: RoiId,
    model_key: ModelKeyField = None,
    recipe_id: RecipeField = None,
    x_recipe_id: RecipeHeader = None,
) -> ModelKey:
    """The model that a form names. Raises InvalidId, RecipeInvalid."""
    return ModelKey.of(role_id, roi_id, recipe_id or x_recipe_id)


FormKey = Annotated[ModelKey, Depends(form_key)]


def query_key(
    role_id: Annotated[str, Query(description="Role, such as Master1.", examples=["Master1"])],
    roi_id: Annotated[str, Query(description="ROI, such as Pattern.", examples=["Pattern"])],
    recipe_id: Annotated[str | None, Query(description="Recipe; the X-Recipe-Id header says the same.")] = None,
    x_recipe_id: RecipeHeader = None,
) -> ModelKey:
    """The model that a query names. Raises InvalidId, RecipeInvalid."""
    return ModelKey.of(role_id, roi_id, recipe_id or x_recipe_id)


QueryKey = Annotated[ModelKey, Depends(query_key)]


def uploads(files: Sequence[UploadFile]) -> list[ImageFile]:
    """The uploaded files as image files whose bytes are read when needed, as often as needed."""
    return [ImageFile.named(file.filename, _Rereadable(file)) for file in files]


class _Rereadable:
    """All bytes of an upload at each call, from any thread."""

    def __init__(self, upload: UploadFile) -> None:
        self._file = upload.file
        self._lock = threading.Lock()

    def __call__(self) -> bytes:
        with self._lock:
            self._file.seek(0)
            return self._file.read()


def sentences(request: Request, notices: Sequence[Notice]) -> list[str]:
    """Notices in the client's language."""
    language = language_of(request.headers)
    return [notice.text(language) for notice in notices]


def identity(request: Request, key: ModelKey) -> dict[str, str]:
    """The fields that tell whose answer this is."""
    return {
        "role_id": key.role_id,
        "roi_id": key.roi_id,
        "recipe_id": key.recipe_id,
        "request_id": request.state.request_id,
    }


async def run_job(
    request: Request, work: Callable[[Job], T], job: Job | None = None, *, timeout_s: float | None = None
) -> T:
    """Run `work(job)` in a thread; a client that goes away cancels the job.

    Raises:
        TimedOut: it took longer than `timeout_s`; the job was cancelled.

    The threads are as many as requests may be admitted, so that the queue's own limit is the one that answers.
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
    job = get_progress(request).begin(request.state.request_id)
    with job.ending():
        return await run_job(request, lambda _: work(job), job)


def region_fields(region: Region) -> dict[str, Any]:
    """A region as every route answers it."""
    x, y, w, h = region.bbox
    return {
        "x": x,
        "y": y,
        "w": w,
        "h": h,
        "bbox": [x, y, w, h],
        "area_px": region.area_px,
        "area_mm2": region.area_mm2,
        "contour": region.contour,
    }

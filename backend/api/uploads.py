"""Multipart bodies: held to the limits while they stream, and their files as the service reads them."""

from __future__ import annotations

import errno
import json
import re
import tempfile
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any
from urllib.parse import unquote

from fastapi import Request, Response, UploadFile
from fastapi.routing import APIRoute
from starlette.datastructures import FormData, Headers
from starlette.formparsers import MultiPartException, MultiPartParser

from backend.api.limits import MB
from backend.api.problems import Refused
from backend.base.config import Settings
from backend.base.errors import (
    BadForm,
    BadRequest,
    DiskFull,
    FieldTwice,
    FileTooLarge,
    QueueFull,
    once_each,
)
from backend.service.images import ImageFile

# Up to this size a request's files stay in memory: a file on disk costs a change of thread for each of its pieces.
IN_MEMORY = 8 * MB

# RFC 6266: where there is a `filename*`, it is the name; .NET writes the plain one beside it in MIME's encoded words.
_FILENAME_STAR = re.compile(rb"filename\*=\"?utf-8'[^']*'([^;\"\s]+)", re.IGNORECASE)

_FILENAME = re.compile(rb";\s*filename=", re.IGNORECASE)  # the framework takes a part without one for a text field


class _BoundedParser(MultiPartParser):
    """Refuses a file over the limit while it streams, and a body that ends before its last boundary."""

    max_upload_mb: float = 64
    spool_max_size = 256 * 2**10  # of each file: what is larger goes to disk, as a request may have a thousand files
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
    """A request whose form is read by `_BoundedParser`, and whose JSON objects have each key once."""

    async def json(self) -> Any:
        """The body as JSON. Raises ValueError; Refused: a key comes twice."""
        if not hasattr(self, "_json"):
            try:
                self._json = json.loads(await self.body(), object_pairs_hook=once_each)
            except FieldTwice as err:
                raise Refused(err) from err
        return self._json

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
    """What to answer when the files of an upload could not be kept in the system's temporary folder."""
    for file in parser._files_to_close_on_error:
        file.close()
    if err.errno in {errno.ENOSPC, getattr(errno, "EDQUOT", -1)}:
        return Refused(DiskFull(path=tempfile.gettempdir()))
    if err.errno in {errno.EMFILE, errno.ENFILE}:
        return Refused(QueueFull(waiting="?", retry_after=5))
    return err


class UploadRoute(APIRoute):
    """A route whose multipart body is held to MAX_UPLOAD_MB a file and MAX_FILES files while it streams.

    Keys that come twice in its JSON are refused.
    """

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """FastAPI's hook for the request object."""
        handle = super().get_route_handler()

        async def bounded(request: Request) -> Response:
            return await handle(_UploadRequest(request.scope, request.receive))

        return bounded


# Of a field of several files. /docs offers a file picker for it by `format` alone (OpenAPI 3.0's word for a file).
PICKED_FILES = {"items": {"type": "string", "format": "binary", "contentMediaType": "application/octet-stream"}}


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

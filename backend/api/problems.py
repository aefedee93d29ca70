"""Error answers: the one function that builds them, what calls it, and the language that the client reads."""

from __future__ import annotations

import ipaddress
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Scope

from backend.api.catalogue import Language, reason_of, sentence, status_of
from backend.base.errors import (
    BadForm,
    BadRequest,
    InspectionError,
    InvalidFields,
    MethodNotAllowed,
    NotFound,
    OutOfMemory,
    ServerFault,
)
from backend.base.files import is_the_machines, storage_fault
from backend.base.messages import Phrase, faults_of, field_name

METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
FORWARDING_HEADERS = frozenset({"forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip"})


class Refused(HTTPException):
    """Carries an InspectionError out of the framework's reading of a body, which lets only HTTPExceptions through."""

    def __init__(self, error: InspectionError) -> None:
        super().__init__(status_of(error), str(error))
        self.error = error


def language_of(headers: Headers) -> Language:
    """`es` or `en`, whichever Accept-Language ranks higher; Spanish without one."""
    best: tuple[float, Language] = (0.0, "es")
    for part in headers.get("accept-language", "").split(","):
        tag, *parameters = (piece.strip() for piece in part.lower().split(";"))
        code = tag.split("-", 1)[0]
        weight = _quality(parameters)
        if code in {"es", "en"} and weight > best[0]:
            best = (weight, "en" if code == "en" else "es")
    return best[1]


def _quality(parameters: Sequence[str]) -> float:
    """The q of a language range (RFC 9110, section 12.4.2), 1 without one and 0 when it is not valid."""
    for parameter in parameters:
        name, _, value = parameter.partition("=")
        if name.strip() == "q":
            return float(value) if re.fullmatch(r"\s*(0(\.\d*)?|1(\.0*)?)\s*", value) else 0.0
    return 1.0


def is_local(scope: Scope) -> bool:
    """Whether the client is on this machine: a loopback address, or none at all, and no forwarding header."""
    headers = Headers(scope=scope)
    if any(name in FORWARDING_HEADERS or name.startswith("x-forwarded") for name in headers):
        return False
    host = (scope.get("client") or ("",))[0]
    try:
        address = ipaddress.ip_address(host.split("%", 1)[0])
    except ValueError:  # a unix socket or an in-process transport: no network in between
        return True
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def problem(
    scope: Scope,
    error: InspectionError,
    *,
    status: int | None = None,
    detail: Any = None,
    cause: BaseException | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The answer to a request that failed with `error`.

    Args:
        status: instead of the error's own.
        detail: instead of the sentence, in the field `detail`.
        cause: whose traceback is shown instead of the error's own.

    `trace` is filled on 5xx only, for a client on this machine or with EXPOSE_TRACES=1.
    """
    status = status or status_of(error)
    language = language_of(Headers(scope=scope))
    request_id = scope.get("state", {}).get("request_id", "-")
    text = sentence(error, language, request_id=request_id)
    body = {
        "error": text,
        "trace": _trace(scope, cause or error) if status >= 500 else None,
        "code": error.code,
        "request_id": request_id,
        "detail": text if detail is None else detail,
        **reason_of(error, language),
    }
    sent = {**(headers or {}), "Content-Language": language}
    if "retry_after" in error.values:
        sent["Retry-After"] = str(error.values["retry_after"])
    if status == 401:
        sent["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status_code=status, headers=sent)


def _trace(scope: Scope, cause: BaseException) -> str | None:
    settings = getattr(getattr(scope.get("app"), "state", None), "settings", None)
    if not (is_local(scope) or (settings is not None and settings.expose_traces)):
        return None
    return "".join(traceback.format_exception(cause))


async def on_inspection_error(request: Request, error: Exception) -> Response:
    """Handler of InspectionError."""
    assert isinstance(error, InspectionError)
    return problem(request.scope, error)


async def on_invalid_fields(request: Request, error: Exception) -> Response:
    """Handler of FastAPI's 422: `detail` keeps its list, without the values that were sent."""
    assert isinstance(error, RequestValidationError)
    given = error.errors()
    fields = [{"loc": list(e["loc"]), "msg": e["msg"], "type": e["type"]} for e in given]
    return problem(request.scope, _invalid(given, request.headers), detail=fields)


def _invalid(given: Sequence[Mapping[str, Any]], headers: Headers) -> InvalidFields:
    """What is wrong with the body as a whole, or with its fields."""
    unread = next((e for e in given if e["type"] == "json_invalid"), None)
    if unread is not None:
        return InvalidFields(reason=Phrase("body_not_json", {"at": unread["loc"][-1]}))
    if any(tuple(e["loc"]) == ("body",) for e in given):
        json_sent = _is_json(headers.get("content-type", ""))
        return InvalidFields(reason=Phrase("body_not_object" if json_sent else "content_type_not_json"))
    faults = faults_of(given, lambda loc: field_name(loc[1:]) or str(loc[0]))
    return InvalidFields(reason=Phrase("fields_invalid", {"fields": faults}))


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Handler of the framework's own HTTP errors: unknown path, method, unreadable body."""
    assert isinstance(error, HTTPException)
    if isinstance(error, Refused):
        return problem(request.scope, error.error)
    path = request.url.path[:200]
    if error.status_code == 404:
        return problem(request.scope, NotFound(path=path), headers=error.headers)
    if error.status_code == 405:
        refused = MethodNotAllowed(path=path, method=request.method)
        return problem(request.scope, refused, headers={"Allow": _allowed(request)})
    if error.status_code == 400:
        return problem(request.scope, BadForm())
    return problem(request.scope, BadRequest(reason=error.detail), status=error.status_code)


def _allowed(request: Request) -> str:
    """The methods that some route has at the request's path; the framework names those of the first one alone."""
    asked = [{**request.scope, "method": method} for method in METHODS]
    routes = request.app.routes
    found = [s["method"] for s in asked if any(route.matches(s)[0] is Match.FULL for route in routes)]
    return ", ".join(found)


def unexpected(scope: Scope, error: Exception) -> JSONResponse:
    """The answer to an exception that no layer turned into an InspectionError: what the machine lacks, or a 500."""
    known: InspectionError = ServerFault()
    if is_the_machines(error):
        name = PurePath(str(getattr(error, "filename", None) or "?")).name
        known = storage_fault(error, name) if isinstance(error, OSError) else OutOfMemory(retry_after=5)
    return problem(scope, known, cause=error)

"""The one builder of error answers, and the language that the client reads."""

from __future__ import annotations

import ipaddress
import re
import traceback
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi.exceptions import RequestValidationError
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Match
from starlette.types import Scope

from backend.base.errors import (
    BadForm,
    BadRequest,
    BodyNotJson,
    BodyNotObject,
    ContentTypeNotJson,
    InspectionError,
    InvalidFields,
    Language,
    MethodNotAllowed,
    NotFound,
    ServerFault,
)
from backend.base.fields import Fault, Faults, place

_NAMED = {404: NotFound, 405: MethodNotAllowed}
METHODS = ("DELETE", "GET", "HEAD", "PATCH", "POST", "PUT")
FORWARDING_HEADERS = frozenset({"forwarded", "via", "x-real-ip", "x-client-ip", "true-client-ip", "cf-connecting-ip"})


class Refused(HTTPException):
    """An InspectionError in the clothes that the framework lets through while it reads a body."""

    def __init__(self, error: InspectionError) -> None:
        super().__init__(error.status, str(error))
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
    detail: Any = None,
    cause: BaseException | None = None,
    headers: Mapping[str, str] | None = None,
) -> JSONResponse:
    """The answer to a request that failed with `error`.

    `trace` is filled on 5xx only, for a client on this machine or with EXPOSE_TRACES=1.
    """
    language = language_of(Headers(scope=scope))
    request_id = scope.get("state", {}).get("request_id", "-")
    error.values.setdefault("request_id", request_id)
    text = error.text(language)
    body = {
        "error": text,
        "trace": _trace(scope, error, cause),
        "code": error.code,
        "request_id": request_id,
        "detail": text if detail is None else detail,
    }
    sent = {**(headers or {}), "Content-Language": language}
    if "retry_after" in error.values:
        sent["Retry-After"] = str(error.values["retry_after"])
    if error.status == 401:
        sent["WWW-Authenticate"] = "Bearer"
    return JSONResponse(body, status_code=error.status, headers=sent)


def _trace(scope: Scope, error: InspectionError, cause: BaseException | None) -> str | None:
    if error.status < 500:
        return None
    settings = getattr(getattr(scope.get("app"), "state", None), "settings", None)
    if not (is_local(scope) or (settings is not None and settings.expose_traces)):
        return None
    return "".join(traceback.format_exception(cause or error))


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
        return BodyNotJson(at=unread["loc"][-1])
    if any(tuple(e["loc"]) == ("body",) for e in given):
        return BodyNotObject() if _is_json(headers.get("content-type", "")) else ContentTypeNotJson()
    faults = [Fault(place(e["loc"][1:]) or str(e["loc"][0]), e["type"], e.get("ctx", {})) for e in given]
    return InvalidFields(fields=Faults(faults))


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Handler of the framework's own HTTP errors: unknown path, method, unreadable body."""
    assert isinstance(error, HTTPException)
    if isinstance(error, Refused):
        return problem(request.scope, error.error)
    named = _NAMED.get(error.status_code)
    if named is not None:
        error_named = named(path=request.url.path[:200], method=request.method)
        headers = {"Allow": _allowed(request)} if error.status_code == 405 else error.headers
        return problem(request.scope, error_named, headers=headers)
    if error.status_code == 400:
        return problem(request.scope, BadForm())
    other = BadRequest(reason=error.detail)
    other.status = error.status_code  # type: ignore[misc]
    return problem(request.scope, other)


def _allowed(request: Request) -> str:
    """The methods that some route has at the request's path; the framework names those of the first one alone."""
    asked = [{**request.scope, "method": method} for method in METHODS]
    routes = request.app.routes
    found = [s["method"] for s in asked if any(route.matches(s)[0] is Match.FULL for route in routes)]
    return ", ".join(found)


def unexpected(scope: Scope, error: Exception) -> JSONResponse:
    """The answer to an error that nobody foresaw."""
    return problem(scope, ServerFault(), cause=error)

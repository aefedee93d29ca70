"""Logging, and the outermost layer around the app: it gives each request its ids and answers what nobody caught."""

from __future__ import annotations

import json
import logging
import re
import sys
import uuid
from contextvars import ContextVar
from datetime import datetime, timezone
from time import perf_counter

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.api.catalogue import sentence
from backend.api.problems import unexpected
from backend.base.errors import StartupError

logger = logging.getLogger("backend.access")

request_id_var: ContextVar[str] = ContextVar("request_id", default="-")
correlation_id_var: ContextVar[str] = ContextVar("correlation_id", default="-")
_SAFE_ID = re.compile(r"[!-~](?:[ -~]{0,254}[!-~])?")  # printable ASCII: one line of the log stays one line
_QUIET_PATHS = {"/livez", "/readyz", "/metrics"}


class RequestIdentity:
    """ASGI layer: takes or makes X-Request-Id and X-Correlation-Id, logs the request, answers unforeseen errors."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Wrap one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, _explaining(send))
            return
        headers = Headers(scope=scope)
        correlation = _accepted(headers.get("x-correlation-id"))
        request_id = _accepted(headers.get("x-request-id")) or correlation or uuid.uuid4().hex
        correlation = correlation or request_id
        scope.setdefault("state", {}).update(request_id=request_id, correlation_id=correlation)
        request_id_var.set(request_id)
        correlation_id_var.set(correlation)
        answer = _Answer(send, request_id, correlation)
        started = perf_counter()
        try:
            await self.app(scope, receive, answer)
        except Exception as err:  # the outermost handler: the client gets the error body, the log the traceback
            logger.exception("unexpected error on %s %s", scope["method"], printable(scope["path"]))
            if answer.status:
                raise
            await unexpected(scope, err)(scope, receive, answer)
        finally:
            level = logging.DEBUG if scope["path"] in _QUIET_PATHS else logging.INFO
            spent = 1000 * (perf_counter() - started)
            path, outcome = printable(scope["path"]), answer.status or "cut"
            logger.log(level, "%s %s -> %s in %.1f ms", scope["method"], path, outcome, spent)


def _explaining(send: Send) -> Send:
    """`send`, which tells the server why the start failed with the error's sentence: it says what to do."""

    async def tell(message: Message) -> None:
        err = sys.exc_info()[1]
        if message["type"] == "lifespan.startup.failed" and isinstance(err, StartupError):
            message = {**message, "message": sentence(err, "en")}
        await send(message)

    return tell


class _Answer:
    """Notes the answer's status, and adds the request's ids to its headers."""

    def __init__(self, send: Send, request_id: str, correlation_id: str) -> None:
        self._send = send
        self._ids = {"x-request-id": request_id, "x-correlation-id": correlation_id}
        self.status = 0

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = int(message["status"])
            headers = MutableHeaders(scope=message)
            for name, value in self._ids.items():
                headers[name] = value
        await self._send(message)


def printable(text: str) -> str:
    """`text` cut short and without control characters: a path may hold line breaks, and a line of the log may not."""
    return "".join(c if c.isprintable() else "?" for c in text[:200])


def _accepted(value: str | None) -> str:
    """The id as it was sent, if the log and the answer's headers may hold it; else nothing."""
    return value if value and _SAFE_ID.fullmatch(value) else ""


class _WithIds(logging.Filter):
    """Adds the ids of the request at hand to each line of the log."""

    def filter(self, record: logging.LogRecord) -> bool:
        record.request_id = request_id_var.get()
        record.correlation_id = correlation_id_var.get()
        return True


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message, request_id, correlation_id, exception if any."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": getattr(record, "request_id", "-"),
            "correlation_id": getattr(record, "correlation_id", "-"),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


TEXT_FORMAT = "%(asctime)s %(levelname)-7s [%(correlation_id)s] %(name)s: %(message)s"


def configure_logging(level: str = "INFO", form: str = "text") -> None:
    """Send the service's log to stderr as text or JSON, with the correlation id on every line."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == "json" else logging.Formatter(TEXT_FORMAT))
    handler.addFilter(_WithIds())
    for name in ("backend", "uvicorn"):
        target = logging.getLogger(name)
        target.handlers = [handler]
        target.setLevel(level)
        target.propagate = False
    for name, quiet in (("uvicorn.error", level), ("uvicorn.access", "WARNING")):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).setLevel(quiet)
        logging.getLogger(name).propagate = True

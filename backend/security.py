"""Who may call, and how much they may send: ASGI layers in front of the routes."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.config import Settings
from backend.errors import InspectionError, LoopbackOnly, OriginRefused, RequestTooLarge, Unauthorized
from backend.problems import Refused, is_local, problem

PUBLIC_PATHS = frozenset({"/livez", "/"})
PUBLIC_PREFIXES: tuple[str, ...] = ("/web/",)
MAX_JSON_MB = 16
DRAINED_BYTES = 64 * 2**20
MB = 2**20


class Guard:
    """Refuses strangers: API keys when there are any, else only clients on this machine; foreign web pages always."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings
        self._keys = key_hashes(settings.api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request pass or answer it with 401 or 403."""
        refusal = self._refusal(scope) if scope["type"] == "http" else None
        if refusal is None:
            await self.app(scope, receive, send)
        else:
            await problem(scope, refusal)(scope, receive, send)

    def _refusal(self, scope: Scope) -> InspectionError | None:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin and not self._same_site(origin, headers):
            return OriginRefused(origin=origin[:200])
        path = scope["path"]
        if path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIXES or ("\0",)):
            return None
        if self._keys:
            return None if known_key(headers, self._keys) else Unauthorized()
        return None if self.settings.allow_insecure or is_local(scope) else LoopbackOnly()

    def _same_site(self, origin: str, headers: Headers) -> bool:
        allowed = self.settings.cors_origins
        return "*" in allowed or origin in allowed or origin.split("://", 1)[-1] == headers.get("host", "")


def key_hashes(keys: Sequence[str]) -> list[bytes]:
    """SHA-256 of each key; a key written `sha256:<hex>` is one already."""
    return [
        bytes.fromhex(key[7:]) if key.startswith("sha256:") else hashlib.sha256(key.encode()).digest() for key in keys
    ]


def known_key(headers: Headers, hashes: Sequence[bytes]) -> bool:
    """Whether X-API-Key or a Bearer token is one of `hashes`; takes as long for a wrong key as for a right one."""
    scheme, _, token = headers.get("authorization", "").partition(" ")
    sent = headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")
    digest = hashlib.sha256(sent.encode()).digest()
    matches = [hmac.compare_digest(digest, known) for known in hashes]
    return any(matches) and bool(sent)


class BodyLimit:
    """Refuses a body over the limit while it streams: MAX_REQUEST_MB for multipart, 16 MB for anything else."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.max_request_mb = settings.max_request_mb

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what one request sends."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        multipart = headers.get("content-type", "").lower().startswith("multipart/")
        limit_mb = self.max_request_mb if multipart else min(MAX_JSON_MB, self.max_request_mb)
        setting = "MAX_REQUEST_MB" if multipart else "JSON"
        body = _CountedBody(receive, limit_mb, setting)
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit_mb * MB:
            body.asks_first = headers.get("expect", "").lower() == "100-continue"
            await problem(scope, body.refusal())(scope, receive, _DrainFirst(send, body))
            return
        await self.app(scope, body, _DrainFirst(send, body))


class _CountedBody:
    def __init__(self, receive: Receive, limit_mb: float, setting: str) -> None:
        self._receive = receive
        self._limit_mb = limit_mb
        self._setting = setting
        self._count = 0
        self.complete = False
        self.asks_first = False

    def refusal(self) -> RequestTooLarge:
        return RequestTooLarge(limit=f"{self._limit_mb:g}", setting=self._setting)

    async def __call__(self) -> Message:
        message = await self._next()
        if self._count > self._limit_mb * MB:
            raise Refused(self.refusal())
        return message

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._count += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
        else:
            self.complete = True
        return message

    async def drain(self) -> None:
        """Swallow a bounded rest of the body, so that the client reads the answer instead of a reset connection.

        A client that asked first (Expect: 100-continue) has not sent it yet.
        """
        if self.asks_first:
            return
        stop = self._count + DRAINED_BYTES
        while not self.complete and self._count < stop:
            await self._next()


class _DrainFirst:
    def __init__(self, send: Send, body: _CountedBody) -> None:
        self._send = send
        self._body = body

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] == 413:
            await self._body.drain()
            if not self._body.complete:
                MutableHeaders(scope=message)["connection"] = "close"
        await self._send(message)

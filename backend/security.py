"""Who may call, and how much they may send: ASGI layers in front of the routes."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from time import time

import anyio
from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.config import Settings
from backend.errors import (
    BodyTimeout,
    InspectionError,
    LoopbackOnly,
    OriginRefused,
    ReadOnlyKey,
    RequestTooLarge,
    TooManyRequests,
    Unauthorized,
)
from backend.problems import Refused, is_local, problem

PUBLIC_PATHS = frozenset({"/livez"})
PUBLIC_PREFIXES: tuple[str, ...] = ()
READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
READING_POSTS = frozenset({"/infer", "/infer_dataset", "/predict", "/predict/batch"})
CAREFUL_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
MAX_JSON_MB = 16
DRAINED_BYTES = 64 * 2**20
MB = 2**20


class Guard:
    """Refuses strangers: API keys when there are any, else only clients on this machine; foreign web pages always.

    Also holds clients to RATE_LIMIT, each process for itself, and sets the headers that keep browsers careful.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings
        self._admins = key_hashes(settings.api_keys)
        self._readers = key_hashes(settings.api_keys_read)
        self._limit = parse(settings.rate_limit) if settings.rate_limit else None
        self._hits = FixedWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request pass or answer it with 401, 403 or 429."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._too_many(scope) or self._refusal(scope)
        careful = _Careful(send)
        if refusal is None:
            await self.app(scope, receive, careful)
        else:
            await problem(scope, refusal)(scope, receive, careful)

    def _too_many(self, scope: Scope) -> InspectionError | None:
        client = (scope.get("client") or ("local",))[0]
        if self._limit is None or self._hits.hit(self._limit, client):
            return None
        reset, _ = self._hits.get_window_stats(self._limit, client)
        return TooManyRequests(limit=self.settings.rate_limit, retry_after=max(1, round(reset - time())))

    def _refusal(self, scope: Scope) -> InspectionError | None:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        if origin and not self._same_site(origin, headers):
            return OriginRefused(origin=origin[:200])
        path = scope["path"]
        if path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIXES or ("\0",)):
            return None
        if not (self._admins or self._readers):
            return None if self.settings.allow_insecure or is_local(scope) else LoopbackOnly()
        if known_key(headers, self._admins):
            return None
        if not known_key(headers, self._readers):
            return Unauthorized()
        return None if scope["method"] in READING_METHODS or path in READING_POSTS else ReadOnlyKey()

    def _same_site(self, origin: str, headers: Headers) -> bool:
        allowed = self.settings.cors_origins
        return "*" in allowed or origin in allowed or origin.split("://", 1)[-1] == headers.get("host", "")


class _Careful:
    """Adds security headers where the route set none."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in CAREFUL_HEADERS.items():
                headers.setdefault(name, value)
            if headers.get("content-type", "").startswith("application/json"):
                headers.setdefault("content-security-policy", "default-src 'none'; frame-ancestors 'none'")
                headers.setdefault("cache-control", "no-store")
        await self._send(message)


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
        self.timeout_s = settings.body_timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count what one request sends."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        multipart = headers.get("content-type", "").lower().startswith("multipart/")
        limit_mb = self.max_request_mb if multipart else min(MAX_JSON_MB, self.max_request_mb)
        setting = "MAX_REQUEST_MB" if multipart else "JSON"
        body = _CountedBody(receive, limit_mb, setting, self.timeout_s)
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit_mb * MB:
            body.asks_first = headers.get("expect", "").lower() == "100-continue"
            await problem(scope, body.refusal())(scope, receive, _DrainFirst(send, body))
            return
        await self.app(scope, body, _DrainFirst(send, body))


class _CountedBody:
    def __init__(self, receive: Receive, limit_mb: float, setting: str, timeout_s: float) -> None:
        self._receive = receive
        self._timeout_s = timeout_s
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
        try:  # once the body is whole, what is waited for is the client's leaving
            with anyio.fail_after(None if self.complete else self._timeout_s):
                message = await self._receive()
        except TimeoutError as err:
            self.complete = True
            raise Refused(BodyTimeout(seconds=f"{self._timeout_s:g}")) from err
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

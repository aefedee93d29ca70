"""Who may call, and how much they may send: ASGI layers in front of the routes."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_address
from time import monotonic, time

import anyio
from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.api.problems import Refused, is_local, problem
from backend.base.config import Settings
from backend.base.errors import (
    BodyTimeout,
    HostRefused,
    InspectionError,
    LoopbackOnly,
    OriginRefused,
    ReadOnlyKey,
    ReadOnlyReplica,
    RequestTooLarge,
    TooManyRequests,
    Unauthorized,
)

PUBLIC_PATHS = frozenset({"/livez", "/"})
PUBLIC_PREFIXES: tuple[str, ...] = ("/web/",)
READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
READING_POSTS = frozenset({"/infer", "/infer_dataset", "/predict", "/predict/batch"})
CAREFUL_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}
MAX_JSON_MB = 16
# A body may take BODY_TIMEOUT_S and as long again as it takes at this pace: one byte a minute holds nobody.
SLOWEST_BYTES_S = 16 * 2**10
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
        self._rate = _Rate(settings.rate_limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request pass or answer it with 401, 403 or 429."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = None if self._public(scope) else self._too_many(scope) or self._stranger(scope)
        refusal = refusal or self._foreign_page(scope)
        careful = _Careful(send)
        if refusal is None:
            await self.app(scope, receive, careful)
        else:
            await problem(scope, refusal)(scope, receive, careful)

    def _public(self, scope: Scope) -> bool:
        path: str = scope["path"]
        return path in PUBLIC_PATHS or path.startswith(PUBLIC_PREFIXES)

    def _too_many(self, scope: Scope) -> InspectionError | None:
        headers = Headers(scope=scope)
        known = known_key(headers, self._admins + self._readers)
        return self._rate.refusal(_sent_key(headers) if known else (scope.get("client") or ("local",))[0])

    def _foreign_page(self, scope: Scope) -> InspectionError | None:
        headers = Headers(scope=scope)
        origin = headers.get("origin")
        return OriginRefused(origin=origin[:200]) if origin and not self._same_site(origin, headers) else None

    def _stranger(self, scope: Scope) -> InspectionError | None:
        headers = Headers(scope=scope)
        reads = scope["method"] in READING_METHODS or scope["path"] in READING_POSTS
        replica = ReadOnlyReplica() if self.settings.read_only and not reads else None
        if not (self._admins or self._readers):
            return replica if self.settings.allow_insecure else self._not_from_here(scope, headers) or replica
        if known_key(headers, self._admins):
            return replica
        if not known_key(headers, self._readers):
            return Unauthorized()
        return None if reads else ReadOnlyKey()

    def _not_from_here(self, scope: Scope, headers: Headers) -> InspectionError | None:
        """A page whose own name was made to point at this machine (DNS rebinding) is as foreign as another client."""
        if not is_local(scope):
            return LoopbackOnly()
        host = headers.get("host", "")
        return None if host_is_ours(host, self.settings.host) else HostRefused(host=host[:200])

    def _same_site(self, origin: str, headers: Headers) -> bool:
        allowed = self.settings.cors_origins
        return "*" in allowed or origin in allowed or origin.split("://", 1)[-1] == headers.get("host", "")


class _Rate:
    """Holds each client to a number of requests a window, in this process."""

    def __init__(self, limit: str | None) -> None:
        self._text = limit
        self._limit = parse(limit) if limit else None
        self._storage = MemoryStorage()
        self._hits = FixedWindowRateLimiter(self._storage)
        self._clock = time() - monotonic()

    def refusal(self, client: str) -> TooManyRequests | None:
        """Count one request of `client`; an error when it is one too many."""
        if self._limit is None:
            return None
        self._mind_the_clock()
        if self._hits.hit(self._limit, client):
            return None
        reset, _ = self._hits.get_window_stats(self._limit, client)
        return TooManyRequests(limit=self._text, retry_after=max(1, round(reset - time())))

    def _mind_the_clock(self) -> None:
        """The windows end by the wall clock: when it was set back they would last as long as it went back."""
        now = time() - monotonic()
        if now < self._clock - 1:
            self._storage.reset()
        self._clock = now


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
    sent = _sent_key(headers)
    digest = hashlib.sha256(sent.encode()).digest()
    matches = [hmac.compare_digest(digest, known) for known in hashes]
    return any(matches) and bool(sent)


def _sent_key(headers: Headers) -> str:
    scheme, _, token = headers.get("authorization", "").partition(" ")
    return headers.get("x-api-key") or (token.strip() if scheme.lower() == "bearer" else "")


def host_is_ours(header: str, own: str) -> bool:
    """Whether a Host header names this machine in a way that no stranger's DNS can: an address, a name without dots."""
    name = header[1:].partition("]")[0] if header.startswith("[") else header.partition(":")[0]
    if "." not in name and ":" not in name:
        return True
    if name.lower() == own.lower():
        return True
    try:
        return bool(ip_address(name))
    except ValueError:
        return False


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
        body.asks_first = headers.get("expect", "").lower() == "100-continue"
        declared = headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit_mb * MB:
            await problem(scope, body.refusal())(scope, receive, _DrainFirst(send, body))
            return
        await self.app(scope, body, _DrainFirst(send, body))


class _CountedBody:
    def __init__(self, receive: Receive, limit_mb: float, setting: str, timeout_s: float) -> None:
        self._receive = receive
        self._timeout_s = timeout_s
        self._waited = 0.0
        self._limit_mb = limit_mb
        self._setting = setting
        self._count = 0
        self.complete = False
        self.stalled = False
        self.asks_first = False

    def refusal(self) -> RequestTooLarge:
        return RequestTooLarge(limit=f"{self._limit_mb:g}", setting=self._setting)

    def given_up(self, status: int) -> bool:
        """Whether the rest of the body is not waited for, so that nothing else can follow on its connection."""
        return self.stalled or (status >= 400 and not self.complete)

    async def __call__(self) -> Message:
        message = await self._next()
        if self._count > self._limit_mb * MB:
            raise Refused(self.refusal())
        return message

    async def _next(self) -> Message:
        started = monotonic()
        left = self._timeout_s + self._count / SLOWEST_BYTES_S - self._waited
        try:  # once the body is whole, what is waited for is the client's leaving
            with anyio.fail_after(None if self.complete else min(self._timeout_s, left)):
                message = await self._receive()
        except TimeoutError as err:
            self.complete = self.stalled = True
            raise Refused(BodyTimeout(seconds=f"{self._timeout_s:g}")) from err
        self._waited += monotonic() - started
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
        if self.stalled or (self.asks_first and self._count == 0):
            return
        stop = self._count + DRAINED_BYTES
        with suppress(Refused):  # a client that stalls now has its answer coming
            while not self.complete and self._count < stop:
                await self._next()


class _DrainFirst:
    def __init__(self, send: Send, body: _CountedBody) -> None:
        self._send = send
        self._body = body

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            await self._body.drain()
        if message["type"] == "http.response.start" and self._body.given_up(message["status"]):
            MutableHeaders(scope=message)["connection"] = "close"
        await self._send(message)

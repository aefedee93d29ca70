"""How much a client may send: requests in a window of time, and bytes and seconds of a body."""

from __future__ import annotations

from contextlib import suppress
from time import monotonic, time

import anyio
from limits import parse
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.api.problems import Refused, problem
from backend.base.config import Settings
from backend.base.errors import BodyTimeout, EncodedBody, RequestTooLarge, TooManyRequests

MB = 2**20
MAX_JSON_MB = 16
# A body may take BODY_TIMEOUT_S, and as long again as its bytes need at this pace: without it a client that sends a
# byte now and then would keep its connection for ever.
SLOWEST_BYTES_S = 16 * 2**10
DRAINED_BYTES = 64 * 2**20  # of a refused body are still read


class RateLimit:
    """Holds each client to a number of requests in a window of time, counted by this process alone."""

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
        """Begin all windows anew when the wall clock was set back: they end by it, and would last longer by as much."""
        now = time() - monotonic()
        if now < self._clock - 1:
            self._storage.reset()
        self._clock = now


class HeadAsGet:
    """Answers HEAD as GET would be answered, without the body (RFC 9110, section 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a HEAD request on as GET, and its status and headers back."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return
        started = False

        async def headers_alone(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                await send(message)
                await send({"type": "http.response.body", "body": b""})

        async def until_started() -> Message:
            """The request; once its headers are answered, the client counts as gone, so that a stream ends."""
            return {"type": "http.disconnect"} if started else await receive()

        await self.app({**scope, "method": "GET"}, until_started, headers_alone)


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
        encoding = headers.get("content-encoding", "identity").strip().lower()
        if encoding not in {"", "identity"}:
            await problem(scope, EncodedBody(encoding=encoding[:40]))(scope, receive, send)
            return
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
    """A request's body, counted and timed while the app reads it."""

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
        """Whether an answer of `status` leaves some of the body unread; its connection can then carry nothing else."""
        return self.stalled or (status >= 400 and not self.complete)

    async def __call__(self) -> Message:
        message = await self._next()
        if self._count > self._limit_mb * MB:
            raise Refused(self.refusal())
        return message

    async def _next(self) -> Message:
        started = monotonic()
        left = self._timeout_s + self._count / SLOWEST_BYTES_S - self._waited
        try:  # once the body is whole the app waits without limit: for the client to leave
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
        """Read up to DRAINED_BYTES more, so that the client reads the answer instead of finding its connection reset.

        A client that asked first (Expect: 100-continue) has not sent anything yet, and nothing is waited for.
        """
        if self.stalled or (self.asks_first and self._count == 0):
            return
        stop = self._count + DRAINED_BYTES
        with suppress(Refused):  # a client that stalls now is answered all the same
            while not self.complete and self._count < stop:
                await self._next()


class _DrainFirst:
    """Reads the rest of a refused body before the answer is sent."""

    def __init__(self, send: Send, body: _CountedBody) -> None:
        self._send = send
        self._body = body

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= 400:
            await self._body.drain()
        if message["type"] == "http.response.start" and self._body.given_up(message["status"]):
            MutableHeaders(scope=message)["connection"] = "close"
        await self._send(message)

"""Who may call: the ASGI layer that asks for keys, refuses strangers and foreign web pages."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from ipaddress import ip_address

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.api.limits import RateLimit
from backend.api.problems import is_local, problem
from backend.base.config import Settings
from backend.base.errors import (
    HostRefused,
    InspectionError,
    LoopbackOnly,
    OriginRefused,
    ReadOnlyKey,
    ReadOnlyReplica,
    Unauthorized,
)

PUBLIC_PATHS = frozenset({"/livez", "/"})
PUBLIC_PREFIXES: tuple[str, ...] = ("/web/",)
READING_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
READING_POSTS = frozenset({"/infer", "/infer_dataset", "/nearest", "/predict", "/predict/batch"})
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """Refuses clients without a key or, where there are no keys, of other machines; and pages of other sites always.

    It also holds clients to RATE_LIMIT, and adds the headers that tell browsers to be careful with answers.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app = app
        self.settings = settings
        self._admins = key_hashes(settings.api_keys)
        self._readers = key_hashes(settings.api_keys_read)
        self._rate = RateLimit(settings.rate_limit)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request pass or answer it with 401, 403 or 429."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = None if self._public(scope) else self._too_many(scope) or self._stranger(scope)
        refusal = refusal or self._foreign_page(scope)
        answer = self.app if refusal is None else problem(scope, refusal)
        await answer(scope, receive, _SecurityHeaders(send))

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
        state = scope.setdefault("state", {})
        state["may_change"] = not self.settings.read_only
        if not (self._admins or self._readers):
            return replica if self.settings.allow_insecure else self._not_from_here(scope, headers) or replica
        state["key_id"] = key_id(headers)
        if known_key(headers, self._admins):
            return replica
        state["may_change"] = False
        if not known_key(headers, self._readers):
            return Unauthorized()
        return None if reads else ReadOnlyKey()

    def _not_from_here(self, scope: Scope, headers: Headers) -> InspectionError | None:
        """Refuses other machines, and pages whose site's name was made to point at this machine (DNS rebinding)."""
        if not is_local(scope):
            return LoopbackOnly()
        host = headers.get("host", "")
        return None if host_is_ours(host, self.settings.host) else HostRefused(host=host[:200])

    def _same_site(self, origin: str, headers: Headers) -> bool:
        allowed = self.settings.cors_origins
        return "*" in allowed or origin in allowed or origin.split("://", 1)[-1] == headers.get("host", "")


class _SecurityHeaders:
    """Adds SECURITY_HEADERS that the route did not set itself."""

    def __init__(self, send: Send) -> None:
        self._send = send

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in SECURITY_HEADERS.items():
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


def key_id(headers: Headers) -> str | None:
    """Which key a request brings, as 8 hexadecimal digits that give nothing of the key away; None without one."""
    sent = _sent_key(headers)
    return hashlib.sha256(hashlib.sha256(sent.encode()).digest()).hexdigest()[:8] if sent else None


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

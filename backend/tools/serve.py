"""What `serve` sets around uvicorn: a protocol that hangs up on dawdlers, and room for open files."""

from __future__ import annotations

import asyncio
import socket
import sys

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from backend.base.errors import AddressUnavailable

HEADER_TIMEOUT_S = 15.0
# .NET's HttpClient keeps idle connections for 60 s; a server that hangs up first would break its next request.
IDLE_S = 75
OPEN_FILES = 16_384


class PunctualProtocol(H11Protocol):
    """HTTP/1.1 that bounds headers in size, as h11 does, and in time."""

    _dawdling: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Stop the clock once the headers are whole; start it when the next request's have begun."""
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the clock."""
        self._forget()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._forget()
        elif self._dawdling is None:
            self._dawdling = self.loop.call_later(HEADER_TIMEOUT_S, self._hang_up)

    def _forget(self) -> None:
        if self._dawdling is not None:
            self._dawdling.cancel()
            self._dawdling = None

    def _hang_up(self) -> None:
        self._dawdling = None
        if self.conn.their_state is h11.IDLE:
            self.transport.close()


def check_address(host: str, port: int) -> None:
    """Raises AddressUnavailable when a server could not listen there; cheaper to know before a network is loaded."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        if sys.platform != "win32":  # there it would let two programs listen on one port
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as err:
            raise AddressUnavailable(host=host, port=port, reason=err.strerror or err) from err


def allow_open_files() -> None:
    """Raise the soft limit of open files, which a fit of a thousand large images would meet."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415 - Windows has none

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

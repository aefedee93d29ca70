"""`serve`: uvicorn with a protocol that bounds the time of headers, room for open files, and shared metrics."""

from __future__ import annotations

import asyncio
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from backend.base.arrays import available_cores
from backend.base.config import Settings, share_metrics
from backend.base.errors import AddressUnavailable
from backend.extractors.weights import WEIGHTS_DIR, find_weights, torch_installed

HEADER_TIMEOUT_S = 15.0
KEEP_ALIVE_S = 90  # longer than clients and load balancers, which give up idle connections after 60 to 75 s
OPEN_FILES = 16_384
MOST_WORKERS = 8  # that `auto` means


def number_of_workers(asked: str, settings: Settings) -> int:
    """The processes that `asked` means: a number, or `auto`.

    Processes share a GPU, which one alone cannot keep busy: each of them is one core's work on pixels, so half of the
    cores are processes, eight at most, since each holds a network in the GPU's memory. On a CPU the network takes all
    cores, so that one process answers as much as several. tests/benchmarks/bench_workers.py tells how many pay.

    Raises:
        ValueError: it is neither.
    """
    if asked != "auto":
        if not asked.isdecimal() or int(asked) < 1:
            raise ValueError(f"{asked!r} is neither a number from 1 on nor auto")
        return int(asked)
    if settings.device == "cpu" or not torch_installed():
        return 1
    from backend.extractors.torch_runtime import gpu_name

    return min(MOST_WORKERS, max(1, available_cores() // 2)) if gpu_name() else 1


def run_server(settings: Settings, *, workers: int = 1) -> None:
    """Serve until somebody stops the process.

    Args:
        workers: processes that share the models folder, and one port.

    Raises:
        AddressUnavailable: another program listens there.
        WeightsUnavailable: with REQUIRE_PRETRAINED and several workers; one alone says so itself.
    """
    check_address(settings.host, settings.port)
    if workers > 1 and settings.require_pretrained and settings.model_name != "texture":
        # Of several workers that all fail at the start, uvicorn would only say that they did, with exit code 0.
        find_weights(settings.model_name, settings.weights, WEIGHTS_DIR)
    allow_open_files()
    with _shared_metrics(settings, workers):
        uvicorn.run(
            "backend.app:app",
            host=settings.host,
            port=settings.port,
            workers=workers,
            http=HeaderTimeoutProtocol,
            ws="none",
            timeout_worker_healthcheck=60,  # a worker that is short of processor time is not a dead one
            proxy_headers=False,
            server_header=False,
            log_config=None,
            timeout_keep_alive=KEEP_ALIVE_S,
            timeout_graceful_shutdown=30,
        )


@contextmanager
def _shared_metrics(settings: Settings, workers: int) -> Iterator[None]:
    """The folder in which workers share their metrics; one worker alone needs none."""
    if settings.prometheus_multiproc_dir is not None:
        settings.prometheus_multiproc_dir.mkdir(parents=True, exist_ok=True)
        share_metrics(settings.prometheus_multiproc_dir)
        yield
    elif workers == 1:
        yield
    else:
        with tempfile.TemporaryDirectory(prefix="bdi-metrics-") as folder:
            share_metrics(Path(folder))
            yield


class HeaderTimeoutProtocol(H11Protocol):
    """HTTP/1.1 that closes a connection whose headers are not whole after HEADER_TIMEOUT_S; h11 bounds their size."""

    _timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the timer."""
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        """Stop the timer once the headers are whole; start it when the next request's have begun."""
        super().data_received(data)
        self._watch()

    def shutdown(self) -> None:
        """End an answer that would never end by itself, such as a live stream: its client asks again elsewhere."""
        cycle = getattr(self, "cycle", None)
        if cycle is not None and cycle.scope.get("state", {}).get("endless"):
            self.transport.close()
        else:
            super().shutdown()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timer."""
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._stop()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADER_TIMEOUT_S, self._hang_up)

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _hang_up(self) -> None:
        self._timer = None
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
    import resource  # Windows has none

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(OPEN_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))

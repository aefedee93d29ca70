"""Prometheus metrics, correct with several workers (PROMETHEUS_MULTIPROC_DIR), and the layer that counts requests."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import get_args

import psutil
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.assurance.drift import Cause
from backend.base.keys import ModelKey
from backend.records.drifts import KeptDrift
from backend.service.inspection import Inspector
from backend.service.results import FitResult, InferResult

logger = logging.getLogger(__name__)

METHODS = frozenset({"GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE"})
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0, 600.0)
DISTANCES = tuple(round(0.05 * step, 2) for step in range(1, 41))
MODEL = ("role_id", "roi_id", "recipe_id")


class Metrics:
    """What the service counts. With `folder` the values of all workers are summed from their files there.

    Prometheus' library decides at its import whether workers share values: PROMETHEUS_MULTIPROC_DIR must be in the
    environment by then.
    """

    def __init__(self, folder: Path | None = None) -> None:
        own = self._own = CollectorRegistry()
        self._folder = folder if values.ValueClass is not values.MutexValue else None
        if folder is not None and self._folder is None:
            logger.warning("PROMETHEUS_MULTIPROC_DIR is not in the environment: /metrics tells of one worker")
        self.requests = Counter("bdi_requests", "Requests answered.", ("method", "route", "status"), registry=own)
        self.seconds = Histogram("bdi_request_seconds", "Time to answer.", ("route",), registry=own, buckets=SECONDS)
        self.stages = Histogram(
            "bdi_stage_seconds",
            "Time by stage of fits and inspections.",
            ("route", "stage"),
            registry=own,
            buckets=SECONDS,
        )
        self.verdicts = Counter("bdi_verdicts", "Inspections by verdict.", (*MODEL, "verdict"), registry=own)
        self.scores = Histogram("bdi_score", "Scores of inspections.", MODEL, registry=own, buckets=DISTANCES)
        self.fits = Counter("bdi_fits", "Memories built.", MODEL, registry=own)
        self.queue = Gauge(
            "bdi_queue_depth", "Requests admitted and not answered.", registry=own, multiprocess_mode="livesum"
        )
        self.cache = Gauge("bdi_cache_bytes", "Bytes of loaded memories.", registry=own, multiprocess_mode="livesum")
        self.golden = Gauge(
            "bdi_golden_flips",
            "Golden samples and masters that lost their verdict.",
            MODEL,
            registry=own,
            multiprocess_mode="mostrecent",
        )
        self.drift = Gauge(
            "bdi_drift",
            "1 while parts drift from this cause.",
            (*MODEL, "cause"),
            registry=own,
            multiprocess_mode="mostrecent",
        )
        self.degraded = Gauge("bdi_degraded", "1 while degraded.", registry=own, multiprocess_mode="livemax")

    def render(self) -> bytes:
        """The exposition format."""
        if self._folder is None:
            return generate_latest(self._own)
        _forget_dead_workers(self._folder)
        all_workers = CollectorRegistry()
        MultiProcessCollector(all_workers, path=str(self._folder))  # type: ignore[no-untyped-call]
        return generate_latest(all_workers)

    def state(self, inspector: Inspector) -> None:
        """Set the gauges of this worker: its queue, its cache, whether it is degraded."""
        self.queue.set(inspector.host.depth)
        self.cache.set(inspector.cache.nbytes)
        self.degraded.set(inspector.host.degraded is not None)

    def golden_flips(self, flips: Mapping[ModelKey, int]) -> None:
        """Set how many golden samples of each model lost their verdict."""
        for key, n in flips.items():
            self.golden.labels(*_labels(key)).set(n)

    def drifts(self, states: Sequence[tuple[ModelKey, KeptDrift]]) -> None:
        """Set the gauge of each model and cause, as all workers see it."""
        for key, kept in states:
            for cause in get_args(Cause):
                drifting = kept.state == "drift" and kept.cause == cause
                self.drift.labels(*_labels(key), cause).set(drifting)

    def fitted(self, key: ModelKey, result: FitResult) -> None:
        """Count a fit, unless it found nothing new and left the memory as it was."""
        if result.changed:
            self.fits.labels(*_labels(key)).inc()
        self._staged("/fit_ok", result.timings_ms)

    def inspected(self, key: ModelKey, result: InferResult) -> None:
        """Count an inspection."""
        verdict = {None: "none", True: "ng", False: "ok"}[result.is_anomaly]
        self.verdicts.labels(*_labels(key), verdict).inc()
        self.scores.labels(*_labels(key)).observe(result.inspection.score)
        self._staged("/infer", result.timings_ms)

    def _staged(self, route: str, timings_ms: dict[str, float]) -> None:
        for stage, spent in timings_ms.items():
            self.stages.labels(route, stage).observe(spent / 1000)


def _forget_dead_workers(folder: Path) -> None:
    """Take the gauges of workers that were killed out of the sums."""
    pids = {int(path.stem.rpartition("_")[2]) for path in folder.glob("gauge_live*_*.db")}
    for pid in pids:
        if not psutil.pid_exists(pid):
            mark_process_dead(pid, path=str(folder))  # type: ignore[no-untyped-call]


def _labels(key: ModelKey) -> tuple[str, str, str]:
    return key.role_id, key.roi_id, key.recipe_id


class Measured:
    """ASGI layer: counts and times each request by its route."""

    def __init__(self, app: ASGIApp, metrics: Metrics, inspector: Inspector) -> None:
        self.app = app
        self.metrics = metrics
        self.inspector = inspector

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, status = perf_counter(), "cut"

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = str(message["status"])
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            route = _route(scope)
            method = scope["method"] if scope["method"] in METHODS else "other"
            self.metrics.requests.labels(method, route, status).inc()
            self.metrics.seconds.labels(route).observe(perf_counter() - started)
            self.metrics.state(self.inspector)


def _route(scope: Scope) -> str:
    """The route's template: as many label values as there are routes, whatever strangers ask for."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else "other"

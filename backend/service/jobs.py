"""Long work shows how far it is: jobs by request id, each with its stage, count and the time it will still take."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal

from cachetools import LRUCache

from backend.base.errors import Cancelled
from backend.service.queue import Job

State = Literal["running", "done", "failed", "cancelled"]
REMEMBERED = 512


@dataclass(frozen=True)
class Snapshot:
    """How far a job is. `eta_s`: seconds the stage will still take, 0 until that can be told and once it is done."""

    state: State
    stage: str
    done: int
    total: int
    eta_s: float
    elapsed_s: float

    def as_dict(self) -> dict[str, Any]:
        """As the route answers it."""
        return {**self.__dict__, "eta_s": round(self.eta_s, 1), "elapsed_s": round(self.elapsed_s, 1)}


class TrackedJob(Job):
    """A job that remembers what it reported."""

    def __init__(self) -> None:
        super().__init__()
        self._began = self._stage_began = monotonic()
        self._ended: float | None = None
        self._at: tuple[str, int, int] = ("waiting", 0, 0)
        self._state: State = "running"

    def report(self, stage: str, done: int, total: int) -> None:
        """Progress of the work: `done` of `total` things of this stage."""
        if stage != self._at[0]:
            self._stage_began = monotonic()
        self._at = (stage, done, total)

    def end(self, state: State) -> None:
        """The work is over."""
        self._state, self._ended = state, monotonic()

    @contextmanager
    def failing(self) -> Iterator[None]:
        """An exception inside is how the work ended."""
        try:
            yield
        except (Cancelled, asyncio.CancelledError, GeneratorExit):
            self.end("cancelled")
            raise
        except BaseException:
            self.end("failed")
            raise

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Whatever happens inside is how the work ended."""
        with self.failing():
            yield
        self.end("done")

    def snapshot(self) -> Snapshot:
        """How far it is now."""
        stage, done, total = self._at
        now = self._ended or monotonic()
        running = self._state == "running" and 0 < done < total
        eta = (now - self._stage_began) / done * (total - done) if running else 0.0
        return Snapshot(self._state, stage, done, total, eta, now - self._began)


class ProgressBoard:
    """The latest jobs of this process, by request id."""

    def __init__(self) -> None:
        self._jobs: LRUCache[str, TrackedJob] = LRUCache(REMEMBERED)
        self._lock = threading.Lock()

    def begin(self, request_id: str) -> TrackedJob:
        """A job that can be followed under `request_id`, while it runs and for some time after."""
        job = TrackedJob()
        with self._lock:
            self._jobs[request_id] = job
        return job

    def get(self, request_id: str) -> TrackedJob | None:
        """The job of `request_id`, or None."""
        with self._lock:
            return self._jobs.get(request_id)

"""Jobs: how the work of a request is cancelled, and how far long work is."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Future
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import Any, Literal, TypeVar

from cachetools import LRUCache

from backend.base.errors import Cancelled

State = Literal["running", "done", "failed", "cancelled"]
T = TypeVar("T")
REMEMBERED = 512


class Job:
    """One request's cancellation and progress, passed down to where the work is done."""

    def __init__(self) -> None:
        self._cancelled = threading.Event()
        self._lock = threading.Lock()
        self._waiting: Future[Any] | None = None

    def cancel(self) -> None:
        """Ask the work to stop; what waits in the queue leaves it."""
        self._cancelled.set()
        with self._lock:
            if self._waiting is not None:
                self._waiting.cancel()

    def check(self) -> None:
        """Raises Cancelled once `cancel` was called."""
        if self._cancelled.is_set():
            raise Cancelled()

    def wait(self, future: Future[T]) -> T:
        """The future's result. Raises Cancelled when the job is cancelled before the work began."""
        with self._lock:
            self._waiting = future
        if self._cancelled.is_set():  # before `cancel` could know what to cancel
            future.cancel()
        try:
            return future.result()
        except CancelledError as err:
            raise Cancelled() from err
        finally:
            with self._lock:
                self._waiting = None

    def report(self, stage: str, done: int, total: int) -> None:
        """Progress of the work: `done` of `total` things of this stage. This class tells nobody."""

    def stage(self, name: str) -> Callable[[int, int], None]:
        """What reports (done, total) of the stage `name`; it raises Cancelled once `cancel` was called."""

        def progress(done: int, total: int) -> None:
            self.check()
            self.report(name, done, total)

        return progress


def ahead(futures: Iterator[Future[T]], window: int, job: Job | None = None) -> Iterator[T]:
    """Results in order while up to `window` later ones are under way; what is under way is cancelled on leaving.

    Raises:
        Cancelled: the job was cancelled.
    """
    waiting: deque[Future[T]] = deque()

    def oldest() -> T:
        future = waiting.popleft()
        if job is None:
            return future.result()
        job.check()
        return job.wait(future)

    try:
        for future in futures:
            waiting.append(future)
            if len(waiting) > window:
                yield oldest()
        while waiting:
            yield oldest()
    finally:
        for future in waiting:
            future.cancel()


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
        """An exception inside ends the job: as `cancelled` or as `failed`."""
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
        """The job ends with what is inside: as `done`, `cancelled` or `failed`."""
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

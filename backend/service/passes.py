"""One fit at a time, so that FIT_MEMORY_MB holds for the process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from time import monotonic

from backend.base.errors import FitInProgress
from backend.service.queue import Job


@contextmanager
def one_at_a_time(lock: threading.Lock, key: object, job: Job, patience_s: float) -> Iterator[None]:
    """Hold `lock` for a fit of `key`. Raises FitInProgress after `patience_s` seconds, Cancelled."""
    deadline = monotonic() + patience_s
    while not lock.acquire(timeout=0.1):
        job.check()
        if monotonic() >= deadline:
            raise FitInProgress(key=key, retry_after=5)
    try:
        yield
    finally:
        lock.release()

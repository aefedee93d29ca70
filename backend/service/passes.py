"""How much memory a fit may take for its embeddings, and the coreset of more than that."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic

import numpy as np
from numpy.typing import NDArray

from backend.base.config import Settings
from backend.base.errors import FitInProgress
from backend.patchcore import ChunkedCoreset, coreset_size, kcenter_greedy_chunked
from backend.service.queue import Job


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Memory for a fit's embeddings, and which coreset to make of them in passes when it does not do."""

    megabytes: float
    rate: float
    limit: int
    seed: int

    @classmethod
    def of(cls, settings: Settings) -> Budget:
        """What the settings say."""
        return cls(
            megabytes=settings.fit_memory_mb,
            rate=settings.coreset_rate,
            limit=settings.max_coreset,
            seed=settings.seed,
        )

    def holds(self, rows: int, dim: int) -> bool:
        """Whether (rows, dim) float32 embeddings fit."""
        return rows * dim * 4 <= self.megabytes * 2**20

    def choose(self, chunks: Iterator[NDArray[np.float32]], rows: int) -> ChunkedCoreset:
        """The coreset of about `rows` embeddings that come in chunks.

        A pass keeps twice as many as are left in the end.
        """
        n = coreset_size(rows, self.rate, self.limit)
        rng = np.random.default_rng(self.seed)
        budget = int(self.megabytes * 2**20)
        return kcenter_greedy_chunked(chunks, n, rate=min(1.0, 2 * n / rows), budget=budget, rng=rng)


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

"""The bounded queue in front of the extractor, which inspections and fits share."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.base.errors import DeviceOutOfMemory, ExtractorFault, NotReady, QueueFull
from backend.extractors.protocol import RGB, Extractor, Look, Mask

logger = logging.getLogger(__name__)


@dataclass
class _Item:
    image: RGB
    inside: Mask | None = None
    look: Look | None = None
    future: Future[Any] = field(default_factory=Future)

    def joins(self, other: _Item) -> bool:
        """Whether both may be in one batch."""
        if self.inside is None or other.inside is None:
            return self.image.shape == other.image.shape and self.inside is other.inside
        return self.image.shape == other.image.shape and np.array_equal(self.inside, other.inside)


class InferenceQueue:
    """One worker feeds the extractor, batch by batch, from two queues: inspections, and the images of fits.

    While both wait, their batches alternate, so neither starves. The images of a batch are equally large, and the
    extractor sees the same tokens of each.

    Args:
        max_queue: requests that may be under way at once (see `slot`).
        max_batch: images in a batch. When the device's memory does not hold a batch, it is halved for good.
        fallback: gives the extractor that is used once the device's memory does not hold a single image.
    """

    def __init__(
        self,
        extractor: Extractor,
        *,
        max_queue: int = 64,
        max_batch: int = 1,
        fallback: Callable[[], Extractor] | None = None,
    ) -> None:
        self.extractor = extractor
        self._fallback = fallback
        self.max_queue = max_queue
        self.max_batch = max_batch
        self._urgent: deque[_Item] = deque()
        self._bulk: deque[_Item] = deque()
        self._ready = threading.Condition()
        self._admitted = 0
        self._bulk_next = False
        self._closed = False
        self._pace = 0.1
        self._worker = threading.Thread(target=self._work, name="inference-queue", daemon=True)
        self._worker.start()

    @property
    def depth(self) -> int:
        """Requests admitted and not yet answered."""
        return self._admitted

    @contextmanager
    def slot(self) -> Iterator[None]:
        """A place in the bounded queue for one request. Raises QueueFull when there is none."""
        with self._ready:
            if self._admitted >= self.max_queue:
                turns = 2 if self._bulk else 1
                wait = max(1, round(self._admitted * self._pace * turns))
                raise QueueFull(waiting=self._admitted, retry_after=wait)
            self._admitted += 1
        try:
            yield
        finally:
            with self._ready:
                self._admitted -= 1

    def submit(self, image: RGB, *, inside: Mask | None = None, bulk: bool = False) -> Future[NDArray[np.float32]]:
        """Queue one prepared image; the future gives its (T, D) float32 embeddings.

        The future raises ExtractorFault where these are not finite.

        Args:
            inside: (rows, columns) bool, the tokens that the extractor sees, as in Extractor.extract_part; None: all.

        Raises:
            NotReady: the queue is closed.
        """
        return self._submit(_Item(image, inside), self._bulk if bulk else self._urgent)

    def look(self, image: RGB, look: Look | None) -> Future[Any]:
        """As `submit`: the future gives what `look` says of the embeddings, or these (see Extractor.look)."""
        return self._submit(_Item(image, look=look), self._urgent)

    def _submit(self, item: _Item, queue: deque[_Item]) -> Future[Any]:
        with self._ready:
            if self._closed:
                raise NotReady(retry_after=5)
            queue.append(item)
            self._ready.notify()
        return item.future

    def close(self) -> None:
        """Finish the batch under way, cancel what waits, and stop the worker."""
        with self._ready:
            self._closed = True
            for item in (*self._urgent, *self._bulk):
                item.future.cancel()
            self._ready.notify()
        self._worker.join(timeout=60)

    def _work(self) -> None:
        while batch := self._next_batch():
            started = perf_counter()
            live = [item for item in batch if item.future.set_running_or_notify_cancel()]
            if live:
                self._extract(live)
                self._pace = 0.8 * self._pace + 0.2 * (perf_counter() - started) / len(live)

    def _extract(self, items: list[_Item]) -> None:
        try:
            answers = list(zip(items, self._embed(items), strict=True))
        except BaseException as err:  # noqa: BLE001 - the worker must outlive any failure; each waiting request gets it
            for item in items:
                item.future.set_exception(err)
            return
        for item, found in answers:
            if not isinstance(found, np.ndarray) or np.isfinite(found).all():
                item.future.set_result(found)
            else:
                item.future.set_exception(ExtractorFault(model=self.extractor.name))

    def _embed(self, items: Sequence[_Item]) -> list[Any]:
        """The embeddings of each, or what its look says of them."""
        found = self._within_memory(items)
        if found is None and len(items) > 1:
            self.max_batch = max(1, min(self.max_batch, len(items)) // 2)
            logger.warning("out of device memory with %d images, now %d a batch", len(items), self.max_batch)
            parts = [items[at : at + self.max_batch] for at in range(0, len(items), self.max_batch)]
            return [one for part in parts for one in self._embed(part)]
        if found is None:
            if self._fallback is None:
                raise DeviceOutOfMemory(retry_after=5)
            self.extractor, self._fallback = self._fallback(), None
            return self._extracted(items)
        return found

    def _extracted(self, items: Sequence[_Item]) -> list[Any]:
        images, inside = [item.image for item in items], items[0].inside
        if inside is not None:
            return list(self.extractor.extract_part(images, inside))
        if any(item.look for item in items):
            return self.extractor.look(images, [item.look for item in items])
        return list(self.extractor.extract(images))

    def _within_memory(self, items: Sequence[_Item]) -> list[Any] | None:
        """What `_embed` gives, or None when the device's memory does not hold the batch.

        The error keeps that memory from being freed, so it is dropped here, before anything else is tried.
        """
        try:
            return self._extracted(items)
        except DeviceOutOfMemory:
            return None

    def _next_batch(self) -> list[_Item]:
        with self._ready:
            while not (self._urgent or self._bulk or self._closed):
                self._ready.wait()
            if self._closed:
                return []
            bulk = bool(self._bulk) and (self._bulk_next or not self._urgent)
            self._bulk_next = not bulk
            return self._take(self._bulk if bulk else self._urgent)

    def _take(self, queue: deque[_Item]) -> list[_Item]:
        batch = [queue.popleft()]
        while queue and len(batch) < self.max_batch:
            if not queue[0].future.cancelled():
                if not queue[0].joins(batch[0]):
                    break
                batch.append(queue[0])
            queue.popleft()
        return batch

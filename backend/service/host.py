"""ExtractorHost: brings the extractor up, in the background, and says how it is doing."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import replace
from time import perf_counter

import numpy as np

from backend.base.config import Settings
from backend.base.errors import DeviceOutOfMemory, NotReady, WeightsUnavailable
from backend.base.messages import Notice
from backend.extractors.protocol import Extractor, ExtractorOptions
from backend.features import build_extractor, check_options
from backend.service.queue import InferenceQueue

logger = logging.getLogger(__name__)

READY_WAIT_S = 300.0
LEAVE_WAIT_S = 20.0
# What takes the place of an extractor whose weights cannot be had: the first of them that can be built here.
STAND_INS = ("lite", "texture")


class ExtractorHost:
    """Owns the extractor and the queue in front of it.

    `start` returns at once unless REQUIRE_PRETRAINED is set; requests wait for the extractor to be ready.

    Args:
        settings: the service's settings.
        extractor: used instead of the one that the settings name.
        rehearse: what makes the first request as quick as any other; until it is through, the status is `warming`.
    """

    def __init__(
        self,
        settings: Settings,
        extractor: Extractor | None = None,
        rehearse: Callable[[InferenceQueue], None] | None = None,
    ) -> None:
        self.settings = settings
        self.options = ExtractorOptions.of(settings)
        self.degraded: Notice | None = None
        self._given = extractor
        self._rehearse = rehearse or _blank_pass
        self._queue: Future[InferenceQueue] = Future()
        self._warm = threading.Event()
        self._loading: threading.Thread | None = None
        self._warming: threading.Thread | None = None
        self._started = False
        self._starting = threading.Lock()
        self._broken = False

    def start(self) -> None:
        """Load the extractor and run it once.

        Raises:
            InvalidSettings: the model lacks what a setting names.
            WeightsUnavailable: with REQUIRE_PRETRAINED.
        """
        with self._starting:
            if self._started:
                return
            self._started = True
        if self._given is None:
            check_options(ExtractorOptions.of(self.settings))
        if self._given is not None:
            self._up(self._given)
        elif self.settings.require_pretrained:
            self._up(build_extractor(self.options))
        else:
            self._loading = threading.Thread(target=self._load, name="extractor-loading", daemon=True)
            self._loading.start()

    def close(self) -> None:
        """Stop the queue.

        An extractor that is just being loaded or rehearsed is waited for: a process that ends meanwhile is aborted by
        the native code of its libraries, with an exit code of its own.
        """
        if self._loading is not None:
            self._loading.join(LEAVE_WAIT_S)
        if self._queue.done() and self._queue.exception() is None:
            self._queue.result().close()
        if self._warming is not None:
            self._warming.join(LEAVE_WAIT_S)

    @property
    def status(self) -> str:
        """`warming`, `ok`, `degraded` or `failed`."""
        if self._broken or (self._queue.done() and self._queue.exception() is not None):
            return "failed"
        if not self._warm.is_set():
            return "warming"
        return "degraded" if self.degraded else "ok"

    def queue(self, wait: float = READY_WAIT_S) -> InferenceQueue:
        """The queue, once the extractor is loaded. Raises NotReady after `wait` seconds, or why loading failed."""
        self.start()
        try:
            return self._queue.result(timeout=wait)
        except FutureTimeout as err:
            raise NotReady(retry_after=5) from err

    @property
    def depth(self) -> int:
        """Requests admitted to the queue and not yet answered; 0 while loading."""
        ready = self._queue.done() and self._queue.exception() is None
        return self._queue.result().depth if ready else 0

    @property
    def extractor(self) -> Extractor | None:
        """The extractor, or None while it is loading."""
        ready = self._queue.done() and self._queue.exception() is None
        return self._queue.result().extractor if ready else None

    def _load(self) -> None:
        try:
            self._up(self._built())
        except BaseException as err:  # whoever waits for the queue is told
            logger.exception("the extractor could not be built")
            self._queue.set_exception(err)

    def _built(self) -> Extractor:
        """The extractor of the settings; where its weights cannot be had, the first of STAND_INS that can be built."""
        try:
            return build_extractor(self.options)
        except WeightsUnavailable as err:
            missing = err
        for name in STAND_INS:
            self.options = replace(self.options, model_name=name, weights="auto")
            try:
                extractor = build_extractor(self.options)
            except WeightsUnavailable as err:
                logger.warning("%s", err)
                continue
            logger.warning("degraded, running on %s: %s", name, missing)
            model, reason = missing.values["model"], missing.values["reason"]
            self.degraded = Notice("degraded", {"model": model, "reason": reason, "extractor": name})
            return extractor
        raise missing

    def _up(self, extractor: Extractor) -> None:
        several = 32 if extractor.device == "cuda" else extractor.streams
        batch = self.settings.max_batch or several
        fallback = None if extractor.device == "cpu" else lambda: self._on_cpu(extractor)
        self._tell_size(extractor)
        queue = InferenceQueue(extractor, max_queue=self.settings.max_queue, max_batch=batch, fallback=fallback)
        self._queue.set_result(queue)
        self._warming = threading.Thread(target=self._warm_up, args=(queue,), name="warm-up", daemon=True)
        self._warming.start()

    def _tell_size(self, extractor: Extractor) -> None:
        side, patch = extractor.input_size, extractor.patch
        if side % patch:
            height, width = (n * patch for n in extractor.grid(side, side))
            said = "INPUT_SIZE=%d is no multiple of the extractor's patch of %d px: a square ROI is resized to %d×%d"
            logger.warning(said, side, patch, height, width)

    def _on_cpu(self, former: Extractor) -> Extractor:
        """The same network on the CPU, for a device whose memory does not even hold one image."""
        logger.warning("out of device memory with a single image: moving to the CPU until the service is restarted")
        extractor = build_extractor(replace(self.options, device="cpu"))
        if extractor.fingerprint != former.fingerprint:
            raise DeviceOutOfMemory(retry_after=5)
        self.degraded = Notice("device_out_of_memory")
        return extractor

    def _warm_up(self, queue: InferenceQueue) -> None:
        extractor, started = queue.extractor, perf_counter()
        try:
            self._rehearse(queue)
        except (CancelledError, NotReady):  # closed before it was warm
            return
        except Exception:  # as the first request will find; /health says so
            logger.exception("the extractor's first pass failed")
            self._broken = True
            return
        self._warm.set()
        logger.info(
            "extractor %s ready on %s (%s), rehearsed in %.0f ms",
            extractor.name,
            extractor.device,
            extractor.runtime,
            1000 * (perf_counter() - started),
        )


def _blank_pass(queue: InferenceQueue) -> None:
    side, patch = queue.extractor.input_size, queue.extractor.patch
    rows, cols = queue.extractor.grid(side, side)
    queue.submit(np.zeros((rows * patch, cols * patch, 3), np.uint8)).result()


def extractor_for(settings: Settings) -> Extractor:
    """The extractor that the settings name. Raises WeightsUnavailable, BackendUnavailable."""
    return build_extractor(ExtractorOptions.of(settings))

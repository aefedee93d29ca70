"""GreyHost: builds the ResNet18 of the web API when it is first needed, and lets inspections have the machine first."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from time import monotonic, sleep

import numpy as np
from numpy.typing import NDArray

from backend.base.config import Settings
from backend.base.errors import NotReady, ResNetUnavailable, WeightsUnavailable
from backend.extractors.neighbourhood import Wrapped
from backend.extractors.protocol import RGB, Extractor, ExtractorOptions
from backend.extractors.resnet import GreyResNet
from backend.service.host import READY_WAIT_S
from backend.service.queue import InferenceQueue

PATIENCE_S = 2.0  # how long a forward pass waits at most while inspections are waiting


class GreyHost:
    """One queue for each embedding version that a bank asks for.

    Args:
        settings: the service's settings.
        busy: whether inspections are waiting for the machine; a forward pass lets them go first for up to PATIENCE_S.
    """

    def __init__(self, settings: Settings, busy: Callable[[], bool]) -> None:
        self.settings = settings
        self._busy = busy
        self._lock = threading.Lock()
        self._queues: dict[str, Future[InferenceQueue]] = {}

    def queue(self, version: str) -> InferenceQueue:
        """The queue of an embedding version, which the first to ask has built in the background.

        Raises:
            ResNetUnavailable: there are no weights; the next call tries again.
            NotReady: the network was not loaded within READY_WAIT_S.
        """
        with self._lock:
            future = self._queues.get(version)
            if future is None or (future.done() and future.exception() is not None):
                future = self._queues[version] = Future()
                threading.Thread(
                    target=self._load, args=(version, future), name="resnet18-loading", daemon=True
                ).start()
        try:
            return future.result(timeout=READY_WAIT_S)
        except FutureTimeout as err:
            raise NotReady(retry_after=5) from err
        except WeightsUnavailable as err:
            raise ResNetUnavailable(**err.values) from err

    def state(self, version: str) -> tuple[str, str]:
        """`idle`, `loading`, `ready` or `failed`, and the device (the DEVICE setting until it is ready)."""
        future = self._queues.get(version)
        if future is None or not future.done():
            return "loading" if future else "idle", self.settings.device
        if future.exception() is not None:
            return "failed", self.settings.device
        return "ready", future.result().extractor.device

    def close(self) -> None:
        """Stop the queues."""
        for future in self._queues.values():
            if future.done() and future.exception() is None:
                future.result().close()

    def _load(self, version: str, future: Future[InferenceQueue]) -> None:
        try:
            options = ExtractorOptions(
                weights=self.settings.resnet_weights,
                input_size=self.settings.img_size,
                stride=self.settings.patch_stride,
                device=self.settings.device,
            )
            extractor = GreyResNet(options, version)
            queue = InferenceQueue(_Polite(extractor, self._busy), max_queue=self.settings.max_queue)
        except BaseException as err:  # noqa: BLE001 - whoever waits for the queue is told
            future.set_exception(err)
        else:
            future.set_result(queue)


class _Polite(Wrapped):
    """An extractor whose forward pass waits for up to PATIENCE_S while `busy` says that inspections are waiting."""

    def __init__(self, extractor: Extractor, busy: Callable[[], bool]) -> None:
        super().__init__(extractor, "")
        self._busy = busy

    def extract(self, images: Sequence[RGB]) -> NDArray[np.float32]:
        until = monotonic() + PATIENCE_S
        while self._busy() and monotonic() < until:
            sleep(0.005)
        return self.inner.extract(images)

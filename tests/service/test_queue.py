import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from backend.base.errors import Cancelled, ExtractorFault, NotReady, QueueFull
from backend.extractors.texture import TextureFeatures
from backend.service.jobs import Job
from backend.service.queue import InferenceQueue

SMALL, WIDE = (28, 28), (28, 42)


class Paced(TextureFeatures):
    """The weight-free extractor, held up until it is let go, that remembers its batches."""

    def __init__(self) -> None:
        super().__init__(56)
        self.gate = threading.Event()
        self.entered = threading.Event()
        self.batches: list[list[int]] = []

    def extract(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.entered.set()
        assert self.gate.wait(20)
        self.batches.append([int(image[0, 0, 0]) for image in images])
        if any(image[0, 0, 0] == 99 for image in images):
            raise ValueError("this one cannot be done")
        return super().extract(images)


def picture(number: int, size: tuple[int, int] = SMALL) -> NDArray[np.uint8]:
    return np.full((*size, 3), number, np.uint8)


@pytest.fixture
def extractor() -> Paced:
    return Paced()


@pytest.fixture
def queue(extractor: Paced) -> Iterator[InferenceQueue]:
    queue = InferenceQueue(extractor, max_queue=3, max_batch=1)
    yield queue
    extractor.gate.set()
    queue.close()


def busy(queue: InferenceQueue) -> Future[Any]:
    """Occupy the extractor, so that what is submitted next has to wait."""
    future = queue.submit(picture(0))
    assert queue.extractor.entered.wait(20)  # type: ignore[attr-defined]
    return future


def finish(extractor: Paced, futures: Sequence[Future[Any]]) -> list[Any]:
    extractor.gate.set()
    return [future.result(timeout=20) for future in futures]


def test_requests_are_answered_in_order(queue: InferenceQueue, extractor: Paced) -> None:
    futures = [busy(queue), *(queue.submit(picture(n)) for n in (1, 2, 3))]
    answers = finish(extractor, futures)
    assert extractor.batches == [[0], [1], [2], [3]]
    plain = TextureFeatures(56)
    for number, tokens in enumerate(answers):
        assert (tokens == plain.extract([picture(number)])[0]).all()


def test_what_waits_goes_through_as_one_batch_of_equal_sizes(extractor: Paced) -> None:
    queue = InferenceQueue(extractor, max_batch=3)
    futures = [busy(queue), *(queue.submit(picture(n)) for n in (1, 2, 3, 4))]
    futures += [queue.submit(picture(5, WIDE)), queue.submit(picture(6, WIDE)), queue.submit(picture(7))]
    answers = finish(extractor, futures)
    queue.close()
    assert extractor.batches == [[0], [1, 2, 3], [4], [5, 6], [7]]
    assert [len(tokens) for tokens in answers] == [4, 4, 4, 4, 4, 6, 6, 4]


def test_inspections_and_fits_take_turns(queue: InferenceQueue, extractor: Paced) -> None:
    futures = [busy(queue)]
    futures += [queue.submit(picture(n), bulk=True) for n in (11, 12, 13)]
    futures += [queue.submit(picture(n)) for n in (1, 2, 3)]
    finish(extractor, futures)
    assert extractor.batches == [[0], [11], [1], [12], [2], [13], [3]]


def test_a_cancelled_request_leaves_the_queue(queue: InferenceQueue, extractor: Paced) -> None:
    first = busy(queue)
    job, outcome = Job(), []
    waiting = queue.submit(picture(1))

    def wait() -> None:
        try:
            job.wait(waiting)
        except Cancelled as err:
            outcome.append(err)

    thread = threading.Thread(target=wait)
    thread.start()
    last = queue.submit(picture(2))
    time.sleep(0.05)
    job.cancel()
    thread.join(5)
    assert len(outcome) == 1 and not extractor.gate.is_set()
    finish(extractor, [first, last])
    assert extractor.batches == [[0], [2]]


def test_a_job_cancelled_beforehand_does_not_wait(queue: InferenceQueue, extractor: Paced) -> None:
    first, job = busy(queue), Job()
    job.cancel()
    with pytest.raises(Cancelled):
        job.wait(queue.submit(picture(1)))
    with pytest.raises(Cancelled):
        job.check()
    finish(extractor, [first])
    assert [1] not in extractor.batches


def test_work_under_way_is_finished_even_when_its_client_left(queue: InferenceQueue, extractor: Paced) -> None:
    first, job = busy(queue), Job()
    answer: list[Any] = []
    thread = threading.Thread(target=lambda: answer.append(job.wait(first)))
    thread.start()
    time.sleep(0.05)
    job.cancel()
    extractor.gate.set()
    thread.join(5)
    assert len(answer) == 1


def test_the_queue_is_bounded_and_says_when_to_come_back(queue: InferenceQueue) -> None:
    slots = [queue.slot() for _ in range(3)]
    for slot in slots:
        slot.__enter__()
    assert queue.depth == 3
    with pytest.raises(QueueFull) as caught, queue.slot():
        pass
    assert caught.value.values["waiting"] == 3 and caught.value.values["retry_after"] >= 1
    slots.pop().__exit__(None, None, None)
    with queue.slot():
        assert queue.depth == 3
    for slot in slots:
        slot.__exit__(None, None, None)
    assert queue.depth == 0


def test_a_request_that_fails_gives_its_place_back(queue: InferenceQueue) -> None:
    for _ in range(10):
        with pytest.raises(ZeroDivisionError), queue.slot():
            raise ZeroDivisionError
    assert queue.depth == 0


def test_a_failure_reaches_all_that_waited_for_it_and_nobody_else(extractor: Paced) -> None:
    queue = InferenceQueue(extractor, max_batch=2)
    futures = [busy(queue), *(queue.submit(picture(n)) for n in (1, 99, 3))]
    extractor.gate.set()
    assert futures[0].result(20) is not None
    for future in futures[1:3]:
        with pytest.raises(ValueError, match="cannot be done"):
            future.result(20)
    assert futures[3].result(20) is not None
    queue.close()


def test_an_extractor_that_returns_too_little_is_a_failure_not_a_hang() -> None:
    class Forgetful(TextureFeatures):
        def extract(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
            return super().extract(images)[:0]

    queue = InferenceQueue(Forgetful(56))
    for _ in range(2):
        with pytest.raises(ValueError, match="shorter"):
            queue.submit(picture(1)).result(10)
    queue.close()


def test_closing_finishes_the_batch_under_way_and_cancels_the_rest(extractor: Paced) -> None:
    queue = InferenceQueue(extractor)
    first = busy(queue)
    waiting = [queue.submit(picture(1)), queue.submit(picture(2), bulk=True)]
    closer = threading.Thread(target=queue.close)
    closer.start()
    for future in waiting:
        with pytest.raises(CancelledError):
            future.result(10)
    extractor.gate.set()
    closer.join(10)
    assert first.result(1) is not None
    with pytest.raises(NotReady):
        queue.submit(picture(3))


def test_values_that_are_no_numbers_are_the_extractors_fault_and_only_of_their_image() -> None:
    class Broken(TextureFeatures):
        def extract(self, images: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
            tokens = super().extract(images)
            tokens[[image[0, 0, 0] == 7 for image in images], 0, 0] = np.nan
            return tokens

    queue = InferenceQueue(Broken(56), max_batch=2)
    fine, broken = queue.submit(picture(1)), queue.submit(picture(7))
    assert np.isfinite(fine.result(20)).all()
    with pytest.raises(ExtractorFault, match="texture"):
        broken.result(20)
    queue.close()

"""Jobs: cancelling, progress, and work that runs ahead."""

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from backend.base.errors import Cancelled
from backend.service import jobs
from backend.service.jobs import Job, ProgressBoard, TrackedJob, ahead


def done(value: int) -> Future[int]:
    future: Future[int] = Future()
    future.set_result(value)
    return future


def test_what_is_done_comes_in_order_and_no_further_ahead_than_the_window() -> None:
    begun: list[int] = []

    def futures() -> Iterator[Future[int]]:
        for n in range(6):
            begun.append(n)
            yield done(n)

    seen = [(value, len(begun)) for value in ahead(futures(), 2)]
    assert seen == [(0, 3), (1, 4), (2, 5), (3, 6), (4, 6), (5, 6)]


def test_leaving_early_cancels_what_is_under_way() -> None:
    futures: list[Future[int]] = [done(0), Future(), Future(), Future()]
    results = ahead(iter(futures), 2)
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert [future.cancelled() for future in futures] == [False, True, True, False]


def test_a_cancelled_job_gets_nothing_more_although_it_is_done() -> None:
    job, seen = Job(), []
    with pytest.raises(Cancelled):
        for value in ahead(iter([done(n) for n in range(5)]), 1, job):
            seen.append(value)
            job.cancel()
    assert seen == [0]


def test_a_job_that_waits_is_woken_by_being_cancelled() -> None:
    job, never = Job(), Future[int]()
    threading.Timer(0.05, job.cancel).start()
    with pytest.raises(Cancelled):
        job.wait(never)
    assert never.cancelled()


def test_a_job_waits_for_what_is_already_being_done() -> None:
    job, release = Job(), threading.Event()
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(lambda: release.wait(10) and 7)
        threading.Timer(0.05, job.cancel).start()
        threading.Timer(0.1, release.set).start()
        assert job.wait(future) == 7


def test_a_stage_reports_until_the_job_is_cancelled() -> None:
    job = TrackedJob()
    progress = job.stage("coreset")
    progress(3, 10)
    assert (job.snapshot().stage, job.snapshot().done, job.snapshot().total) == ("coreset", 3, 10)
    job.cancel()
    with pytest.raises(Cancelled):
        progress(4, 10)
    assert job.snapshot().done == 3


def test_the_time_still_to_take_is_that_of_the_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(jobs, "monotonic", lambda: now)
    job = TrackedJob()
    assert (job.snapshot().stage, job.snapshot().eta_s, job.snapshot().state) == ("waiting", 0.0, "running")
    now = 110.0
    job.report("extract", 0, 4)
    now = 113.0
    job.report("extract", 3, 4)
    assert job.snapshot().eta_s == pytest.approx(1.0) and job.snapshot().elapsed_s == pytest.approx(13.0)
    job.report("coreset", 1, 2)
    assert job.snapshot().eta_s == 0.0  # the stage has just begun
    now = 115.0
    assert job.snapshot().eta_s == pytest.approx(2.0)
    job.report("coreset", 2, 2)
    assert job.snapshot().eta_s == 0.0
    job.end("done")
    now = 200.0
    assert job.snapshot().as_dict() == {
        "state": "done",
        "stage": "coreset",
        "done": 2,
        "total": 2,
        "eta_s": 0.0,
        "elapsed_s": 15.0,
    }


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (Cancelled, "cancelled"),
        (asyncio.CancelledError, "cancelled"),
        (GeneratorExit, "cancelled"),
        (OSError, "failed"),
    ],
)
def test_what_ends_a_job_is_its_state(error: type[BaseException], state: str) -> None:
    job = TrackedJob()
    with pytest.raises(error), job.ending():
        raise error
    assert job.snapshot().state == state
    well = TrackedJob()
    with well.failing():
        pass
    assert well.snapshot().state == "running"
    with well.ending():
        pass
    assert well.snapshot().state == "done"


def test_the_board_knows_the_latest_jobs_by_their_request() -> None:
    board = ProgressBoard()
    first = board.begin("a")
    assert board.get("a") is first and board.get("b") is None
    again = board.begin("a")
    assert board.get("a") is again is not first
    for n in range(jobs.REMEMBERED):
        board.begin(f"{n}")
    assert board.get("a") is None and board.get("0") is not None

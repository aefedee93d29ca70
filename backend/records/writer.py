"""One thread of each process writes the record, and whatever waits for it goes in with one commit."""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain, repeat

from sqlalchemy.exc import SQLAlchemyError

from backend.base.errors import InspectionError, NotRecorded, RecordsRefused
from backend.base.messages import Phrase
from backend.records.database import Database, Reason, Unavailable
from backend.records.entries import Draft, EventDraft, Head
from backend.records.own_chain import OwnChain
from backend.records.tallies import catch_up

logger = logging.getLogger(__name__)

WAIT_S = 5.0  # how long an entry waits for a database that does not answer
RETRY_S = 1.0  # how often a database that has not answered for so long is asked again
MAX_WAITING = 1024
MAX_BATCH = 256
TALLY_S = 1.0
UNTALLIED = 1000  # entries that wait for a quiet moment to be counted
CLOCK_S = 2.0
_PAUSES_S = (0.02, 0.05, 0.1, 0.2, 0.5)

_STOPPING, _CROWDED, _ENDED = Phrase("records_stopping"), Phrase("records_crowded"), Phrase("records_ended")


@dataclass(frozen=True)
class _Waiting:
    draft: Draft
    done: Future[str]
    deadline: float


class Writer:
    """Takes entries from any thread and adds them to this process's chain, which begins with the first of them.

    Entries that come while a commit is under way share the next one. A database that does not answer is asked again
    for WAIT_S; after that entries are refused at once, and one a RETRY_S asks again.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.chain = OwnChain(database)
        self._queue: queue.Queue[_Waiting | None] = queue.Queue(MAX_WAITING)
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._closed = self._ended = False
        self._trouble: Unavailable | None = None
        self._down_since = self._retry_at = 0.0
        self._lost = 0
        self._tally_at, self._tallied = 0.0, 0
        self._clock = time.time() - time.monotonic()

    @property
    def head(self) -> Head | None:
        """The last entry of this process's chain, as far as is known."""
        return self.chain.head

    def submit(self, draft: Draft) -> Future[str]:
        """The identifier that the entry has once it is committed.

        The future raises NotRecorded, or what the draft itself raises when its turn comes.
        """
        done: Future[str] = Future()
        now, trouble = time.monotonic(), self._trouble
        if self._closed:
            done.set_exception(_not_recorded(_STOPPING))
        elif trouble is not None and self.refuses():
            self._lost += 1
            done.set_exception(_not_recorded(trouble.reason))
        else:
            self._start()
            try:
                self._queue.put(_Waiting(draft, done, now + (0 if trouble else WAIT_S)), timeout=WAIT_S)
            except queue.Full:
                done.set_exception(_not_recorded(_CROWDED))
            if self._ended:  # after the last look at the queue, perhaps
                _refuse(self._rest(), _STOPPING)
        return done

    def refuses(self) -> bool:
        """Whether the database has not answered for so long that nothing is taken for the moment."""
        return self._trouble is not None and time.monotonic() < self._retry_at

    def open(self) -> None:
        """Begin the chain before there is anything to write. Raises RecordsRefused, Unavailable."""
        with self._starting:
            if self._thread is None and self.chain.head is None:
                self.chain.open()

    def close(self) -> None:
        """Write what waits and the end of the chain."""
        with self._starting:
            self._closed, thread = True, self._thread
        if thread is None:
            self._end()
        else:
            self._queue.put(None)
            thread.join(2 * WAIT_S)

    def _start(self) -> None:
        with self._starting:
            if self._thread is None and not self._closed:
                self._thread = threading.Thread(target=self._run, name="records", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        waiting: list[_Waiting] = []
        try:
            while True:
                waiting, last = self._next()
                self._write(waiting)
                if last:
                    self._end()
                    return
                self._tally()
        finally:  # nobody waits for a thread that is no more
            self._closed = self._ended = True
            _refuse([*waiting, *self._rest()], _ENDED)

    def _next(self) -> tuple[list[_Waiting], bool]:
        """What waits, MAX_BATCH at most, and whether it is the last there will be."""
        try:
            found = [self._queue.get(timeout=TALLY_S)]
        except queue.Empty:
            return [], False
        with suppress(queue.Empty):
            while len(found) < MAX_BATCH and found[-1] is not None:
                found.append(self._queue.get_nowait())
        return [one for one in found if one is not None], found[-1] is None

    def _rest(self) -> list[_Waiting]:
        rest = []
        with suppress(queue.Empty):
            while True:
                rest.append(self._queue.get_nowait())
        return [one for one in rest if one is not None]

    def _write(self, waiting: list[_Waiting]) -> None:
        """Commit what waits, or refuse it when its time is over."""
        if not waiting:
            return
        notes = self._notes()
        for pause in chain(_PAUSES_S, repeat(_PAUSES_S[-1])):
            try:
                outcomes = self.chain.append([*notes, *(one.draft for one in waiting)])
            except Unavailable as err:
                trouble = err
            except RecordsRefused as err:
                trouble = Unavailable(err, passing=False)
            else:
                self._recovered()
                _answer(waiting, outcomes[len(notes) :])
                return
            waiting = self._without_hopeless(waiting, trouble)
            if not waiting:
                return
            time.sleep(pause)

    def _recovered(self) -> None:
        if self._trouble is not None:
            down_s = time.monotonic() - self._down_since
            logger.warning("recording again after %.0f s; %d entries were not recorded", down_s, self._lost)
        self._trouble, self._lost = None, 0

    def _without_hopeless(self, waiting: list[_Waiting], trouble: Unavailable) -> list[_Waiting]:
        """What is worth another attempt; the others are refused, and from now on whoever comes."""
        now = time.monotonic()
        hopeless = [one for one in waiting if not trouble.passing or one.deadline <= now]
        if hopeless:
            if self._trouble is None:
                self._down_since = now
                logger.error("the record cannot be written: %s", trouble.reason)
            self._trouble, self._retry_at = trouble, now + RETRY_S
            self._lost += len(hopeless)
            _refuse(hopeless, trouble.reason)
        return [one for one in waiting if not one.done.done()]

    def _notes(self) -> list[EventDraft]:
        """What is to be told in the chain before the next entry: that some are missing, that the clock went back."""
        notes = []
        if self._lost:
            notes.append(EventDraft("gap", {"n": self._lost, "seconds": round(time.monotonic() - self._down_since, 1)}))
        clock = time.time() - time.monotonic()
        if clock < self._clock - CLOCK_S:
            logger.warning("the clock went back %.0f s", self._clock - clock)
            notes.append(EventDraft("clock_back", {"seconds": round(self._clock - clock, 1)}))
        self._clock = clock
        return notes

    def _tally(self) -> None:
        """Count what was written since; what cannot be counted now is counted another time."""
        head, now = self.chain.head, time.monotonic()
        if head is None or self._trouble is not None or now < self._tally_at or head.sequence == self._tallied:
            return
        if not self._queue.empty() and head.sequence - self._tallied < UNTALLIED:
            return
        self._tally_at = now + TALLY_S
        try:
            catch_up(self.database, head.chain)
            self._tallied = head.sequence
        except Unavailable as trouble:
            logger.debug("the tallies wait: %s", trouble.reason)
        except SQLAlchemyError:
            logger.exception("what was recorded cannot be tallied")

    def _end(self) -> None:
        try:
            self.chain.close()
        except (Unavailable, RecordsRefused) as err:
            logger.warning("the end of the chain could not be written: %s", err)


def _answer(waiting: Sequence[_Waiting], outcomes: Sequence[str | InspectionError]) -> None:
    for one, outcome in zip(waiting, outcomes, strict=True):
        if isinstance(outcome, InspectionError):
            one.done.set_exception(outcome)
        else:
            one.done.set_result(outcome)


def _refuse(waiting: Sequence[_Waiting], reason: Reason) -> None:
    for one in waiting:
        if not one.done.done():
            one.done.set_exception(_not_recorded(reason))


def _not_recorded(reason: Reason) -> NotRecorded:
    return NotRecorded(reason=reason, retry_after=5)

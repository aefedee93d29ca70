"""How the routes that inspect have their verdicts recorded: what a request says of the part, and what came of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any, Protocol

from fastapi import Depends, Form, Request

from backend.api.requests import LEFT_OUT
from backend.base.errors import RecordsOff
from backend.base.messages import Notice
from backend.records.ledger import Ledger, Recorded
from backend.records.verdicts import Trace
from backend.service.jobs import Job

PartId = Annotated[
    str | None,
    Form(description="Which part it is, such as its serial number; at most 128 characters.", examples=LEFT_OUT),
]
BatchId = Annotated[
    str | None, Form(description="The batch, order or lot that the part belongs to.", examples=LEFT_OUT)
]
StationId = Annotated[str | None, Form(description="The station that inspects.", examples=LEFT_OUT)]
Operator = Annotated[str | None, Form(description="Who works there.", examples=LEFT_OUT)]


def trace_form(source: str) -> Callable[..., Awaitable[Trace]]:
    """A dependency that reads the four ids from a form. It raises InvalidValue."""

    async def read(
        request: Request,
        part_id: PartId = None,
        batch_id: BatchId = None,
        station_id: StationId = None,
        operator: Operator = None,
    ) -> Trace:
        said = {"part_id": part_id, "batch_id": batch_id, "station_id": station_id, "operator": operator}
        return trace_of(request, source, said)

    return read


def trace_of(request: Request, source: str, said: dict[str, str | None]) -> Trace:
    """The trace of a request. Raises InvalidValue."""
    key_id = getattr(request.state, "key_id", None)
    return Trace.of(source, said, request_id=request.state.request_id, key_id=key_id)


async def get_ledger(request: Request) -> Ledger:
    """The app's record. Raises RecordsOff: there is none."""
    ledger: Ledger | None = request.app.state.ledger
    if ledger is None:
        raise RecordsOff()
    return ledger


LedgerDep = Annotated[Ledger, Depends(get_ledger)]


class Recordable(Protocol):
    """A verdict that knows what it becomes in the record."""

    def record(self, ledger: Ledger, trace: Trace) -> Recorded:
        """Record it. Raises NotRecorded: only if the record is required."""
        ...


class Recording:
    """Records the verdicts of one request."""

    def __init__(self, request: Request, trace: Trace) -> None:
        self._ledger: Ledger | None = request.app.state.ledger
        self._named = not request.app.state.settings.contract_only
        self._trace = trace

    def add(self, verdict: Recordable, job: Job) -> tuple[dict[str, Any], Sequence[Notice]]:
        """What the answer says of it: `inspection_id` where there is one, and what could not be done.

        A verdict that nobody waits for any more is not recorded, because it is not answered.

        Raises:
            Cancelled, NotRecorded.
        """
        if self._ledger is None:
            return {}, ()
        job.check()
        recorded = verdict.record(self._ledger, self._trace)
        if recorded.inspection_id is None or not self._named:
            return {}, recorded.notices
        return {"inspection_id": recorded.inspection_id}, recorded.notices

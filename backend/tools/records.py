"""`records verify`, `export` and `prune`, and how the command line's own inspections are recorded."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from getpass import getuser
from pathlib import Path

from backend.base.config import Settings, load_settings
from backend.base.errors import RecordsOff, RecordsRefused, RecordsUnavailable
from backend.base.files import write_atomic
from backend.base.keys import ModelKey
from backend.base.messages import Phrase
from backend.records.database import Unavailable
from backend.records.export import as_csv
from backend.records.ledger import Ledger
from backend.records.pruning import Pruned
from backend.records.queries import Filters
from backend.records.verdicts import Trace, Verdict
from backend.records.verifying import Report
from backend.records.verifying import verify as verify_all
from backend.service.images import ImageFile
from backend.service.results import InferResult


@contextmanager
def opened() -> Iterator[Ledger]:
    """The record that the settings name, which must be there. Raises RecordsOff, RecordsRefused, RecordsUnavailable."""
    ledger = Ledger.of(load_settings())
    if ledger is None:
        raise RecordsOff()
    try:
        if ledger.database.path is not None and not ledger.database.path.exists():
            raise RecordsRefused(reason=Phrase("records_absent", {"name": ledger.database.name}))
        ledger.ready()
        yield ledger
    except Unavailable as trouble:
        raise RecordsUnavailable(reason=trouble.reason, retry_after=5) from trouble
    finally:
        ledger.close()


def verify(heads: Sequence[str], *, images: bool) -> Report:
    """Hold every record against its chain, the heads of the log against the chains, and images against their names."""
    with opened() as ledger:
        return verify_all(ledger.database, ledger.images if images else None, heads=heads)


def export(out: Path | None, filters: Filters) -> None:
    """Write the inspections that the filters admit as CSV to a file, or to standard output."""
    with opened() as ledger:
        pieces = as_csv(ledger.database, filters)
        if out is None:
            for piece in pieces:
                sys.stdout.buffer.write(piece)
        else:
            write_atomic(out, lambda file: [file.write(piece) for piece in pieces])


def prune(before_us: int, *, dry_run: bool) -> Pruned:
    """Delete the inspections of before a moment (microseconds since 1970), or count them."""
    with opened() as ledger:
        return ledger.prune(before_us=before_us, by=f"{getuser()}, records prune", dry_run=dry_run)


class Recorder:
    """Records the inspections of the command line; with RESULTS_DB=none it does nothing."""

    def __init__(self, ledger: Ledger | None, trace: Trace) -> None:
        self._ledger, self._trace = ledger, trace

    def add(self, key: ModelKey, file: ImageFile, result: InferResult) -> tuple[InferResult, str | None]:
        """The result with what is to be said of its record, and its name there. Raises NotRecorded."""
        if self._ledger is None:
            return result, None
        recorded = Verdict.of(key, file, result).record(self._ledger, self._trace)
        return replace(result, warnings=[*result.warnings, *recorded.notices]), recorded.inspection_id


@contextmanager
def recorder(settings: Settings, said: Mapping[str, str | None]) -> Iterator[Recorder]:
    """A recorder for inspections of what `said` names: part_id, batch_id, station_id, operator. Raises InvalidValue."""
    trace, ledger = Trace.of("cli", said), Ledger.of(settings)
    try:
        yield Recorder(ledger, trace)
    finally:
        if ledger is not None:
            ledger.close()

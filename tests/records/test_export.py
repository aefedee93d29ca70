"""The CSV holds each inspection once, and nothing that a spreadsheet would execute."""

import csv
import io
import tracemalloc
from typing import Any

import pytest

from backend.records import export
from backend.records.entries import InspectionDraft, ReviewDraft
from backend.records.export import COLUMNS, as_csv
from backend.records.ledger import Ledger
from backend.records.queries import Filters
from tests.records.made import NOON_US, record


def lines(ledger: Ledger, **filters: Any) -> list[dict[str, str]]:
    ledger.ready()
    text = b"".join(as_csv(ledger.database, Filters(**filters))).decode()
    return list(csv.DictReader(io.StringIO(text)))


def test_each_inspection_is_a_line_in_the_order_of_time(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "MAX_LIMIT", 4)
    names = [ledger.record(record(n, time_us=NOON_US + n, part_id=f"P{n}")).inspection_id for n in range(10)]
    ledger.review(ReviewDraft(inspection_id=str(names[0]), verdict="good"))
    found = lines(ledger)
    assert [line["inspection_id"] for line in found] == names
    assert found[0].keys() == set(COLUMNS)
    assert (found[0]["part_id"], found[0]["review"], found[1]["review"]) == ("P0", "good", "")
    assert float(found[3]["score"]) == record(3).score
    assert len(found[0]["hash"]) == len(found[0]["sha256"]) == 64
    assert [line["part_id"] for line in lines(ledger, part_id="P7")] == ["P7"]


def test_nothing_recorded_is_a_heading(ledger: Ledger) -> None:
    assert lines(ledger) == []
    assert b"".join(as_csv(ledger.database, Filters())).decode().strip().split(",") == list(COLUMNS)


@pytest.mark.parametrize("text", ['=HYPERLINK("http://x")', "+1", "-1", "@SUM(A1)"])
def test_a_text_that_a_spreadsheet_would_execute_is_none_any_more(ledger: Ledger, text: str) -> None:
    ledger.record(record(operator=text, part_id=text, batch_id='a "b", c\nd'))
    (line,) = lines(ledger)
    assert line["operator"] == line["part_id"] == f"'{text}"
    assert line["batch_id"] == 'a "b", c\nd'


def test_numbers_below_zero_stay_numbers(ledger: Ledger) -> None:
    ledger.record(record(threshold=-0.5))
    assert lines(ledger)[0]["threshold"] == "-0.5"


def test_memory_stays_flat_however_many_there_are(ledger: Ledger) -> None:
    for start in range(0, 6000, 500):
        waiting = [ledger.writer.submit(InspectionDraft.of(record(n))) for n in range(start, start + 500)]
        for future in waiting:
            future.result()
    pieces = as_csv(ledger.database, Filters())
    next(pieces)
    next(pieces)
    tracemalloc.start()
    next(pieces)
    before = tracemalloc.get_traced_memory()[0]
    for _ in pieces:
        pass
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert grown < 2**20

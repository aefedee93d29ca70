"""Entries come out of the writer committed, once, in the order of their chain."""

import json
import threading
from collections.abc import Callable

import pytest
from sqlalchemy import func, select

from backend.base.errors import InspectionNotFound, NotRecorded
from backend.records.database import Database
from backend.records.entries import EventDraft, InspectionDraft, ReviewDraft
from backend.records.ledger import Ledger
from backend.records.record import Verdict
from backend.records.tables import chains, events, inspections, reviews
from backend.records.writer import Writer
from tests.records.made import faults, raises, record


def counts(database: Database) -> tuple[int, int, int]:
    with database.reading() as connection:
        inspected, reviewed, happened = (
            connection.execute(select(func.count()).select_from(table)).scalar_one()
            for table in (inspections, reviews, events)
        )
        return inspected, reviewed, happened


def test_a_record_is_there_for_others_as_soon_as_its_name_is(ledger: Ledger, database: Database) -> None:
    recorded = ledger.record(record(part_id="P 1", operator="Ana"))
    assert recorded.inspection_id is not None and not recorded.notices
    with database.reading() as connection:
        row = connection.execute(select(inspections)).one()
    assert (row.part_id, row.operator, row.score) == ("P 1", "Ana", 0.2)
    assert len(row.prev_hash) == len(row.hash) == 32


def test_entries_of_many_threads_are_each_there_once(ledger: Ledger, database: Database) -> None:
    names: list[str | None] = []

    def work(seed: int) -> None:
        names.extend(ledger.record(record(seed * 100 + n)).inspection_id for n in range(25))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(names)) == 200 and None not in names
    assert counts(database)[0] == 200
    assert faults(database) == []


def test_what_comes_during_a_commit_shares_the_next_one(database: Database) -> None:
    writer = Writer(database)
    writer.open()
    commits, submitted = [], threading.Event()
    append = writer.chain.append

    def held(drafts):  # type: ignore[no-untyped-def]
        commits.append(len(drafts))
        assert submitted.wait(60)
        return append(drafts)

    writer.chain.append = held  # type: ignore[method-assign]
    waiting = [writer.submit(InspectionDraft.of(record(n))) for n in range(40)]
    submitted.set()
    assert len({future.result() for future in waiting}) == 40
    assert sum(commits) == 40 and len(commits) <= 2
    writer.close()


def test_two_writers_have_a_chain_each(open_ledger: Callable[..., Ledger], database: Database) -> None:
    one, other = open_ledger(), open_ledger()
    names = [ledger.record(record(n)).inspection_id for n in range(10) for ledger in (one, other)]
    assert len({str(name).split("-")[0] for name in names}) == 2
    assert counts(database)[0] == 20
    assert faults(database) == []


def test_a_chain_begins_with_its_first_entry_and_says_where_it_ends(ledger: Ledger, database: Database) -> None:
    ledger.ready()
    with database.reading() as connection:
        assert connection.execute(select(chains)).all() == []
    ledger.record(record())
    ledger.writer.close()
    with database.reading() as connection:
        (chain,) = connection.execute(select(chains)).all()
        assert connection.execute(select(events.c.kind)).scalars().all() == ["closed"]
    assert chain.closed and chain.head_seq == chain.tallied_seq == 2
    assert faults(database) == []


def test_a_closed_writer_refuses(ledger: Ledger) -> None:
    ledger.record(record())
    ledger.writer.close()
    with raises(NotRecorded, "stopping"):
        ledger.writer.submit(EventDraft("late", {})).result()


def test_a_review_of_nothing_leaves_the_others_of_its_batch_alone(database: Database) -> None:
    writer = Writer(database)
    good = writer.submit(InspectionDraft.of(record()))
    bad = writer.submit(ReviewDraft(inspection_id="0badf00d-1", verdict="good"))
    last = writer.submit(InspectionDraft.of(record(1)))
    with pytest.raises(InspectionNotFound):
        bad.result()
    assert {good.result().split("-")[1], last.result().split("-")[1]} == {"1", "2"}
    writer.close()
    assert faults(database) == []


def test_reviews_are_added_and_the_last_one_counts(ledger: Ledger, database: Database) -> None:
    name = str(ledger.record(record(score=0.9)).inspection_id)
    for verdict, who in (("bad", "Ana"), ("good", "Luis")):
        ledger.review(ReviewDraft(inspection_id=name, verdict=verdict, reviewer=who))  # type: ignore[arg-type]
    found = ledger.inspection(name)
    assert [(one["verdict"], one["reviewer"]) for one in found.reviews] == [("bad", "Ana"), ("good", "Luis")]
    assert found.item["review"] == "good" and found.item["decision"] == "ng"
    assert counts(database)[:2] == (1, 2)
    assert faults(database) == []


def test_a_score_that_is_no_number_is_refused_before_it_reaches_the_writer() -> None:
    with pytest.raises(ValueError, match="nan"):
        InspectionDraft.of(record(score=float("nan")))


def test_what_the_database_cannot_hold_keeps_no_other_out(database: Database) -> None:
    writer = Writer(database)
    drafts = [InspectionDraft.of(record(n, part_id="\udce9" if n == 2 else "P")) for n in range(5)]
    futures = [writer.submit(draft) for draft in drafts]
    with raises(NotRecorded, "internal fault"):
        futures[2].result()
    assert [futures[n].result().split("-")[1] for n in (0, 1, 3, 4)] == ["1", "2", "3", "4"]
    writer.close()
    assert faults(database) == []


def test_a_file_name_that_is_no_text_is_kept_as_one(ledger: Ledger) -> None:
    name = ledger.record(record(image_name="caf\udce9\0.png")).inspection_id
    assert ledger.inspection(str(name)).item["image"]["filename"] == "caf\\udce9\ufffd.png"


def test_whoever_waits_for_a_writer_that_dies_is_told(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def enter(self, batch: object) -> None:
            raise RuntimeError("a bug")

    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    writer = Writer(database)
    with raises(NotRecorded, "ended by a fault"):
        writer.submit(Broken()).result(10)
    with pytest.raises(NotRecorded):
        writer.submit(InspectionDraft.of(record())).result(10)


def test_a_warning_about_a_name_that_is_no_text_is_recorded_and_read(ledger: Ledger) -> None:
    warning = {"code": "shape_not_understood", "values": {"name": "caf\udce9\0.png", "\udcff": ["\udcff"]}}
    name = str(ledger.record(record(warnings=[warning])).inspection_id)
    read = json.dumps(ledger.inspection(name).details["warnings"], ensure_ascii=False).encode()
    assert read.decode().count("\\\\udc") == 3 and b"\0" not in read


def test_reviews_of_one_inspection_that_come_at_once_are_all_added(ledger: Ledger, database: Database) -> None:
    """Those that share a commit see what the one before them said, and keep no verdict out."""
    name = str(ledger.record(record(score=0.9)).inspection_id)
    said: list[Verdict] = ["good", "bad", "unclear"] * 8
    reviews = [ledger.writer.submit(ReviewDraft(inspection_id=name, verdict=verdict)) for verdict in said]
    verdicts = [ledger.writer.submit(InspectionDraft.of(record(n))) for n in range(3)]
    assert len({future.result() for future in [*reviews, *verdicts]}) == 27
    found = ledger.inspection(name)
    assert [one["verdict"] for one in found.reviews] == said and found.item["review"] == "unclear"
    assert faults(database) == []

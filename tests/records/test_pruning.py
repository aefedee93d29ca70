"""What is old goes, the rest can still be verified, and nothing goes that is not old."""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select, text

from backend.base.errors import InspectionNotFound
from backend.records import pruning
from backend.records.database import Database
from backend.records.entries import ReviewDraft
from backend.records.ledger import Ledger
from backend.records.queries import Filters
from backend.records.record import now_us
from backend.records.summaries import span_of, summary
from backend.records.tables import events, inspections
from tests.records.made import DAY_US, NOON_US, faults, picture, record

CUT_US = NOON_US + 5 * DAY_US


def total(ledger: Ledger) -> int:
    asked = Filters()
    with ledger.reading() as connection:
        return int(summary(connection, span_of(connection, "day", asked, None), asked)["total"]["n"])


def files(ledger: Ledger) -> list[Path]:
    return sorted(ledger.images.folder.glob("??/*"))


def fill(ledger: Ledger, days: range = range(10), **given: Any) -> list[str]:
    made = (record(n, time_us=NOON_US + n * DAY_US, image=picture(n), **given) for n in days)
    return [str(ledger.record(one, picture(n)).inspection_id) for n, one in zip(days, made, strict=True)]


def test_what_is_older_goes_with_its_images_and_the_rest_is_verified(ledger: Ledger, database: Database) -> None:
    names = fill(ledger, score=0.9)
    ledger.review(ReviewDraft(inspection_id=names[1], verdict="bad"))
    done = ledger.prune(before_us=CUT_US, by="Ana")
    assert (done.inspections, done.chains) == (5, 1)
    assert faults(database, ledger.images) == []
    assert total(ledger) == len(files(ledger)) == 5
    with pytest.raises(InspectionNotFound):
        ledger.inspection(names[4])
    assert ledger.inspection(names[5]).item["score"] == 0.9
    with database.reading() as connection:
        (body,) = connection.execute(select(events.c.body).where(events.c.kind == "pruned")).scalars()
    assert '"by":"Ana"' in body and '"n":5' in body
    ledger.record(record(11))
    assert faults(database, ledger.images) == []


def test_pruning_again_and_again_keeps_the_chains_whole(open_ledger: Callable[..., Ledger], database: Database) -> None:
    """Chains whose stubs are pruned in their turn, until nothing but stubs is left of most."""
    for start in range(0, 12, 4):
        ledger = open_ledger()
        fill(ledger, range(start, start + 4))
        ledger.prune(before_us=NOON_US + start * DAY_US + 2 * DAY_US, by="test")
        assert faults(database, ledger.images) == []
        ledger.writer.close()
    last = open_ledger()
    for _ in range(2):
        last.prune(before_us=now_us() + DAY_US, by="test")
        assert faults(database, last.images) == []
    assert total(last) == 0 and files(last) == []
    last.record(record(1))
    assert faults(database, last.images) == []


def test_a_stub_that_is_changed_is_named_even_when_its_own_chain_is_pruned(
    open_ledger: Callable[..., Ledger], database: Database
) -> None:
    first = open_ledger()
    fill(first)
    first.prune(before_us=CUT_US, by="Ana")
    first.writer.close()
    open_ledger().prune(before_us=now_us() + DAY_US, by="Luis")
    assert faults(database) == []
    with database.writing() as connection:
        connection.execute(text("UPDATE events SET body = replace(body, 'Ana', 'Eva') WHERE body LIKE '%Ana%'"))
    assert len(faults(database)) == 1


def test_pruning_that_is_interrupted_goes_on_the_next_time(
    ledger: Ledger, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(ledger)
    monkeypatch.setattr(pruning, "_STEP", 2)
    steps = itertools.count()
    some = pruning._delete_some

    def cut(*given: Any) -> bool:
        done = some(*given)
        if next(steps) == 1:
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(pruning, "_delete_some", cut)
    with pytest.raises(KeyboardInterrupt):
        ledger.prune(before_us=CUT_US, by="Ana")
    assert faults(database, ledger.images) == []
    assert 5 < total(ledger) < 10 and len(files(ledger)) == total(ledger)
    assert ledger.prune(before_us=CUT_US, by="Ana").inspections == 0
    assert total(ledger) == len(files(ledger)) == 5
    assert faults(database, ledger.images) == []


def test_nothing_is_deleted_that_a_younger_entry_follows_out_of_order(ledger: Ledger, database: Database) -> None:
    """The clock went back in the middle of the chain: only its beginning goes."""
    for day in (0, 9, 1):
        ledger.record(record(day, time_us=NOON_US + day * DAY_US))
    assert ledger.prune(before_us=CUT_US, by="test").inspections == 1
    assert total(ledger) == 2
    assert faults(database) == []


def test_a_review_that_goes_before_its_inspection_is_remembered(
    open_ledger: Callable[..., Ledger], database: Database
) -> None:
    one, other = open_ledger(), open_ledger()
    name = str(one.record(record(0, time_us=now_us() + 3 * DAY_US, score=0.9)).inspection_id)
    other.review(ReviewDraft(inspection_id=name, verdict="good"))
    other.prune(before_us=now_us() + DAY_US, by="test")
    with database.reading() as connection:
        assert connection.execute(text("SELECT count(*) FROM reviews")).scalar() == 0
    assert one.inspection(name).item["review"] == "good"
    assert faults(database) == []


def test_an_image_that_a_younger_inspection_names_stays(ledger: Ledger, database: Database) -> None:
    data = picture(1)
    for day, score in ((0, 0.9), (9, 0.2)):
        ledger.record(record(day, time_us=NOON_US + day * DAY_US, score=score, image=data), data)
    ledger.prune(before_us=CUT_US, by="test")
    assert len(files(ledger)) == 1
    assert faults(database, ledger.images) == []


def test_a_dry_run_counts_and_deletes_nothing(ledger: Ledger, database: Database) -> None:
    fill(ledger)
    assert ledger.prune(before_us=CUT_US, by="test", dry_run=True).inspections == 5
    with database.reading() as connection:
        assert connection.execute(select(func.count()).select_from(inspections)).scalar() == 10
        assert connection.execute(select(func.count()).select_from(events)).scalar() == 0


def test_nothing_old_is_nothing_to_do(ledger: Ledger, database: Database) -> None:
    assert ledger.prune(before_us=CUT_US, by="test").chains == 0
    fill(ledger)
    assert ledger.prune(before_us=NOON_US, by="test").chains == 0
    with database.reading() as connection:
        assert connection.execute(select(func.count()).select_from(events)).scalar() == 0

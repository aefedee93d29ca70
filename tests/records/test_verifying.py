"""Whatever is changed, removed or inserted behind the program's back is named."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import pytest
from sqlalchemy import (
    Boolean,
    Connection,
    Double,
    Executable,
    Integer,
    LargeBinary,
    Row,
    Table,
    delete,
    insert,
    select,
    update,
)

from backend.records.database import Database
from backend.records.entries import ReviewDraft
from backend.records.ledger import Ledger
from backend.records.record import now_us
from backend.records.tables import (
    chains,
    drift_references,
    drifts,
    events,
    facets,
    images,
    inspections,
    metadata,
    reviews,
    tallies,
)
from backend.records.tallies import catch_up
from backend.records.verifying import verify
from tests.records.made import NOON_US, faults, picture, record

ENTRIES = (inspections, reviews, events)


@pytest.fixture
def written(open_ledger: Callable[..., Ledger]) -> Ledger:
    """Two chains of inspections, reviews and events, one of them ended, and images of some."""
    ended = open_ledger()
    for n in range(3):
        given = {"part_id": f"P{n}", "batch_id": "L", "operator": "Ana", "request_id": "r", "key_id": "k"}
        ended.record(record(n, p_value=0.5, station_id="A", time_us=NOON_US + n, image=picture(n), **given), picture(n))
    ended.writer.close()
    ledger = open_ledger()
    names = [
        str(ledger.record(record(n, score=0.9, time_us=NOON_US + n, image=picture(n)), picture(n)).inspection_id)
        for n in (3, 4, 5)
    ]
    said = {"defect": "scratch", "note": "on the left", "reviewer": "Luis", "key_id": "k", "request_id": "r"}
    ledger.review(ReviewDraft(inspection_id=names[0], verdict="good", **said))
    ledger.review(ReviewDraft(inspection_id=names[0], verdict="bad", **said))
    ledger.tell("note", {"what": "something"})
    ledger.record(record(6))
    catch_up(ledger.database)
    assert faults(ledger.database, ledger.images) == []
    return ledger


def rows(connection: Connection, table: Table) -> Sequence[Row[Any]]:
    return connection.execute(select(table).order_by(*table.primary_key)).all()


@contextmanager
def tampered(database: Database, change: Callable[[Connection], object]) -> Iterator[list[str]]:
    """What is found after a change, and everything as it was afterwards."""
    with database.reading() as connection:
        before = {table: rows(connection, table) for table in metadata.sorted_tables}
    with database.writing() as connection:
        change(connection)
    yield faults(database)
    with database.writing() as connection:
        for table, kept in before.items():
            connection.execute(delete(table))
            if kept:
                connection.execute(insert(table), [row._asdict() for row in kept])


def _driven(statement: str, connection: Connection) -> None:
    connection.exec_driver_sql(statement)


def _run(statement: Executable, connection: Connection) -> None:
    connection.execute(statement)


def other(table: Table, name: str, value: Any) -> Any:
    """A value one byte from this one, or the smallest other one."""
    kind = table.c[name].type
    if isinstance(kind, Boolean):
        return not value
    if isinstance(kind, LargeBinary):
        return bytes([value[0] ^ 1]) + value[1:] if value else b"x"
    if isinstance(kind, Double):
        return 0.5 if value is None else value + 2**-40
    if isinstance(kind, Integer):
        return value + (97 if table.c[name].primary_key else 1)
    return chr(ord(value[0]) ^ 1) + value[1:] if value else "x"


# The state of the drift charts is no record: it is reckoned anew from the parts that come.
OF_RECORDS = [table for table in metadata.sorted_tables if table not in {drifts, drift_references}]


@pytest.mark.parametrize("table", OF_RECORDS, ids=lambda table: table.name)
def test_one_byte_changed_in_any_column_is_named(written: Ledger, database: Database, table: Table) -> None:
    with database.reading() as connection:
        victims = rows(connection, table)
        keys = dict(connection.execute(select(chains.c.id, chains.c.key)).all())
    victim = victims[-1] if table is images else victims[0]
    here = [column == getattr(victim, column.name) for column in table.primary_key]
    for column in table.columns:
        if (table, column.name) == (images, "suffix"):
            continue  # what files say, below
        value = {column.name: other(table, column.name, getattr(victim, column.name))}
        change = update(table).where(*here).values(value)
        with tampered(database, partial(_run, change)) as found:
            assert found, f"{table.name}.{column.name}"
            if table in ENTRIES:
                name, moved = (f"{keys[victim.id >> 40]}-{(victim.id & 0xFFFFFF) + step}" for step in (0, 97))
                named = {f"{name}: it was changed"}
                if column.name == "id":
                    named = {f"{name}: it was removed", f"{moved}: it was inserted"}
                assert found[0] in named, (column.name, found)
    assert faults(database, written.images) == []


# Values that no program of ours writes: other types, numbers that JSON lacks, and text that is no UTF-8.
STRANGE = {
    True: [
        *(f"UPDATE inspections SET {name} = 9e999" for name in ("score", "threshold", "p_value", "time_us")),
        *(f"UPDATE inspections SET {name} = 'abc'" for name in ("score", "n_regions", "image_size", "image_sha256")),
        *(f"UPDATE inspections SET {name} = x'00ff'" for name in ("details", "part_id", "image_store", "source")),
        *(f"UPDATE inspections SET {name} = CAST(x'61ff' AS TEXT)" for name in ("details", "part_id", "operator")),
        *(f"UPDATE inspections SET {name} = 'abc'" for name in ("token_map", "prev_hash", "hash", "facet_id")),
        *(f"UPDATE reviews SET {name} = CAST(x'61ff' AS TEXT)" for name in ("note", "reviewer", "former")),
        *(f"UPDATE reviews SET {name} = x'00ff'" for name in ("verdict", "inspection_id", "time_us", "hash")),
        *(f"UPDATE events SET {name} = x'00ff'" for name in ("kind", "body", "time_us")),
        *(f"UPDATE chains SET {name} = 'abc'" for name in ("head_seq", "tallied_seq", "head_hash", "hash", "closed")),
        "UPDATE chains SET closed = 2 WHERE closed",
        "UPDATE images SET protected = 2 WHERE protected",
        "UPDATE images SET sha256 = 'abc' WHERE sha256 = (SELECT min(sha256) FROM images)",
        "UPDATE facets SET role_id = x'00ff'",
        "UPDATE facets SET roi_id = CAST(x'ff' AS TEXT)",
        "UPDATE tallies SET scores = 'abc'",
    ],
    False: [
        *(f"UPDATE inspections SET {name} = 'NaN'" for name in ("score", "threshold", "p_value")),
        *(f"UPDATE inspections SET {name} = '-Infinity'" for name in ("score", "threshold", "p_value")),
        "UPDATE inspections SET token_map = substr(token_map, 1, 7)",
        "UPDATE tallies SET scores = ''",
    ],
}


def test_values_that_nobody_writes_are_named_and_end_nothing(written: Ledger, database: Database) -> None:
    for statement in STRANGE[database.on_sqlite]:
        with tampered(database, partial(_driven, statement)) as found:
            assert found, statement
    assert faults(database, written.images) == []


def test_how_far_an_ended_chain_was_counted_cannot_be_set_back(written: Ledger, database: Database) -> None:
    ended = chains.c.closed.is_(True)
    with tampered(
        database, partial(_run, update(chains).where(ended).values(tallied_seq=chains.c.head_seq - 1))
    ) as found:
        assert len(found) == 1 and found[0].startswith("chains ")


@pytest.mark.parametrize("table", ENTRIES, ids=lambda table: table.name)
def test_the_first_of_several_entries_that_were_changed_is_named(
    written: Ledger, database: Database, table: Table
) -> None:
    """Each entry in turn, and all after it in its chain."""
    with database.reading() as connection:
        keys = dict(connection.execute(select(chains.c.id, chains.c.key)).all())
        numbers = [row.id for row in rows(connection, table)]
    for number in numbers:
        later = table.c.id.between(number, (number >> 40) + 1 << 40)
        with tampered(database, partial(_run, update(table).where(later).values(time_us=table.c.time_us + 1))) as found:
            assert f"{keys[number >> 40]}-{number & 0xFFFFFF}: it was changed" in found[0]


@pytest.mark.parametrize("table", ENTRIES, ids=lambda table: table.name)
def test_a_row_that_is_deleted_is_named(written: Ledger, database: Database, table: Table) -> None:
    with database.reading() as connection:
        victims = rows(connection, table)
        keys = dict(connection.execute(select(chains.c.id, chains.c.key)).all())
    for victim in (victims[0], victims[-1]):
        with tampered(database, partial(_run, delete(table).where(table.c.id == victim.id))) as found:
            name = f"{keys[victim.id >> 40]}-{victim.id & 0xFFFFFF}"
            assert f"{name}: it was removed" in found


@pytest.mark.parametrize("table", [chains, facets, images, tallies], ids=lambda table: table.name)
def test_a_row_that_is_deleted_of_what_is_derived_is_noticed(written: Ledger, database: Database, table: Table) -> None:
    with database.reading() as connection:
        victims = rows(connection, table)
    for victim in victims:
        here = [column == getattr(victim, column.name) for column in table.primary_key]
        with tampered(database, partial(_run, delete(table).where(*here))) as found:
            assert found, victim


@pytest.mark.parametrize("table", ENTRIES, ids=lambda table: table.name)
def test_two_rows_that_are_swapped_are_named(written: Ledger, database: Database, table: Table) -> None:
    with database.reading() as connection:
        keys = dict(connection.execute(select(chains.c.id, chains.c.key)).all())
        first, second = rows(connection, table)[:2]

    def swap(connection: Connection) -> None:
        for victim, contents in ((first, second), (second, first)):
            values = {**contents._asdict(), "id": victim.id}
            connection.execute(update(table).where(table.c.id == victim.id).values(values))

    with tampered(database, swap) as found:
        name = f"{keys[first.id >> 40]}-{first.id & 0xFFFFFF}"
        assert any(one.startswith(f"{name}: it was changed") for one in found), found


@pytest.mark.parametrize("table", ENTRIES, ids=lambda table: table.name)
def test_a_row_that_is_inserted_is_named(written: Ledger, database: Database, table: Table) -> None:
    with database.reading() as connection:
        keys = dict(connection.execute(select(chains.c.id, chains.c.key)).all())
        heads = dict(connection.execute(select(chains.c.id, chains.c.head_seq)).all())
        last = rows(connection, table)[-1]
    number = (last.id >> 40 << 40) + heads[last.id >> 40] + 1
    with tampered(database, partial(_run, insert(table).values({**last._asdict(), "id": number}))) as found:
        assert f"{keys[last.id >> 40]}-{number & 0xFFFFFF}: it was inserted" in found


@pytest.mark.parametrize("table", [chains, facets, images, tallies], ids=lambda table: table.name)
def test_a_row_that_is_inserted_into_what_is_derived_is_noticed(
    written: Ledger, database: Database, table: Table
) -> None:
    with database.reading() as connection:
        last = rows(connection, table)[-1]
    unique = [*table.primary_key, *(column for column in table.columns if column.unique)]
    fresh = {column.name: other(table, column.name, getattr(last, column.name)) for column in unique}
    with tampered(database, partial(_run, insert(table).values({**last._asdict(), **fresh}))) as found:
        assert found


def test_a_head_of_the_log_tells_of_a_chain_that_was_cut_and_patched(written: Ledger, database: Database) -> None:
    head = str(written.writer.head)
    assert faults(database, heads=[head]) == []

    def cut(connection: Connection) -> None:
        last = rows(connection, inspections)[-1]
        connection.execute(delete(inspections).where(inspections.c.id == last.id))
        former = rows(connection, events)[-1]
        chain = chains.c.id == last.id >> 40
        patch = {"head_seq": former.id & 0xFFFFFF, "head_hash": former.hash, "tallied_seq": former.id & 0xFFFFFF}
        connection.execute(update(chains).where(chain).values(patch))

    with tampered(database, cut):
        assert f"{head.split('=', maxsplit=1)[0]}: the service's log has another" in faults(database, heads=[head])
    for nonsense in ("nonsense", "0badf00d-1=00", f"{head.partition('-')[0]}-{'9' * 40}=00", "", "=", "-²="):
        assert len(faults(database, heads=[nonsense])) == 1, nonsense


def test_images_are_held_against_their_names(written: Ledger, database: Database) -> None:
    with database.reading() as connection:
        row = rows(connection, images)[0]
    path = written.images.path(row.sha256, row.suffix)
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert "was changed" in faults(database, written.images)[0]
    path.unlink()
    assert "is missing" in faults(database, written.images)[0]
    assert faults(database) == []
    path.write_bytes(data)
    path.unlink()
    path.mkdir()
    assert "was changed" in faults(database, written.images)[0]
    path.rmdir()
    path.write_bytes(data)
    with database.writing() as connection:
        connection.execute(update(images).where(images.c.sha256 == row.sha256).values(suffix=".jpg"))
    assert len(faults(database, written.images)) == 1


def test_it_reads_one_state_while_others_write(written: Ledger, database: Database) -> None:
    import threading

    stop = threading.Event()

    def work() -> None:
        while not stop.is_set():
            name = str(written.record(record(7, score=0.9, time_us=now_us())).inspection_id)
            written.review(ReviewDraft(inspection_id=name, verdict="good"))

    thread = threading.Thread(target=work)
    thread.start()
    found = [verify(database, written.images).found for _ in range(5)]
    stop.set()
    thread.join()
    assert found == [[]] * 5


def test_it_counts_what_it_read(written: Ledger, database: Database) -> None:
    report = verify(database, written.images)
    assert (report.inspections, report.reviews, report.events, report.chains, report.images) == (7, 2, 2, 2, 6)
    assert report.found == []

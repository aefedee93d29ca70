"""What goes wrong with databases: an answered verdict is never missing, and none is there twice."""

import shutil
import socket
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import Connection, event, text

from backend.api.catalogue import status_of
from backend.base.errors import NotRecorded, RecordsRefused, RecordsUnavailable
from backend.records import own_chain, writer
from backend.records.database import Database, Unavailable
from backend.records.entries import ReviewDraft
from backend.records.ledger import Ledger
from backend.records.queries import Filters, page
from backend.records.summaries import span_of, summary
from backend.records.tallies import catch_up
from tests.records.made import NOON_US, faults, raises, record, told
from tests.records.postgres import Server


def names_in(database: Database) -> list[str]:
    """The names of all inspections, the oldest first."""
    names, after = [], None
    with database.reading() as connection:
        while True:
            found = page(connection, Filters(), "oldest", 1000, after)
            names += [item["inspection_id"] for item in found.items]
            if found.next is None:
                return names
            after = found.next


def kinds_in(database: Database) -> list[str]:
    with database.reading() as connection:
        return list(connection.execute(text("SELECT kind FROM events ORDER BY id")).scalars())


class Disk:
    """The disk of a record's database, while it is `full`: SQLite may grow no more, PostgreSQL says what it would."""

    def __init__(self, ledger: Ledger) -> None:
        self.database = ledger.database
        self._pages = 1 << 30
        if self.database.on_sqlite:
            event.listen(self.database.engine, "begin", self._limit)

    def _limit(self, connection: Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {self._pages}")

    @contextmanager
    def full(self) -> Iterator[None]:
        self._pages = 1
        self._postgres(
            "CREATE FUNCTION no_room() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE SQLSTATE '53100'; END $$",
            "CREATE TRIGGER no_room BEFORE INSERT ON inspections EXECUTE FUNCTION no_room()",
        )
        yield
        self._pages = 1 << 30
        self._postgres("DROP TRIGGER no_room ON inspections")

    def _postgres(self, *statements: str) -> None:
        if not self.database.on_sqlite:
            with self.database.writing() as connection:
                for statement in statements:
                    connection.exec_driver_sql(statement)


@pytest.fixture
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A database that was given up is asked again at once."""
    monkeypatch.setattr(writer, "RETRY_S", 0.0)


@pytest.mark.usefixtures("soon")
def test_on_a_full_disk_a_verdict_says_that_it_is_not_recorded_and_the_chain_says_how_many(
    ledger: Ledger, database: Database
) -> None:
    disk = Disk(ledger)
    answered = [ledger.record(record(0)).inspection_id]
    with disk.full():
        for n in (1, 2):
            refused = ledger.record(record(n, token_map=None, stats={str(i): 0.5 for i in range(3000)}))
            assert refused.inspection_id is None
            assert "disk is full" in told(refused)
            assert "no queda espacio" in told(refused, "es")
    answered.append(ledger.record(record(3)).inspection_id)
    assert names_in(database) == answered
    assert kinds_in(database) == ["gap"]
    assert faults(database) == []


@pytest.mark.usefixtures("soon")
def test_where_the_record_is_required_a_full_disk_is_an_error(open_ledger: Callable[..., Ledger]) -> None:
    ledger = open_ledger(required=True)
    disk = Disk(ledger)
    ledger.record(record())
    with disk.full(), raises(NotRecorded, "disk is full") as refused:
        ledger.record(record(1, stats={str(i): 0.5 for i in range(3000)}))
    assert status_of(refused.value) == 503


@contextmanager
def locked(database: Database) -> Iterator[None]:
    """Held as a backup program holds it that lets nobody write."""
    if database.path is not None:
        with closing(sqlite3.connect(database.path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield
            other.execute("ROLLBACK")
        return
    with database.engine.connect() as connection:
        connection.exec_driver_sql("LOCK TABLE inspections IN ACCESS EXCLUSIVE MODE")
        yield


def test_a_verdict_waits_for_a_backup_that_locks_the_database(ledger: Ledger, database: Database) -> None:
    ledger.record(record())
    names: list[str | None] = []
    waiting = threading.Thread(target=lambda: names.append(ledger.record(record(1)).inspection_id))
    with locked(database):
        waiting.start()
        time.sleep(2.5)  # longer than a statement waits
        assert names == []
    waiting.join(60)
    assert names[0] is not None and names_in(database)[1:] == names
    assert faults(database) == []


def test_a_verdict_waits_only_so_long(ledger: Ledger, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "WAIT_S", 0.5)
    ledger.record(record())
    with locked(database):
        started = time.monotonic()
        refused = ledger.record(record(1))
        assert refused.inspection_id is None and "locked" in told(refused)
        assert time.monotonic() - started > 0.5
        monkeypatch.setattr(writer, "WAIT_S", 600)  # the second does not wait, however long it might
        assert ledger.record(record(2)).inspection_id is None
    time.sleep(1.1)
    assert ledger.record(record(3)).inspection_id is not None
    assert kinds_in(database) == ["gap"]
    assert faults(database) == []


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_postgresql_restarted_in_the_middle_loses_and_doubles_nothing(
    postgres: Server, mode: str, tmp_path: Path
) -> None:
    ledger = Ledger(postgres.database(), images=tmp_path)
    names: list[str | None] = []
    stop = threading.Event()

    def work(seed: int) -> None:
        number = seed
        while not stop.is_set():
            names.append(ledger.record(record(number)).inspection_id)
            number += 10

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    postgres.restart(mode, pause_s=0.5)
    time.sleep(0.5)
    stop.set()
    for thread in threads:
        thread.join(30)
    assert None not in names  # each waited until the server was there again
    assert sorted(names_in(ledger.database)) == sorted(map(str, names))
    assert faults(ledger.database) == []
    ledger.close()


def test_a_commit_whose_answer_is_lost_is_not_made_again(postgres: Server, tmp_path: Path) -> None:
    ledger = Ledger(postgres.database(), images=tmp_path)
    ledger.record(record())
    lost: list[bool] = []

    @event.listens_for(ledger.database.writers, "commit")
    def _cut(connection: Connection) -> None:
        """Commit, and cut the connection before its answer is read."""
        if not lost:
            lost.append(True)
            own: psycopg.Connection[object] = connection.connection.driver_connection  # type: ignore[assignment]
            own.commit()
            with psycopg.connect(postgres.dsn("postgres"), autocommit=True) as other:
                other.execute("SELECT pg_terminate_backend(%s)", (own.info.backend_pid,))

    name = ledger.record(record(1)).inspection_id
    assert lost and name is not None
    assert len(names_in(ledger.database)) == 2
    assert faults(ledger.database) == []
    ledger.close()


def test_a_server_that_is_not_there_yet_does_not_keep_the_service_from_starting(
    postgres: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "WAIT_S", 0.2)
    ledger = Ledger(postgres.database(), images=tmp_path)
    postgres.stop()
    try:
        ledger.start()
        assert "cannot be reached" in told(ledger.record(record()))
        with raises(RecordsUnavailable, "cannot be reached"), ledger.reading():
            pass
    finally:
        postgres.start()
    time.sleep(1.1)
    assert ledger.record(record()).inspection_id is not None
    ledger.close()


def test_a_clock_that_jumps_back_is_told_in_the_chain_and_hides_nothing(
    ledger: Ledger, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = time.time_ns
    names = [ledger.record(record(0)).inspection_id]
    offset_s = 3600
    monkeypatch.setattr(time, "time_ns", lambda: clock() - offset_s * 10**9)
    monkeypatch.setattr(time, "time", lambda: time.time_ns() / 1e9)
    names += [ledger.record(record(n)).inspection_id for n in (1, 2)]
    assert kinds_in(database) == ["clock_back"]
    assert sorted(names_in(database)) == sorted(map(str, names))
    found: list[str] = []
    after = None
    with database.reading() as connection:
        while True:
            some = page(connection, Filters(), "newest", 1, after)
            found += [item["inspection_id"] for item in some.items]
            after = some.next
            if after is None:
                break
    assert sorted(found) == sorted(map(str, names))
    assert faults(database) == []


def test_a_file_that_is_moved_away_underneath_is_noticed_and_a_new_one_begun(tmp_path: Path) -> None:
    path = tmp_path / "inspections.db"
    ledger = Ledger(f"sqlite:///{path}")
    ledger.record(record())
    for part in path.parent.glob("inspections.db*"):
        part.rename(tmp_path / f"moved-{part.name}")
    name = ledger.record(record(1)).inspection_id
    assert name is not None
    assert names_in(Database(f"sqlite:///{path}")) == [name]
    ledger.close()


def test_a_database_restored_from_a_backup_while_in_use_gets_a_new_chain(tmp_path: Path) -> None:
    path, copy = tmp_path / "inspections.db", tmp_path / "copy.db"
    ledger = Ledger(f"sqlite:///{path}")
    first = ledger.record(record()).inspection_id
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(copy)) as target:
        source.backup(target)
    ledger.record(record(1))
    for part in path.parent.glob("inspections.db*"):
        part.unlink()
    shutil.copy(copy, path)
    last = ledger.record(record(2)).inspection_id
    database = Database(f"sqlite:///{path}")
    assert names_in(database) == [first, last]
    assert str(first).split("-")[0] != str(last).split("-")[0]
    ledger.close()
    assert faults(database) == []


def test_a_file_that_another_machine_writes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = f"sqlite:///{tmp_path / 'inspections.db'}"
    with monkeypatch.context() as patch:
        patch.setattr(own_chain, "this_machine", lambda: "another")
        patch.setattr(socket, "gethostname", lambda: "elsewhere")
        theirs = Ledger(url)
        theirs.record(record())
    ours = Ledger(url)
    with raises(RecordsRefused, r"another machine \(elsewhere\)"):
        ours.start()
    monkeypatch.setattr(own_chain, "OTHER_MACHINE_S", 0)
    ours.start()
    assert ours.record(record()).inspection_id is not None
    ours.close()
    theirs.close()


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    ledger = Ledger(f"sqlite:///{tmp_path / 'file' / 'x.db'}")
    ledger.start()
    (notice,) = ledger.record(record()).notices
    assert notice.code == "not_recorded"
    ledger.close()


def test_rows_that_do_not_fit_together_keep_no_verdict_out(
    ledger: Ledger, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Facets and tallies that somebody deleted or cut: lists say it, and what is inspected is recorded all the same."""
    monkeypatch.setattr(writer, "TALLY_S", 0.05)
    name = str(ledger.record(record(0)).inspection_id)
    time.sleep(0.3)
    with database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM facets")
        connection.exec_driver_sql("UPDATE tallies SET scores = " + ("x'00'" if database.on_sqlite else "'0'"))
    review = ledger.writer.submit(ReviewDraft(inspection_id=name, verdict="good"))
    for n in (1, 2, 3):
        assert ledger.record(record(n)).inspection_id is not None
        time.sleep(0.2)
    with raises(NotRecorded, "damaged"):
        review.result()
    for what in (
        lambda one: page(one, Filters()),
        lambda one: summary(one, span_of(one, "day", Filters(), None), Filters()),
    ):
        with raises(RecordsUnavailable, "damaged"), ledger.reading() as connection:
            what(connection)
    with pytest.raises(Unavailable), database.reading() as connection:
        catch_up(database)


def test_a_pruning_that_says_nothing_is_told(ledger: Ledger, database: Database) -> None:
    ledger.record(record())
    ledger.tell("pruned", {"chain": "none"})
    with pytest.raises(Unavailable):
        ledger.prune(before_us=NOON_US + 10**12, by="test")
    assert len(names_in(database)) == 1


def test_a_file_whose_schema_is_no_text_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "inspections.db"
    ledger = Ledger(f"sqlite:///{path}")
    ledger.record(record())
    ledger.close()
    path.write_bytes(path.read_bytes().replace(b" NOT NULL", b" NOT \xceULL", 1))
    ledger = Ledger(f"sqlite:///{path}")
    ledger.start()
    assert "damaged" in told(ledger.record(record(1)))
    with raises(RecordsUnavailable, "damaged"), ledger.reading():
        pass
    ledger.close()

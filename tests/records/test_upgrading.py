"""Tables come up by themselves: made, brought from an older version after a copy, refused when they are newer."""

import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import inspect, text

from backend.api.catalogue import sentence
from backend.base.errors import RecordsRefused
from backend.records.database import Database, Unavailable
from backend.records.ledger import Ledger
from backend.records.tables import SCHEMA, metadata
from backend.records.upgrading import SCRIPTS, bring_up, version_of
from tests.records.made import faults, raises, record, told

NEXT = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "9000", "{former}"

def upgrade():
    op.add_column("inspections", sa.Column("line", sa.Text))
    {then}
"""


def scripts_with_one_more(folder: Path, then: str = "") -> Path:
    shutil.copytree(SCRIPTS, folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "versions" / "v9000_next.py").write_text(NEXT.format(former=SCHEMA, then=then))
    return folder


def version(database: Database) -> str | None:
    with database.reading() as connection:
        return version_of(connection)


def test_migrations_make_the_tables_that_the_code_means(database: Database) -> None:
    bring_up(database)
    with database.reading() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, metadata) == []
        made = inspect(connection)
        for table in metadata.tables.values():
            assert {i["name"] for i in made.get_indexes(table.name) if not i.get("duplicates_constraint")} >= {
                str(index.name) for index in table.indexes
            }
    assert ScriptDirectory(str(SCRIPTS)).get_current_head() == SCHEMA == version(database)


def test_bringing_up_what_is_up_changes_nothing(database: Database) -> None:
    bring_up(database)
    bring_up(database)
    assert version(database) == SCHEMA


def test_older_tables_are_brought_up_after_a_copy(ledger: Ledger, database: Database, tmp_path: Path) -> None:
    name = ledger.record(record()).inspection_id
    ledger.writer.close()
    bring_up(database, scripts_with_one_more(tmp_path / "scripts"))
    assert version(database) == "9000"
    with database.reading() as connection:
        assert connection.execute(text("SELECT count(line), count(*) FROM inspections")).one() == (0, 1)
        if database.path is None:
            assert connection.execute(text("SELECT count(*) FROM before_9000.inspections")).scalar() == 1
    if database.path is not None:
        copy = Database(f"sqlite:///{database.path.with_name('inspections.before-9000.db')}")
        assert version(copy) == SCHEMA
        assert faults(copy) == []
        copy.close()
    assert name is not None


def test_a_migration_that_fails_half_way_leaves_the_tables_as_they_were(
    ledger: Ledger, database: Database, tmp_path: Path
) -> None:
    ledger.record(record())
    scripts = scripts_with_one_more(tmp_path / "scripts", "raise RuntimeError('power cut')")
    with pytest.raises(RuntimeError, match="power cut"):
        bring_up(database, scripts)
    assert version(database) == SCHEMA
    with database.reading() as connection:
        assert "line" not in {column["name"] for column in inspect(connection).get_columns("inspections")}
    assert ledger.record(record(1)).inspection_id is not None


def test_newer_tables_are_refused_in_words(
    open_ledger: Callable[..., Ledger], database: Database, tmp_path: Path
) -> None:
    bring_up(database, scripts_with_one_more(tmp_path / "scripts"))
    with raises(RecordsRefused, "newer version .9000.*update the program") as refused:
        open_ledger().start()
    assert "más nueva" in sentence(refused.value, "es")


def _bring_up(url: str) -> None:
    database = Database(url)
    bring_up(database)
    database.close()


def test_processes_that_start_at_once_make_the_tables_once(url: str) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_bring_up, args=(url,)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
    assert [process.exitcode for process in processes] == [0, 0, 0]


def test_a_file_that_is_no_database_is_told_from_one(tmp_path: Path) -> None:
    (tmp_path / "x.db").write_bytes(b"this is no database, whatever its name says" * 40)
    ledger = Ledger(f"sqlite:///{tmp_path / 'x.db'}")
    ledger.start()
    recorded = ledger.record(record())
    assert recorded.inspection_id is None
    assert "damaged: restore it from a backup" in told(recorded)
    ledger.close()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE alembic_version SET version_num = '0001'",
        "DELETE FROM alembic_version",
        "INSERT INTO alembic_version VALUES ('0001')",
    ],
)
def test_tables_that_are_not_those_of_the_version_they_say_are_told(database: Database, change: str) -> None:
    bring_up(database)
    with database.writing() as connection:
        connection.exec_driver_sql(change)
    with pytest.raises(Unavailable) as told_of:
        bring_up(database)
    assert "damaged" in sentence(told_of.value.reason, "en")

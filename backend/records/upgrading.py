"""The tables are brought up to this version's when a database is opened, after a copy of what was there."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text
from sqlalchemy.exc import SQLAlchemyError

from backend.base.errors import RecordsRefused
from backend.base.messages import Phrase
from backend.records.database import Database, damaged, translated

logger = logging.getLogger(__name__)

SCRIPTS = Path(__file__).resolve().parent / "migrations"
_VERSIONS = "alembic_version"


def bring_up(database: Database, scripts: Path = SCRIPTS) -> None:
    """Make the tables, or bring an older version's up to the newest of `scripts`, once for all processes.

    SQLite's file is copied beside itself first (`inspections.before-0002.db`), PostgreSQL's tables into a schema of
    their own (`before_0002`). What fails half-way is rolled back.

    Raises:
        RecordsRefused: the tables are of a newer version than this one.
        Unavailable: also where they are not those of the version that they say.
    """
    directory = ScriptDirectory(str(scripts))
    newest = str(directory.get_current_head())
    with database.alone():
        with database.reading() as connection:
            present = version_of(connection)
        if present == newest:
            return
        if present is not None and present not in {script.revision for script in directory.walk_revisions()}:
            raise _newer(database, present, newest)
        if present is not None:
            _copy(database, newest)
        config = Config()
        config.set_main_option("script_location", str(scripts).replace("%", "%%"))
        try:
            with database.writing() as connection:
                config.attributes["connection"] = connection
                command.upgrade(config, "head")
        except SQLAlchemyError as err:
            said = str(err).partition("\n")[0]
            logger.error("the tables of %s are not those of version %s: %s", database.name, present, said)
            raise damaged() from err
    if present is not None:
        logger.warning("the tables of %s were brought from version %s to %s", database.name, present, newest)


def version_of(connection: Connection) -> str | None:
    """The version of the tables; None where there are none. Raises Unavailable: it says several."""
    if not inspect(connection).has_table(_VERSIONS):
        return None
    found = connection.execute(text(f"SELECT version_num FROM {_VERSIONS}")).scalars().all()  # noqa: S608
    if len(found) > 1:
        raise damaged()
    return str(found[0]) if found else None


def _newer(database: Database, present: str, newest: str) -> RecordsRefused:
    versions = {"name": database.name, "present": present, "newest": newest}
    return RecordsRefused(reason=Phrase("records_newer", versions))


def _copy(database: Database, newest: str) -> None:
    """What is there, kept under a name that says what came after it. A copy of an earlier attempt is replaced."""
    if database.path is not None:
        copy = database.path.with_name(f"{database.path.stem}.before-{newest}{database.path.suffix}")
        with translated(), closing(sqlite3.connect(database.path)) as source:
            partial = copy.with_name(f"{copy.name}.tmp")
            partial.unlink(missing_ok=True)
            with closing(sqlite3.connect(partial)) as target:
                source.backup(target)
            partial.replace(copy)
        logger.warning("%s was copied to %s", database.name, copy.name)
        return
    schema = f"before_{newest}"
    with database.writing() as connection:
        connection.exec_driver_sql(f'DROP SCHEMA IF EXISTS "{schema}" CASCADE')
        connection.exec_driver_sql(f'CREATE SCHEMA "{schema}"')
        for table in inspect(connection).get_table_names():
            connection.exec_driver_sql(f'CREATE TABLE "{schema}"."{table}" AS TABLE "{table}"')
    logger.warning("the tables of %s were copied to the schema %s", database.name, schema)

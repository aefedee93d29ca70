"""Where the record is: SQLite in a file of this machine, or a PostgreSQL server that several machines share."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

import psutil
from filelock import FileLock, Timeout
from sqlalchemy import URL, Connection, Engine, Insert, Table, create_engine, event, make_url
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import (
    ArgumentError,
    DataError,
    DBAPIError,
    NoSuchModuleError,
    ProgrammingError,
    TimeoutError,  # noqa: A004
)

from backend.base.config import PROJECT_ROOT
from backend.base.errors import DiskFull, InspectionError, RecordsRefused, StorageFailed
from backend.base.files import disk_errors
from backend.base.messages import Phrase

logger = logging.getLogger(__name__)

# File systems of other machines. SQLite's readers share memory, and its locks do not reach across a network.
SHARES = frozenset(
    {"9p", "afpfs", "afs", "beegfs", "ceph", "cifs", "coda", "davfs", "fuse.glusterfs", "fuse.rclone", "fuse.sshfs"}
    | {"glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "prl_fs", "smb2", "smb3", "smbfs", "vboxsf", "vmhgfs"}
)
LOCK_WAIT_MS = 2000
CONNECT_S = 3
STATEMENT_S = 20
START_WAIT_S = 120.0
ONE_AT_START = 0x62_64_69_01  # what processes lock in PostgreSQL while one of them brings the tables up
ONE_TALLY = ONE_AT_START + 1
ONE_OPENING = ONE_AT_START + 2

Reason = Phrase | InspectionError


class Unavailable(Exception):
    """The database did not do what was asked. `reason` is for people, `passing` whether waiting may help."""

    def __init__(self, reason: Reason, *, passing: bool) -> None:
        super().__init__(str(reason))
        self.reason = reason
        self.passing = passing


def damaged() -> Unavailable:
    """What is to be raised of a database whose rows do not fit together."""
    return Unavailable(Phrase("records_damaged"), passing=False)


class Database:
    """One database and its connections; safe to use from many threads.

    Args:
        url: `sqlite:///…` (a relative path is relative to the project's root) or `postgresql://…`.
        durable: a commit also survives a loss of power (SQLite), and waits for the standbys (PostgreSQL).

    Raises:
        RecordsRefused: the URL cannot be meant, its driver is missing, or SQLite's file is on a network share.
    """

    def __init__(self, url: str, *, durable: bool = False) -> None:
        parsed = _parsed(url)
        self.path = _file_of(parsed) if parsed.get_backend_name() == "sqlite" else None
        self.name = str(self.path) if self.path else parsed.render_as_string(hide_password=True)
        self.durable = durable
        self._own_lock = threading.Lock()
        self._inode: tuple[int, int] | None = None
        self.moves = 0  # how often SQLite's file was found moved or replaced
        if self.path:
            refuse_share(self.path)
            self.engine = self.writers = _sqlite_engine(self.path, durable=durable)
        else:
            self.engine = _postgres_engine(parsed, durable=durable, ping=True)
            # Whoever writes tries again anyway: no question is asked first whether the server is there.
            self.writers = _postgres_engine(parsed, durable=durable, ping=False)

    @property
    def on_sqlite(self) -> bool:
        """Whether it is a file of this machine."""
        return self.path is not None

    def close(self) -> None:
        """Give all connections back."""
        self.engine.dispose()
        self.writers.dispose()

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that writes; SQLite lets one at a time in. Raises Unavailable."""
        with translated(), self.writers.begin() as connection:
            self._mind_the_file()
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that sees one state of all tables. Raises Unavailable."""
        options = {"reads": True} if self.on_sqlite else {"isolation_level": "REPEATABLE READ"}
        with translated(), self.engine.connect().execution_options(**options) as connection:
            self._mind_the_file()
            yield connection

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other process is in here meanwhile. Raises Unavailable."""
        if self.path:
            with _held(self.path):
                yield
            return
        with translated(), self.engine.connect() as connection:
            self.wait_for(connection, ONE_AT_START, seconds=START_WAIT_S)
            yield

    def wait_for(self, connection: Connection, what: int, *, seconds: float = 0) -> None:
        """Hold one of PostgreSQL's named locks until the transaction ends; SQLite's writers have theirs already."""
        if self.on_sqlite:
            return
        if seconds:
            connection.exec_driver_sql(f"SET LOCAL lock_timeout = {int(1000 * seconds)}")
            connection.exec_driver_sql(f"SET LOCAL statement_timeout = {int(1000 * seconds)}")
            connection.exec_driver_sql("SET LOCAL idle_in_transaction_session_timeout = 0")
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({what})")

    def insert(self, table: Table) -> sqlite.Insert | postgresql.Insert:
        """An INSERT that knows ON CONFLICT."""
        return _insert(table, self.on_sqlite)

    def insert_new(self, table: Table) -> Insert:
        """An INSERT that leaves out what is there already."""
        return self.insert(table).on_conflict_do_nothing()

    def _mind_the_file(self) -> None:
        """A file that was moved or replaced under the open connections would take what nobody finds again.

        Raises Unavailable, once; the next connection opens what is there now.
        """
        if self.path is None:
            return
        found = _inode(self.path)
        with self._own_lock:
            known, self._inode = self._inode, found
        if known is not None and known != found:
            logger.error("%s was moved or replaced while it was in use", self.path)
            self.moves += 1
            self.engine.dispose()
            raise Unavailable(Phrase("records_moved"), passing=True)


@cache
def _insert(table: Table, on_sqlite: bool) -> sqlite.Insert | postgresql.Insert:
    return sqlite.insert(table) if on_sqlite else postgresql.insert(table)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """No other process holds `path`, whose folder is made if need be. Raises Unavailable."""
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=START_WAIT_S)
    try:
        with disk_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
    except Timeout as err:
        raise Unavailable(Phrase("records_locked"), passing=True) from err
    except DiskFull as err:
        raise Unavailable(Phrase("records_full"), passing=False) from err
    except StorageFailed as err:
        raise Unavailable(Phrase("records_read_only"), passing=False) from err
    try:
        yield
    finally:
        lock.release()


@contextmanager
def translated() -> Iterator[None]:
    """Raises Unavailable in place of what the driver says of a database that cannot be used."""
    try:
        yield
    except (DBAPIError, sqlite3.Error) as err:  # the second while a connection is set up
        trouble = trouble_of(err)
        if trouble is None:
            raise
        raise trouble from err
    except UnicodeDecodeError as err:  # SQLite quotes a schema that is no text
        raise damaged() from err
    except TimeoutError as err:  # no connection came free in time
        raise Unavailable(Phrase("records_away"), passing=True) from err


def trouble_of(err: DBAPIError | sqlite3.Error) -> Unavailable | None:
    """What is the matter with the database, or None when the statement is what is wrong."""
    original = err.orig if isinstance(err, DBAPIError) else err
    if isinstance(original, sqlite3.Error):
        code = getattr(original, "sqlite_errorcode", 0)
        known = _SQLITE_TROUBLES.get((code if code > 1 else _guessed_code(original)) & 0xFF)
    else:
        state = getattr(original, "sqlstate", None) or ""
        if not state and not isinstance(err, DataError | ProgrammingError):  # the server did not answer
            state = "08"
        known = next((known for prefix, known in _POSTGRES_TROUBLES.items() if state.startswith(prefix)), None)
    return Unavailable(Phrase(known[0]), passing=known[1]) if known else None


# What each says, and whether it may pass by itself.
_SQLITE_TROUBLES = {
    5: ("records_locked", True),  # SQLITE_BUSY
    6: ("records_locked", True),  # SQLITE_LOCKED
    8: ("records_read_only", False),  # SQLITE_READONLY
    10: ("records_away", True),  # SQLITE_IOERR
    11: ("records_damaged", False),  # SQLITE_CORRUPT
    13: ("records_full", False),  # SQLITE_FULL
    14: ("records_away", False),  # SQLITE_CANTOPEN
    26: ("records_damaged", False),  # SQLITE_NOTADB
}
_POSTGRES_TROUBLES = {
    "08": ("records_away", True),  # connection exception
    "57": ("records_away", True),  # operator intervention: it stops, or a statement took too long
    "53100": ("records_full", False),  # disk full
    "53": ("records_away", True),  # insufficient resources
    "55": ("records_locked", True),  # lock not available
    "40": ("records_locked", True),  # transaction rollback: a deadlock, a serialisation failure
    "25006": ("records_read_only", True),  # a standby that is becoming the primary
    "25P03": ("records_away", True),  # idle in a transaction for too long
    "28": ("records_away", False),  # who asks is not let in
    "3D": ("records_away", False),  # there is no such database
    "42P01": ("records_damaged", False),  # a table is missing
    "42703": ("records_damaged", False),  # a column is missing
    "58": ("records_away", True),  # system error
    "XX": ("records_damaged", False),  # internal error, data corrupted
}


def _guessed_code(err: BaseException | None) -> int:
    """SQLite's code by its text, which is all that Python 3.10 tells; 0: none is known."""
    said = str(err)
    texts = {
        "not decode to UTF-8": 11,  # Python says so
        "no such table": 11,
        "no such column": 11,
        "locked": 5,
        "readonly": 8,
        "disk I/O": 10,
        "malformed": 11,
        "full": 13,
        "unable to open": 14,
        "not a da": 26,
    }
    return next((code for text, code in texts.items() if text in said), 0)


def refuse_share(path: Path) -> None:
    """Raises RecordsRefused when `path` is on another machine's disk."""
    kind = file_system(path)
    if kind in SHARES:
        raise _refused("records_on_share", path=path, kind=kind)


def file_system(path: Path) -> str:
    """The kind of file system that holds `path`, or would; `smbfs` for a UNC path or a Windows network drive."""
    resolved = path.resolve()
    if str(resolved).startswith("\\\\"):
        return "smbfs"
    mounts = [part for part in psutil.disk_partitions(all=True) if resolved.is_relative_to(part.mountpoint)]
    nearest = max(mounts, key=lambda part: len(part.mountpoint), default=None)
    if nearest is None:
        return ""
    return "smbfs" if "remote" in nearest.opts.split(",") else nearest.fstype.lower()


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as err:  # the second of a port that is no number
        raise _refused("records_url") from err
    backend = parsed.get_backend_name()
    if backend in {"postgresql", "postgres"}:
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise _refused("records_backend", backend=backend)
    return parsed


def _refused(code: str, **values: Any) -> RecordsRefused:
    return RecordsRefused(reason=Phrase(code, values))


def _file_of(url: URL) -> Path:
    if url.database in {None, "", ":memory:"}:
        raise _refused("records_in_memory")
    path = Path(str(url.database))
    return path if path.is_absolute() else PROJECT_ROOT / path


def _inode(path: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return None


def _sqlite_engine(path: Path, *, durable: bool) -> Engine:
    engine = create_engine(
        URL.create("sqlite", database=str(path)),
        pool_size=8,
        max_overflow=32,
        pool_timeout=10,
        hide_parameters=True,  # people's names and notes stay out of the log
    )

    @event.listens_for(engine, "connect")
    def _set_up(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # transactions begin when SQLAlchemy says so
        for pragma in (
            f"busy_timeout = {LOCK_WAIT_MS}",
            "page_size = 8192",
            "journal_mode = WAL",
            f"synchronous = {'FULL' if durable else 'NORMAL'}",
            "cache_size = -32768",
            "journal_size_limit = 67108864",
            "temp_store = MEMORY",
            "secure_delete = FAST",
        ):
            connection.execute(f"PRAGMA {pragma}").close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        reads = connection.get_execution_options().get("reads")
        connection.exec_driver_sql("BEGIN" if reads else "BEGIN IMMEDIATE")

    return engine


def _postgres_engine(url: URL, *, durable: bool, ping: bool) -> Engine:
    settings = {
        "lock_timeout": LOCK_WAIT_MS,
        "statement_timeout": 1000 * STATEMENT_S,
        "idle_in_transaction_session_timeout": 3000 * STATEMENT_S,
        "synchronous_commit": "on" if durable else "local",
        "timezone": "UTC",
    }
    own = {
        "application_name": "brakedisc-backend",
        "connect_timeout": CONNECT_S,
        "keepalives_idle": 10,
        "keepalives_interval": 5,
        "keepalives_count": 3,
        "tcp_user_timeout": 1000 * STATEMENT_S,
        "options": " ".join(f"-c {name}={value}" for name, value in settings.items()),
    }
    given = {name: value for name, value in own.items() if name not in url.query}
    try:
        return create_engine(
            url,
            connect_args=given,
            pool_size=8,
            max_overflow=32,
            pool_timeout=10,
            pool_pre_ping=ping,
            hide_parameters=True,
        )
    except (ModuleNotFoundError, NoSuchModuleError) as err:
        raise _refused("records_psycopg") from err

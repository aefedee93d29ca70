"""Where the drift of each model is kept for all who inspect with it: in the database, or in this process alone."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from sqlalchemy import Connection, and_, select, update
from sqlalchemy.sql.elements import ColumnElement

from backend.base.errors import RecordsUnavailable
from backend.base.keys import ModelKey
from backend.records.database import Unavailable
from backend.records.ledger import Ledger
from backend.records.record import now_us
from backend.records.tables import drift_references, drifts


@dataclass(frozen=True)
class KeptDrift:
    """What is known of one model.

    Attributes:
        generation: of the memory that it is about.
        version: of the format of `learnt` and `chart`.
        revision: counts the writes; see `Drifts.save`.
        reference: digest of the reference, whose bytes `Drifts.reference` gives; empty without one.
        learnt: what is learnt from parts until there are enough; `chart`: the charts.
        state, cause, since_us: what they say.
    """

    generation: str
    version: int
    revision: int = 0
    reference: str = ""
    learnt: bytes = b""
    chart: bytes = b""
    state: str = "learning"
    cause: str | None = None
    since_us: int = 0


class Drifts(Protocol):
    """A place for the drift of models."""

    def load(self, key: ModelKey) -> KeptDrift | None:
        """What is kept of `key`. Raises RecordsUnavailable."""
        ...

    def reference(self, key: ModelKey) -> bytes:
        """The reference of `key`; empty without one. Raises RecordsUnavailable."""
        ...

    def save(self, key: ModelKey, kept: KeptDrift, reference: bytes | None = None) -> bool:
        """Replace what is kept if its revision is still that of `kept` (0: if nothing is kept), and count it on.

        `reference`: a new one; None keeps the former. Raises RecordsUnavailable.

        Returns:
            Whether nobody else wrote meanwhile; else nothing was changed.
        """
        ...

    def states(self) -> Sequence[tuple[ModelKey, KeptDrift]]:
        """The state and cause of every model. Raises RecordsUnavailable."""
        ...


def digest_of(reference: bytes) -> str:
    """What names a reference."""
    return hashlib.sha256(reference).hexdigest()


@dataclass
class OwnDrifts:
    """Kept in this process, for a service that records nothing."""

    _kept: dict[ModelKey, KeptDrift] = field(default_factory=dict)
    _references: dict[ModelKey, bytes] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def load(self, key: ModelKey) -> KeptDrift | None:
        """See Drifts."""
        return self._kept.get(key)

    def reference(self, key: ModelKey) -> bytes:
        """See Drifts."""
        return self._references.get(key, b"")

    def save(self, key: ModelKey, kept: KeptDrift, reference: bytes | None = None) -> bool:
        """See Drifts."""
        with self._lock:
            former = self._kept.get(key)
            if (former.revision if former else 0) != kept.revision:
                return False
            if reference is not None:
                self._references[key] = reference
            self._kept[key] = replace(kept, revision=kept.revision + 1)
            return True

    def states(self) -> Sequence[tuple[ModelKey, KeptDrift]]:
        """See Drifts."""
        return list(self._kept.items())


class SharedDrifts:
    """Kept in the database of `ledger`, in one row for each model."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def load(self, key: ModelKey) -> KeptDrift | None:
        """See Drifts."""
        with self.ledger.reading() as connection:
            row = connection.execute(select(drifts).where(_of(drifts.c, key))).mappings().first()
        return None if row is None else _kept(dict(row))

    def reference(self, key: ModelKey) -> bytes:
        """See Drifts."""
        with self.ledger.reading() as connection:
            found = connection.execute(select(drift_references.c.data).where(_of(drift_references.c, key))).scalar()
        return b"" if found is None else bytes(found)

    def save(self, key: ModelKey, kept: KeptDrift, reference: bytes | None = None) -> bool:
        """See Drifts."""
        database = self.ledger.database
        values = {
            "generation": kept.generation,
            "version": kept.version,
            "revision": kept.revision + 1,
            "reference": kept.reference,
            "learnt": kept.learnt,
            "chart": kept.chart,
            "state": kept.state,
            "cause": kept.cause,
            "since_us": kept.since_us,
            "time_us": now_us(),
        }
        try:
            self.ledger.ready()
            with suppress(_Overtaken), database.writing() as connection:
                if kept.revision == 0:
                    write = database.insert_new(drifts).values(**_names(key), **values)
                    done = connection.execute(write.returning(drifts.c.revision)).first() is not None
                else:
                    same = and_(_of(drifts.c, key), drifts.c.revision == kept.revision)
                    done = connection.execute(update(drifts).where(same).values(**values)).rowcount == 1
                if not done:
                    raise _Overtaken
                if reference is not None:
                    self._replace_reference(connection, key, reference)
                return True
        except Unavailable as trouble:
            raise RecordsUnavailable(reason=trouble.reason, retry_after=5) from trouble
        return False

    def states(self) -> Sequence[tuple[ModelKey, KeptDrift]]:
        """See Drifts."""
        columns = [column for column in drifts.c if column.name not in {"learnt", "chart"}]
        with self.ledger.reading() as connection:
            rows = connection.execute(select(*columns)).mappings().all()
        return [(ModelKey.of(row["role_id"], row["roi_id"], row["recipe_id"]), _kept(dict(row))) for row in rows]

    def _replace_reference(self, connection: Connection, key: ModelKey, data: bytes) -> None:
        insert = self.ledger.database.insert(drift_references).values(**_names(key), data=data)
        own = ["recipe_id", "role_id", "roi_id"]
        connection.execute(insert.on_conflict_do_update(index_elements=own, set_={"data": data}))


class _Overtaken(Exception):
    """Another process has written meanwhile."""


def _names(key: ModelKey) -> dict[str, str]:
    return {"recipe_id": key.recipe_id, "role_id": key.role_id, "roi_id": key.roi_id}


def _of(columns: Any, key: ModelKey) -> ColumnElement[bool]:
    return and_(*(columns[name] == value for name, value in _names(key).items()))


def _kept(row: Mapping[str, Any]) -> KeptDrift:
    return KeptDrift(
        generation=row["generation"],
        version=row["version"],
        revision=row["revision"],
        reference=row["reference"],
        learnt=bytes(row.get("learnt", b"")),
        chart=bytes(row.get("chart", b"")),
        state=row["state"],
        cause=row["cause"],
        since_us=row["since_us"],
    )

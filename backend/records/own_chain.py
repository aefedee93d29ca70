"""The chain that this process writes: where it begins, what is added to it, and what became of a lost commit."""

from __future__ import annotations

import logging
import os
import secrets
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, func, select
from sqlalchemy.exc import DataError, SQLAlchemyError

from backend import __version__
from backend.base.errors import InspectionError, NotRecorded, RecordsRefused
from backend.base.messages import Phrase
from backend.records.chain import START, chain_hash
from backend.records.database import ONE_OPENING, Database, Unavailable
from backend.records.entries import CLOSED, Batch, Draft, EventDraft, Head
from backend.records.record import entry_id, now_us, public_id
from backend.records.tables import chains, inspections
from backend.records.tallies import catch_up
from backend.records.upgrading import bring_up

logger = logging.getLogger(__name__)

OTHER_MACHINE_S = 60
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_FAULT = Phrase("records_fault")
_ASTRAY = Phrase("records_astray")

# What drivers raise of a value that a column cannot hold.
OF_ONE_DRAFT = (DataError, ValueError, TypeError, OverflowError)

Outcome = str | InspectionError


class OwnChain:
    """Adds drafts to one chain, one transaction at a time; the next attempt knows what a lost commit did.

    Not safe to use from several threads.
    """

    def __init__(self, database: Database) -> None:
        self.database = database
        self.head: Head | None = None
        self._left: Head | None = None  # where the chain is known to have been
        self._unsure: tuple[Head, dict[int, Outcome], Sequence[Draft]] | None = None
        self._known_facets: set[int] = set()
        self._moves = 0

    def open(self) -> None:
        """Find the chain where it was left, or begin one, in tables of this version.

        Raises:
            RecordsRefused: the tables are newer than this program, or another machine writes SQLite's file.
            Unavailable.
        """
        self._moves = self.database.moves
        try:
            bring_up(self.database)
            with self.database.writing() as connection:
                self.database.wait_for(connection, ONE_OPENING)
                head = self._found(connection)
                begun = head is None
                head = head or self._begun(connection)
        except OSError as err:
            raise Unavailable(Phrase("records_system", {"err": err}), passing=False) from err
        except SQLAlchemyError as err:
            logger.exception("the record cannot be opened")
            raise Unavailable(_FAULT, passing=False) from err
        self.head = self._left = head
        self._known_facets.clear()
        if begun:
            logger.info("the record is %s, this process's chain begins at %s", self.database.name, head)

    def append(self, drafts: Sequence[Draft]) -> list[Outcome]:
        """Commit the drafts in one transaction: the identifier of each, or why it was left out.

        Drafts of the last call may be given again: what its commit did is found out first.

        Raises:
            Unavailable: none of them is known to be committed.
            RecordsRefused.
        """
        if self.head is None or self._moves != self.database.moves:
            self.open()
        done = self._settled()
        rest = [draft for draft in drafts if id(draft) not in done]
        if rest:
            try:
                done |= self._commit(rest)
            except OF_ONE_DRAFT:
                done |= self._one_by_one(rest)
            except SQLAlchemyError as err:
                logger.exception("entries cannot be added to the record")
                raise Unavailable(_FAULT, passing=False) from err
        return [done[id(draft)] for draft in drafts]

    def close(self) -> None:
        """Write that the chain ends here. Raises Unavailable, RecordsRefused."""
        if self._left is None:
            return
        catch_up(self.database, self._left.chain)
        self.append([EventDraft(CLOSED, {})])
        logger.info("this process's chain ends at %s", self.head)

    def _commit(self, drafts: Sequence[Draft]) -> dict[int, Outcome]:
        assert self.head
        former, self.head = self.head, None  # until the commit is known to have happened
        outcomes: dict[int, Outcome] = {}
        with self.database.writing() as connection:
            batch = Batch(self.database, connection, former)
            for draft in drafts:
                outcomes[id(draft)] = _entered(draft, batch)
            if batch.head != former:
                self._unsure = batch.head, outcomes, drafts
                if not batch.flush(self._known_facets):
                    raise Unavailable(_ASTRAY, passing=True)
        self._unsure = None
        self.head = self._left = batch.head
        self._known_facets |= batch.facets.keys()
        return outcomes

    def _one_by_one(self, drafts: Sequence[Draft]) -> dict[int, Outcome]:
        """Commit each draft alone, so that one that the database cannot take keeps no other out."""
        return {id(draft): self._alone(draft) for draft in drafts}

    def _alone(self, draft: Draft) -> Outcome:
        try:
            self.open()
            return self._commit([draft])[id(draft)]
        except OF_ONE_DRAFT:
            logger.exception("an entry cannot be added to the record")
            return NotRecorded(reason=_FAULT, retry_after=5)
        except (Unavailable, RecordsRefused) as err:
            return NotRecorded(reason=err.reason if isinstance(err, Unavailable) else err, retry_after=5)

    def _settled(self) -> dict[int, Outcome]:
        """What became of the drafts whose commit was not answered: empty if it did not happen."""
        unsure, self._unsure = self._unsure, None
        return unsure[1] if unsure is not None and unsure[0] == self.head else {}

    def _found(self, connection: Connection) -> Head | None:
        """The chain where it was left: before the last commit, or after it."""
        if self._left is None:
            return None
        row = connection.execute(select(chains).where(chains.c.id == self._left.chain)).one_or_none()
        head = None if row is None else Head(row.id, row.key, row.head_seq, row.head_hash)
        if head in {self._left, self._unsure[0] if self._unsure else None}:
            return head
        logger.error("%s no longer holds this process's chain as it was left at %s", self.database.name, self._left)
        self._unsure = None
        return None

    def _begun(self, connection: Connection) -> Head:
        if self.database.on_sqlite:
            _refuse_other_machine(connection, self.database)
        last = connection.execute(
            select(chains.c.id, chains.c.hash).order_by(chains.c.id.desc()).limit(1)
        ).one_or_none()
        row: dict[str, Any] = {
            "id": last.id + 1 if last else 1,
            "key": secrets.token_hex(4),
            "host": socket.gethostname(),
            "machine": this_machine(),
            "pid": os.getpid(),
            "version": __version__,
            "opened_us": now_us(),
        }
        former = last.hash if last else START
        digest = chain_hash(row, former)
        ends = {"head_seq": 0, "head_hash": digest, "tallied_seq": 0, "closed": False}
        connection.execute(self.database.insert(chains), {**row, "prev_hash": former, "hash": digest, **ends})
        return Head(row["id"], row["key"], 0, digest)


def _entered(draft: Draft, batch: Batch) -> Outcome:
    try:
        draft.enter(batch)
    except InspectionError as err:
        return err
    return public_id(batch.head.key, batch.head.sequence)


def this_machine() -> str:
    """What tells this machine from others, and is the same in all containers that run on it."""
    return _BOOT_ID.read_text("ascii").strip() if _BOOT_ID.exists() else socket.gethostname()


def _refuse_other_machine(connection: Connection, database: Database) -> None:
    """Raises RecordsRefused when another machine has written SQLite's file within the last minute."""
    own, recent = chains.c, now_us() - OTHER_MACHINE_S * 1_000_000
    others = connection.execute(
        select(own.id, own.host, own.head_seq, own.opened_us)
        .where(own.closed.is_(False), own.host != socket.gethostname(), own.machine != this_machine())
        .order_by(own.id.desc())
        .limit(100)
    ).all()
    for other in others:
        last = select(func.max(inspections.c.time_us)).where(inspections.c.id == entry_id(other.id, other.head_seq))
        if max(other.opened_us, connection.execute(last).scalar() or 0) >= recent:
            raise RecordsRefused(reason=Phrase("records_other_machine", {"name": database.name, "host": other.host}))

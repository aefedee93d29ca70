"""Forgetting what is old, so that the chains can still be verified.

The entries of a chain that are older than a moment, from its beginning on, are replaced by one event in the chain of
whoever prunes: how many they were, the hash over their hashes, and the hash that the next entry follows. That event is
signed off before anything is deleted, and stays when its own chain is pruned.
"""

from __future__ import annotations

import hashlib
import heapq
import json
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, delete, literal, select, update

from backend.records.database import ONE_TALLY, Database, damaged
from backend.records.images import ImageStore, Removal, removing
from backend.records.queries import time_text
from backend.records.record import entry_id, split_id
from backend.records.tables import chains, events, facets, images, inspections, reviews
from backend.records.tallies import HOUR_US, apply, count, no_deltas, tally

logger = logging.getLogger(__name__)

STUB = "pruned"
_STEP = 500
_TABLES = (inspections, reviews, events)

Tell = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True)
class Pruned:
    """What went, or would go: inspections, other entries, and the chains that they were of."""

    inspections: int = 0
    others: int = 0
    chains: int = 0

    def __add__(self, other: Pruned) -> Pruned:
        return Pruned(self.inspections + other.inspections, self.others + other.others, self.chains + other.chains)


def prune(
    database: Database, store: ImageStore | None, tell: Tell, *, before_us: int, by: str, dry_run: bool = False
) -> Pruned:
    """Delete the inspections, reviews and events before a moment, with the images that no inspection names any more.

    Args:
        tell: records an event in this process's chain before it returns.
        by: who wants it, as the event will say.

    Raises NotRecorded, Unavailable: what was not deleted yet is deleted the next time.
    """
    total = Pruned()
    with database.reading() as connection:
        own = chains.c
        found = connection.execute(select(own.id, own.key, own.head_seq, own.head_hash, own.closed).order_by(own.id))
        rows = found.all()
    for row in rows:
        with database.reading() as connection:
            span = _span(connection, row, before_us)
        if span is None:
            continue
        total += Pruned(span.inspections, span.others, 1)
        if dry_run:
            continue
        tell(STUB, {**span.body, "before_us": before_us, "before": time_text(before_us), "by": by})
        _delete(database, store, row.id, span.last)
        logger.info("%d inspections of chain %s before %s are gone", span.inspections, row.key, time_text(before_us))
    if not dry_run:
        _left_overs(database, store)
    return total


@dataclass(frozen=True)
class _Span:
    """The beginning of a chain that goes: up to `last`."""

    last: int
    inspections: int
    others: int
    body: dict[str, Any]


def _span(connection: Connection, chain: Any, before_us: int) -> _Span | None:
    """What of a chain is older than the moment; None if nothing is."""
    known = _stubs(connection).get(chain.id, 0)
    first, end = entry_id(chain.id, known + 1), entry_id(chain.id, chain.head_seq)
    younger: list[int] = []
    for table in _TABLES:
        own = table.c
        query = select(own.id).where(own.id.between(first, end), own.time_us >= before_us).order_by(own.id).limit(1)
        younger += connection.execute(query).scalars().all()
    last = split_id(min(younger))[1] - 1 if younger else chain.head_seq
    if last <= known:
        return None
    digest, counts, last_hash, keeps = hashlib.sha256(), {"inspections": 0}, b"", {}
    n = 0
    for number, kind, own_hash in _hashes(connection, first, entry_id(chain.id, last)):
        digest.update(own_hash)
        counts["inspections"] += kind == "inspection"
        n += 1
        last_hash = own_hash
        if kind == STUB:
            keeps[number] = own_hash.hex()
    body = {
        "chain": chain.id,
        "key": chain.key,
        "first": known + 1,
        "last": last,
        "n": n,
        "digest": digest.hexdigest(),
        "last_hash": last_hash.hex(),
        "ended": bool(chain.closed) and last == chain.head_seq,
        "keeps": {**_kept_stubs(connection, chain.id, known), **keeps},
        "reviews": _reviews_of_others(connection, first, entry_id(chain.id, last)),
    }
    return _Span(last, counts["inspections"], n - counts["inspections"], body)


def _stubs(connection: Connection) -> dict[int, int]:
    """Up to where each chain was pruned. Raises Unavailable of an event that does not say so."""
    found: dict[int, int] = {}
    for body in connection.execute(select(events.c.body).where(events.c.kind == STUB)).scalars():
        try:
            said = json.loads(body)
            chain, last = int(said["chain"]), int(said["last"])
        except (ValueError, KeyError, TypeError) as err:
            raise damaged() from err
        found[chain] = max(found.get(chain, 0), last)
    return found


def _kept_stubs(connection: Connection, chain: int, last: int) -> dict[int, str]:
    """Number and hash of the stubs in what was pruned of a chain already."""
    own = events.c
    query = select(own.id, own.hash).where(own.kind == STUB, own.id.between(entry_id(chain, 1), entry_id(chain, last)))
    return {row.id: row.hash.hex() for row in connection.execute(query)}


def _hashes(connection: Connection, first: int, last: int) -> Iterator[tuple[int, str, bytes]]:
    """Number, kind and hash of the entries from first to last."""

    def of(table: Any, kind: Any) -> Iterator[tuple[int, str, bytes]]:
        own = table.c
        query = select(own.id, kind, own.hash).where(own.id.between(first, last)).order_by(own.id)
        for row in connection.execute(query.execution_options(stream_results=True, yield_per=2000)):
            yield row[0], row[1], row[2]

    kinds = (literal("inspection"), literal("review"), events.c.kind)
    return heapq.merge(*(of(table, kind) for table, kind in zip(_TABLES, kinds, strict=True)))


def _reviews_of_others(connection: Connection, first: int, last: int) -> list[list[Any]]:
    """The reviews that go although their inspections stay: inspection, verdict before, verdict."""
    own = reviews.c
    query = (
        select(own.inspection_id, own.former, own.verdict)
        .join(inspections, inspections.c.id == own.inspection_id)
        .where(own.id.between(first, last), ~inspections.c.id.between(first, last))
    )
    return [[row.inspection_id, row.former, row.verdict] for row in connection.execute(query)]


def _left_overs(database: Database, store: ImageStore | None) -> None:
    """Delete what an interrupted pruning has left."""
    with database.reading() as connection:
        stubs = _stubs(connection)
    for chain, last in stubs.items():
        _delete(database, store, chain, last)


def _delete(database: Database, store: ImageStore | None, chain: int, last: int) -> None:
    """Delete a chain's entries up to `last`, stubs aside, in short transactions that let others write in between."""
    done = False
    while not done:
        with removing(store) as removal, database.writing() as connection:
            done = _delete_some(connection, database, removal, entry_id(chain, 1), entry_id(chain, last))


def _delete_some(connection: Connection, database: Database, removal: Removal, first: int, last: int) -> bool:
    """Delete the first of the entries between two numbers. Whether they were all there are."""
    database.wait_for(connection, ONE_TALLY)
    own = inspections.c
    here = select(own.id, own.facet_id, own.time_us, own.score, own.image_store, own.image_sha256)
    here = here.where(own.id.between(first, last)).order_by(own.id).limit(_STEP).with_for_update()
    rows = connection.execute(here).all()
    last = rows[-1].id if len(rows) == _STEP else last
    tally(connection, database)  # what is not counted cannot be taken off
    gone = no_deltas()
    for row in rows:
        count(gone, row.time_us // HOUR_US, row.facet_id, row.score, -1)
    apply(connection, database, gone)
    connection.execute(delete(inspections).where(own.id.between(first, last)))
    connection.execute(delete(reviews).where(reviews.c.id.between(first, last)))
    connection.execute(delete(events).where(events.c.id.between(first, last), events.c.kind != STUB))
    for name, sha256 in sorted({(row.image_store, row.image_sha256) for row in rows if row.image_store}):
        _mind_image(connection, removal, name, sha256)
    return len(rows) < _STEP


def _mind_image(connection: Connection, removal: Removal, name: str, sha256: bytes) -> None:
    """Remove an image that no inspection names any more, or note what those that are left say of it."""
    own = inspections.c
    row = connection.execute(select(images).where(images.c.store == name, images.c.sha256 == sha256)).one_or_none()
    if row is None:
        return
    named = (
        select(own.time_us, facets.c.decision, facets.c.review)
        .join(facets, facets.c.id == own.facet_id)
        .where(own.image_sha256 == sha256, own.image_store == name)
    )
    left = connection.execute(named).all()
    if not left:
        removal.take(connection, row)
        return
    guarded = any(one.decision == "ng" or one.review is not None for one in left)
    connection.execute(
        update(images)
        .where(images.c.store == name, images.c.sha256 == sha256)
        .values(protected=guarded, time_us=max(one.time_us for one in left))
    )

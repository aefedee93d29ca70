"""What is written into a chain: inspections, reviews of them, and events. A batch of them is one transaction."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sqlalchemy import Connection, bindparam, func, select, update

from backend.base.errors import InspectionNotFound, NotRecorded
from backend.records.chain import (
    EVENT_FIELDS,
    INSPECTION_FIELDS,
    REVIEW_FIELDS,
    Facet,
    canonical_json,
    event_hash,
    inspection_hash,
    review_hash,
)
from backend.records.database import Database, damaged
from backend.records.record import Record, Verdict, entry_id, now_us, parse_public_id, plain, public_id, storable
from backend.records.tables import chains, events, facets, images, inspections, reviews

CLOSED = "closed"  # the event that a chain ends with
# Built once: SQLAlchemy takes longer to put a statement together than the database takes to carry it out.
_MOVE_HEAD = (
    update(chains)
    .where(chains.c.id == bindparam("chain"), chains.c.key == bindparam("own_key"))
    .where(chains.c.head_seq == bindparam("from_seq"), chains.c.head_hash == bindparam("from_hash"))
    .values(head_seq=bindparam("to_seq"), head_hash=bindparam("to_hash"), closed=bindparam("closes"))
)
# The end of a chain is no more to tally: one that has ended is tallied to its end.
_END_CHAIN = _MOVE_HEAD.where(chains.c.tallied_seq == bindparam("from_seq")).values(tallied_seq=bindparam("to_seq"))


@dataclass(frozen=True)
class StoredImage:
    """An image that lies in a store's folder. `restore` writes it there again if it went meanwhile."""

    store: str
    sha256: bytes
    suffix: str
    size: int
    data: bytes = field(repr=False)
    restore: Callable[[StoredImage], None] = field(repr=False)


@dataclass(frozen=True)
class Head:
    """The last entry of a chain: its place, counted from 1, and its hash."""

    chain: int
    key: str
    sequence: int
    hash: bytes

    def followed_by(self, digest: bytes) -> Head:
        """The head after one more entry."""
        return Head(self.chain, self.key, self.sequence + 1, digest)

    def __str__(self) -> str:
        return f"{public_id(self.key, self.sequence)}={self.hash.hex()}"


class Draft(Protocol):
    """An entry that is not in its chain yet."""

    def enter(self, batch: Batch) -> None:
        """Take the next place in the batch's chain. Raises InspectionError: it is left out, and the others go on."""
        ...


class Batch:
    """The entries of one transaction, in the order of their chain.

    `head` moves with each entry; nothing is in the database before `flush`.
    """

    def __init__(self, database: Database, connection: Connection, head: Head) -> None:
        self.database, self.connection = database, connection
        self.former = self.head = head
        self.facets: dict[int, Facet] = {}
        self._inspections: list[dict[str, Any]] = []
        self._reviews: list[dict[str, Any]] = []
        self._events: list[dict[str, Any]] = []
        self._images: dict[tuple[str, bytes], tuple[StoredImage, bool, int]] = {}

    @property
    def _closes(self) -> bool:
        """Whether the chain ends here."""
        return bool(self._events) and self._events[-1]["kind"] == CLOSED and self._events[-1]["hash"] == self.head.hash

    @property
    def next_id(self) -> int:
        """The number that the next entry gets."""
        return entry_id(self.head.chain, self.head.sequence + 1)

    def facet(self, number: int) -> Facet:
        """The facet of this number, which may be one that this batch brings. Raises NotRecorded: there is none."""
        if number in self.facets:
            return self.facets[number]
        row = self.connection.execute(select(facets).where(facets.c.id == number)).one_or_none()
        if row is None:
            raise NotRecorded(reason=damaged().reason, retry_after=5)
        return Facet(*row[1:])

    def inspection(self, facet: Facet, row: dict[str, Any], image: StoredImage | None) -> None:
        """Add an inspection; `row` lacks what the chain gives it."""
        row = {"id": self.next_id, "facet_id": facet.id, **row}
        fields = [row[name] for name in INSPECTION_FIELDS]
        digest = inspection_hash(facet, fields, row["details"], row["token_map"], self.head.hash)
        self._inspections.append({**row, "prev_hash": self.head.hash, "hash": digest})
        self.facets[facet.id] = facet
        if image is not None:
            _, protected, time_us = self._images.get((image.store, image.sha256), (None, False, 0))
            kept = (image, protected or facet.decision == "ng", max(time_us, row["time_us"]))
            self._images[image.store, image.sha256] = kept
        self.head = self.head.followed_by(digest)

    def review(self, row: dict[str, Any]) -> None:
        """Add a review; `row` lacks what the chain gives it."""
        row = {"id": self.next_id, **row}
        digest = review_hash([row[name] for name in REVIEW_FIELDS], self.head.hash)
        self._reviews.append({**row, "prev_hash": self.head.hash, "hash": digest})
        self.head = self.head.followed_by(digest)

    def event(self, kind: str, body: Mapping[str, Any]) -> None:
        """Add an event."""
        row = {"id": self.next_id, "time_us": now_us(), "kind": kind}
        text = canonical_json(plain(body))
        digest = event_hash([row[name] for name in EVENT_FIELDS], text, self.head.hash)
        self._events.append({**row, "body": text, "prev_hash": self.head.hash, "hash": digest})
        self.head = self.head.followed_by(digest)

    def flush(self, known_facets: set[int]) -> bool:
        """Write what was added, and the new head. False: the chain is not as it was left; nothing may be committed."""
        connection, database = self.connection, self.database
        fresh = [self.facets[number].as_row() for number in sorted(self.facets.keys() - known_facets)]
        if fresh:
            connection.execute(database.insert_new(facets), fresh)
        for table, rows in ((inspections, self._inspections), (reviews, self._reviews), (events, self._events)):
            if rows:  # one alone goes without the ceremony of many
                connection.execute(database.insert(table), rows if len(rows) > 1 else rows[0])
        for key in sorted(self._images):
            self._keep(*self._images[key])
        moved = connection.execute(
            _END_CHAIN if self._closes else _MOVE_HEAD,
            {
                "chain": self.former.chain,
                "own_key": self.former.key,
                "from_seq": self.former.sequence,
                "from_hash": self.former.hash,
                "to_seq": self.head.sequence,
                "to_hash": self.head.hash,
                "closes": self._closes,
            },
        )
        return moved.rowcount == 1

    def _keep(self, image: StoredImage, protected: bool, time_us: int) -> None:
        """Note that a record names the image. Who removes images holds its row until the file is gone."""
        insert = self.database.insert(images).values(
            store=image.store,
            sha256=image.sha256,
            suffix=image.suffix,
            size=image.size,
            protected=protected,
            time_us=time_us,
        )
        given = insert.excluded
        newer = _greater(self.database, images.c.time_us, given.time_us)
        self.connection.execute(
            insert.on_conflict_do_update(
                index_elements=[images.c.store, images.c.sha256],
                set_={"time_us": newer, "protected": images.c.protected | given.protected},
            )
        )
        image.restore(image)


def _greater(database: Database, one: Any, other: Any) -> Any:
    return func.max(one, other) if database.on_sqlite else func.greatest(one, other)


@dataclass(frozen=True)
class InspectionDraft:
    """A verdict to be recorded: its row without what the chain gives it, and its image where that is kept."""

    facet: Facet
    row: dict[str, Any] = field(repr=False)
    image: StoredImage | None = None

    @classmethod
    def of(cls, record: Record, image: StoredImage | None = None) -> InspectionDraft:
        """The draft of a record. Raises ValueError: a score that is not finite."""
        facet = Facet(record.role_id, record.roi_id, record.recipe_id, record.station_id, record.decision)
        row = {
            "time_us": record.time_us,
            "source": record.source,
            "score": _finite(record.score),
            "threshold": None if record.threshold is None else _finite(record.threshold),
            "p_value": None if record.p_value is None else _finite(record.p_value),
            "n_regions": len(record.regions),
            "part_id": record.part_id,
            "batch_id": record.batch_id,
            "operator": record.operator,
            "request_id": record.request_id,
            "key_id": record.key_id,
            "generation": record.generation,
            "image_name": storable(record.image_name),
            "image_sha256": record.image_sha256,
            "image_size": record.image_size,
            "image_store": image.store if image else None,
            "details": canonical_json(record.details()),
            "token_map": record.token_bytes(),
        }
        return cls(facet, row, image)

    def enter(self, batch: Batch) -> None:
        """Take the next place in the chain."""
        batch.inspection(self.facet, self.row, self.image)


def _finite(number: float) -> float:
    """`number` as a float; SQLite knows neither NaN nor a negative zero."""
    if not math.isfinite(number):
        raise ValueError(f"{number} is no score")
    return float(number) + 0.0


@dataclass(frozen=True, kw_only=True)
class ReviewDraft:
    """What a person says of an inspection. It is added to what others said; the last one counts.

    Raises InspectionNotFound when it enters a batch: there is no such inspection; NotRecorded: it has no facet.
    """

    inspection_id: str
    verdict: Verdict
    defect: str | None = None
    note: str | None = None
    reviewer: str | None = None
    key_id: str | None = None
    request_id: str | None = None

    def enter(self, batch: Batch) -> None:
        """Take the next place in the chain, and move the inspection to the facet of its new review."""
        connection = batch.connection
        number = number_of(connection, self.inspection_id)
        own = inspections.c
        found = connection.execute(
            select(own.facet_id, own.image_sha256, own.image_store).where(own.id == number).with_for_update()
        ).one_or_none()
        if found is None:
            raise InspectionNotFound(id=self.inspection_id)
        former = batch.facet(found.facet_id)
        facet = former.reviewed(self.verdict)
        batch.facets[facet.id] = facet
        connection.execute(update(inspections).where(own.id == number).values(facet_id=facet.id))
        if found.image_store is not None:
            connection.execute(
                update(images)
                .where(images.c.store == found.image_store, images.c.sha256 == found.image_sha256)
                .values(protected=True)
            )
        batch.review(
            {
                "inspection_id": number,
                "time_us": now_us(),
                "verdict": self.verdict,
                "former": former.review,
                "defect": self.defect,
                "note": self.note,
                "reviewer": self.reviewer,
                "key_id": self.key_id,
                "request_id": self.request_id,
            }
        )


@dataclass(frozen=True)
class EventDraft:
    """What happened to the record itself: `kind` and what there is to say of it."""

    kind: str
    body: Mapping[str, Any]

    def enter(self, batch: Batch) -> None:
        """Take the next place in the chain."""
        batch.event(self.kind, self.body)


def number_of(connection: Connection, inspection_id: str) -> int:
    """The number of an inspection in its table. Raises InspectionNotFound when there is no such chain."""
    key, sequence = parse_public_id(inspection_id)
    chain = connection.execute(select(chains.c.id).where(chains.c.key == bindparam("key")), {"key": key}).scalar()
    if chain is None:
        raise InspectionNotFound(id=inspection_id)
    return entry_id(int(chain), sequence)

"""Whether the record is what was written: every chain from its first entry to its head, and all that is derived.

What is found is named: the first entry of each chain that was changed, removed or inserted, and each row of the
derived tables that the entries do not give.
"""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from sqlalchemy import Boolean, Connection, Integer, Row, Select, Table, select, type_coerce

from backend.base.messages import Phrase
from backend.records.chain import (
    CHAIN_FIELDS,
    EVENT_FIELDS,
    INSPECTION_FIELDS,
    REVIEW_FIELDS,
    START,
    Facet,
    chain_hash,
    event_hash,
    inspection_hash,
    review_hash,
)
from backend.records.database import Database, Unavailable
from backend.records.entries import CLOSED
from backend.records.images import ImageStore
from backend.records.record import SEQUENCE_BITS, entry_id, public_id, split_id
from backend.records.tables import chains, events, facets, images, inspections, reviews, tallies
from backend.records.tallies import DAY, HOUR_US, Deltas, count, no_deltas, pack

_MASK = (1 << SEQUENCE_BITS) - 1
_STEP = 2000
MAX_FOUND = 100


@dataclass
class Report:
    """What was read, and what is wrong with it."""

    inspections: int = 0
    reviews: int = 0
    events: int = 0
    chains: int = 0
    images: int = 0
    pruned: int = 0
    found: list[Phrase] = field(default_factory=list)

    def add(self, where: str, code: str, **values: Any) -> None:
        """Note what is wrong and where: an entry's identifier, or a row of a derived table. The first 100 are kept."""
        if len(self.found) < MAX_FOUND:
            self.found.append(Phrase(code, {"where": where, **values}))


_CHANGED, _REMOVED, _INSERTED = "found_changed", "found_removed", "found_inserted"


def verify(database: Database, store: ImageStore | None = None, *, heads: Iterable[str] = ()) -> Report:
    """Read everything in one state of the database, whatever is written meanwhile.

    Args:
        store: where the images lie; None: they are not looked at.
        heads: heads of chains as the log has them, `3f9a1c07-1042=<hash>`; each must be an entry still.

    Raises Unavailable.
    """
    logged = list(heads)
    try:
        check = _checked(database, logged)
    except Unavailable:
        if not database.on_sqlite:
            raise
        check = _checked(database, logged, any_text=True)
    if store is not None:
        check.files(database, store)
    return check.report


def _checked(database: Database, heads: Iterable[str], *, any_text: bool = False) -> _Check:
    """The pass over all tables. `any_text`: also over what SQLite holds as text and is no UTF-8, at a lower pace."""
    with database.reading() as connection, _any_text(connection) if any_text else nullcontext():
        if not database.on_sqlite:
            connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        check = _Check(connection)
        check.run()
        check.logged(heads)
    return check


@contextmanager
def _any_text(connection: Connection) -> Iterator[None]:
    """What is no UTF-8 becomes what no entry holds."""
    driver: Any = connection.connection.driver_connection
    driver.text_factory = partial(str, encoding="utf-8", errors="surrogateescape")
    try:
        yield
    finally:
        driver.text_factory = str


@dataclass
class _Stub:
    """What was pruned of a chain: all up to `last`, whose hash it was, the end of the chain among it or not.

    `keeps` are the hashes of older stubs in it, which stay.
    """

    last: int
    last_hash: bytes
    ended: bool
    keeps: Mapping[int, str]


class _Chain:
    """How far the reading of one chain has come."""

    def __init__(self, row: Any, stub: _Stub | None) -> None:
        self.id, self.key = row.id, row.key
        self.head_seq, self.head_hash, self.closed, self.tallied = (
            row.head_seq,
            row.head_hash,
            row.closed,
            row.tallied_seq,
        )
        self.stub = stub
        self.sequence = 0
        self.start: bytes = row.hash
        self.hash: bytes = row.hash
        self.last_kind = ""
        self.broken = not isinstance(self.head_seq, int) or not isinstance(self.tallied, int)

    def name(self, sequence: int) -> str:
        return public_id(self.key, sequence)


def _computed(make: Callable[..., bytes], *given: Any) -> bytes:
    """A hash; an empty one of values that no entry holds: of another type, not finite, or no text."""
    try:
        return make(*given)
    except (TypeError, ValueError, AttributeError):
        return b""


class _Check:
    """One pass over all tables."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.report = Report()
        self.facets: dict[int, Facet] = {}
        self.by_chain: dict[int, _Chain] = {}
        self.removed: set[tuple[str, str]] = set()
        self.stubs: dict[int, _Stub] = {}
        self.pruned_until_us = 0
        # What the entries say, to hold against the derived tables.
        self.tallied: Deltas = no_deltas()
        self.kept: dict[tuple[str, bytes], tuple[int, bool, int]] = {}
        self.kept_by: dict[tuple[str, bytes], int] = {}
        self.astray: list[int] = []
        self.of_facets: set[int] = set()
        # Of each reviewed inspection the reviews: number, verdict before and verdict.
        self.said: dict[int, list[tuple[int, str | None, str]]] = defaultdict(list)

    def run(self) -> None:
        """All of it."""
        self._facets()
        self._events_ahead()
        self._chains()
        self._reviews_ahead()
        with ThreadPoolExecutor(1) as self.reader:  # one thread asks the database, this one computes
            for entry in heapq.merge(self._inspections(), self._reviews(), self._events(), key=lambda one: one[0]):
                self._entry(*entry)
        for chain in self.by_chain.values():
            self._end(chain)
        for number in self.astray:
            self.report.add(self._name(number), "found_review")
        for number in self.of_facets - self.facets.keys():
            self.report.add(f"facets {number}", _REMOVED)
        self._tallies()
        self._images()

    def _facets(self) -> None:
        for row in self.connection.execute(select(facets)):
            self.facets[row.id] = facet = Facet(*row[1:])
            if _number_of(facet) != row.id:
                self.report.add(f"facets {row.id}", _CHANGED)

    def _events_ahead(self) -> None:
        """What was pruned and which images were removed, which the rest is read with."""
        kinds = select(events).where(events.c.kind.in_(["pruned", "images_removed"])).order_by(events.c.id)
        for row in self.connection.execute(kinds):
            try:
                body = json.loads(row.body)
                if row.kind == "images_removed":
                    self.removed |= {(body["store"], digest) for digest in body["sha256"]}
                    continue
                stub = _Stub(
                    int(body["last"]),
                    bytes.fromhex(body["last_hash"]),
                    bool(body["ended"]),
                    {int(number): digest for number, digest in body["keeps"].items()},
                )
                known = self.stubs.get(int(body["chain"]))
                if known is None or known.last <= stub.last:
                    self.stubs[int(body["chain"])] = stub
                for number, former, verdict in body["reviews"]:
                    self.said[number].append((0, former, verdict))
                self.pruned_until_us = max(self.pruned_until_us, int(body["before_us"]))
            except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
                continue  # its own hash tells that it was changed

    def _chains(self) -> None:
        former, expected = START, 1
        for row in self.connection.execute(_as_stored(chains).order_by(chains.c.id)):
            where = f"chains {row.key}"
            fields = dict(zip(row._fields, row, strict=True))
            if row.id != expected:
                self.report.add(f"chains {expected}", _REMOVED)
            elif row.prev_hash != former:
                self.report.add(where, _INSERTED)
            own = {name: fields[name] for name in CHAIN_FIELDS}
            self.by_chain[row.id] = chain = _Chain(row, self.stubs.get(row.id))
            if _computed(chain_hash, own, row.prev_hash) != row.hash or chain.broken:
                self.report.add(where, _CHANGED)
            former, expected = row.hash, row.id + 1
            self.report.chains += 1

    def _reviews_ahead(self) -> None:
        own = reviews.c
        query = select(own.id, own.inspection_id, own.former, own.verdict).order_by(own.id)
        for number, inspection, former, verdict in self.connection.execute(_in_steps(query)):
            self.said[inspection].append((number, former, verdict))

    def _rows(self, query: Select[Any]) -> Iterator[Any]:
        """The rows of a query; the next step of them is fetched while one is worked on."""
        found = self.reader.submit(self.connection.execute, _in_steps(query)).result().partitions()
        ahead: Future[Sequence[Row[Any]]] = self.reader.submit(next, found, ())
        while rows := ahead.result():
            ahead = self.reader.submit(next, found, ())
            yield from rows

    def _inspections(self) -> Iterator[tuple[int, str, bytes, bytes, bytes]]:
        own = inspections.c
        columns = [own[name] for name in INSPECTION_FIELDS]
        query = select(own.facet_id, own.details, own.token_map, own.prev_hash, own.hash, *columns).order_by(own.id)
        for facet_id, details, token_map, former, digest, *fields in self._rows(query):
            facet = self.facets.get(facet_id)
            number: int = fields[0]
            self.report.inspections += 1
            if facet is None:
                self.of_facets.add(facet_id)
                yield number, "inspection", former, digest, b""
                continue
            with suppress(TypeError, ValueError, AttributeError, OverflowError):  # its own hash tells what is wrong
                self._derive(number, facet, fields)
            computed = _computed(inspection_hash, facet, fields, details, token_map, former)
            yield number, "inspection", former, digest, computed

    def _derive(self, number: int, facet: Facet, fields: Sequence[Any]) -> None:
        """Gather what one inspection gives the derived tables."""
        time_us, score, image, store = fields[_TIME], fields[_SCORE], fields[_IMAGE], fields[_STORE]
        chain, first = self.by_chain.get(number >> SEQUENCE_BITS), facet.reviewed(None).id
        self.of_facets.add(first)
        if chain is not None and number & _MASK <= chain.tallied:
            count(self.tallied, time_us // HOUR_US, first, score)
        said = self.said.get(number, ())
        if facet.review != _last_verdict(said):
            self.astray.append(number)
        for review, former, verdict in said:
            self.of_facets.add(facet.reviewed(verdict).id)
            chain = self.by_chain.get(review >> SEQUENCE_BITS)
            if chain is None or review & _MASK <= chain.tallied:
                count(self.tallied, time_us // HOUR_US, facet.reviewed(former).id, score, -1)
                count(self.tallied, time_us // HOUR_US, facet.reviewed(verdict).id, score)
        if store is not None:
            last, protected, size = self.kept.get((store, image), (0, False, fields[_SIZE]))
            guarded = facet.decision == "ng" or facet.review is not None
            self.kept[store, image] = max(last, time_us), protected or guarded, size
            self.kept_by.setdefault((store, image), number)

    def _reviews(self) -> Iterator[tuple[int, str, bytes, bytes, bytes]]:
        own = reviews.c
        columns = [own[name] for name in REVIEW_FIELDS]
        for former, digest, *fields in self._rows(select(own.prev_hash, own.hash, *columns).order_by(own.id)):
            self.report.reviews += 1
            yield fields[0], "review", former, digest, _computed(review_hash, fields, former)

    def _events(self) -> Iterator[tuple[int, str, bytes, bytes, bytes]]:
        own = events.c
        columns = [own[name] for name in EVENT_FIELDS]
        for body, former, digest, *fields in self._rows(
            select(own.body, own.prev_hash, own.hash, *columns).order_by(own.id)
        ):
            self.report.events += 1
            yield fields[0], fields[2], former, digest, _computed(event_hash, fields, body, former)

    def _entry(self, number: int, kind: str, former: bytes, digest: bytes, computed: bytes) -> None:
        chain = self.by_chain.get(number >> SEQUENCE_BITS)
        sequence = number & _MASK
        if chain is None:
            self.report.add(f"{number >> SEQUENCE_BITS}-{sequence}", _INSERTED)
            return
        if kind == "pruned" and chain.stub is not None and sequence <= chain.stub.last:
            if computed != digest or chain.stub.keeps.get(number) != computed.hex():
                self.report.add(chain.name(sequence), _CHANGED)
            return
        if chain.broken:
            return
        wrong = self._astray(chain, sequence, former)
        if wrong is None and computed != digest:
            wrong = sequence, _CHANGED
        if wrong is None and chain.stub is not None and sequence == chain.stub.last and digest != chain.stub.last_hash:
            wrong = sequence, _INSERTED
        chain.sequence, chain.hash, chain.last_kind = sequence, digest, kind
        if wrong is not None:
            chain.broken = True
            self.report.add(chain.name(wrong[0]), wrong[1])

    def _astray(self, chain: _Chain, sequence: int, former: bytes) -> tuple[int, str] | None:
        """What is wrong with the place of an entry: which one, and how. None: it is the one that comes next."""
        if chain.sequence == 0 and chain.stub is not None:
            if sequence <= chain.stub.last:  # pruning was interrupted here
                return None
            chain.sequence, chain.hash = chain.stub.last, chain.stub.last_hash
            self.report.pruned += chain.stub.last
        if sequence <= chain.sequence or sequence > chain.head_seq:
            return sequence, _INSERTED
        if sequence != chain.sequence + 1:
            return chain.sequence + 1, _REMOVED
        return None if former == chain.hash else (sequence, _CHANGED)

    def _end(self, chain: _Chain) -> None:
        """Whether a chain was read to its head."""
        if chain.broken:
            return
        if chain.stub is not None and chain.sequence < chain.stub.last:
            chain.sequence, chain.hash = chain.stub.last, chain.stub.last_hash
            chain.last_kind = CLOSED if chain.stub.ended else ""
            self.report.pruned += chain.stub.last
        if chain.sequence < chain.head_seq:
            self.report.add(chain.name(chain.sequence + 1), _REMOVED)
        elif (
            chain.hash != chain.head_hash
            or chain.closed != (chain.last_kind == CLOSED)
            or chain.tallied > chain.head_seq
            or (chain.closed and chain.tallied != chain.head_seq)
        ):
            self.report.add(f"chains {chain.key}", _CHANGED)

    def _tallies(self) -> None:
        stored = {(row.grain, row.hour, row.facet_id): row.scores for row in self.connection.execute(select(tallies))}
        for grain in (1, DAY):
            expected = no_deltas()
            for (hour, facet), counts in self.tallied.items():
                into = expected[hour // grain * grain, facet]
                for number, n in counts.items():
                    into[number] = into.get(number, 0) + n
            for (hour, facet), counts in expected.items():
                if stored.pop((grain, hour, facet), b"") != pack(counts):
                    self.report.add(f"tallies {grain}/{hour}/{facet}", _CHANGED)
        for grain, hour, facet in stored:
            self.report.add(f"tallies {grain}/{hour}/{facet}", _INSERTED)

    def _images(self) -> None:
        rows = {(row.store, row.sha256): row for row in self.connection.execute(_as_stored(images))}
        for key, row in rows.items():
            if key not in self.kept:
                self.report.add(f"images {_digits(row.sha256)}", _INSERTED)
            elif (row.time_us, row.protected, row.size) != self.kept[key]:
                self.report.add(f"images {_digits(row.sha256)}", _CHANGED)
        for (store, sha256), number in self.kept_by.items():
            if (store, sha256) not in rows:
                self._absent(store, sha256, number)
        self.rows = rows

    def _absent(self, store: str, sha256: bytes, number: int) -> None:
        """An image that a record names and the table does not: it must have been removed to make room."""
        last_us, protected, _ = self.kept[store, sha256]
        if not protected and ((store, _digits(sha256)) in self.removed or last_us < self.pruned_until_us):
            return
        self.report.add(self._name(number), "found_image_removed")

    def logged(self, heads: Iterable[str]) -> None:
        """Whether the heads that the log has are entries still, or were pruned."""
        keys = {chain.key: chain for chain in self.by_chain.values()}
        for head in heads:
            name, _, digest = head.strip().partition("=")
            key, _, sequence = name.rpartition("-")
            chain = keys.get(key)
            if chain is None or not _is_place(sequence) or not self._is_entry(chain, int(sequence), digest):
                self.report.add(name or head, "found_head")

    def _is_entry(self, chain: _Chain, sequence: int, digest: str) -> bool:
        if chain.stub is not None and sequence <= chain.stub.last:
            return sequence < chain.stub.last or chain.stub.last_hash.hex() == digest
        if sequence == 0:
            return _digits(chain.start) == digest
        for table in (inspections, reviews, events):
            query = select(table.c.hash).where(table.c.id == entry_id(chain.id, sequence))
            found = self.connection.execute(query).scalar()
            if found is not None:
                return _digits(found) == digest
        return False

    def files(self, database: Database, store: ImageStore) -> None:
        """Whether the images of this folder are what their names say."""
        for (name, sha256), row in self.rows.items():
            if name != store.name:
                continue
            if (name, sha256) not in self.kept_by:
                continue  # no entry names it, which was told
            path = store.path(sha256, row.suffix)
            where = self._name(self.kept_by[name, sha256])
            try:
                data = path.read_bytes()
            except FileNotFoundError:
                if _still_there(database, name, sha256):
                    self.report.add(where, "found_image_missing", file=path.name)
                continue
            except (OSError, ValueError):  # a folder in its place, or what is no name of a file
                self.report.add(where, "found_image_changed", file=path.name)
                continue
            self.report.images += 1
            if hashlib.sha256(data).digest() != sha256:
                self.report.add(where, "found_image_changed", file=path.name)

    def _name(self, number: int) -> str:
        chain, sequence = split_id(number)
        known = self.by_chain.get(chain)
        return known.name(sequence) if known else f"{chain}-{sequence}"


def _is_place(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 13 and int(text) <= _MASK


def _in_steps(query: Select[Any]) -> Select[Any]:
    return query.execution_options(stream_results=True, yield_per=_STEP)


_TIME, _SCORE, _IMAGE, _SIZE, _STORE = (
    INSPECTION_FIELDS.index(name) for name in ("time_us", "score", "image_sha256", "image_size", "image_store")
)


def _as_stored(table: Table) -> Select[Any]:
    """All rows; booleans as the numbers that SQLite has of them, of which 2 is no true."""
    plain = (type_coerce(own, Integer).label(own.name) if isinstance(own.type, Boolean) else own for own in table.c)
    return select(*plain)


def _number_of(facet: Facet) -> int | None:
    try:
        return facet.id
    except (TypeError, ValueError):
        return None


def _digits(sha256: Any) -> str:
    return sha256.hex() if isinstance(sha256, bytes) else repr(sha256)


def _last_verdict(said: Sequence[tuple[int, str | None, str]]) -> str | None:
    """Where reviews that each follow another end; an impossible text when they do not."""
    path: Counter[str | None] = Counter(verdict for _, _, verdict in said)
    path.subtract(former for _, former, _ in said)
    ends = {verdict: n for verdict, n in path.items() if n}
    if not said:
        return None
    last = next((verdict for verdict, n in ends.items() if n == 1), "?")
    return last if ends == {None: -1, last: 1} else "?"


def _still_there(database: Database, store: str, sha256: bytes) -> bool:
    """Whether a row is there still: one may go while the files are read."""
    with database.reading() as connection:
        here = select(images.c.size).where(images.c.store == store, images.c.sha256 == sha256)
        return connection.execute(here).first() is not None

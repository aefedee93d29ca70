"""Finding inspections: one, or a page of those that filters admit, in an order that goes on where a page ended.

Each page costs about the same wherever it is. Inspections that share model, station, decision and review have one
facet; the index of a facet gives its newest or highest in order, and a page is the best of the best of each facet.
"""

from __future__ import annotations

import base64
import binascii
import heapq
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, Connection, Row, Select, func, select, tuple_, union_all

from backend.base.errors import InspectionNotFound, InvalidValue
from backend.base.messages import Phrase
from backend.records.chain import Facet
from backend.records.database import damaged
from backend.records.entries import number_of
from backend.records.record import public_id, split_id, token_map_of
from backend.records.tables import chains, facets, images, inspections, reviews
from backend.records.tallies import known_facets

Order = Literal["newest", "oldest", "score", "informative"]
NEAR = 0.95  # of the threshold: a good part that scores at least so much is a close call
MAX_LIMIT = 1000
MANY_FACETS = 200  # with more of them, one index of all inspections is read instead of one of each facet
FEW_ROWS = 5_000  # so many, shared among the facets, are rather read and sorted than looked for one by one

_own = inspections.c
LISTED = (
    _own.id, _own.facet_id, _own.time_us, _own.source, _own.score, _own.threshold, _own.p_value, _own.n_regions,
    _own.part_id, _own.batch_id, _own.operator, _own.request_id, _own.key_id, _own.generation, _own.image_name,
    _own.image_sha256, _own.image_size, _own.image_store,
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which inspections are meant; None admits all. Times in microseconds since 1970: since ≤ t < until."""

    role_id: str | None = None
    roi_id: str | None = None
    recipe_id: str | None = None
    station_id: str | None = None
    except_station_id: str | None = None
    decision: str | None = None
    reviewed: bool | None = None
    part_id: str | None = None
    batch_id: str | None = None
    since_us: int | None = None
    until_us: int | None = None
    min_score: float | None = None
    max_score: float | None = None

    def admits(self, item: Mapping[str, Any]) -> bool:
        """Whether an inspection, as lists show it, is meant."""
        named = ("role_id", "roi_id", "recipe_id", "station_id", "decision", "part_id", "batch_id")
        asked = {name: value for name in named if (value := getattr(self, name)) is not None}
        low, high = self.min_score, self.max_score
        time_us = parse_time(item["time"], "time") or 0
        return (
            all(item.get(name) == value for name, value in asked.items())
            and (self.except_station_id is None or item.get("station_id") != self.except_station_id)
            and self.reviewed in {None, "review" in item}
            and (low is None or item["score"] >= low)
            and (high is None or item["score"] <= high)
            and (self.since_us is None or time_us >= self.since_us)
            and (self.until_us is None or time_us < self.until_us)
        )

    def facet_conditions(self) -> list[ColumnElement[bool]]:
        """What is asked of the facet."""
        names = ("role_id", "roi_id", "recipe_id", "station_id", "decision")
        asked = [facets.c[name] == value for name in names if (value := getattr(self, name)) is not None]
        if self.except_station_id is not None:
            asked.append(facets.c.station_id.is_distinct_from(self.except_station_id))
        if self.reviewed is not None:
            asked.append(facets.c.review.is_not(None) if self.reviewed else facets.c.review.is_(None))
        return asked

    def times(self) -> list[ColumnElement[bool]]:
        """What is asked of the time."""
        since = [] if self.since_us is None else [_own.time_us >= self.since_us]
        return since + ([] if self.until_us is None else [_own.time_us < self.until_us])

    def scores(self) -> list[ColumnElement[bool]]:
        """What is asked of the score."""
        least = [] if self.min_score is None else [_own.score >= self.min_score]
        return least + ([] if self.max_score is None else [_own.score <= self.max_score])

    def exact(self) -> list[ColumnElement[bool]]:
        """What is asked of the part and the batch."""
        part = [] if self.part_id is None else [_own.part_id == self.part_id]
        return part + ([] if self.batch_id is None else [_own.batch_id == self.batch_id])


@dataclass(frozen=True)
class Place:
    """Where in an order a page ended: the time or the score of its last inspection, and its number."""

    order: Order
    key: float
    id: int

    def as_cursor(self) -> str:
        """The place as a client carries it."""
        text = json.dumps([self.order, self.key, self.id], separators=(",", ":"))
        return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")

    @classmethod
    def parse(cls, cursor: str, order: Order) -> Place:
        """The place of a cursor. Raises InvalidValue: it is none, or of another order."""
        try:
            data = base64.urlsafe_b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4))
            said, key, number = json.loads(data)
            valid = said == order and type(key) in {int, float} and type(number) is int
        except (ValueError, binascii.Error, TypeError, RecursionError):
            valid = False
        if not valid or not (abs(number) < 1 << 63 and abs(key) < 1 << 63):  # NaN is not, either
            raise InvalidValue(field="cursor", value=repr(cursor[:60]), expected=Phrase("page_cursor"))
        return cls(order, key, number)


@dataclass(frozen=True)
class Page:
    """Some inspections, and the place where the next ones begin; None at the end."""

    items: list[dict[str, Any]]
    next: Place | None


def parse_order(text: str) -> Order:
    """`newest`, `oldest`, `score` or `informative`. Raises InvalidValue."""
    if text not in get_args(Order):
        raise InvalidValue(field="order", value=repr(text[:40]), expected=", ".join(get_args(Order)))
    return text  # type: ignore[return-value]


def parse_time(text: str | None, field: str) -> int | None:
    """Microseconds since 1970 of an ISO 8601 date or time, UTC unless it says otherwise. Raises InvalidValue.

    A plus that was sent as it is in an address arrives as a space, and is meant.
    """
    if text is None or not text.strip():
        return None
    try:
        text = _PLUS_AS_SPACE.sub(r"\1+\2", text.strip())
        moment = datetime.fromisoformat(text.replace("Z", "+00:00").replace("z", "+00:00"))
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=timezone.utc)
        return (moment.astimezone(timezone.utc) - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError) as err:
        raise InvalidValue(field=field, value=repr(text[:40]), expected=Phrase("date_or_time")) from err


_PLUS_AS_SPACE = re.compile(r"(:\d\d(?:\.\d+)?) (\d\d:\d\d)$")
_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)


def time_text(time_us: int) -> str:
    """2026-01-31T12:00:00.123456Z."""
    moment = _EPOCH + time_us * _MICROSECOND
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def page(
    connection: Connection,
    filters: Filters,
    order: Order = "newest",
    limit: int = 100,
    after: Place | None = None,
    *,
    columns: Sequence[Any] = LISTED,
) -> Page:
    """At most `limit` inspections after a place. The score's order goes from the highest down.

    `informative`: NG parts and close calls that nobody has reviewed, those nearest to their threshold first: what a
    person says of them tells most about where it belongs (uncertainty sampling, Lewis and Gale 1994).
    """
    search = _Search(connection, filters, order, after)
    found = search.informative(limit + 1) if order == "informative" else search.best(limit + 1)
    rows = rows_of(connection, [number for _, number in found[:limit]], columns)
    last = Place(order, *found[limit - 1]) if len(found) > limit else None
    return Page(items_of(connection, rows), last)


class _Search:
    """The keys (time or score) and numbers of the inspections that come first, each order by its own way."""

    def __init__(self, connection: Connection, filters: Filters, order: Order, after: Place | None) -> None:
        self.connection, self.filters = connection, filters
        self.descending = order not in {"oldest", "informative"}
        by_score = order == "score"
        self.key: Any = _own.score if by_score else _own.time_us
        self.other = filters.times() if by_score else filters.scores()
        self.ranges = filters.scores() if by_score else filters.times()
        self.after = after

    def best(self, n: int) -> list[tuple[float, int]]:
        """The first `n` keys and numbers."""
        wanted = self.filters.facet_conditions()
        exact = self.filters.exact()
        matching = select(facets.c.id).where(*wanted)
        if exact:
            own = [*exact, *self.other] + ([_own.facet_id.in_(matching)] if wanted else [])
            return self._read(self._first(own, n))
        if not wanted and not self.other:
            return self._read(self._first([], n))
        chosen = list(self.connection.execute(matching.limit(MANY_FACETS + 1)).scalars())
        if len(chosen) > MANY_FACETS:
            return self._read(self._first([*self.other, _own.facet_id.in_(matching)], n))
        few: list[tuple[float, int]] = []
        if self.other:
            few, chosen = self._few(chosen, max(n, FEW_ROWS // max(1, len(chosen))))
        best = self._sorted(few, n)
        each = [self._first([_own.facet_id == facet, *self.other], n).subquery() for facet in chosen]
        if not each:
            return best
        merged = union_all(*(select(one.c.key, one.c.id) for one in each)).subquery()
        key, number = merged.c.key, merged.c.id
        ends = (key.desc(), number.desc()) if self.descending else (key, number)
        return self._sorted([*best, *self._read(select(key, number).order_by(*ends).limit(n))], n)

    def informative(self, n: int) -> list[tuple[float, int]]:
        """The first `n` distances from the threshold, as shares of it, and numbers."""
        self.key = func.abs(_own.score - _own.threshold) / _own.threshold
        wanted = [*self.filters.facet_conditions(), facets.c.review.is_(None)]
        close = [_own.threshold > 0, _own.score >= NEAR * _own.threshold]
        matching = _own.facet_id.in_(select(facets.c.id).where(*wanted))
        asked = [*self.filters.exact(), *self.filters.scores(), *self.filters.times()]
        self.ranges = []
        return self._read(self._first([*asked, *close, matching], n))

    def _first(self, conditions: Iterable[ColumnElement[bool]], n: int) -> Select[Any]:
        conditions = [*conditions, *self.ranges]
        if self.after is not None:
            here = tuple_(self.key, _own.id)
            place = (self.after.key, self.after.id)
            conditions.append(here < place if self.descending else here > place)
        ends = (self.key.desc(), _own.id.desc()) if self.descending else (self.key, _own.id)
        return select(self.key.label("key"), _own.id.label("id")).where(*conditions).order_by(*ends).limit(n)

    def _read(self, query: Select[Any]) -> list[tuple[float, int]]:
        return tuples(self.connection, query)

    def _few(self, chosen: Sequence[int], most: int) -> tuple[list[tuple[float, int]], list[int]]:
        """All that the range of the other key admits in the facets where it is at most so many, and the other facets.

        To look for them in the order of the key would be to read such a facet from end to end.
        """
        found: list[tuple[float, int]] = []
        many: list[int] = []
        for facet in chosen:
            query = select(self.key, _own.id).where(_own.facet_id == facet, *self.other)
            own = self._read(query.limit(most + 1))
            if len(own) > most:
                many.append(facet)
            else:
                found += own
        return found, many

    def _sorted(self, found: list[tuple[float, int]], n: int) -> list[tuple[float, int]]:
        low, high = (self.filters.min_score, self.filters.max_score)
        if self.key is not _own.score:
            low, high = self.filters.since_us, None if self.filters.until_us is None else self.filters.until_us - 1
        inside = (one for one in found if (low is None or one[0] >= low) and (high is None or one[0] <= high))
        if self.after is not None:
            place = (self.after.key, self.after.id)
            inside = (one for one in inside if (one < place if self.descending else one > place))
        return heapq.nlargest(n, inside) if self.descending else heapq.nsmallest(n, inside)


def tuples(connection: Connection, query: Select[Any]) -> list[Any]:
    """The driver's own tuples: rows with names would take twice as long."""
    with connection.execute(query) as result:
        assert result.cursor is not None
        return list(result.cursor.fetchall())


def rows_of(connection: Connection, numbers: Sequence[int], columns: Sequence[Any] = LISTED) -> list[Row[Any]]:
    """The rows of these inspections, in this order; those that are gone meanwhile are left out."""
    if not numbers:
        return []
    found = {row.id: row for row in connection.execute(select(*columns).where(_own.id.in_(numbers))).all()}
    return [found[number] for number in numbers if number in found]


def items_of(connection: Connection, rows: Sequence[Row[Any]]) -> list[dict[str, Any]]:
    """Rows as clients see them; what is not known is left out."""
    known = known_facets(connection, {row.facet_id for row in rows})
    keys = chain_keys(connection, {split_id(row.id)[0] for row in rows})
    held = _held(connection, rows)
    hashed = bool(rows) and "hash" in rows[0]._fields
    return [
        item(
            row,
            known[row.facet_id],
            public_id(keys[split_id(row.id)[0]], split_id(row.id)[1]),
            kept=(row.image_store, row.image_sha256) in held,
            digest=row.hash.hex() if hashed else None,
        )
        for row in rows
    ]


def _held(connection: Connection, rows: Sequence[Row[Any]]) -> set[tuple[str, bytes]]:
    """Store and content of the rows' images that are there still."""
    kept = {row.image_sha256 for row in rows if row.image_store is not None}
    own = images.c
    found = connection.execute(select(own.store, own.sha256).where(own.sha256.in_(kept))) if kept else ()
    return {(row.store, row.sha256) for row in found}


def chain_keys(connection: Connection, numbers: Iterable[int]) -> dict[int, str]:
    """The names of chains by their number."""
    rows = connection.execute(select(chains.c.id, chains.c.key).where(chains.c.id.in_(list(numbers))))
    return {row.id: row.key for row in rows}


def item(row: Row[Any], facet: Facet, inspection_id: str, *, kept: bool, digest: str | None) -> dict[str, Any]:
    """One row of a list."""
    own: dict[str, Any] = {
        "inspection_id": inspection_id,
        "time": time_text(row.time_us),
        "role_id": facet.role_id,
        "roi_id": facet.roi_id,
        "recipe_id": facet.recipe_id,
        "source": row.source,
        "score": row.score,
        "threshold": row.threshold,
        "p_value": row.p_value,
        "decision": facet.decision,
        "n_regions": row.n_regions,
        "part_id": row.part_id,
        "batch_id": row.batch_id,
        "station_id": facet.station_id,
        "operator": row.operator,
        "request_id": row.request_id,
        "key_id": row.key_id,
        "generation": row.generation,
        "review": facet.review,
        "image": {
            "filename": row.image_name,
            "sha256": row.image_sha256.hex(),
            "bytes": row.image_size,
            "kept": kept,
        },
        "hash": digest,
    }
    return {name: value for name, value in own.items() if value is not None}


@dataclass(frozen=True)
class Whole:
    """All that is kept of one inspection.

    `item`: as lists show it; `details`: what `Record.details` wrote; `reviews`: from the first to the last.
    """

    number: int
    item: dict[str, Any]
    details: dict[str, Any]
    token_map: bytes
    image_sha256: bytes
    image_store: str | None
    reviews: list[dict[str, Any]]
    prev_hash: bytes


def whole(connection: Connection, inspection_id: str) -> Whole:
    """One inspection. Raises InspectionNotFound, Unavailable: its details or its token map are damaged."""
    number = number_of(connection, inspection_id)
    row = connection.execute(select(inspections).where(_own.id == number)).one_or_none()
    if row is None:
        raise InspectionNotFound(id=inspection_id)
    (own,) = items_of(connection, [row])
    said = connection.execute(
        select(reviews).where(reviews.c.inspection_id == number).order_by(reviews.c.time_us, reviews.c.id)
    )
    return Whole(
        number,
        own,
        _details(row),
        row.token_map,
        row.image_sha256,
        row.image_store,
        [_review(one) for one in said],
        row.prev_hash,
    )


def _details(row: Row[Any]) -> dict[str, Any]:
    try:
        own: dict[str, Any] = json.loads(row.details)
        if row.token_map:
            token_map_of(row.token_map, own["token_shape"])
    except (ValueError, KeyError, TypeError) as err:
        raise damaged() from err
    return own


def _review(row: Row[Any]) -> dict[str, Any]:
    own: Mapping[str, Any] = {
        "time": time_text(row.time_us),
        "verdict": row.verdict,
        "defect": row.defect,
        "note": row.note,
        "reviewer": row.reviewer,
        "key_id": row.key_id,
    }
    return {name: value for name, value in own.items() if value is not None}

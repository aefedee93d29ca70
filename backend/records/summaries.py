"""How many were good and bad by hour, shift or day, what they scored, and which verdicts people have overturned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone, tzinfo
from typing import Any, Literal, get_args
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, func, select

from backend.base.errors import InvalidValue
from backend.base.messages import Phrase
from backend.records.chain import Facet
from backend.records.queries import Filters, time_text, tuples
from backend.records.record import now_us
from backend.records.tables import facets, tallies
from backend.records.tallies import (
    BIN,
    DAY,
    HOUR,
    HOUR_US,
    Deltas,
    deltas_between,
    known_facets,
    lagging,
    pack,
    pairs_of,
    score_of_bin,
)

Bucket = Literal["hour", "shift", "day"]
SHIFT_HOURS = 8
SHIFTS_BEGIN = 6  # at 6, 14 and 22 o'clock
LONGEST_DAYS = {"hour": 31, "shift": 62, "day": 3660}
LONGEST_LOCAL_DAYS = 62  # days of another zone are made of hours
LAST_HOUR = int(datetime(9999, 12, 31, 23, tzinfo=timezone.utc).timestamp()) // 3600  # that has a name
QUANTILES = {"p5": 0.05, "p50": 0.5, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Span:
    """The hours that a summary is about, as hours since 1970 (from the first to before the last), and its zone."""

    bucket: Bucket
    first: int
    last: int
    zone: tzinfo

    def portions(self) -> list[tuple[int, int, int]]:
        """The tallies that add up to it: their grain, the first hour, and the one after the last."""
        if self.bucket != "day" or self.zone is not timezone.utc:
            return [(HOUR, self.first, self.last)]
        first, last = -(-self.first // DAY) * DAY, self.last // DAY * DAY
        if first >= last:
            return [(HOUR, self.first, self.last)]
        return [(HOUR, self.first, first), (DAY, first, last), (HOUR, last, self.last)]

    def start_of(self, hour: int) -> datetime:
        """When the bucket of an hour begins, in the zone."""
        moment = datetime.fromtimestamp(3600 * hour, timezone.utc).astimezone(self.zone)
        if self.bucket == "hour":
            return moment
        midnight = moment.replace(hour=0, minute=0, fold=0)
        if self.bucket == "day":
            return midnight
        number = (moment.hour - SHIFTS_BEGIN) // SHIFT_HOURS  # -1 before the first shift: the day before's last one
        day = midnight - timedelta(days=1) if number < 0 else midnight
        return day.replace(hour=SHIFTS_BEGIN + SHIFT_HOURS * (number % (24 // SHIFT_HOURS)))


def span_of(connection: Connection, bucket: str, filters: Filters, zone: str | None) -> Span:
    """What a summary covers: the hours that since … until touch, or as much up to now as its bucket allows.

    Raises:
        InvalidValue: no such bucket or zone, or a span that is too long for the bucket.
    """
    if bucket not in get_args(Bucket):
        raise InvalidValue(field="bucket", value=repr(bucket[:40]), expected=", ".join(get_args(Bucket)))
    where = _zone(zone)
    days = LONGEST_DAYS[bucket]
    if bucket == "day" and where is not timezone.utc:
        days = LONGEST_LOCAL_DAYS
    ends = select(func.min(tallies.c.hour), func.max(tallies.c.hour)).where(tallies.c.grain == HOUR)
    oldest, newest = connection.execute(ends).one()
    now = now_us() // HOUR_US
    until = -(-filters.until_us // HOUR_US) if filters.until_us is not None else max(now, newest or 0) + 1
    until = min(until, LAST_HOUR)
    least = max(until - 24 * days, oldest if oldest is not None else now)
    since = filters.since_us // HOUR_US if filters.since_us is not None else least
    if until - since > 24 * days:
        most = Phrase("days_at_most", {"days": days, "bucket": bucket})
        raise InvalidValue(field="since", value=time_text(since * HOUR_US), expected=most)
    return Span(bucket, min(since, LAST_HOUR), max(since, until), where)  # type: ignore[arg-type]


def _zone(name: str | None) -> tzinfo:
    if not name or name.upper() == "UTC":
        return timezone.utc
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as err:
        raise InvalidValue(field="tz", value=repr(name[:40]), expected=Phrase("time_zone")) from err


def summary(connection: Connection, span: Span, filters: Filters) -> dict[str, Any]:
    """Counts, yield, quantiles of the scores (within 1 %) and overturned verdicts of each bucket and of all.

    Every inspection that is committed counts. Filters by model, station, decision and review apply.
    """
    known = known_facets(connection)
    wanted = filters.facet_conditions()
    chosen = set(connection.execute(select(facets.c.id).where(*wanted)).scalars()) if wanted else set(known)
    rows = _stored(connection, span, list(chosen) if wanted else None)
    rows += _fresh(_not_yet_tallied(connection, known), span, chosen)
    hours, numbers, sketches = zip(*rows, strict=True) if rows else ((), (), ())
    starts = {hour: span.start_of(hour) for hour in set(hours)}
    moments = {start.timestamp(): start for start in starts.values()}  # an hour that a clock shows twice is two
    place = {moment: number for number, moment in enumerate(sorted(moments))}
    buckets = _each(hours, {hour: place[start.timestamp()] for hour, start in starts.items()})
    kinds = _each(numbers, {number: _class_of(known[number]) for number in set(numbers)})
    *each, total = _Counts(buckets, kinds, sketches, len(place)).figures()
    return {
        "bucket": span.bucket,
        "since": time_text(span.first * HOUR_US),
        "until": time_text(span.last * HOUR_US),
        "items": [{"start": moments[moment].isoformat(), **own} for moment, own in zip(place, each, strict=True)],
        "total": total,
    }


Rows = list[Any]  # hour, facet and sketch of each


def _stored(connection: Connection, span: Span, chosen: Sequence[int] | None) -> Rows:
    """Hour, facet and sketch of the tallies."""
    own = tallies.c
    found: Rows = []
    for grain, first, last in span.portions():
        query = select(own.hour, own.facet_id, own.scores).where(own.grain == grain, own.hour >= first, own.hour < last)
        query = query if chosen is None else query.where(own.facet_id.in_(chosen))
        found += tuples(connection, query)
    return found


def _not_yet_tallied(connection: Connection, known: Mapping[int, Facet]) -> Deltas:
    found: Deltas = {}
    for chain, after, last in lagging(connection):
        for key, counts in deltas_between(connection, chain, after, last, known).items():
            into = found.setdefault(key, {})
            for number, n in counts.items():
                into[number] = into.get(number, 0) + n
    return found


def _fresh(deltas: Deltas, span: Span, chosen: set[int]) -> Rows:
    return [
        (hour, facet, pack(counts))
        for (hour, facet), counts in deltas.items()
        if span.first <= hour < span.last and facet in chosen
    ]


class _Counts:
    """Sketches added up by bucket, and in the end all of them.

    Args:
        buckets, kinds: the number of each sketch's bucket, of `n`, and of the class of its facet.
        sketches: as they are stored.
    """

    def __init__(self, buckets: NDArray[np.int64], kinds: NDArray[np.int64], sketches: Sequence[bytes], n: int) -> None:
        pairs = pairs_of(sketches)
        lengths = np.fromiter(map(len, sketches), np.int64, len(sketches)) // BIN.itemsize
        bucket, kind = np.repeat(buckets, lengths), np.repeat(kinds, lengths)
        self._bins, column = np.unique(pairs["bin"].astype(np.int64), return_inverse=True)
        self._scores = _added(bucket, column, pairs["n"], (n, max(1, len(self._bins))))
        self._kinds = _added(bucket, kind, pairs["n"], (n, _CLASSES)).reshape(n + 1, len(_DECISIONS), len(_REVIEWS))

    def figures(self) -> list[dict[str, Any]]:
        """Of each bucket and of all; a share or a quantile of nothing is left out."""
        decided = self._kinds.sum(2)
        shares = np.array(list(QUANTILES.values()))
        reached = np.cumsum(self._scores, axis=1)
        ranks = shares * (reached[:, -1:] - 1)
        at = np.array([np.searchsorted(row, rank, side="right") for row, rank in zip(reached, ranks, strict=True)])
        scores = score_of_bin(self._bins[np.minimum(at, len(self._bins) - 1)]) if len(self._bins) else at
        counts = {
            "n": decided.sum(1),
            "ok": decided[:, _DECISIONS.index("ok")],
            "ng": decided[:, _DECISIONS.index("ng")],
            "undecided": decided[:, _DECISIONS.index(None)],
            "reviewed": self._kinds[:, :, 1:].sum((1, 2)),
            "false_alarms": self._kinds[:, _DECISIONS.index("ng"), _REVIEWS.index("good")],
            "misses": self._kinds[:, _DECISIONS.index("ok"), _REVIEWS.index("bad")],
        }
        columns = {name: values.tolist() for name, values in counts.items()}
        rows = [dict(zip(columns, own, strict=True)) for own in zip(*columns.values(), strict=True)]
        for own, score in zip(rows, scores.tolist(), strict=True):
            if own["ok"] + own["ng"]:
                own["yield"] = own["ok"] / (own["ok"] + own["ng"])
            if own["n"]:
                own["score"] = dict(zip(QUANTILES, score, strict=True))
        return rows


_DECISIONS: list[str | None] = ["ok", "ng", None]
_REVIEWS: list[str | None] = [None, "good", "bad", "unclear"]
_CLASSES = len(_DECISIONS) * len(_REVIEWS)


def _each(values: Sequence[int], numbers: Mapping[int, int]) -> NDArray[np.int64]:
    """The number of each value."""
    return np.fromiter(map(numbers.__getitem__, values), np.int64, len(values))


def _class_of(facet: Facet) -> int:
    return _DECISIONS.index(facet.decision) * len(_REVIEWS) + _REVIEWS.index(facet.review)


def _added(
    bucket: NDArray[np.int64], column: NDArray[np.int64], n: NDArray[np.int32], shape: tuple[int, int]
) -> NDArray[np.int64]:
    """(buckets + 1, columns) sums of `n` by bucket and column, and of all buckets in the last row."""
    cells = np.bincount(bucket * shape[1] + column, n, shape[0] * shape[1]) if len(n) else np.zeros(shape)
    table = np.rint(cells).astype(np.int64).reshape(shape)
    return np.vstack([table, table.sum(0, keepdims=True)])

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
from backend.records.chain import Facet
from backend.records.queries import Filters, time_text
from backend.records.record import now_us
from backend.records.tables import facets, tallies
from backend.records.tallies import BIN, DAY, HOUR, HOUR_US, Deltas, deltas_between, known_facets, lagging, score_of_bin

Bucket = Literal["hour", "shift", "day"]
SHIFT_HOURS = 8
SHIFTS_BEGIN = 6  # at 6, 14 and 22 o'clock
LONGEST_DAYS = {"hour": 31, "shift": 93, "day": 3660}
LONGEST_LOCAL_DAYS = 366  # days of another zone are made of hours
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
        midnight = moment.replace(hour=0, minute=0)
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
    least = max(until - 24 * days, oldest if oldest is not None else now)
    since = filters.since_us // HOUR_US if filters.since_us is not None else least
    if until - since > 24 * days:
        raise InvalidValue(field="since", value=time_text(since * HOUR_US), expected=f"≤ {days} d, bucket={bucket}")
    return Span(bucket, since, max(since, until), where)  # type: ignore[arg-type]


def _zone(name: str | None) -> tzinfo:
    if not name or name.upper() == "UTC":
        return timezone.utc
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError) as err:
        raise InvalidValue(field="tz", value=repr(name[:40]), expected="UTC, Europe/Madrid") from err


def summary(connection: Connection, span: Span, filters: Filters) -> dict[str, Any]:
    """Counts, yield, quantiles of the scores (within 1 %) and overturned verdicts of each bucket and of all.

    Every inspection that is committed counts. Filters by model, station, decision and review apply.
    """
    known = known_facets(connection)
    wanted = filters.facet_conditions()
    chosen = set(connection.execute(select(facets.c.id).where(*wanted)).scalars()) if wanted else set(known)
    rows = _stored(connection, span, list(chosen) if wanted else None)
    rows += _fresh(_not_yet_tallied(connection, known), span, chosen)
    starts = sorted({hour: span.start_of(hour) for hour, _, _ in rows}.items())
    buckets = sorted({start for _, start in starts})
    place = {start: number for number, start in enumerate(buckets)}
    counts = _Counts(rows, known, {hour: place[start] for hour, start in starts}, len(buckets))
    return {
        "bucket": span.bucket,
        "since": time_text(span.first * HOUR_US),
        "until": time_text(span.last * HOUR_US),
        "items": [{"start": start.isoformat(), **counts.of([n])} for start, n in place.items()],
        "total": counts.of(range(len(buckets))),
    }


Rows = list[tuple[int, int, bytes]]


def _stored(connection: Connection, span: Span, chosen: Sequence[int] | None) -> Rows:
    """Hour, facet and sketch of the tallies."""
    own = tallies.c
    found: Rows = []
    for grain, first, last in span.portions():
        query = select(own.hour, own.facet_id, own.scores).where(own.grain == grain, own.hour >= first, own.hour < last)
        query = query if chosen is None else query.where(own.facet_id.in_(chosen))
        found += [(hour, facet, scores) for hour, facet, scores in connection.execute(query)]
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
        (hour, facet, np.array(list(counts.items()), BIN).tobytes())
        for (hour, facet), counts in deltas.items()
        if span.first <= hour < span.last and facet in chosen
    ]


class _Counts:
    """Sketches added up by bucket.

    Args:
        rows: hour, facet and sketch.
        places: the number of each hour's bucket, of `n` buckets.
    """

    def __init__(self, rows: Rows, known: Mapping[int, Facet], places: Mapping[int, int], n: int) -> None:
        pairs = np.frombuffer(b"".join(scores for _, _, scores in rows), BIN)
        lengths = [len(scores) // BIN.itemsize for _, _, scores in rows]
        bucket = np.repeat(np.array([places[hour] for hour, _, _ in rows], np.int64), lengths)
        self._bins, column = np.unique(pairs["bin"].astype(np.int64), return_inverse=True)
        width = max(1, len(self._bins))
        weights = pairs["n"].astype(np.float64)
        cells = np.bincount(bucket * width + column, weights, n * width) if len(pairs) else np.zeros(n * width)
        self._scores = cells.reshape(n, width)
        facet = np.repeat(np.array([_class_of(known[facet]) for _, facet, _ in rows], np.int64), lengths)
        kinds = np.bincount(bucket * _CLASSES + facet, weights, n * _CLASSES) if len(pairs) else np.zeros(n * _CLASSES)
        self._kinds = kinds.reshape(n, len(_DECISIONS), len(_REVIEWS))

    def of(self, buckets: Sequence[int]) -> dict[str, Any]:
        """The figures of some buckets together; a share or quantile of nothing is left out."""
        kinds = self._kinds[list(buckets)].sum(0)
        ok, ng, undecided = (round(float(one)) for one in kinds.sum(1))
        own: dict[str, Any] = {"n": ok + ng + undecided, "ok": ok, "ng": ng, "undecided": undecided}
        if ok + ng:
            own["yield"] = ok / (ok + ng)
        own["reviewed"] = round(float(kinds[:, 1:].sum()))
        own["false_alarms"] = round(float(kinds[_DECISIONS.index("ng"), _REVIEWS.index("good")]))
        own["misses"] = round(float(kinds[_DECISIONS.index("ok"), _REVIEWS.index("bad")]))
        scores = self._scores[list(buckets)].sum(0)
        return own | ({"score": _quantiles(self._bins, scores)} if own["n"] > 0 else {})


_DECISIONS: list[str | None] = ["ok", "ng", None]
_REVIEWS: list[str | None] = [None, "good", "bad", "unclear"]
_CLASSES = len(_DECISIONS) * len(_REVIEWS)


def _class_of(facet: Facet) -> int:
    return _DECISIONS.index(facet.decision) * len(_REVIEWS) + _REVIEWS.index(facet.review)


def _quantiles(bins: NDArray[np.int64], counts: NDArray[np.float64]) -> dict[str, float]:
    reached = np.cumsum(counts)
    ranks = np.array(list(QUANTILES.values())) * (reached[-1] - 1)
    at = np.minimum(np.searchsorted(reached, ranks, side="right"), len(bins) - 1)
    return dict(zip(QUANTILES, score_of_bin(bins[at]).tolist(), strict=True))

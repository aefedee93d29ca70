"""Counts of scores by hour and by day, kept beside the inspections so that a summary of a million reads no million.

A score is counted in a bin of a sketch whose quantiles are within 1 % of the score (DDSketch: Masson, Rim and Lee,
VLDB 2019): bin i holds the scores in (γ^(i−1), γ^i], γ = 1.01 / 0.99. Sketches add up, and a review moves a score from
one facet's sketch to another's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import Connection, bindparam, delete, select, tuple_, update

from backend.records.chain import Facet
from backend.records.database import ONE_TALLY, Database, damaged
from backend.records.record import entry_id
from backend.records.tables import chains, facets, inspections, reviews, tallies

HOUR_US = 3_600_000_000
HOUR, DAY = 1, 24
GRAINS = (HOUR, DAY)

ACCURACY = 0.01
_LOG_GAMMA = math.log((1 + ACCURACY) / (1 - ACCURACY))
_OFFSET = 1 << 15  # bins are kept as uint16: this one is for scores in (1/γ, 1]
BINS = 1 << 16
BIN = np.dtype([("bin", "<u2"), ("n", "<i4")])

Key = tuple[int, int]  # the hour since 1970 in which the inspection was made, and the facet
Deltas = dict[Key, dict[int, int]]


def bin_of(score: float) -> int:
    """The bin of a score; 0 is for zero and less."""
    if score <= 0:
        return 0
    return min(BINS - 1, max(1, _OFFSET + math.ceil(math.log(score) / _LOG_GAMMA)))


def score_of_bin(number: NDArray[np.int64]) -> NDArray[np.float64]:
    """The score that each bin stands for, within 1 % of all that it holds."""
    middle = 2 / (1 + math.exp(_LOG_GAMMA))
    return np.where(number == 0, 0.0, middle * np.exp((number - _OFFSET) * _LOG_GAMMA))


def pack(counts: Mapping[int, int]) -> bytes:
    """A sketch as it is stored."""
    return np.array(sorted((b, n) for b, n in counts.items() if n), BIN).tobytes()


def pairs_of(sketches: Sequence[bytes]) -> NDArray[Any]:
    """The bins and counts of stored sketches, one after the other. Raises Unavailable of one that is none."""
    try:
        if not any(len(one) % BIN.itemsize for one in sketches):
            return np.frombuffer(b"".join(sketches), BIN)
    except TypeError as err:  # SQLite holds a text or a number in its place
        raise damaged() from err
    raise damaged()


def unpack(data: bytes) -> dict[int, int]:
    """A stored sketch. Raises Unavailable."""
    return {int(b): int(n) for b, n in pairs_of([data]).tolist()}


def count(into: Deltas, hour: int, facet: int, score: float, n: int = 1) -> None:
    """Count a score `n` times."""
    counts = into[hour, facet]
    number = bin_of(score)
    counts[number] = counts.get(number, 0) + n


def no_deltas() -> Deltas:
    """Nothing counted yet."""
    return defaultdict(dict)


class Facets(dict[int, Facet]):
    """Facets by their number. Raises Unavailable of one that is not there though an inspection is of it."""

    def __missing__(self, number: int) -> Facet:
        raise damaged()


def known_facets(connection: Connection, numbers: Iterable[int] | None = None) -> Facets:
    """All facets, or those of these numbers."""
    query = select(facets) if numbers is None else select(facets).where(facets.c.id.in_(list(numbers)))
    return Facets((row.id, Facet(*row[1:])) for row in connection.execute(query))


def deltas_between(connection: Connection, chain: int, after: int, last: int, known: Mapping[int, Facet]) -> Deltas:
    """What the entries of a chain from `after` + 1 to `last` add to the tallies."""
    first, final = entry_id(chain, after + 1), entry_id(chain, last)
    found = no_deltas()
    own = inspections.c
    made = select(own.facet_id, own.time_us, own.score).where(own.id.between(first, final))
    for facet, time_us, score in connection.execute(made):
        count(found, time_us // HOUR_US, known[facet].reviewed(None).id, score)
    moved = (
        select(own.facet_id, own.time_us, own.score, reviews.c.former, reviews.c.verdict)
        .join(inspections, own.id == reviews.c.inspection_id)
        .where(reviews.c.id.between(first, final))
    )
    for facet, time_us, score, former, verdict in connection.execute(moved):
        hour, base = time_us // HOUR_US, known[facet]
        count(found, hour, base.reviewed(former).id, score, -1)
        count(found, hour, base.reviewed(verdict).id, score)
    return found


def lagging(connection: Connection) -> list[tuple[int, int, int]]:
    """The chains that the tallies lag behind: number, last tallied place, last place."""
    own = chains.c
    rows = connection.execute(select(own.id, own.tallied_seq, own.head_seq).where(own.tallied_seq < own.head_seq))
    return [(row.id, row.tallied_seq, row.head_seq) for row in rows]


def catch_up(database: Database, chain: int | None = None) -> None:
    """Bring the tallies up to the heads of all chains, or of one. Raises Unavailable."""
    behind = True
    while behind:
        with database.writing() as connection:
            database.wait_for(connection, ONE_TALLY)
            behind = tally(connection, database, chain, at_most=20_000)


def tally(connection: Connection, database: Database, chain: int | None = None, *, at_most: int = 1 << 62) -> bool:
    """Count what chains have that the tallies lack, `at_most` entries of each. Whether there is more to count.

    The caller holds ONE_TALLY.
    """
    behind = [lag for lag in lagging(connection) if chain in {None, lag[0]}]
    known = known_facets(connection) if behind else {}
    for number, after, head in behind:
        last = min(head, after + at_most)
        apply(connection, database, deltas_between(connection, number, after, last, known))
        connection.execute(update(chains).where(chains.c.id == number).values(tallied_seq=last))
    return any(head > after + at_most for _, after, head in behind)


def apply(connection: Connection, database: Database, deltas: Deltas) -> None:
    """Add `deltas` to the stored sketches. The caller holds ONE_TALLY."""
    for grain in GRAINS:
        added = no_deltas()
        for (hour, facet), counts in deltas.items():
            into = added[hour // grain * grain, facet]
            for number, n in counts.items():
                into[number] = into.get(number, 0) + n
        for keys in _portions(sorted(added), 300):
            _store(connection, database, grain, {key: added[key] for key in keys})


def _portions(keys: Sequence[Key], size: int) -> Iterator[Sequence[Key]]:
    return (keys[at : at + size] for at in range(0, len(keys), size))


def _store(connection: Connection, database: Database, grain: int, added: Deltas) -> None:
    own = tallies.c
    wanted = tuple_(own.hour, own.facet_id).in_(list(added))
    present = connection.execute(select(own.hour, own.facet_id, own.scores).where(own.grain == grain, wanted)).all()
    fresh: list[dict[str, Any]] = []
    changed: list[dict[str, Any]] = []
    gone: list[dict[str, Any]] = []
    stored = {(row.hour, row.facet_id): row.scores for row in present}
    for key, counts in added.items():
        sums = unpack(stored[key]) if key in stored else {}
        for number, n in counts.items():
            sums[number] = sums.get(number, 0) + n
        data = pack(sums)
        row = {"in_hour": key[0], "in_facet": key[1], "scores": data}
        if key not in stored:
            fresh += [{"grain": grain, "hour": key[0], "facet_id": key[1], "scores": data}] if data else []
        else:
            (changed if data else gone).append(row)
    here = (own.grain == grain) & (own.hour == bindparam("in_hour")) & (own.facet_id == bindparam("in_facet"))
    if fresh:
        connection.execute(database.insert(tallies), fresh)
    if changed:
        connection.execute(update(tallies).where(here).values(scores=bindparam("scores")), changed)
    if gone:
        connection.execute(
            delete(tallies).where(here), [{k: v for k, v in row.items() if k != "scores"} for row in gone]
        )

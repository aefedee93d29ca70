"""Inspections of parts that have a name, for studies of how well verdicts repeat."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import Connection, select

from backend.base.keys import ModelKey
from backend.records.tables import facets, inspections, reviews

_AT_ONCE = 500


@dataclass(frozen=True)
class Seen:
    """One inspection of a part.

    Attributes:
        image_sha256: in hexadecimal digits.
        good: what the last review of it says that says either; None without one.
        said_us: when, in microseconds since 1970; 0 without one.
    """

    part_id: str
    score: float
    threshold: float | None
    decision: str | None
    image_sha256: str
    good: bool | None = None
    said_us: int = 0


def seen_parts(connection: Connection, key: ModelKey, batch: str | None = None) -> list[Seen]:
    """The inspections of `key` with a part_id, or those of a batch among them, oldest first."""
    own, facet = inspections.c, facets.c
    wanted = (
        select(own.id, own.part_id, own.score, own.threshold, facet.decision, own.image_sha256)
        .join(facets, own.facet_id == facet.id)
        .where(facet.role_id == key.role_id, facet.roi_id == key.roi_id, facet.recipe_id == key.recipe_id)
        .where(own.part_id.is_not(None))
        .order_by(own.time_us, own.id)
    )
    if batch is not None:
        wanted = wanted.where(own.batch_id == batch)
    rows = connection.execute(wanted).all()
    said = _said(connection, [row.id for row in rows])
    return [
        Seen(
            str(row.part_id),
            row.score,
            row.threshold,
            row.decision,
            bytes(row.image_sha256).hex(),
            *said.get(row.id, (None, 0)),
        )
        for row in rows
    ]


def _said(connection: Connection, numbers: list[int]) -> dict[int, tuple[bool, int]]:
    """What the last review of each inspection says, and when."""
    found: dict[int, tuple[bool, int]] = {}
    for at in range(0, len(numbers), _AT_ONCE):
        chosen = reviews.c.inspection_id.in_(numbers[at : at + _AT_ONCE])
        asked = select(reviews.c.inspection_id, reviews.c.verdict, reviews.c.time_us).where(chosen)
        for row in connection.execute(asked.order_by(reviews.c.time_us, reviews.c.id)):
            if row.verdict in {"good", "bad"}:
                found[row.inspection_id] = row.verdict == "good", row.time_us
    return found

"""What all writers add to the record, as it comes."""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import Connection, func, select

from backend.records.database import Database
from backend.records.queries import LISTED, items_of
from backend.records.record import SEQUENCE_BITS, entry_id
from backend.records.tables import chains, inspections

AT_ONCE = 500  # inspections that one look brings at most


class Feed:
    """Each look brings the inspections that were committed since the last one, by the heads of the chains.

    Args:
        place: where an earlier feed was, to go on there; None: only what comes from now on.
    """

    def __init__(self, database: Database, place: str | None = None) -> None:
        self.database = database
        self._seen = _parse(place)

    @property
    def place(self) -> str:
        """Where it is: the last place of each open chain that was looked at."""
        return json.dumps(self._seen, separators=(",", ":"))

    def look(self) -> list[dict[str, Any]]:
        """The new inspections as lists show them, in the order of each chain. Raises Unavailable."""
        with self.database.reading() as connection:
            heads = self._heads(connection)
            if self._seen is None:
                self._seen = {chain: head for chain, (head, _) in heads.items()}
                return []
            rows: list[Any] = []
            for chain, (head, closed) in sorted(heads.items()):
                after = self._seen.get(chain, 0)
                last = min(head, after + AT_ONCE - len(rows))
                if last > after:
                    between = inspections.c.id.between(entry_id(chain, after + 1), entry_id(chain, last))
                    rows += connection.execute(select(*LISTED).where(between).order_by(inspections.c.id)).all()
                self._seen[chain] = max(after, last)
                if closed and last >= head and chain != max(heads):
                    del self._seen[chain]
            return items_of(connection, rows)

    def _heads(self, connection: Connection) -> dict[int, tuple[int, bool]]:
        """The last place of each chain that may have grown, and whether it has ended."""
        own = chains.c
        seen = self._seen or {}
        newest = max(seen) if seen else connection.execute(select(func.coalesce(func.max(own.id), 0))).scalar_one() - 1
        wanted = own.closed.is_(False) | (own.id > newest) | own.id.in_(list(seen))
        rows = connection.execute(select(own.id, own.head_seq, own.closed).where(wanted))
        return {row.id: (row.head_seq, row.closed) for row in rows}


def _parse(place: str | None) -> dict[int, int] | None:
    """The places of a feed; None where the text is of none."""
    try:
        found = json.loads(place) if place else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or not all(_is_place(key, n) for key, n in found.items()):
        return None
    return {int(key): n for key, n in found.items()}


def _is_place(chain: str, sequence: Any) -> bool:
    if not chain.isascii() or not chain.isdecimal() or len(chain) > 6:
        return False
    return isinstance(sequence, int) and 0 <= sequence < 1 << SEQUENCE_BITS

"""The inspections as CSV, page after page, however many they are."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from typing import Any

from backend.records.database import Database
from backend.records.queries import LISTED, MAX_LIMIT, Filters, Order, Place, page
from backend.records.tables import inspections

COLUMNS = (
    "inspection_id", "time", "role_id", "roi_id", "recipe_id", "source", "score", "threshold", "p_value", "decision",
    "n_regions", "part_id", "batch_id", "station_id", "operator", "review", "request_id", "key_id", "generation",
    "filename", "sha256", "bytes", "kept", "hash",
)  # fmt: skip

# A spreadsheet takes a text that begins so for a formula.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def as_csv(database: Database, filters: Filters, order: Order = "oldest") -> Iterator[bytes]:
    """UTF-8 pieces of a CSV file with a heading (RFC 4180), each of up to 1,000 lines. Raises Unavailable.

    Texts that a spreadsheet would take for a formula begin with an apostrophe. What is recorded meanwhile may be in it
    or not; nothing is in it twice.
    """
    buffer = io.StringIO()
    lines = csv.writer(buffer)
    lines.writerow(COLUMNS)
    after: Place | None = None
    while True:
        with database.reading() as connection:
            found = page(connection, filters, order, MAX_LIMIT, after, columns=(*LISTED, inspections.c.hash))
        for item in found.items:
            lines.writerow([_cell(value) for value in _values(item)])
        yield buffer.getvalue().encode()
        buffer.seek(0)
        buffer.truncate()
        after = found.next
        if after is None:
            return


def _values(item: dict[str, Any]) -> list[Any]:
    flat = {**item, **item["image"]}
    return [flat.get(name) for name in COLUMNS]


def _cell(value: Any) -> Any:
    if isinstance(value, bool):
        return int(value)
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value

"""The chain of hashes: what of an entry is hashed, and in which form.

    hash = SHA-256(hash of the entry before ‖ header ‖ details ‖ blob)

The header is a JSON array in ASCII without spaces: the kind of entry, its fields in the order given here, and the
lengths in bytes of details and blob. Bytes are written as hexadecimal digits, times as microseconds, numbers as
Python writes them (the shortest text that reads back as the same float64). The first entry of a chain follows the hash
of the chain's own row, and the first chain 32 zero bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

START = bytes(32)

CHAIN_FIELDS = ("id", "key", "host", "machine", "pid", "version", "opened_us")
FACET_FIELDS = ("role_id", "roi_id", "recipe_id", "station_id", "decision", "review")
INSPECTION_FIELDS = (
    "id",
    "time_us",
    "source",
    "score",
    "threshold",
    "p_value",
    "n_regions",
    "part_id",
    "batch_id",
    "operator",
    "request_id",
    "key_id",
    "generation",
    "image_name",
    "image_sha256",
    "image_size",
    "image_store",
)
REVIEW_FIELDS = (
    "id",
    "inspection_id",
    "time_us",
    "verdict",
    "former",
    "defect",
    "note",
    "reviewer",
    "key_id",
    "request_id",
)
EVENT_FIELDS = ("id", "time_us", "kind")

_dumps = json.JSONEncoder(separators=(",", ":"), allow_nan=False, sort_keys=True).encode


def canonical_json(value: Any) -> str:
    """JSON in ASCII, keys sorted, without spaces."""
    return _dumps(value)


@dataclass(frozen=True)
class Facet:
    """What lists and summaries filter by: the model, the station, the decision, and the last review's verdict."""

    role_id: str
    roi_id: str
    recipe_id: str
    station_id: str | None = None
    decision: str | None = None
    review: str | None = None

    @property
    def id(self) -> int:
        """The facet's number, made of its content: whoever knows the facet knows its row."""
        return _facet_number(self)

    def as_row(self) -> dict[str, Any]:
        """The facet as its table holds it."""
        return {"id": self.id, **{name: getattr(self, name) for name in FACET_FIELDS}}

    def reviewed(self, verdict: str | None) -> Facet:
        """The facet of the same inspections with another review."""
        return Facet(self.role_id, self.roi_id, self.recipe_id, self.station_id, self.decision, verdict)


@lru_cache(4096)
def _facet_number(facet: Facet) -> int:
    text = canonical_json([getattr(facet, name) for name in FACET_FIELDS])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def chain_hash(row: Mapping[str, Any], former: bytes) -> bytes:
    """The hash of a chain's own row, which follows that of the chain before it."""
    return _sealed(former, "chain", [row[name] for name in CHAIN_FIELDS])


def inspection_hash(facet: Facet, fields: Sequence[Any], details: str, token_map: bytes, former: bytes) -> bytes:
    """The hash of an inspection; `fields` are INSPECTION_FIELDS, with the image's SHA-256 as bytes."""
    own = [facet.role_id, facet.roi_id, facet.recipe_id, facet.station_id, facet.decision, *fields]
    own[_IMAGE_AT] = own[_IMAGE_AT].hex()
    return _sealed(former, "inspection", own, details.encode(), token_map)


_IMAGE_AT = 5 + INSPECTION_FIELDS.index("image_sha256")


def review_hash(fields: Sequence[Any], former: bytes) -> bytes:
    """The hash of a review; `fields` are REVIEW_FIELDS."""
    return _sealed(former, "review", list(fields))


def event_hash(fields: Sequence[Any], body: str, former: bytes) -> bytes:
    """The hash of an event; `fields` are EVENT_FIELDS."""
    return _sealed(former, "event", list(fields), body.encode())


def _sealed(former: bytes, kind: str, fields: list[Any], details: bytes = b"", blob: bytes = b"") -> bytes:
    header = _dumps([kind, *fields, len(details), len(blob)])
    return hashlib.sha256(b"".join((former, header.encode(), details, blob))).digest()

"""The tables of the record. `migrations/` makes them; a test holds the two equal.

inspections, reviews and events are entries of chains: an entry's number names its chain and its place in it, and its
hash covers it and the entry before. facets, tallies and images are what lists, summaries and the room for images are
quick with; `verify` derives them from the entries again. drifts and drift_references are no part of the record: what is
known of the drift of each model, which all who inspect with it share.
"""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
)

SCHEMA = "0002"

metadata = MetaData()

# In SQLite only INTEGER PRIMARY KEY is the row's own number.
Number = BigInteger().with_variant(Integer, "sqlite")

chains = Table(
    "chains",
    metadata,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("key", String(8), nullable=False, unique=True),
    Column("host", Text, nullable=False),
    Column("machine", Text, nullable=False),
    Column("pid", BigInteger, nullable=False),
    Column("version", Text, nullable=False),
    Column("opened_us", BigInteger, nullable=False),
    Column("prev_hash", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    Column("head_seq", BigInteger, nullable=False),
    Column("head_hash", LargeBinary, nullable=False),
    Column("tallied_seq", BigInteger, nullable=False),
    Column("closed", Boolean, nullable=False),
)

facets = Table(
    "facets",
    metadata,
    Column("id", Number, primary_key=True, autoincrement=False),
    Column("role_id", Text, nullable=False),
    Column("roi_id", Text, nullable=False),
    Column("recipe_id", Text, nullable=False),
    Column("station_id", Text),
    Column("decision", Text),
    Column("review", Text),
)

inspections = Table(
    "inspections",
    metadata,
    Column("id", Number, primary_key=True, autoincrement=False),
    Column("facet_id", BigInteger, nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Column("source", Text, nullable=False),
    Column("score", Double, nullable=False),
    Column("threshold", Double),
    Column("p_value", Double),
    Column("n_regions", Integer, nullable=False),
    Column("part_id", Text),
    Column("batch_id", Text),
    Column("operator", Text),
    Column("request_id", Text),
    Column("key_id", Text),
    Column("generation", Text, nullable=False),
    Column("image_name", Text, nullable=False),
    Column("image_sha256", LargeBinary, nullable=False),
    Column("image_size", BigInteger, nullable=False),
    Column("image_store", String(8)),
    Column("details", Text, nullable=False),
    Column("token_map", LargeBinary, nullable=False),
    Column("prev_hash", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
    # A row of four kilobytes stays in one piece: its parts would be looked up one by one.
    postgresql_with={"toast_tuple_target": 8160},
)
Index("ix_inspections_time", inspections.c.time_us, inspections.c.id)
Index("ix_inspections_score", inspections.c.score, inspections.c.id)
Index(
    "ix_inspections_facet_time",
    inspections.c.facet_id,
    inspections.c.time_us,
    inspections.c.id,
    inspections.c.score,
)
Index(
    "ix_inspections_facet_score",
    inspections.c.facet_id,
    inspections.c.score,
    inspections.c.id,
    inspections.c.time_us,
)
for _name in ("part_id", "batch_id"):
    _column = inspections.c[_name]
    Index(
        f"ix_inspections_{_name}",
        _column,
        inspections.c.time_us,
        inspections.c.id,
        sqlite_where=_column.is_not(None),
        postgresql_where=_column.is_not(None),
    )
Index(
    "ix_inspections_image",
    inspections.c.image_sha256,
    sqlite_where=inspections.c.image_store.is_not(None),
    postgresql_where=inspections.c.image_store.is_not(None),
)

reviews = Table(
    "reviews",
    metadata,
    Column("id", Number, primary_key=True, autoincrement=False),
    Column("inspection_id", BigInteger, nullable=False),
    Column("time_us", BigInteger, nullable=False),
    Column("verdict", Text, nullable=False),
    Column("former", Text),
    Column("defect", Text),
    Column("note", Text),
    Column("reviewer", Text),
    Column("key_id", Text),
    Column("request_id", Text),
    Column("prev_hash", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
)
Index("ix_reviews_inspection", reviews.c.inspection_id, reviews.c.id)

events = Table(
    "events",
    metadata,
    Column("id", Number, primary_key=True, autoincrement=False),
    Column("time_us", BigInteger, nullable=False),
    Column("kind", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("prev_hash", LargeBinary, nullable=False),
    Column("hash", LargeBinary, nullable=False),
)
Index("ix_events_kind", events.c.kind, events.c.id)

images = Table(
    "images",
    metadata,
    Column("store", String(8), primary_key=True),
    Column("sha256", LargeBinary, primary_key=True),
    Column("suffix", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("protected", Boolean, nullable=False),
    Column("time_us", BigInteger, nullable=False),
)
Index("ix_images_age", images.c.store, images.c.protected, images.c.time_us)
Index("ix_images_content", images.c.sha256)

tallies = Table(
    "tallies",
    metadata,
    Column("grain", SmallInteger, primary_key=True, autoincrement=False),
    Column("hour", Integer, primary_key=True, autoincrement=False),
    Column("facet_id", BigInteger, primary_key=True, autoincrement=False),
    Column("scores", LargeBinary, nullable=False),
)


def _model() -> list[Column[str]]:
    return [Column(name, Text, primary_key=True) for name in ("recipe_id", "role_id", "roi_id")]


drifts = Table(
    "drifts",
    metadata,
    *_model(),
    Column("generation", Text, nullable=False),
    Column("version", Integer, nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("reference", Text, nullable=False),
    Column("learnt", LargeBinary, nullable=False),
    Column("chart", LargeBinary, nullable=False),
    Column("state", Text, nullable=False),
    Column("cause", Text),
    Column("since_us", BigInteger, nullable=False),
    Column("time_us", BigInteger, nullable=False),
)

drift_references = Table("drift_references", metadata, *_model(), Column("data", LargeBinary, nullable=False))

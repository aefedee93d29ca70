"""The first tables."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_NUMBER = sa.BigInteger().with_variant(sa.Integer, "sqlite")


def _link() -> list[sa.Column[bytes]]:
    return [
        sa.Column("prev_hash", sa.LargeBinary, nullable=False),
        sa.Column("hash", sa.LargeBinary, nullable=False),
    ]


def _key() -> sa.Column[int]:
    return sa.Column("id", _NUMBER, primary_key=True, autoincrement=False)


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "chains",
        sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("key", sa.String(8), nullable=False, unique=True),
        sa.Column("host", sa.Text, nullable=False),
        sa.Column("machine", sa.Text, nullable=False),
        sa.Column("pid", sa.BigInteger, nullable=False),
        sa.Column("version", sa.Text, nullable=False),
        sa.Column("opened_us", sa.BigInteger, nullable=False),
        *_link(),
        sa.Column("head_seq", sa.BigInteger, nullable=False),
        sa.Column("head_hash", sa.LargeBinary, nullable=False),
        sa.Column("tallied_seq", sa.BigInteger, nullable=False),
        sa.Column("closed", sa.Boolean, nullable=False),
    )
    op.create_table(
        "facets",
        _key(),
        sa.Column("role_id", sa.Text, nullable=False),
        sa.Column("roi_id", sa.Text, nullable=False),
        sa.Column("recipe_id", sa.Text, nullable=False),
        sa.Column("station_id", sa.Text),
        sa.Column("decision", sa.Text),
        sa.Column("review", sa.Text),
    )
    op.create_table(
        "inspections",
        _key(),
        sa.Column("facet_id", sa.BigInteger, nullable=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("source", sa.Text, nullable=False),
        sa.Column("score", sa.Double, nullable=False),
        sa.Column("threshold", sa.Double),
        sa.Column("p_value", sa.Double),
        sa.Column("n_regions", sa.Integer, nullable=False),
        sa.Column("part_id", sa.Text),
        sa.Column("batch_id", sa.Text),
        sa.Column("operator", sa.Text),
        sa.Column("request_id", sa.Text),
        sa.Column("key_id", sa.Text),
        sa.Column("generation", sa.Text, nullable=False),
        sa.Column("image_name", sa.Text, nullable=False),
        sa.Column("image_sha256", sa.LargeBinary, nullable=False),
        sa.Column("image_size", sa.BigInteger, nullable=False),
        sa.Column("image_store", sa.String(8)),
        sa.Column("details", sa.Text, nullable=False),
        sa.Column("token_map", sa.LargeBinary, nullable=False),
        *_link(),
        postgresql_with={"toast_tuple_target": 8160},
    )
    for name, columns in {
        "time": ["time_us", "id"],
        "score": ["score", "id"],
        "facet_time": ["facet_id", "time_us", "id", "score"],
        "facet_score": ["facet_id", "score", "id", "time_us"],
    }.items():
        op.create_index(f"ix_inspections_{name}", "inspections", columns)
    for name, columns in {
        "part_id": ["part_id", "time_us", "id"],
        "batch_id": ["batch_id", "time_us", "id"],
        "image": ["image_sha256"],
    }.items():
        present = sa.text(f"{'image_store' if name == 'image' else name} IS NOT NULL")
        op.create_index(
            f"ix_inspections_{name}", "inspections", columns, sqlite_where=present, postgresql_where=present
        )
    op.create_table(
        "reviews",
        _key(),
        sa.Column("inspection_id", sa.BigInteger, nullable=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("verdict", sa.Text, nullable=False),
        sa.Column("former", sa.Text),
        sa.Column("defect", sa.Text),
        sa.Column("note", sa.Text),
        sa.Column("reviewer", sa.Text),
        sa.Column("key_id", sa.Text),
        sa.Column("request_id", sa.Text),
        *_link(),
    )
    op.create_index("ix_reviews_inspection", "reviews", ["inspection_id", "id"])
    op.create_table(
        "events",
        _key(),
        sa.Column("time_us", sa.BigInteger, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("body", sa.Text, nullable=False),
        *_link(),
    )
    op.create_index("ix_events_kind", "events", ["kind", "id"])
    op.create_table(
        "images",
        sa.Column("store", sa.String(8), primary_key=True),
        sa.Column("sha256", sa.LargeBinary, primary_key=True),
        sa.Column("suffix", sa.Text, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
        sa.Column("protected", sa.Boolean, nullable=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_images_age", "images", ["store", "protected", "time_us"])
    op.create_index("ix_images_content", "images", ["sha256"])
    op.create_table(
        "tallies",
        sa.Column("grain", sa.SmallInteger, primary_key=True, autoincrement=False),
        sa.Column("hour", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("facet_id", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("scores", sa.LargeBinary, nullable=False),
    )

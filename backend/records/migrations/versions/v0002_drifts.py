"""Tables for the drift of models."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def _model() -> list[sa.Column[str]]:
    return [sa.Column(name, sa.Text, primary_key=True) for name in ("recipe_id", "role_id", "roi_id")]


def upgrade() -> None:
    """Make them."""
    op.create_table(
        "drifts",
        *_model(),
        sa.Column("generation", sa.Text, nullable=False),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("revision", sa.BigInteger, nullable=False),
        sa.Column("reference", sa.Text, nullable=False),
        sa.Column("learnt", sa.LargeBinary, nullable=False),
        sa.Column("chart", sa.LargeBinary, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("cause", sa.Text),
        sa.Column("since_us", sa.BigInteger, nullable=False),
        sa.Column("time_us", sa.BigInteger, nullable=False),
    )
    op.create_table("drift_references", *_model(), sa.Column("data", sa.LargeBinary, nullable=False))

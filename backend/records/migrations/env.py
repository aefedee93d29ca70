"""How Alembic runs the migrations: in the transaction that `upgrading.bring_up` hands it."""

from __future__ import annotations

from alembic import context

from backend.records.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    transactional_ddl=True,  # SQLite's too can be rolled back
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()

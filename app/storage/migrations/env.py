"""Alembic's entry point: runs the migrations on the connection that `Database.migrate` (or a test) passes in."""

from __future__ import annotations

from alembic import context

from app.storage.tables import metadata

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, render_as_batch=True, transactional_ddl=True)
with context.begin_transaction():
    context.run_migrations()

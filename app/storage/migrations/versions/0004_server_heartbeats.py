"""Heartbeats of the servers on one database, and jobs ended by another server."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from app.storage.dialects import clock

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

DEAD_AFTER_S = 30.0


def upgrade() -> None:
    servers = op.create_table(
        "servers",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("heartbeat_at", sa.Double(), nullable=False),
        sa.Column("dead_after_s", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_servers")),
    )
    op.add_column("jobs", sa.Column("unsettled", sa.Boolean(), nullable=False, server_default=sa.false()))
    # Add every server with rows here: without a heartbeat it counts as dead.
    ids = sa.union(*(sa.select(sa.table(name, sa.column("server_id")).c.server_id) for name in ("traces", "jobs")))
    known = ids.subquery()
    op.execute(
        sa.insert(servers).from_select(
            ["id", "heartbeat_at", "dead_after_s"], sa.select(known.c.server_id, clock(), sa.literal(DEAD_AFTER_S))
        )
    )

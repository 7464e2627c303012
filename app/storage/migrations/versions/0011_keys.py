"""Named keys, and whose traces and jobs count for their limits."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_keys",
        sa.Column("name", sa.String(length=40), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("role", sa.String(length=8), nullable=False),
        sa.Column("traces_per_minute", sa.Integer()),
        sa.Column("running", sa.Integer()),
        sa.Column("job_minutes", sa.Integer()),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.Column("last_used_at", sa.String(length=32)),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_api_keys")),
    )
    for table in ("traces", "jobs"):
        op.add_column(table, sa.Column("key_name", sa.String(length=40)))
        op.create_index(op.f(f"ix_{table}_key_name_id"), table, ["key_name", "id"])

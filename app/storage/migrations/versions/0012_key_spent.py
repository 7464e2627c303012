"""What deleted traces and jobs have taken of their key's limits."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "key_spent",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("key_name", sa.String(length=40), nullable=False),
        sa.Column("made_at", sa.String(length=32), nullable=False),
        sa.Column("seconds", sa.Float()),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_key_spent")),
    )
    op.create_index(op.f("ix_key_spent_key_name_made_at"), "key_spent", ["key_name", "made_at"])

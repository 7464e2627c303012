"""Traces whose images are chosen among candidates."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("traces", sa.Column("verify", sa.JSON()))

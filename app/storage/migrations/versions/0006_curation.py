"""Ratings, notes and tags of traces; interventions; requests of `/v1/responses`."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("traces", sa.Column("rating", sa.SmallInteger()))
    op.add_column("traces", sa.Column("note", sa.Text()))
    op.create_index(op.f("ix_traces_rating_id"), "traces", ["rating", "id"])
    for column in (
        sa.Column("trace_id", sa.String(length=40)),
        sa.Column("plan", sa.JSON()),
        sa.Column("effects", sa.JSON()),
    ):
        op.add_column("groups", column)
    op.create_index(op.f("ix_groups_trace_id"), "groups", ["trace_id"])
    op.create_table(
        "trace_tags",
        sa.Column("trace_id", sa.String(length=40), nullable=False),
        sa.Column("tag", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(
            ["trace_id"], ["traces.id"], name=op.f("fk_trace_tags_trace_id_traces"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("trace_id", "tag", name=op.f("pk_trace_tags")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_trace_tags_tag_trace_id"), "trace_tags", ["tag", "trace_id"])
    op.create_table(
        "responses",
        sa.Column("trace_id", sa.String(length=40), nullable=False),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["trace_id"], ["traces.id"], name=op.f("fk_responses_trace_id_traces"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("trace_id", name=op.f("pk_responses")),
    )

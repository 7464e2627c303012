"""Branches, groups, and the tokens of every trace."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for column in (
        sa.Column("codec", sa.String(length=64)),
        sa.Column("root_id", sa.String(length=40)),
        sa.Column("parent_id", sa.String(length=40)),
        sa.Column("after_step", sa.Integer()),
        sa.Column("edited_steps", sa.JSON()),
        sa.Column("all_edits", sa.JSON()),
        sa.Column("num_draws", sa.Integer()),
        sa.Column("parent_group_id", sa.String(length=40)),
        sa.Column("group_id", sa.String(length=40)),
    ):
        op.add_column("traces", column)
    op.create_index(op.f("ix_traces_root_id"), "traces", ["root_id"])
    op.create_index(op.f("ix_traces_parent_id"), "traces", ["parent_id"])
    op.create_index(op.f("ix_traces_group_id_id"), "traces", ["group_id", "id"])
    op.create_table(
        "trace_tokens",
        sa.Column("trace_id", sa.String(length=40), nullable=False),
        sa.Column("part", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("ids", sa.LargeBinary(), nullable=False),
        sa.Column("logprobs", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["trace_id"], ["traces.id"], name=op.f("fk_trace_tokens_trace_id_traces"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("trace_id", "part", name=op.f("pk_trace_tokens")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "groups",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("server_id", sa.String(length=40), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("trace_ids", sa.JSON(), nullable=False),
        sa.Column("tally", sa.JSON()),
        sa.Column("agreement", sa.Float()),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.Column("finished_at", sa.String(length=32)),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_groups")),
    )
    op.create_table(
        "group_events",
        sa.Column("group_id", sa.String(length=40), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(
            ["group_id"], ["groups.id"], name=op.f("fk_group_events_group_id_groups"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("group_id", "seq", name=op.f("pk_group_events")),
        sqlite_with_rowid=False,
    )

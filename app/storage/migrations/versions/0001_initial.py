"""Traces, their events and images, weight loads, idempotency keys, facts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "facts",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("value", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_facts")),
    )
    op.create_table(
        "idempotency",
        sa.Column("route", sa.String(length=64), nullable=False),
        sa.Column("key", sa.String(length=128), nullable=False),
        sa.Column("body_hash", sa.String(length=64), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("resource_id", sa.String(length=64), nullable=False),
        sa.Column("response", sa.Text(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("route", "key", name=op.f("pk_idempotency")),
    )
    op.create_index(op.f("ix_idempotency_created_at"), "idempotency", ["created_at"], unique=False)
    op.create_table(
        "images",
        sa.Column("id", sa.String(length=64), nullable=False),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("height", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.Column("last_used_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_images")),
    )
    op.create_index(op.f("ix_images_last_used_at"), "images", ["last_used_at"], unique=False)
    op.create_table(
        "traces",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("server_id", sa.String(length=40), nullable=False),
        sa.Column("status", sa.String(length=16), nullable=False),
        sa.Column("question", sa.Text(), nullable=False),
        sa.Column("images", sa.JSON(), nullable=False),
        sa.Column("mode", sa.String(length=8), nullable=False),
        sa.Column("steps", sa.JSON(), nullable=True),
        sa.Column("answer", sa.Text(), nullable=True),
        sa.Column("finish_reason", sa.String(length=16), nullable=True),
        sa.Column("checkpoint", sa.String(length=200), nullable=False),
        sa.Column("weight_version", sa.Integer(), nullable=False),
        sa.Column("sampling", sa.JSON(), nullable=False),
        sa.Column("partial_images", sa.Integer(), nullable=False),
        sa.Column("background", sa.Boolean(), nullable=False),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("usage", sa.JSON(), nullable=True),
        sa.Column("timings", sa.JSON(), nullable=False),
        sa.Column("task_id", sa.String(length=64), nullable=True),
        sa.Column("slice", sa.String(length=16), nullable=True),
        sa.Column("verdict", sa.String(length=8), nullable=True),
        sa.Column("drawings_right", sa.Integer(), nullable=True),
        sa.Column("drawings_total", sa.Integer(), nullable=True),
        sa.Column("error", sa.JSON(), nullable=True),
        sa.Column("last_image", sa.JSON(), nullable=True),
        sa.Column("resume", sa.LargeBinary(), nullable=True),
        sa.Column("created_at", sa.String(length=32), nullable=False),
        sa.Column("started_at", sa.String(length=32), nullable=True),
        sa.Column("finished_at", sa.String(length=32), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_traces")),
    )
    op.create_index(op.f("ix_traces_checkpoint_id"), "traces", ["checkpoint", "id"], unique=False)
    op.create_index(op.f("ix_traces_slice_id"), "traces", ["slice", "id"], unique=False)
    op.create_index(op.f("ix_traces_status_id"), "traces", ["status", "id"], unique=False)
    op.create_index(op.f("ix_traces_verdict_id"), "traces", ["verdict", "id"], unique=False)
    op.create_table(
        "weight_loads",
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("checkpoint", sa.String(length=200), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("loaded_at", sa.String(length=32), nullable=False),
        sa.PrimaryKeyConstraint("version", name=op.f("pk_weight_loads")),
        sqlite_autoincrement=True,
    )
    op.create_index(op.f("ix_weight_loads_checkpoint"), "weight_loads", ["checkpoint"], unique=False)
    op.create_table(
        "events",
        sa.Column("trace_id", sa.String(length=40), nullable=False),
        sa.Column("seq", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("type", sa.String(length=32), nullable=False),
        sa.Column("data", sa.Text(), nullable=False),
        sa.ForeignKeyConstraint(["trace_id"], ["traces.id"], name=op.f("fk_events_trace_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("trace_id", "seq", name=op.f("pk_events")),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "trace_images",
        sa.Column("trace_id", sa.String(length=40), nullable=False),
        sa.Column("image_id", sa.String(length=64), nullable=False),
        sa.ForeignKeyConstraint(["image_id"], ["images.id"], name=op.f("fk_trace_images_image_id")),
        sa.ForeignKeyConstraint(["trace_id"], ["traces.id"], name=op.f("fk_trace_images_trace_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("trace_id", "image_id", name=op.f("pk_trace_images")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_trace_images_image_id"), "trace_images", ["image_id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_trace_images_image_id"), table_name="trace_images")
    op.drop_table("trace_images")
    op.drop_table("events")
    op.drop_index(op.f("ix_weight_loads_checkpoint"), table_name="weight_loads")
    op.drop_table("weight_loads")
    op.drop_index(op.f("ix_traces_verdict_id"), table_name="traces")
    op.drop_index(op.f("ix_traces_status_id"), table_name="traces")
    op.drop_index(op.f("ix_traces_slice_id"), table_name="traces")
    op.drop_index(op.f("ix_traces_checkpoint_id"), table_name="traces")
    op.drop_index(op.f("ix_images_last_used_at"), table_name="images")
    op.drop_table("images")
    op.drop_index(op.f("ix_idempotency_created_at"), table_name="idempotency")
    op.drop_table("idempotency")
    op.drop_table("facts")
    op.drop_table("traces")

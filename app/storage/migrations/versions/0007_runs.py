"""Names, tags and notes of jobs; their metrics as compact series."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("name", sa.String(length=100)))
    op.add_column("jobs", sa.Column("note", sa.Text()))
    op.add_column("jobs", sa.Column("series_seq", sa.Integer(), nullable=False, server_default="0"))
    op.create_index(op.f("ix_jobs_name"), "jobs", ["name"])
    op.create_table(
        "job_tags",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("tag", sa.String(length=32), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_tags_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "tag", name=op.f("pk_job_tags")),
        sqlite_with_rowid=False,
    )
    op.create_index(op.f("ix_job_tags_tag_job_id"), "job_tags", ["tag", "job_id"])
    op.create_table(
        "job_series",
        sa.Column("job_id", sa.String(length=40), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("stage", sa.Text(), nullable=False),
        sa.Column("part", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("steps", sa.LargeBinary(), nullable=False),
        sa.Column("values", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["job_id"], ["jobs.id"], name=op.f("fk_job_series_job_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("job_id", "key", "stage", "part", name=op.f("pk_job_series")),
        sqlite_with_rowid=False,
    )

"""The tables; :mod:`app.storage.migrations` brings older databases up to them."""

from __future__ import annotations

import sqlalchemy as sa

from app.storage.dialects import Text

metadata = sa.MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(column_0_N_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# Ids sort by creation time. Timestamps are RFC 3339 UTC text.
traces = sa.Table(
    "traces",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("server_id", sa.String(40), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("question", Text, nullable=False),
    sa.Column("images", sa.JSON, nullable=False),
    sa.Column("mode", sa.String(8), nullable=False),
    sa.Column("steps", sa.JSON),
    sa.Column("answer", Text),
    sa.Column("finish_reason", sa.String(16)),
    sa.Column("checkpoint", sa.String(200), nullable=False),
    sa.Column("weight_version", sa.Integer, nullable=False),
    sa.Column("sampling", sa.JSON, nullable=False),
    sa.Column("verify", sa.JSON),  # candidates of each image and the checkpoint that chooses; NULL: one candidate
    sa.Column("partial_images", sa.Integer, nullable=False),
    sa.Column("background", sa.Boolean, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("usage", sa.JSON),
    sa.Column("timings", sa.JSON, nullable=False),
    sa.Column("task_id", sa.String(64)),
    sa.Column("slice", sa.String(16)),
    sa.Column("verdict", sa.String(8)),
    sa.Column("drawings_right", sa.Integer),
    sa.Column("drawings_total", sa.Integer),
    sa.Column("error", sa.JSON),
    sa.Column("last_image", sa.JSON),
    sa.Column("resume", sa.LargeBinary),
    sa.Column("codec", sa.String(64)),  # identity of the tokenizer and VQ that its tokens belong to
    sa.Column("root_id", sa.String(40), index=True),  # of a branch: the trace that the tree began with,
    sa.Column("parent_id", sa.String(40), index=True),  # which may be deleted,
    sa.Column("after_step", sa.Integer),
    sa.Column("edited_steps", sa.JSON),
    sa.Column("all_edits", sa.JSON),  # those of its ancestors included
    sa.Column("num_draws", sa.Integer),  # and the position of the random numbers with which it began
    sa.Column("parent_group_id", sa.String(40)),
    sa.Column("group_id", sa.String(40)),
    sa.Column("rating", sa.SmallInteger),  # -1, 0 or 1
    sa.Column("note", Text),
    sa.Column("key_name", sa.String(40)),  # of the key that made it; NULL: OMNI_R1_API_KEY, or none
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("started_at", sa.String(32)),
    sa.Column("finished_at", sa.String(32)),
    sa.Index(None, "key_name", "id"),
    sa.Index(None, "group_id", "id"),
    sa.Index(None, "rating", "id"),
    sa.Index(None, "status", "id"),
    sa.Index(None, "checkpoint", "id"),
    sa.Index(None, "slice", "id"),
    sa.Index(None, "verdict", "id"),
)

# `data` is the line of JSON that readers get, byte for byte.
events = sa.Table(
    "events",
    metadata,
    sa.Column("trace_id", sa.ForeignKey("traces.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("type", sa.String(32), nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

# Tokens of each complete step, and as part 0 those after the last one: little-endian ids (2 bytes if all fit, else 4)
# and log-probabilities (float16, NaN for given tokens).
trace_tokens = sa.Table(
    "trace_tokens",
    metadata,
    sa.Column("trace_id", sa.ForeignKey("traces.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("ids", sa.LargeBinary, nullable=False),
    sa.Column("logprobs", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

trace_tags = sa.Table(
    "trace_tags",
    metadata,
    sa.Column("trace_id", sa.ForeignKey("traces.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("tag", sa.String(32), primary_key=True),
    sa.Index(None, "tag", "trace_id"),
    sqlite_with_rowid=False,
)

# What a program that created a trace through `/v1/responses` sent, for the fields that its response repeats.
responses = sa.Table(
    "responses",
    metadata,
    sa.Column("trace_id", sa.ForeignKey("traces.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("request", sa.JSON, nullable=False),
)

# Traces that were created together. `group_events` holds the events of all members in the order of their commits, and
# the group's own last one.
groups = sa.Table(
    "groups",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("server_id", sa.String(40), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("trace_ids", sa.JSON, nullable=False),
    sa.Column("tally", sa.JSON),  # once all members have ended
    sa.Column("agreement", sa.Float),
    sa.Column("trace_id", sa.String(40), index=True),  # of interventions: the trace they intervene on, perhaps deleted,
    sa.Column("plan", sa.JSON),  # what each member replaces, what was skipped, and that trace's answer,
    sa.Column("effects", sa.JSON),  # and once all members have ended, what it changed
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("finished_at", sa.String(32)),
)

group_events = sa.Table(
    "group_events",
    metadata,
    sa.Column("group_id", sa.ForeignKey("groups.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("type", sa.String(32), nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

images = sa.Table(
    "images",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("width", sa.Integer, nullable=False),
    sa.Column("height", sa.Integer, nullable=False),
    sa.Column("bytes", sa.Integer, nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("last_used_at", sa.String(32), nullable=False, index=True),
)

# Which trace shows which image; the sweep keeps these.
trace_images = sa.Table(
    "trace_images",
    metadata,
    sa.Column("trace_id", sa.ForeignKey("traces.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("image_id", sa.ForeignKey("images.id"), primary_key=True, index=True),
    sqlite_with_rowid=False,
)

# What the object store still has to learn about a home's files (`app/storage/outbox.py`). `is_tree`: it is the folder
# of a checkpoint or job; `drop`: it is to be deleted there. Unlike a freed rowid, an id never comes back.
outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("server_id", sa.String(40), nullable=False),
    sa.Column("path", sa.String(400), nullable=False, index=True),
    sa.Column("is_tree", sa.Boolean, nullable=False),
    sa.Column("drop", sa.Boolean, nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Index(None, "is_tree", "id"),
    sa.Index(None, "server_id", "created_at"),
    sqlite_autoincrement=True,
)

# Every weight load has a number; `digest` detects changed weights in a folder.
weight_loads = sa.Table(
    "weight_loads",
    metadata,
    sa.Column("version", sa.Integer, primary_key=True),
    sa.Column("checkpoint", sa.String(200), nullable=False, index=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("loaded_at", sa.String(32), nullable=False),
    sqlite_autoincrement=True,
)

# A job's folder belongs to the server with `server_id`; only its runner writes the row. `log_offset`: how many bytes
# of the worker's `events.jsonl` are in `job_events`; both are written in one transaction. `unsettled`: another server
# marked the job `interrupted`, and this one has not checked the job's files since.
jobs = sa.Table(
    "jobs",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("server_id", sa.String(40), nullable=False),
    sa.Column("status", sa.String(16), nullable=False),
    sa.Column("method", sa.String(16), nullable=False),
    sa.Column("gpu", sa.String(16), nullable=False),
    sa.Column("base_checkpoint", sa.String(200), nullable=False),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("output_prefix", sa.String(200), nullable=False),
    sa.Column("progress", sa.JSON),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("result", sa.JSON),
    sa.Column("error", sa.JSON),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("cancel_requested", sa.Boolean, nullable=False),
    sa.Column("unsettled", sa.Boolean, nullable=False, server_default=sa.false()),
    sa.Column("worker", sa.JSON),  # {pid}, informational; the lock in the job's folder decides whether the worker runs
    sa.Column("heartbeat_at", sa.String(32)),
    sa.Column("log_offset", sa.BigInteger, nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("started_at", sa.String(32)),
    sa.Column("finished_at", sa.String(32)),
    sa.Column("running_s", sa.Float, nullable=False, server_default="0"),
    sa.Column("name", sa.String(100), index=True),  # chosen by people; several jobs may have the same
    sa.Column("note", Text),
    sa.Column("continues", sa.JSON(none_as_null=True)),  # {job_id, steps, differs} of the finished job before it
    sa.Column("sweep_id", sa.String(40), index=True),
    sa.Column("sweep_values", sa.JSON(none_as_null=True)),  # {path: value}: what differs between the sweep's jobs
    sa.Column("series_seq", sa.Integer, nullable=False, server_default="0"),  # the last event in `job_series`
    sa.Column("key_name", sa.String(40)),  # of the key that started it
    sa.Index(None, "key_name", "id"),
    sa.Index(None, "server_id", "status", "id"),
    sa.Index(None, "status", "id"),
)

# A grid over a specification; its jobs have `sweep_id` and may be deleted.
sweeps = sa.Table(
    "sweeps",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("server_id", sa.String(40), nullable=False),
    sa.Column("name", sa.String(100)),
    sa.Column("spec", sa.JSON, nullable=False),
    sa.Column("grid", sa.JSON, nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
)

job_tags = sa.Table(
    "job_tags",
    metadata,
    sa.Column("job_id", sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("tag", sa.String(32), primary_key=True),
    sa.Index(None, "tag", "job_id"),
    sqlite_with_rowid=False,
)

# The numbers of `metrics` events up to `jobs.series_seq`, one row per metric and part of a log: little-endian steps
# (int32) and values (float64, NaN for null). A chart of fifty long runs would have to parse half a million events.
job_series = sa.Table(
    "job_series",
    metadata,
    sa.Column("job_id", sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("key", sa.Text, primary_key=True),
    sa.Column("stage", sa.Text, primary_key=True),
    sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("steps", sa.LargeBinary, nullable=False),
    sa.Column("values", sa.LargeBinary, nullable=False),
    sqlite_with_rowid=False,
)

# The second index keeps pages of one event type cheap anywhere in a long log.
job_events = sa.Table(
    "job_events",
    metadata,
    sa.Column("job_id", sa.ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("seq", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("type", sa.String(32), nullable=False),
    sa.Column("data", sa.Text, nullable=False),
    sa.Index(None, "job_id", "type", "seq"),
    sqlite_with_rowid=False,
)

# Checkpoints not found by scanning folders: written by jobs (`source` "job") or registered ("local", "hub"). They
# outlive their job, so `job_id` is no foreign key. A `folder` in the home is stored relative to it.
checkpoints = sa.Table(
    "checkpoints",
    metadata,
    sa.Column("name", sa.String(200), primary_key=True),
    sa.Column("folder", sa.Text, nullable=False),
    sa.Column("base", sa.String(200)),
    sa.Column("job_id", sa.String(40), index=True),
    sa.Column("stage", sa.String(32)),
    sa.Column("step", sa.Integer),
    sa.Column("metrics", sa.JSON, nullable=False),
    sa.Column("source", sa.String(16), nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False),
)

# First responses to requests with an Idempotency-Key, kept 24 h.
idempotency = sa.Table(
    "idempotency",
    metadata,
    sa.Column("route", sa.String(64), primary_key=True),
    sa.Column("key", sa.String(128), primary_key=True),
    sa.Column("body_hash", sa.String(64), nullable=False),
    sa.Column("status", sa.Integer, nullable=False),
    sa.Column("resource_id", sa.String(64), nullable=False),
    sa.Column("response", sa.Text, nullable=False),
    sa.Column("created_at", sa.String(32), nullable=False, index=True),
)

# Named keys; `digest` is a key's SHA-256. A limit of NULL is none.
api_keys = sa.Table(
    "api_keys",
    metadata,
    sa.Column("name", sa.String(40), primary_key=True),
    sa.Column("digest", sa.String(64), nullable=False),
    sa.Column("role", sa.String(8), nullable=False),
    sa.Column("traces_per_minute", sa.Integer),
    sa.Column("running", sa.Integer),
    sa.Column("job_minutes", sa.Integer),
    sa.Column("created_at", sa.String(32), nullable=False),
    sa.Column("last_used_at", sa.String(32)),
)

# Deleted traces (`seconds` is NULL) and jobs that count for their key's limits still.
key_spent = sa.Table(
    "key_spent",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("key_name", sa.String(40), nullable=False),
    sa.Column("made_at", sa.String(32), nullable=False),
    sa.Column("seconds", sa.Float),
    sa.Index(None, "key_name", "made_at"),
)

# The servers on this database. Each updates `heartbeat_at` by the database's clock; after `dead_after_s` seconds
# without an update it counts as dead, and the others end its running traces and jobs (`app/jobs/servers.py`).
servers = sa.Table(
    "servers",
    metadata,
    sa.Column("id", sa.String(40), primary_key=True),
    sa.Column("heartbeat_at", sa.Double, nullable=False),
    sa.Column("dead_after_s", sa.Double, nullable=False),
)

# Small facts about this installation, such as the last active checkpoint.
facts = sa.Table(
    "facts",
    metadata,
    sa.Column("name", sa.String(64), primary_key=True),
    sa.Column("value", sa.Text, nullable=False),
)

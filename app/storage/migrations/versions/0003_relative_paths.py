"""Paths relative to the home, so that a copied or moved home finds its own files; run time of jobs.

The home may have been moved already; its old place is read from the rows. Job folders have the form
`HOME/jobs/JOB_ID/…`, uploads `HOME/uploads/DIGEST.jsonl`, and an existing home has its `server-id`.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import context, op
from sqlalchemy.engine import Connection

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None

PATH_KEYS = ("folder", "path", "traces")
UPLOAD = re.compile(r"(.*)/uploads/[0-9a-f]{32}\.jsonl")

checkpoints = sa.table("checkpoints", sa.column("name"), sa.column("folder"), sa.column("job_id"))
jobs = sa.table(
    "jobs",
    sa.column("id"),
    sa.column("spec", sa.JSON),
    sa.column("result", sa.JSON),
    sa.column("started_at"),
    sa.column("finished_at"),
    sa.column("running_s"),
)
job_events = sa.table("job_events", sa.column("job_id"), sa.column("seq"), sa.column("type"), sa.column("data"))

Change = Callable[[str], str]


def upgrade() -> None:
    op.add_column("jobs", sa.Column("running_s", sa.Float(), nullable=False, server_default="0"))
    connection = op.get_bind()
    place = _Places(context.config.attributes.get("home"))
    job_rows = connection.execute(sa.select(jobs)).all()
    checkpoint_rows = connection.execute(sa.select(checkpoints)).all()
    for row in checkpoint_rows:
        place.learn(row.folder, row.job_id)
    for row in job_rows:
        for path in [*_paths(row.spec), *_paths(row.result)]:
            place.learn(path, row.id)
    for row in checkpoint_rows:
        folder = place.relative(row.folder, row.job_id)
        connection.execute(sa.update(checkpoints).where(checkpoints.c.name == row.name).values(folder=folder))
    for row in job_rows:
        _upgrade_job(connection, row, partial(place.relative, job_id=row.id))


class _Places:
    """The current and former places of the home."""

    def __init__(self, home: Path | None) -> None:
        self.home = home
        self.now = set() if home is None else {str(home), str(home.resolve())}
        self.before: set[str] = set()
        self._server_id = _server_id(home)

    def learn(self, path: str, job_id: str | None) -> None:
        """Record the home that an absolute path of a row reveals."""
        root, inside, _ = path.rpartition(f"/jobs/{job_id}/") if job_id else ("", "", "")
        upload = UPLOAD.fullmatch(path)
        if inside:
            self.before.add(root)
        elif upload:
            self.before.add(upload[1])
        elif self._server_id is not None and path.startswith("/"):
            self.before |= {str(p) for p in Path(path).parents if _server_id(p) == self._server_id}

    def relative(self, path: str, job_id: str | None) -> str:
        """The path relative to the home, if it is or was inside it."""
        if not path.startswith("/"):
            return path
        _, inside, rest = path.rpartition(f"/jobs/{job_id}/") if job_id else ("", "", "")
        if inside:
            return f"jobs/{job_id}/{rest}"
        for home in sorted(self.now, key=len, reverse=True):
            if path.startswith(f"{home}/"):
                return path.removeprefix(f"{home}/")
        is_gone = not os.path.exists(path)
        for home in sorted(self.before - {""}, key=len, reverse=True):
            rest = path.removeprefix(f"{home}/")
            if rest != path and (is_gone or self._here(rest)):
                return rest
        parts = path.strip("/").split("/")
        ends = ("/".join(parts[k:]) for k in range(1, len(parts)))
        return next((end for end in ends if is_gone and self._here(end)), path)

    def _here(self, rest: str) -> bool:
        return self.home is not None and os.path.exists(self.home / rest)


def _server_id(home: Path | None) -> str | None:
    try:
        return None if home is None else (home / "server-id").read_text("utf-8").strip() or None
    except (OSError, ValueError):
        return None


def _upgrade_job(connection: Connection, row: Any, change: Change) -> None:
    values: dict[str, Any] = {"spec": _changed(row.spec, change), "running_s": _seconds(row)}
    if row.result is not None:
        values["result"] = _changed(row.result, change)
    connection.execute(sa.update(jobs).where(jobs.c.id == row.id).values(**values))
    e = job_events.c
    query = sa.select(e.seq, e.data).where(e.job_id == row.id, e.type == "job.status")
    for event in connection.execute(query).all():
        payload = json.loads(event.data)
        data = json.dumps(_changed(payload, change), separators=(",", ":"))
        if "result" in payload and data != event.data:
            connection.execute(sa.update(job_events).where(e.job_id == row.id, e.seq == event.seq).values(data=data))


def _seconds(row: Any) -> float:
    if not row.started_at or not row.finished_at:
        return 0.0
    return max(0.0, (datetime.fromisoformat(row.finished_at) - datetime.fromisoformat(row.started_at)).total_seconds())


def _changed(value: Any, change: Change) -> Any:
    if isinstance(value, dict):
        return {
            key: change(item)
            if key in PATH_KEYS and isinstance(item, str)
            else item
            if key == "report"
            else _changed(item, change)
            for key, item in value.items()
        }
    return [_changed(item, change) for item in value] if isinstance(value, list) else value


def _paths(value: Any) -> Iterator[str]:
    found: list[str] = []

    def note(path: str) -> str:
        found.append(path)
        return path

    _changed(value, note)
    yield from found

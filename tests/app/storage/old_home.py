"""A home with schema 0002: absolute paths in its rows and in the records of its jobs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config

from app.storage import tables
from app.storage.database import MIGRATIONS, Database

TIME = "2026-01-01T00:00:00.000Z"
DONE, STOPPED, KILLED, UPLOAD = "job_done", "job_stopped", "job_killed", f"{'ab' * 16}.jsonl"


def make_old_home(home: Path, weights: Path, elsewhere: Path, url: str | None = None) -> None:
    """Three jobs with a checkpoint each, and checkpoints registered inside and outside the home.

    One job is done, one resumable, and one was running when its server was killed: its events are unread.
    """
    for name in ("jobs", "uploads", "checkpoints", "registered"):
        (home / name).mkdir(parents=True)
    (home / "server-id").write_text("here\n")
    (home / "uploads" / UPLOAD).write_text('{"Question": "?"}\n')
    for folder in (home / "checkpoints" / "found", home / "registered" / "inside", elsewhere / "outside"):
        shutil.copytree(weights, folder)
    for job_id in (DONE, STOPPED, KILLED):
        shutil.copytree(weights, _made(home, job_id))
        (home / "jobs" / job_id / "runs" / "pesft").mkdir(parents=True)
        (home / "jobs" / job_id / "runs" / "pesft" / "state.pt").write_bytes(b"state")
        (home / "jobs" / job_id / "samples").mkdir()
        (home / "jobs" / job_id / "samples" / "a-1.png").write_bytes(b"\x89PNG")
    made = _made(home, KILLED)
    reported = {"name": made.name, "folder": str(made), "stage": "pesft", "step": 4, "metrics": {}}
    line = json.dumps({"time": TIME, "type": "checkpoint", "data": reported})
    (home / "jobs" / KILLED / "events.jsonl").write_text(line + "\n")
    _fill(home, elsewhere, url or f"sqlite:///{home / 'omni-r1.db'}")


def _made(home: Path, job_id: str) -> Path:
    return home / "jobs" / job_id / "checkpoints" / f"{job_id}-step-4"


def _fill(home: Path, elsewhere: Path, url: str) -> None:
    database = Database(url)
    with database.write() as connection:
        tables.metadata.drop_all(connection)
        connection.execute(sa.text("DROP TABLE IF EXISTS alembic_version"))
        config = Config()
        config.set_main_option("script_location", str(MIGRATIONS))
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        old = sa.MetaData()
        old.reflect(connection)
        for table, row in _rows(home, elsewhere):
            connection.execute(sa.insert(old.tables[table]).values(**row))
    database.close()


def _rows(home: Path, elsewhere: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    spec = {
        "method": "pesft",
        "base_checkpoint": "nano-omni-r1",
        "data": {"source": "jsonl", "path": str(home / "uploads" / UPLOAD)},
        "hyperparameters": {"steps": 4},
    }
    for job_id, status in ((DONE, "succeeded"), (STOPPED, "interrupted"), (KILLED, "running")):
        made = _made(home, job_id)
        result = {"checkpoint": made.name, "folder": str(made)} if status == "succeeded" else None
        yield (
            "jobs",
            {
                "id": job_id,
                "server_id": "here",
                "status": status,
                "method": "pesft",
                "gpu": "shared",
                "base_checkpoint": "nano-omni-r1",
                "spec": spec,
                "output_prefix": job_id,
                "metrics": {},
                "result": result,
                "attempt": 1,
                "cancel_requested": False,
                "log_offset": 0,
                "created_at": TIME,
                "started_at": TIME,
                "finished_at": "2026-01-01T00:01:30.500Z",
            },
        )
        reported = {"status": status, "attempt": 1, "time": TIME} | ({"result": result} if result else {})
        data = json.dumps(reported, separators=(",", ":"))
        yield "job_events", {"job_id": job_id, "seq": 1, "type": "job.status", "data": data}
        if status != "running":
            yield "checkpoints", _checkpoint(made, job_id=job_id, source="job")
    yield "checkpoints", _checkpoint(home / "registered" / "inside", source="local")
    yield "checkpoints", _checkpoint(elsewhere / "outside", source="local")


def _checkpoint(folder: Path, *, source: str, job_id: str | None = None) -> dict[str, Any]:
    row = {"name": folder.name, "folder": str(folder), "base": "nano-omni-r1", "job_id": job_id, "stage": None}
    return row | {"step": None, "metrics": {}, "source": source, "created_at": TIME}

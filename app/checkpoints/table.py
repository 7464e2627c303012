"""Checkpoints in SQL: written by jobs or registered. Blocking functions on a connection."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.checkpoints.folder import Record
from app.contract.problems import Problem
from app.storage import tables

C = tables.checkpoints


def rows(connection: Connection, only: str | None = None) -> Iterator[Record]:
    """All rows, newest first; `only` restricts them to one name."""
    query = sa.select(C).order_by(C.c.created_at.desc(), C.c.name)
    if only is not None:
        query = query.where(C.c.name == only)
    return (Record(**row._mapping) for row in connection.execute(query).all())


def add(connection: Connection, record: Record) -> None:
    """Insert a row; raises :class:`Problem` if the name is taken."""
    if next(rows(connection, record.name), None) is not None:
        raise taken(record.name)
    connection.execute(sa.insert(C).values(**asdict(record)))


def put(connection: Connection, record: Record) -> None:
    """Insert or update a job's row; raises :class:`Problem` if another checkpoint has the name."""
    old = next(rows(connection, record.name), None)
    if old is None:
        connection.execute(sa.insert(C).values(**asdict(record)))
    elif (old.job_id, old.source) != (record.job_id, record.source):
        raise taken(record.name)
    else:
        values = {key: value for key, value in asdict(record).items() if key not in ("name", "created_at")}
        connection.execute(sa.update(C).where(C.c.name == record.name).values(**values))


def remove(connection: Connection, name: str) -> None:
    """Delete the row, if any."""
    connection.execute(sa.delete(C).where(C.c.name == name))


def live_job_on(connection: Connection, name: str) -> str | None:
    """The id of a queued or running job that starts from this checkpoint."""
    jobs = tables.jobs
    query = sa.select(jobs.c.id).where(jobs.c.base_checkpoint == name, jobs.c.status.in_(("queued", "running")))
    return connection.execute(query.limit(1)).scalar()


def taken(name: str) -> Problem:
    """The problem for a name that another checkpoint has."""
    return Problem("checkpoint_exists", f"a checkpoint named {name} exists; choose another name or delete it")

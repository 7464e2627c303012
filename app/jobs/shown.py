"""Jobs as the API's JSON, and the lists of them. Blocking functions on a connection; know no HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from app.storage import tables

J, E, C, G = tables.jobs, tables.job_events, tables.checkpoints, tables.job_tags

_SHOWN: sa.Select[Any] = sa.select(
    *J.c, sa.select(sa.func.max(E.c.seq)).where(E.c.job_id == J.c.id).correlate(J).scalar_subquery().label("last_event")
)


More = Callable[[Row[Any]], dict[str, Any]]  # details that are not in the row


def _no_more(row: Row[Any]) -> dict[str, Any]:
    return {}


def whole(connection: Connection, job_id: str, more: More = _no_more) -> dict[str, Any] | None:
    """The API's JSON of the job, or None."""
    row = connection.execute(_SHOWN.where(J.c.id == job_id)).one_or_none()
    if row is None:
        return None
    return _shown(row, _checkpoints(connection, [job_id]), tags_of(connection, [job_id])) | more(row)


def page(
    connection: Connection,
    more: More = _no_more,
    *,
    limit: int,
    after: str | None = None,
    tag: str | None = None,
    **equal: str | None,
) -> tuple[list[dict[str, Any]], bool]:
    """A page of jobs, newest first, and whether more follow; `equal`: values of columns, None for any."""
    query = _SHOWN.order_by(J.c.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(J.c.id < after)
    if tag is not None:
        query = query.where(J.c.id.in_(sa.select(G.c.job_id).where(G.c.tag == tag)))
    query = query.where(*(J.c[column] == value for column, value in equal.items() if value is not None))
    rows = connection.execute(query).all()
    ids = [row.id for row in rows[:limit]]
    made, tags = _checkpoints(connection, ids), tags_of(connection, ids)
    return [_shown(row, made, tags) | more(row) for row in rows[:limit]], len(rows) > limit


def _checkpoints(connection: Connection, job_ids: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    query = sa.select(C).where(C.c.job_id.in_(job_ids)).order_by(C.c.created_at, C.c.step, C.c.name)
    found: dict[str, list[dict[str, Any]]] = {}
    for row in connection.execute(query):
        shown = {key: getattr(row, key) for key in ("name", "stage", "step", "metrics", "created_at")}
        found.setdefault(row.job_id, []).append(shown)
    return found


def tags_of(connection: Connection, job_ids: Sequence[str]) -> dict[str, list[str]]:
    """The tags of each job, sorted; jobs without tags are absent."""
    found: dict[str, list[str]] = {}
    for row in connection.execute(sa.select(G).where(G.c.job_id.in_(job_ids)).order_by(G.c.tag)):
        found.setdefault(row.job_id, []).append(row.tag)
    return found


def label(connection: Connection, job_id: str, given: Mapping[str, Any]) -> None:
    """Set those of `name`, `note` and `tags` that are given; an empty text removes."""
    values = {column: given[column] or None for column in ("name", "note") if column in given}
    if values:
        connection.execute(sa.update(J).where(J.c.id == job_id).values(**values))
    if "tags" in given:
        connection.execute(sa.delete(G).where(G.c.job_id == job_id))
        if given["tags"]:
            connection.execute(sa.insert(G), [{"job_id": job_id, "tag": tag} for tag in given["tags"]])


def missing(connection: Connection, job_ids: Sequence[str]) -> list[str]:
    """Those of the ids that no job has."""
    known = set(connection.execute(sa.select(J.c.id).where(J.c.id.in_(job_ids))).scalars())
    return [job_id for job_id in job_ids if job_id not in known]


def without_waiting(progress: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """Progress of a job that is not waiting."""
    return None if progress is None else {key: value for key, value in progress.items() if key != "waiting"}


def _shown(row: Row[Any], made: Mapping[str, list[dict[str, Any]]], tags: Mapping[str, list[str]]) -> dict[str, Any]:
    return {
        "id": row.id,
        "status": row.status,
        "method": row.method,
        "name": row.name,
        "tags": tags.get(row.id, []),
        "note": row.note,
        "continues": row.continues,
        "sweep": None if row.sweep_id is None else {"id": row.sweep_id, "values": row.sweep_values},
        "progress": row.progress if row.status == "running" else without_waiting(row.progress),
        "metrics": row.metrics,
        "spec": row.spec,
        "result": row.result,
        "error": row.error,
        "checkpoints": made.get(row.id, []),
        "attempt": row.attempt,
        "cancel_requested": row.cancel_requested and row.status == "running",
        "created_at": row.created_at,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "running_s": round(row.running_s, 1),
        "heartbeat_at": row.heartbeat_at if row.status == "running" else None,
        "last_event": row.last_event,
    }

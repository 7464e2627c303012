"""Traces in SQL: rows, events folded into steps, and the API's JSON.

Blocking functions on a connection. The steps of an active trace are folded from its committed events on every read, so
that there is one source of truth; the transaction of its end stores them in the row.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from app.contract.words import TERMINAL
from app.storage import tables
from app.storage.database import not_before, now
from app.storage.ids import GROUP, SortableIds
from app.storage.keys import note_deletion
from app.traces.records import curation

T = tables.traces
E = tables.events
G = tables.group_events

IN_WORK = ("queued", "running")
_COLUMNS = {"parent": "parent_id", "group": "group_id"}  # of filters that have another name

# Columns of a list page: everything but the steps and the resume state.
_ENTRY_COLUMNS = [column for column in T.c if column.name not in ("steps", "resume")]
_NO_RESUME = [column for column in T.c if column.name != "resume"]


# Used in every commit of events: built once.
_STATUSES = sa.select(T.c.id, T.c.status).where(T.c.id.in_(sa.bindparam("ids", expanding=True)))

TraceIds = functools.partial(SortableIds, "tr_")


def fold(events: Iterable[tuple[int, str, str]]) -> dict[str, Any]:
    """Steps, answer and last image from events (seq, type, data), in the API's JSON."""
    steps: dict[int, dict[str, Any]] = {}
    skills: dict[int, str] = {}
    answer: list[str] = []
    last_image: dict[str, Any] | None = None

    def step(data: Mapping[str, Any]) -> dict[str, Any]:
        return steps.setdefault(data["step"], {"index": data["step"], "text": ""})

    for _seq, type_, line in events:
        if type_ == "step.kept":
            data = json.loads(line)
            kept = step(data)
            kept |= {key: data[key] for key in ("text", "image", "source_image_id") if key in data}
            if data["edited"]:
                kept["edited"] = True
            if "image" in data:
                last_image = _image_json(data["image"])
        elif type_ in ("step.started", "text.delta"):
            data = json.loads(line)
            step(data)["text"] += data.get("text", "")
        elif type_ == "image.started":
            data = json.loads(line)
            if data.get("skill"):
                skills[data["step"]] = data["skill"]
        elif type_ == "image.candidates":
            data = json.loads(line)
            step(data)["candidates"] = {key: data[key] for key in ("images", "scores", "chosen")}
        elif type_ == "image.completed":
            data = json.loads(line)
            last_image = {key: data[key] for key in ("image_id", "url", "width", "height")}
            image = dict(last_image)
            if data["step"] in skills:
                image["skill"] = skills[data["step"]]
            step(data)["image"] = image | {"stats": data.get("stats") or {}}
        elif type_ == "answer.delta":
            answer.append(json.loads(line)["text"])
    return {
        "steps": [steps[index] for index in sorted(steps)],
        "answer": "".join(answer).strip() if answer else None,
        "last_image": last_image,
    }


def log_of(log_id: str) -> tuple[Any, Any]:
    """The event table of a trace or group, and its column of ids."""
    return (G.c, G.c.group_id) if log_id.startswith(GROUP) else (E.c, E.c.trace_id)


def events_of(
    connection: Connection, log_id: str, after: int = 0, limit: int | None = None
) -> list[tuple[int, str, str]]:
    """Committed events of a trace or group with numbers above `after`, in order."""
    e, id_ = log_of(log_id)
    query = sa.select(e.seq, e.type, e.data).where(id_ == log_id, e.seq > after).order_by(e.seq).limit(limit)
    return [(row.seq, row.type, row.data) for row in connection.execute(query)]


def last_seq(connection: Connection, log_id: str) -> int:
    """Number of the last committed event of a trace or group, 0 without any."""
    e, id_ = log_of(log_id)
    return connection.execute(sa.select(sa.func.max(e.seq)).where(id_ == log_id)).scalar() or 0


@dataclass(frozen=True)
class LogState:
    """The server that writes a log, and whether nothing follows."""

    server_id: str
    ended: bool


def log_state(connection: Connection, log_id: str) -> LogState | None:
    """The state of a trace's or a group's log; None for an unknown one."""
    if log_id.startswith(GROUP):
        r = tables.groups.c
        row = connection.execute(sa.select(r.server_id, r.finished_at).where(r.id == log_id)).one_or_none()
        return None if row is None else LogState(row.server_id, row.finished_at is not None)
    row = connection.execute(sa.select(T.c.server_id, T.c.status).where(T.c.id == log_id)).one_or_none()
    return None if row is None else LogState(row.server_id, row.status in TERMINAL)


def with_trace_id(trace_id: str, line: str) -> str:
    """An event's data in the log of the trace's group."""
    rest = line[1:] if line == "{}" else f",{line[1:]}"
    return f'{{"trace_id":"{trace_id}"{rest}'


def insert(connection: Connection, values: Mapping[str, Any], first_event: tuple[str, str]) -> None:
    """Insert the row, its image links and event 1 (type, data)."""
    connection.execute(sa.insert(T).values(**values))
    connection.execute(
        sa.insert(E).values(trace_id=values["id"], seq=1, type=first_event[0], data=first_event[1]),
    )
    for image in values["images"]:
        link_image(connection, values["id"], image["image_id"])


def link_image(connection: Connection, trace_id: str, image_id: str) -> None:
    """Link an image to the trace, so that the sweep keeps it."""
    link = tables.trace_images
    known = sa.select(link.c.trace_id).where(link.c.trace_id == trace_id, link.c.image_id == image_id)
    if connection.execute(known).first() is None:
        connection.execute(sa.insert(link).values(trace_id=trace_id, image_id=image_id))


def update(connection: Connection, trace_id: str, **values: Any) -> None:
    """Set columns of the trace's row."""
    connection.execute(sa.update(T).where(T.c.id == trace_id).values(**values))


def update_active(connection: Connection, trace_id: str, **values: Any) -> bool:
    """Set columns of a queued or running trace; False for any other."""
    changed = sa.update(T).where(T.c.id == trace_id, T.c.status.in_(IN_WORK)).values(**values)
    return connection.execute(changed).rowcount > 0


def statuses(connection: Connection, trace_ids: Iterable[str]) -> dict[str, str]:
    """The status of each existing trace."""
    found = connection.execute(_STATUSES, {"ids": list(trace_ids)})
    return {row.id: row.status for row in found}


def finish(connection: Connection, trace_id: str, **values: Any) -> None:
    """Write the final row: `values` plus steps, answer and last image from the events; clears the resume state.

    `drawings`: the checkers' verdict on each step, kept with its image.
    """
    folded = fold(events_of(connection, trace_id))
    for step, right in zip(folded["steps"], values.pop("drawings", ()), strict=False):
        if right is not None and "image" in step:
            step["image"]["right"] = right
    folded["answer"] = values.pop("answer", None) or folded["answer"]
    finished_at = not_before(now(), T.c.created_at, T.c.started_at)
    update(connection, trace_id, **folded, **{"resume": None, "finished_at": finished_at} | values)


def get_row(connection: Connection, trace_id: str, *, resume: bool = False) -> Row[Any] | None:
    """The trace's row; its resume state only on request."""
    query = sa.select(*(T.c if resume else _NO_RESUME)).where(T.c.id == trace_id)
    return connection.execute(query).one_or_none()


def exists(connection: Connection, trace_id: str) -> bool:
    """Whether the trace exists."""
    return bool(statuses(connection, [trace_id]))


def delete(connection: Connection, trace_id: str) -> bool:
    """Delete row, events and image links; returns whether it existed."""
    note_deletion(connection, trace_id)
    return connection.execute(sa.delete(T).where(T.c.id == trace_id)).rowcount > 0


def page(
    connection: Connection, *, limit: int, after: str | None = None, filters: Mapping[str, Any]
) -> tuple[list[dict[str, Any]], bool]:
    """A page of list entries, newest first, and whether more follow; `filters` by their names in the API."""
    query = sa.select(*_ENTRY_COLUMNS).where(*_conditions(filters)).order_by(T.c.id.desc()).limit(limit + 1)
    if after is not None:
        query = query.where(T.c.id < after)
    rows = connection.execute(query).all()
    tags = curation.tags_of(connection, [row.id for row in rows[:limit]])
    return [entry(row, tags.get(row.id, [])) for row in rows[:limit]], len(rows) > limit


@dataclass(frozen=True)
class Brief:
    """How far a trace is."""

    id: str
    status: str
    has_answer: bool

    @property
    def is_live(self) -> bool:
        """Whether it is queued or running."""
        return self.status in IN_WORK

    @property
    def is_training_data(self) -> bool:
        """Whether PeSFT can train on it."""
        return self.status == "completed" and self.has_answer


def briefs(connection: Connection, trace_ids: Sequence[str]) -> dict[str, Brief]:
    """Those of these traces that exist."""
    return {brief.id: brief for brief in _briefs(connection, T.c.id.in_(trace_ids))}


def briefs_matching(connection: Connection, filters: Mapping[str, Any]) -> list[Brief]:
    """All traces that match, newest first.

    Members of interventions, whose images were replaced to see what changes, are left out unless someone has rated or
    tagged them or asks for their group.
    """
    named = any(filters.get(name) is not None for name in ("rating", "tag", "group"))
    conditions = _conditions(filters)
    if not named:
        experiments = sa.select(tables.groups.c.id).where(tables.groups.c.kind == "intervention")
        conditions.append(T.c.group_id.is_(None) | T.c.group_id.not_in(experiments))
    return list(_briefs(connection, *conditions))


def _briefs(connection: Connection, *conditions: sa.ColumnElement[bool]) -> Iterator[Brief]:
    has_answer = sa.func.coalesce(T.c.answer, "") != ""
    query = sa.select(T.c.id, T.c.status, has_answer.label("has_answer")).where(*conditions).order_by(T.c.id.desc())
    for row in connection.execute(query):
        yield Brief(row.id, row.status, bool(row.has_answer))


def _conditions(filters: Mapping[str, Any]) -> list[sa.ColumnElement[bool]]:
    """What a trace must satisfy; a filter that is None selects nothing."""
    given = {name: value for name, value in filters.items() if value is not None}
    words, tag = given.pop("q", ""), given.pop("tag", None)
    found: list[sa.ColumnElement[bool]] = [T.c[_COLUMNS.get(name, name)] == value for name, value in given.items()]
    if tag is not None:
        found.append(curation.tagged(tag))
    for word in words.split():
        found.append(T.c.question.icontains(word, autoescape=True) | T.c.answer.icontains(word, autoescape=True))
    return found


def _image_json(image: Mapping[str, Any]) -> dict[str, Any]:
    return {key: image[key] for key in ("image_id", "url", "width", "height")}


def _common(row: Row[Any], tags: list[str]) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "id": row.id,
        "status": row.status,
        "question": row.question,
        "images": [_image_json(image) for image in row.images],
        "mode": row.mode,
        "answer": row.answer,
        "finish_reason": row.finish_reason,
        "checkpoint": row.checkpoint,
        "weight_version": row.weight_version,
        "sampling": row.sampling,
        "usage": row.usage,
        "timings": {"queued_ms": None, "first_text_ms": None, "total_ms": None} | row.timings,
        "metadata": row.metadata,
        "rating": row.rating,
        "tags": tags,
        "note": row.note,
        "parent": _parent(row),
        "group_id": row.group_id,
        "created_at": row.created_at,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
    }
    if row.verify is not None:
        shown["verify"] = row.verify
    if row.task_id is not None:
        shown["task_id"] = row.task_id
    if row.verdict is not None:
        shown["verdict"] = {
            "answer": row.verdict,
            "drawings_right": row.drawings_right,
            "drawings_total": row.drawings_total,
        }
        if row.all_edits:
            shown["verdict"]["edited_steps"] = row.all_edits
    if row.error is not None:
        shown["error"] = row.error
    return shown


def _parent(row: Row[Any]) -> dict[str, Any] | None:
    if row.parent_id is None:
        return None
    return {
        "trace_id": row.parent_id,
        "after_step": row.after_step,
        "edited_steps": row.edited_steps,
        "group_id": row.parent_group_id,
    }


def entry(row: Row[Any], tags: list[str]) -> dict[str, Any]:
    """The list entry of a trace."""
    images = [_image_json(image) for image in row.images]
    return _common(row, tags) | {"first_image": images[0] if images else None, "last_image": row.last_image}


def num_complete(connection: Connection, trace_id: str) -> int:
    """Number of a trace's complete steps."""
    ends = E.c.type.in_(("step.kept", "step.completed"))
    return connection.execute(sa.select(sa.func.count()).where(E.c.trace_id == trace_id, ends)).scalar() or 0


def whole(connection: Connection, trace_id: str) -> dict[str, Any] | None:
    """The API's JSON of a trace, or None; steps of an active one are folded from its events."""
    row = get_row(connection, trace_id)
    return None if row is None else whole_row(connection, row)


def whole_row(connection: Connection, row: Row[Any]) -> dict[str, Any]:
    """As :func:`whole`, of a row."""
    trace_id = row.id
    shown = _common(row, curation.tags_of(connection, [trace_id]).get(trace_id, []))
    if row.status in TERMINAL:
        shown["steps"] = row.steps or []
    else:
        folded = fold(events_of(connection, trace_id))
        shown |= {"steps": folded["steps"], "answer": folded["answer"]}
    return shown


def tree(connection: Connection, trace_id: str) -> dict[str, Any] | None:
    """A trace with its relatives, oldest first; deleted ancestors are shown as such. None for an unknown trace."""
    row = get_row(connection, trace_id)
    if row is None:
        return None
    root = row.root_id or row.id
    columns = (T.c.parent_id, T.c.after_step, T.c.edited_steps, T.c.status, T.c.answer, T.c.verdict, T.c.checkpoint)
    relatives = (T.c.root_id == root) | (T.c.id == root)
    query = sa.select(T.c.id, *columns, T.c.sampling, tables.groups.c.kind).where(relatives).order_by(T.c.id)
    query = query.outerjoin_from(T, tables.groups, T.c.group_id == tables.groups.c.id)
    nodes = [
        {
            "id": found.id,
            "parent_id": found.parent_id,
            "after_step": found.after_step,
            "edited_steps": found.edited_steps or [],
            "status": found.status,
            "answer": found.answer,
            "verdict": found.verdict,
            "checkpoint": found.checkpoint,
            "seed": found.sampling["seed"],
            "intervention": found.kind == "intervention",
        }
        for found in connection.execute(query)
    ]
    known = {node["id"] for node in nodes}
    missing = {root, *(node["parent_id"] for node in nodes if node["parent_id"] is not None)} - known
    return {"root": root, "nodes": [_deleted(id_, root) for id_ in sorted(missing)] + nodes}


def _deleted(trace_id: str, root: str) -> dict[str, Any]:
    unknown = dict.fromkeys(("after_step", "answer", "verdict", "checkpoint", "seed"))
    parent = None if trace_id == root else root
    return {
        "id": trace_id,
        "parent_id": parent,
        "edited_steps": [],
        "status": "deleted",
        "intervention": False,
        **unknown,
    }


def newest_id(connection: Connection) -> str | None:
    """The id of the latest trace."""
    return connection.execute(sa.select(sa.func.max(T.c.id))).scalar()

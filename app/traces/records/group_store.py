"""Groups in SQL: rows, members, tallies, and the end of a group. Blocking functions on a connection."""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from app.contract.frames import encode
from app.contract.words import GROUP_END, TERMINAL
from app.storage import tables
from app.storage.database import now
from app.storage.dialects import announce
from app.storage.ids import GROUP, SortableIds
from app.traces.records import store, tokens

T, R, P = tables.traces, tables.groups, tables.trace_tokens

GroupIds = functools.partial(SortableIds, GROUP)


def insert(connection: Connection, group: Mapping[str, Any], lines: Sequence[tuple[str, str]]) -> None:
    """Insert the row and the first event of each member, given as (trace id, data); without members it is complete."""
    connection.execute(sa.insert(R).values(**group))
    if not lines:
        complete(connection, group["id"])
        return
    events = [
        {"group_id": group["id"], "seq": seq, "type": "trace.queued", "data": store.with_trace_id(trace_id, line)}
        for seq, (trace_id, line) in enumerate(lines, 1)
    ]
    connection.execute(sa.insert(tables.group_events), events)


def get_row(connection: Connection, group_id: str) -> Row[Any] | None:
    """The group's row."""
    return connection.execute(sa.select(R).where(R.c.id == group_id)).one_or_none()


def whole(connection: Connection, group_id: str) -> dict[str, Any] | None:
    """The API's JSON of a group, or None."""
    row = get_row(connection, group_id)
    return None if row is None else _json(connection, row)


def page(connection: Connection, *, limit: int, after: str | None = None) -> tuple[list[dict[str, Any]], bool]:
    """A page of groups, newest first, and whether more follow."""
    query = sa.select(R).order_by(R.c.id.desc()).limit(limit + 1)
    rows = connection.execute(query if after is None else query.where(R.c.id < after)).all()
    return [_json(connection, row) for row in rows[:limit]], len(rows) > limit


def delete(connection: Connection, group_id: str) -> bool:
    """Delete row and events; the members' rows have to be deleted first."""
    return connection.execute(sa.delete(R).where(R.c.id == group_id)).rowcount > 0


def complete(connection: Connection, group_id: str) -> tuple[int, str] | None:
    """Append the group's last event once all members have ended; returns its number and data, None otherwise."""
    row = get_row(connection, group_id)
    if row is None or row.finished_at is not None:
        return None
    members = _members(connection, row)
    if any(member.status not in TERMINAL for member in members):
        return None
    tally, agreement = _tally(connection, members)
    seq = store.last_seq(connection, group_id) + 1
    effects = None if row.plan is None else _effects(connection, row.plan, members)
    found = {"tally": tally, "agreement": agreement} | ({} if effects is None else {"effects": effects})
    data = encode({"status": "completed", **found})
    connection.execute(sa.insert(tables.group_events).values(group_id=group_id, seq=seq, type=GROUP_END, data=data))
    ended = sa.update(R).where(R.c.id == group_id).values(**found, finished_at=now())
    connection.execute(ended)
    announce(connection, [group_id])
    return seq, data


def end_left_over(connection: Connection, server_ids: Iterable[str], error: Mapping[str, str]) -> list[str]:
    """Mark the queued and running traces of these servers as `interrupted` and end their groups; returns the traces.

    Call it in a write transaction, which holds the database's single write lock: a server that is alive after all then
    finds its trace ended at its next commit (:class:`app.traces.event_log.EventLog`).
    """
    query = sa.select(T.c.id, T.c.group_id).where(T.c.server_id.in_(tuple(server_ids)), T.c.status.in_(store.IN_WORK))
    found = connection.execute(query).all()
    data = json.dumps({"error": dict(error)}, separators=(",", ":"))
    for trace_id, group_id in found:
        _append(connection, trace_id, group_id, "trace.failed", data)
        store.finish(connection, trace_id, status="interrupted", error=dict(error))
    for group_id in dict.fromkeys(group_id for _, group_id in found if group_id is not None):
        complete(connection, group_id)
    announce(connection, (trace_id for trace_id, _ in found))
    return [trace_id for trace_id, _ in found]


def member_ids(connection: Connection, group_id: str) -> list[str]:
    """Ids of the members that still exist."""
    return list(connection.execute(sa.select(T.c.id).where(T.c.group_id == group_id).order_by(T.c.id)).scalars())


def _append(connection: Connection, trace_id: str, group_id: str | None, type_: str, data: str) -> None:
    seq = store.last_seq(connection, trace_id) + 1
    connection.execute(sa.insert(tables.events).values(trace_id=trace_id, seq=seq, type=type_, data=data))
    if group_id is not None:
        line, seq = store.with_trace_id(trace_id, data), store.last_seq(connection, group_id) + 1
        connection.execute(sa.insert(tables.group_events).values(group_id=group_id, seq=seq, type=type_, data=line))


def _members(connection: Connection, row: Row[Any]) -> list[Any]:
    query = sa.select(T.c.id, T.c.status, T.c.answer, T.c.verdict).where(T.c.group_id == row.id).order_by(T.c.id)
    return list(connection.execute(query))


def _json(connection: Connection, row: Row[Any]) -> dict[str, Any]:
    tally, agreement, effects, status = row.tally, row.agreement, row.effects, "completed"
    if row.finished_at is None:
        members = _members(connection, row)
        statuses = {member.status for member in members}
        active = statuses & set(store.IN_WORK)
        status = "running" if active else "paused" if statuses - TERMINAL else "completed"
        tally, agreement = _tally(connection, [member for member in members if member.status in TERMINAL])
        effects = None if row.plan is None else _effects(connection, row.plan, members)
    shown = {
        "id": row.id,
        "kind": row.kind,
        "trace_ids": row.trace_ids,
        "status": status,
        "tally": tally,
        "agreement": agreement,
        "created_at": row.created_at,
        "finished_at": row.finished_at,
    }
    if row.plan is not None:
        shown |= {"trace_id": row.trace_id, "effects": effects, "skipped": row.plan["skipped"]}
    return shown


def _effects(connection: Connection, plan: Mapping[str, Any], members: Sequence[Any]) -> list[dict[str, Any]]:
    """What each member of an intervention changed; unknown while it runs, or if it did not complete."""
    from training.scoring.grading import same_answer

    by_id, before = {member.id: member for member in members}, plan["answer"]
    effects = []
    for one in plan["members"]:
        member = by_id.get(one["trace_id"])
        known = member is not None and member.status == "completed"
        effect = {**one, "answer_before": before, "answer_after": None, "changed": None}
        effect |= {"verdict_before": plan["verdict"], "verdict_after": None, "later_images_changed": None}
        if known:
            assert member is not None
            drawn = _image_ids(connection, one["trace_id"])
            later = {step for step in {*map(int, plan["images"]), *drawn} if step > one["step"]}
            differ = sum(plan["images"].get(str(step)) != drawn.get(step) for step in later)
            effect |= {
                "answer_after": member.answer,
                "changed": not same_answer(before, member.answer),
                "later_images_changed": differ,
            }
            effect["verdict_after"] = member.verdict
        effects.append(effect)
    return effects


def _image_ids(connection: Connection, trace_id: str) -> dict[int, str]:
    """The image of each step of an ended trace."""
    steps = connection.execute(sa.select(T.c.steps).where(T.c.id == trace_id)).scalar() or []
    return {step["index"]: step["image"]["image_id"] for step in steps if step.get("image")}


def _tally(connection: Connection, members: Sequence[Any]) -> tuple[list[dict[str, Any]], float | None]:
    """Answers by frequency after the grader's normalisation, and the share of the most frequent one."""
    from training.scoring.grading import normalise

    means = _mean_logprobs(connection, [member.id for member in members])
    by_answer: dict[str | None, list[Any]] = {}
    for member in members:  # a member that was stopped may have the beginning of an answer
        answered = member.answer is not None and member.status == "completed"
        by_answer.setdefault(normalise(member.answer) if answered else None, []).append(member)
    tally = []
    for answer, same in sorted(by_answer.items(), key=lambda item: len(item[1]), reverse=True):
        known = [mean for member in same if (mean := means.get(member.id)) is not None]
        entry = {
            "answer": None if answer is None else same[0].answer,
            "count": len(same),
            "share": round(len(same) / len(members), 4),
            "mean_logprob": round(sum(known) / len(known), 4) if known else None,
        }
        if same[0].verdict is not None:
            entry["verdict"] = same[0].verdict
        tally.append(entry)
    answered = [entry["share"] for entry in tally if entry["answer"] is not None]
    return tally, max(answered, default=None)


def _mean_logprobs(connection: Connection, trace_ids: Sequence[str]) -> dict[str, float | None]:
    query = sa.select(P).where(P.c.trace_id.in_(trace_ids), P.c.part == tokens.LAST)
    return {
        row.trace_id: tokens.mean_logprob(tokens.unpack(row.ids, row.logprobs).logprobs)
        for row in connection.execute(query)
    }


def newest_id(connection: Connection) -> str | None:
    """The id of the latest group."""
    return connection.execute(sa.select(sa.func.max(R.c.id))).scalar()

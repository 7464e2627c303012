"""Ratings, notes and tags of traces in SQL. Blocking functions on a connection."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.storage import tables

T, G = tables.traces, tables.trace_tags


def change(connection: Connection, trace_id: str, given: Mapping[str, Any]) -> bool:
    """Set those of `rating`, `tags` and `note` that are given; False for an unknown trace."""
    values = {name: given[name] for name in ("rating", "note") if name in given}
    if "note" in values:
        values["note"] = values["note"] or None
    known = sa.select(T.c.id).where(T.c.id == trace_id)
    if connection.execute(known).first() is None:
        return False
    if values:
        connection.execute(sa.update(T).where(T.c.id == trace_id).values(**values))
    if "tags" in given:
        connection.execute(sa.delete(G).where(G.c.trace_id == trace_id))
        if given["tags"]:
            connection.execute(sa.insert(G), [{"trace_id": trace_id, "tag": tag} for tag in given["tags"]])
    return True


def tags_of(connection: Connection, trace_ids: Sequence[str]) -> dict[str, list[str]]:
    """The tags of each trace, sorted; traces without tags are absent."""
    found: dict[str, list[str]] = {}
    for row in connection.execute(sa.select(G).where(G.c.trace_id.in_(trace_ids))):
        found.setdefault(row.trace_id, []).append(row.tag)
    return {trace_id: sorted(tags) for trace_id, tags in found.items()}


def tagged(tag: str) -> sa.ColumnElement[bool]:
    """The condition that a trace has this tag."""
    return T.c.id.in_(sa.select(G.c.trace_id).where(G.c.tag == tag))

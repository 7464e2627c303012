"""Traces that were created through `/v1/responses`: what the program sent, and what its response is made of.

Blocking functions on a connection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from app.storage import tables
from app.traces.records import store
from app.traces.records.tokens import LAST, P

R = tables.responses


@dataclass(frozen=True)
class ResponseRecord:
    """A trace, the request that created it, and how many tokens its complete steps have."""

    trace: dict[str, Any]
    request: dict[str, Any]
    step_tokens: int


def put(connection: Connection, trace_id: str, request: Mapping[str, Any]) -> None:
    """Store the request that created the trace."""
    connection.execute(sa.insert(R).values(trace_id=trace_id, request=dict(request)))


def record(connection: Connection, trace_id: str) -> ResponseRecord | None:
    """The record; None if no request to `/v1/responses` created this trace."""
    request = connection.execute(sa.select(R.c.request).where(R.c.trace_id == trace_id)).scalar()
    trace = store.whole(connection, trace_id) if request is not None else None
    if request is None or trace is None:
        return None
    num_bytes = sa.select(sa.func.sum(sa.func.length(P.c.logprobs))).where(P.c.trace_id == trace_id, P.c.part != LAST)
    return ResponseRecord(trace, request, (connection.execute(num_bytes).scalar() or 0) // 2)  # float16


def asking_again(previous: Row[Any]) -> dict[str, Any]:
    """Columns of a trace that asks another question about the images of `previous`: it keeps no step of it."""
    return {
        "root_id": previous.root_id or previous.id,
        "parent_id": previous.id,
        "parent_group_id": previous.group_id,
        "edited_steps": [],
    }

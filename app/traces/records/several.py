"""Events of several logs at once, for the readers of other servers' traces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.storage import tables
from app.storage.ids import GROUP
from app.traces.records.store import log_of


def events_after(connection: Connection, positions: Mapping[str, int], limit: int) -> list[tuple[str, int, str, str]]:
    """The next events (log, seq, type, data) of each log after its position, at most `limit` of traces and of groups.

    Those of one log are together and in order.
    """
    found: list[tuple[str, int, str, str]] = []
    for in_groups in (False, True):
        wanted = {log_id: after for log_id, after in positions.items() if log_id.startswith(GROUP) == in_groups}
        if not wanted:
            continue
        e, id_ = log_of(next(iter(wanted)))
        due = sa.or_(*(sa.and_(id_ == log_id, e.seq > after) for log_id, after in wanted.items()))
        query = sa.select(id_, e.seq, e.type, e.data).where(due).order_by(id_, e.seq).limit(limit)
        found += [(row[0], row[1], row[2], row[3]) for row in connection.execute(query)]
    return found


def existing(connection: Connection, log_ids: Iterable[str]) -> set[str]:
    """Those traces and groups that exist."""
    ids = list(log_ids)
    ids_of_both = (tables.traces.c.id, tables.groups.c.id)
    return {id_ for c in ids_of_both for id_ in connection.execute(sa.select(c).where(c.in_(ids))).scalars()}

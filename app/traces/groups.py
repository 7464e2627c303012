"""Groups of traces: read, cancel, delete. Their members are ordinary traces."""

from __future__ import annotations

import asyncio
from typing import Any

from app.common import pools
from app.storage.database import Database
from app.traces.event_log import EventLog
from app.traces.reader import no_group
from app.traces.records import group_store
from app.traces.service import TraceService


class GroupService:
    """The groups of one server. Coroutines on the event loop."""

    def __init__(self, db: Database, events: EventLog, traces: TraceService) -> None:
        self._db = db
        self._events = events
        self._traces = traces

    async def get(self, group_id: str) -> dict[str, Any]:
        """The whole group; 404 if unknown."""

        def look() -> dict[str, Any] | None:
            with self._db.read() as connection:
                return group_store.whole(connection, group_id)

        group = await pools.reads.run(look)
        if group is None:
            raise no_group()
        return group

    def page(self, *, limit: int, after: str | None) -> dict[str, Any]:
        """A page of groups, newest first; blocking."""
        with self._db.read() as connection:
            data, has_more = group_store.page(connection, limit=limit, after=after)
        return {"data": data, "has_more": has_more}

    async def cancel(self, group_id: str) -> dict[str, Any]:
        """Cancel every member that has not ended; returns the group once they have."""
        await self._each(group_id, self._traces.cancel)
        return await self.get(group_id)

    async def delete(self, group_id: str) -> None:
        """Delete the group and its members; active ones are cancelled first."""
        await self._each(group_id, self._traces.delete)

        def remove() -> bool:
            with self._db.write() as connection:
                return group_store.delete(connection, group_id)

        if not await pools.writes.run(remove):
            raise no_group()
        self._events.delete(group_id)

    async def _each(self, group_id: str, work: Any) -> None:
        def members() -> list[str]:
            with self._db.read() as connection:
                return group_store.member_ids(connection, group_id)

        await self.get(group_id)
        await asyncio.gather(*(work(trace_id) for trace_id in await pools.reads.run(members)))

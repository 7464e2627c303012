"""Reads traces and their events, including those of other servers on the same database.

Only the server that created a trace runs and steers it; all servers can read it. Events of other servers' traces are
polled from the database. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

from sqlalchemy.engine import Row

from app.common import pools
from app.contract.frames import frame
from app.contract.problems import Problem
from app.contract.words import TERMINAL, TERMINAL_EVENTS
from app.storage.database import Database
from app.storage.stream_reader import PING, REPLAY_CHUNK, if_database_answers
from app.traces import store
from app.traces.event_log import EventLog

LOOK_EVERY_S = 0.5


class TraceReader:
    """Read access to all traces. Coroutines on the event loop."""

    def __init__(
        self,
        db: Database,
        events: EventLog,
        server_id: Callable[[], str],
        *,
        ping_s: float,
        is_dead: Callable[[str], bool] = lambda _server_id: False,
    ) -> None:
        self._db = db
        self._is_dead = is_dead
        self._events = events
        self._server_id = server_id
        self._ping_s = ping_s
        self._elsewhere: set[str] = set()  # active on another server; traces never move

    async def get(self, trace_id: str) -> dict[str, Any]:
        """The whole trace; 404 if unknown."""

        def look() -> dict[str, Any] | None:
            with self._db.read() as connection:
                return store.whole(connection, trace_id)

        trace = await pools.reads.run(look)
        if trace is None:
            raise no_trace()
        return trace

    async def past_the_end(self, trace_id: str, after: int) -> bool:
        """Whether a reader at `after` has seen the terminal event; 404 for an unknown trace."""
        if self._events.is_running(trace_id):
            return False

        def look() -> bool | None:
            with self._db.read() as connection:
                row = store.get_row(connection, trace_id)
                if row is None:
                    return None
                if self._works_elsewhere(row):
                    self._elsewhere.add(trace_id)
                return row.status in TERMINAL and after >= store.last_seq(connection, trace_id)

        past = await pools.reads.run(look)
        if past is None:
            raise no_trace()
        return past

    def read(self, trace_id: str, after: int) -> AsyncIterator[bytes]:
        """The trace's events after `after` as stream frames; call `past_the_end` first."""
        return self._follow(trace_id, after) if trace_id in self._elsewhere else self._events.read(trace_id, after)

    async def require_here(self, trace_id: str, *, or_dead: bool = False) -> None:
        """409 for a trace active or paused on another server; with `or_dead` only while that server is alive."""

        def look() -> bool:
            with self._db.read() as connection:
                row = store.get_row(connection, trace_id)
                if row is None or not self._works_elsewhere(row):
                    return False
                return not (or_dead and self._is_dead(row.server_id))

        if await pools.reads.run(look):
            raise Problem("trace_elsewhere", "the trace was created on another server; send the request there")

    def _works_elsewhere(self, row: Row[Any]) -> bool:
        return row.server_id != self._server_id() and row.status not in TERMINAL

    async def _follow(self, trace_id: str, after: int) -> AsyncIterator[bytes]:
        """As :meth:`EventLog.read`, with up to half a second of delay."""
        heard = time.monotonic()
        while True:
            found = await if_database_answers(self._look, trace_id, after)
            if found is None:
                yield PING
                continue
            stored, exists = found
            if stored:
                after, heard = stored[-1][0], time.monotonic()
                yield b"".join(frame(*row) for row in stored)
                if stored[-1][1] in TERMINAL_EVENTS:
                    return
                continue
            if not exists:
                return
            if time.monotonic() - heard >= self._ping_s:
                heard = time.monotonic()
                yield PING
            await asyncio.sleep(min(LOOK_EVERY_S, self._ping_s))

    def _look(self, trace_id: str, after: int) -> tuple[list[tuple[int, str, str]], bool]:
        """The next events, and whether the trace exists; blocking."""
        stored = self._events.stored(trace_id, after, REPLAY_CHUNK)
        if stored:
            return stored, True
        with self._db.read() as connection:
            return [], store.exists(connection, trace_id)


def no_trace() -> Problem:
    """404."""
    return Problem("trace_not_found", "no trace has this id; it may have been deleted")

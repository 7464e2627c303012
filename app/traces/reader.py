"""Reads traces and their events, including those of other servers on the same database.

Only the server that created a trace runs and steers it; all servers can read it. Events of other servers' traces are
polled from the database. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy.engine import Row

from app.common import pools
from app.contract.problems import Problem
from app.contract.schemas_curation import ExportCreate
from app.contract.words import TERMINAL, ExportFormat
from app.storage.database import Database
from app.storage.ids import GROUP
from app.storage.stream_reader import REPLAY_CHUNK, polled
from app.traces.event_log import EventLog
from app.traces.records import exports, responses, store
from app.traces.records.exports import Selection
from app.traces.records.film import render
from app.traces.records.responses import ResponseRecord

LOOK_EVERY_S = 0.5


@dataclass(frozen=True)
class Export:
    """A file of traces: its pieces, its name and type, and how many traces were left out."""

    name: str
    media_type: str
    skipped: int
    pieces: AsyncIterator[bytes]


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

    async def response(self, trace_id: str) -> ResponseRecord:
        """The trace with the request to `/v1/responses` that created it; 404 unless one did."""

        def look() -> ResponseRecord | None:
            with self._db.read() as connection:
                return responses.record(connection, trace_id)

        found = await pools.reads.run(look)
        if found is None:
            raise Problem("response_not_found", "no response has this id; it may have been deleted")
        return found

    async def film(self, trace_id: str, read: Callable[[str], bytes]) -> bytes:
        """The trace as an animated GIF; 409 while it is queued or running. `read` returns an image's PNG."""
        trace = await self.get(trace_id)
        if trace["status"] in store.IN_WORK:
            raise Problem("trace_live", "a film needs a trace that has ended or is paused; wait until it ends")
        return await pools.films.run(render, trace, read)

    async def export(self, wanted: ExportCreate, read: Callable[[str], bytes]) -> Export:
        """Many traces as a file. `read` returns an image's PNG. Raises what `exports.selected` raises."""

        def look() -> Selection:
            with self._db.read() as connection:
                return exports.selected(connection, wanted)

        return await self._export("traces", await pools.reads.run(look), wanted.format, read)

    async def export_one(self, trace_id: str, format: ExportFormat, read: Callable[[str], bytes]) -> Export:
        """One trace as a file; 409 while it is queued or running."""

        def look() -> Selection | None:
            with self._db.read() as connection:
                return exports.selected_one(connection, trace_id, format)

        selection = await pools.reads.run(look)
        if selection is None:
            raise no_trace()
        return await self._export(trace_id, selection, format, read, alone=True)

    async def _export(
        self, name: str, selection: Selection, format: ExportFormat, read: Callable[[str], bytes], alone: bool = False
    ) -> Export:
        """The file, after making its first piece: a failure there is still an answer of its own."""
        made = exports.pieces(self._db, selection.trace_ids, format, read, alone=alone)
        first = await pools.exports.run(next, made, b"")

        async def pieces() -> AsyncIterator[bytes]:
            piece = first
            while piece:
                yield piece
                piece = await pools.exports.run(next, made, b"")

        return Export(f"{name}.{format}", exports.MEDIA_TYPES[format], selection.skipped, pieces())

    def page(self, *, limit: int, after: str | None, **filters: str | int | None) -> dict[str, Any]:
        """A page of list entries, newest first; blocking."""
        with self._db.read() as connection:
            data, has_more = store.page(connection, limit=limit, after=after, filters=filters)
        return {"data": data, "has_more": has_more}

    def tree(self, trace_id: str) -> dict[str, Any]:
        """The trace with its relatives; 404 if unknown; blocking."""
        with self._db.read() as connection:
            found = store.tree(connection, trace_id)
        if found is None:
            raise no_trace()
        return found

    def check_kind(self, log_id: str, *, group: bool) -> None:
        """404 for a trace's id in place of a group's, and the reverse."""
        if log_id.startswith(GROUP) != group:
            raise no_group() if group else no_trace()

    async def past_the_end(self, log_id: str, after: int) -> bool:
        """Whether a reader at `after` has seen the last event of a trace or group; 404 for an unknown one."""
        if self._events.is_running(log_id):
            return False

        def look() -> bool | None:
            with self._db.read() as connection:
                state = store.log_state(connection, log_id)
                if state is None:
                    return None
                if state.server_id != self._server_id() and not state.ended:
                    self._elsewhere.add(log_id)
                return state.ended and after >= store.last_seq(connection, log_id)

        past = await pools.reads.run(look)
        if past is None:
            raise no_group() if log_id.startswith(GROUP) else no_trace()
        return past

    def read(self, log_id: str, after: int) -> AsyncIterator[bytes]:
        """The events of a trace or group after `after` as stream frames; call `past_the_end` first."""
        if log_id not in self._elsewhere:
            return self._events.read(log_id, after)
        look = partial(self._look, log_id)
        return polled(look, after, ping_s=self._ping_s, every_s=LOOK_EVERY_S, chunk=REPLAY_CHUNK)

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

    def _look(self, log_id: str, after: int) -> tuple[list[tuple[int, str, str]], bool]:
        """The next events, and whether they are the last; blocking."""
        with self._db.read() as connection:
            state = store.log_state(connection, log_id)
            stored = store.events_of(connection, log_id, after, REPLAY_CHUNK)
            return stored, state is None or state.ended


def no_group() -> Problem:
    """404."""
    return Problem("group_not_found", "no group has this id; it may have been deleted")


def no_trace() -> Problem:
    """404."""
    return Problem("trace_not_found", "no trace has this id; it may have been deleted")

"""Reads traces and their events, including those of other servers on the same database.

Only the server that created a trace runs and steers it; all servers can read it. One task looks into the database for
the events of other servers' traces: when PostgreSQL announces them, and every half second in any case. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.engine import Row

from app.common import pools
from app.contract.problems import Problem
from app.contract.schemas_curation import ExportCreate
from app.contract.words import TERMINAL, ExportFormat
from app.storage.database import Database
from app.storage.ids import GROUP
from app.storage.stream_reader import REPLAY_CHUNK, if_database_answers
from app.traces.event_log import EventLog
from app.traces.records import exports, responses, several, store
from app.traces.records.exports import Selection
from app.traces.records.film import render
from app.traces.records.responses import ResponseRecord

log = logging.getLogger("omni_r1.events")

LOOK_EVERY_S = 0.5  # for what no server announces: not every pooler passes LISTEN on
LISTEN_AGAIN_S = 1.0
STEADY_S = 10.0  # a connection that lasted that long was a success
CLOSE_S = 1.0


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
        is_dead: Callable[[str], bool] = lambda _server_id: False,
    ) -> None:
        self._db = db
        self._is_dead = is_dead
        self._events = events
        self._server_id = server_id
        self._elsewhere = Elsewhere(db, events)

    def start(self) -> None:
        """Listen to the other servers on the database; call on the running loop."""
        self._elsewhere.start()

    async def close(self) -> None:
        """Stop listening."""
        await self._elsewhere.close()

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
                last = store.last_seq(connection, log_id)
                if state.server_id != self._server_id() and not state.ended:
                    self._elsewhere.last[log_id] = last
                return state.ended and after >= last

        past = await pools.reads.run(look)
        if past is None:
            raise no_group() if log_id.startswith(GROUP) else no_trace()
        return past

    def read(self, log_id: str, after: int) -> AsyncIterator[bytes]:
        """The events of a trace or group after `after` as stream frames; call `past_the_end` first."""
        if log_id not in self._elsewhere.last:
            return self._events.read(log_id, after)
        return self._elsewhere.read(log_id, after)

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


class Elsewhere:
    """Follows the logs of other servers that have readers here; its cost does not depend on their number."""

    def __init__(self, db: Database, events: EventLog) -> None:
        self._db = db
        self._events = events
        # The last event of each log when it was last asked for, while it ran on another server; traces never move.
        self.last: dict[str, int] = {}
        self._positions: dict[str, int] = {}  # the last event shown, of each log with readers
        self._heard: set[str] = set()
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start listening in a thread; call on the running loop."""
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._listen, args=(loop,), name="listener", daemon=True)
        self._thread.start()

    async def close(self) -> None:
        """Stop the thread."""
        self._closing.set()
        if self._thread is not None:
            await pools.files.run(self._thread.join, CLOSE_S)

    async def read(self, log_id: str, after: int) -> AsyncIterator[bytes]:
        """As `EventLog.read`, of a log in `last`."""
        self._positions.setdefault(log_id, min(after, self.last[log_id]))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._follow(), name="elsewhere")
        try:
            async with contextlib.aclosing(self._events.read(log_id, after)) as chunks:
                async for chunk in chunks:
                    yield chunk
        finally:
            if not self._events.readers(log_id):
                self._positions.pop(log_id, None)
                self._wake.set()

    def hear(self, log_ids: Iterable[str]) -> None:
        """Look for new events of those logs now."""
        heard = self._positions.keys() & log_ids
        if heard:
            self._heard |= heard
            self._wake.set()

    def _listen(self, loop: asyncio.AbstractEventLoop) -> None:
        def hear(log_ids: list[str]) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self.hear, log_ids)

        in_trouble = False
        while not self._closing.is_set():
            began = time.monotonic()
            try:
                self._db.listen(hear, self._closing)
            except Exception as error:
                in_trouble = in_trouble and time.monotonic() < began + STEADY_S
                if not in_trouble and not self._closing.is_set():
                    log.warning("listening to other servers failed, retrying: %s", _first_line(error))
                in_trouble = True
            self._closing.wait(LISTEN_AGAIN_S)

    async def _follow(self) -> None:
        """Show new events while any log has readers."""
        looked_at = 0.0  # at all logs
        while self._positions:
            left = looked_at + LOOK_EVERY_S - time.monotonic()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, left)):
                    await self._wake.wait()
            self._wake.clear()
            whole = time.monotonic() >= looked_at + LOOK_EVERY_S
            due = {id_: after for id_, after in self._positions.items() if whole or id_ in self._heard}
            self._heard.clear()
            if whole:
                looked_at = time.monotonic()
            if due:
                await self._look(due, whole)

    async def _look(self, due: dict[str, int], whole: bool) -> None:
        def look() -> tuple[list[tuple[str, int, str, str]], set[str]]:
            with self._db.read() as connection:
                gone = due.keys() - several.existing(connection, due) if whole else set()
                return several.events_after(connection, due, REPLAY_CHUNK), gone

        found = await if_database_answers(look)
        if found is None:
            return
        rows, gone = found
        for log_id, group in itertools.groupby(rows, key=lambda row: row[0]):
            if self._positions.get(log_id) == due[log_id]:  # else its readers left meanwhile
                new = [row[1:] for row in group]
                self._events.show_stored(log_id, new)
                self._positions[log_id] = new[-1][0]
        for log_id in gone:
            self._events.delete(log_id)
        if len(rows) >= REPLAY_CHUNK:
            self.hear(due)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def no_group() -> Problem:
    """404."""
    return Problem("group_not_found", "no group has this id; it may have been deleted")


def no_trace() -> Problem:
    """404."""
    return Problem("trace_not_found", "no trace has this id; it may have been deleted")

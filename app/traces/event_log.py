"""The event log: events are committed before readers see them.

``append`` numbers an event and queues it for one writer thread, which commits the events of all traces in batches: at
most one commit per 20 ms (less often with many readers, to limit wake-ups), immediately for urgent events. Readers are
woken after the commit. A trace's last event is committed together with its final row.

Servers on one database end the traces of dead servers (`app/jobs/servers.py`). A slow server may be mistaken for a dead
one, so every commit checks that the trace's status still allows the event. Otherwise the events are dropped, `on_lost`
is called, and readers get the rest of the log from the database.

The events of a group's members are numbered a second time, in the group's own log, and committed with it.

Frames (encoded SSE events) of active traces are kept in memory and shared by all readers; everything else is read from
the database. Runs on the event loop except for the writer thread. Knows nothing about the meaning of events.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.common.spans import Spans
from app.contract.frames import encode, frame
from app.contract.words import GROUP_END, TERMINAL_EVENTS
from app.storage.database import Database
from app.storage.ids import GROUP
from app.storage.stream_reader import PING, REPLAY_CHUNK, Reader, if_database_answers
from app.traces.event_writer import BATCH_S, EventWriter, GroupEvent, Pending, Update
from app.traces.records import store

log = logging.getLogger("omni_r1.events")


@dataclass
class LiveLog:
    """Committed frames of one trace: event `base + 1 + i` is `frames[i]`; `base` is None until the first commit."""

    base: int | None = None
    frames: list[bytes] = field(default_factory=list)
    ended: bool = False
    readers: set[Reader] = field(default_factory=set)
    active: bool = False
    ending: frozenset[str] = TERMINAL_EVENTS

    @property
    def last(self) -> int:
        """Number of the last committed event."""
        return (self.base or 0) + len(self.frames)

    def wake(self) -> None:
        """Wake all readers."""
        for reader in self.readers:
            reader.wake()


class EventLog:
    """Writes and serves the events of all traces. `start` and `close` belong on the event loop."""

    def __init__(self, db: Database, *, batch_s: float = BATCH_S, ping_s: float = 15.0) -> None:
        self._db = db
        self._ping_s = ping_s
        self.spans = Spans()
        self._next_seq: dict[str, int] = {}
        self._group_of: dict[str, str] = {}  # of active traces
        self._live: dict[str, LiveLog] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._writer = EventWriter(
            db, batch_s=batch_s, open_streams=lambda: self.open_streams, on_commit=self._show_batch
        )
        self.commits = 0
        self.committed_events = 0
        self.open_streams = 0
        self.on_reader_change: Callable[[str], None] = lambda _trace_id: None
        self.on_lost: Callable[[str], None] = lambda _trace_id: None

    @property
    def trouble(self) -> str | None:
        """Why events currently cannot be committed, or None."""
        return self._writer.trouble

    @property
    def trouble_since(self) -> float | None:
        """Start of the trouble, on the monotonic clock."""
        return self._writer.trouble_since

    # ---- writing

    def start(self) -> None:
        """Start the writer thread; call on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._writer.start()

    async def close(self, timeout_s: float = 3.0) -> None:
        """Commit pending events and stop the writer."""
        await self._writer.close(timeout_s)

    def open(self, log_id: str, last_seq: int, *, group_id: str | None = None) -> None:
        """Activate the log of a trace or group after event `last_seq`; keep its frames in memory.

        `group_id` is the group of a trace; open the group's log first.
        """
        self._next_seq[log_id] = last_seq + 1
        live = self._live.setdefault(log_id, _new_log(log_id))
        live.active = True
        live.ended = False
        if group_id is not None:
            self._group_of[log_id] = group_id

    def has_open(self, log_id: str) -> bool:
        """Whether events can be appended to this log."""
        return log_id in self._next_seq

    def show(self, trace_id: str, seq: int, type_: str, data: str) -> None:
        """Show readers an event that was committed elsewhere (a log's first one, or a group's last one)."""
        self._shown(trace_id, seq, type_, data)

    def show_stored(self, log_id: str, rows: Iterable[tuple[int, str, str]]) -> None:
        """Show readers the next events of a log that another server writes."""
        live = None
        for row in rows:
            live = self._shown(log_id, *row, wake=False)
        if live is not None:
            live.wake()

    def append(
        self,
        trace_id: str,
        type_: str,
        data: Mapping[str, Any],
        *,
        urgent: bool = False,
        update: Update | None = None,
        follows: tuple[str, ...] = store.IN_WORK,
    ) -> asyncio.Future[bool]:
        """Number the event and queue it for the next commit, with `update` in the same transaction.

        `follows` are the row statuses that allow it. The returned future resolves after the commit: True, or False
        when the event was dropped because another server changed the row.
        """
        loop = self._loop
        assert loop is not None, "start() first"
        seq = self._next_seq[trace_id]
        self._next_seq[trace_id] = seq + 1
        self.spans.trace_event(trace_id, type_, data)
        done: asyncio.Future[bool] = loop.create_future()
        line = encode(data)
        pending = Pending(trace_id, seq, type_, line, update, done, follows, self._in_group(trace_id, line))
        self._writer.put(pending, urgent=urgent)
        return done

    def _in_group(self, trace_id: str, line: str) -> GroupEvent | None:
        group_id = self._group_of.get(trace_id)
        if group_id is None or group_id not in self._next_seq:
            return None
        seq = self._next_seq[group_id]
        self._next_seq[group_id] = seq + 1
        return GroupEvent.of(group_id, seq, trace_id, line)

    def leave(self, trace_id: str) -> None:
        """Deactivate an ended or paused trace, or an ended group; drop its frames once it has no readers."""
        self.spans.trace_left(trace_id)
        self._next_seq.pop(trace_id, None)
        self._group_of.pop(trace_id, None)
        live = self._live.get(trace_id)
        if live is not None:
            live.active = False
            self._forget_if_idle(trace_id, live)

    def lose(self, trace_id: str) -> None:
        """Deactivate a trace that another server ended; its readers continue from the database."""
        self._next_seq.pop(trace_id, None)
        group_id = self._group_of.pop(trace_id, None)
        if group_id is not None:
            self.lose(group_id)
        live = self._live.get(trace_id)
        if live is not None:
            live.base, live.frames = None, []
            live.active = live.ended = False
            live.wake()
            self._forget_if_idle(trace_id, live)

    def delete(self, trace_id: str) -> None:
        """End the readers of a deleted trace or group."""
        self._next_seq.pop(trace_id, None)
        self._group_of.pop(trace_id, None)
        live = self._live.pop(trace_id, None)
        if live is not None:
            live.ended = True
            live.wake()

    # ---- reading

    def readers(self, trace_id: str) -> int:
        """Number of open streams of this trace."""
        live = self._live.get(trace_id)
        return len(live.readers) if live else 0

    def is_running(self, trace_id: str) -> bool:
        """Whether the trace is active and has not ended."""
        live = self._live.get(trace_id)
        return live is not None and live.active and not live.ended

    @property
    def traces_in_memory(self) -> int:
        """Number of logs with frames or readers."""
        return len(self._live)

    async def read(self, trace_id: str, after: int) -> AsyncGenerator[bytes]:
        """Yield the trace's events with ids > `after` until the terminal one, and keep-alive comments in silence.

        Available frames are yielded together, so that slow readers catch up in few writes and delay nothing.
        """
        reader = Reader(self._ping_s)
        live = self._live.setdefault(trace_id, _new_log(trace_id))
        live.readers.add(reader)
        self.open_streams += 1
        self.on_reader_change(trace_id)
        try:
            while True:
                reader.arm()
                if live.base is not None and after >= live.base:
                    chunk = live.frames[after - live.base :]
                    if chunk:
                        after += len(chunk)
                        yield b"".join(chunk)
                        continue
                    if live.ended:
                        return
                else:
                    stored = await if_database_answers(self.stored, trace_id, after, REPLAY_CHUNK)
                    if stored is None:
                        yield PING
                        continue
                    if stored:
                        after = stored[-1][0]
                        yield b"".join(frame(*row) for row in stored)
                        if stored[-1][1] in live.ending:
                            return
                        continue
                    if live.ended:
                        return
                    if live.base is not None and not reader.woken and after < live.base:
                        return  # the trace was deleted
                if not await reader.wait():
                    yield PING
        finally:
            reader.close()
            live.readers.discard(reader)
            self.open_streams -= 1
            self._forget_if_idle(trace_id, live)
            self.on_reader_change(trace_id)

    def stored(self, log_id: str, after: int = 0, limit: int | None = None) -> list[tuple[int, str, str]]:
        """Committed events (seq, type, data) with seq > `after`; blocking."""
        with self._db.read() as connection:
            return store.events_of(connection, log_id, after, limit)

    def _forget_if_idle(self, trace_id: str, live: LiveLog) -> None:
        if not live.active and not live.readers and self._live.get(trace_id) is live:
            del self._live[trace_id]

    # ---- after a commit

    def _show_batch(self, batch: list[Pending], lost: set[str]) -> None:
        kept = [entry for entry in batch if entry.trace_id not in lost]
        self._show_committed(kept)
        for entry in batch:
            if entry.trace_id in lost and entry.done is not None and not entry.done.done():
                entry.done.set_result(False)
        for trace_id in lost:
            self.lose(trace_id)
            self.on_lost(trace_id)

    def _show_committed(self, batch: list[Pending]) -> None:
        self.commits += 1
        self.committed_events += len(batch)
        touched: dict[str, LiveLog | None] = {}
        for entry in batch:
            touched[entry.trace_id] = self._shown(entry.trace_id, entry.seq, entry.type, entry.data, wake=False)
            if (group := entry.group) is not None:
                touched[group.group_id] = self._shown(group.group_id, group.seq, entry.type, group.data, wake=False)
            if entry.done is not None and not entry.done.done():
                entry.done.set_result(True)
        for live in touched.values():
            if live is not None:
                live.wake()

    def _shown(self, log_id: str, seq: int, type_: str, data: str, *, wake: bool = True) -> LiveLog | None:
        live = self._live.get(log_id)
        if live is None:
            return None
        if live.base is None:
            live.base = seq - 1
        live.frames.append(frame(seq, type_, data))
        live.ended = type_ in live.ending
        if wake:
            live.wake()
        return live


def _new_log(log_id: str) -> LiveLog:
    return LiveLog(ending=frozenset({GROUP_END})) if log_id.startswith(GROUP) else LiveLog()

"""The event log: events are committed before readers see them.

``append`` numbers an event and queues it for one writer thread, which commits the events of all traces in batches: at
most one commit per 20 ms (less often with many readers, to limit wake-ups), immediately for urgent events. Readers are
woken after the commit. A trace's last event is committed together with its final row.

Servers on one database end the traces of dead servers (`app/jobs/servers.py`). A slow server may be mistaken for a dead
one, so every commit checks that the trace's status still allows the event. Otherwise the events are dropped, `on_lost`
is called, and readers get the rest of the log from the database.

Frames (encoded SSE events) of active traces are kept in memory and shared by all readers; everything else is read from
the database. Runs on the event loop except for the writer thread. Knows nothing about the meaning of events.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.contract.frames import encode, frame
from app.contract.words import TERMINAL_EVENTS
from app.storage import database as tables
from app.storage.database import Database
from app.storage.stream_reader import PING, REPLAY_CHUNK, Reader, if_database_answers
from app.traces import store

log = logging.getLogger("omni_r1.events")

BATCH_S = 0.02
COMMIT_PATIENCE_S = 10.0  # slower commits count as trouble, although they may succeed
READERS_A_BATCH = 16  # with more readers, commits and wake-ups become proportionally rarer,
MOST_BATCHES = 3  # up to this factor

Update = Callable[[Connection], None]


def num_batches(readers: int) -> float:
    """The factor by which many readers space out commits."""
    return min(max(readers / READERS_A_BATCH, 1.0), MOST_BATCHES)


@dataclass
class _Pending:
    trace_id: str
    seq: int
    type: str
    data: str
    update: Update | None
    done: asyncio.Future[bool] | None
    follows: tuple[str, ...] = store.IN_WORK


@dataclass
class LiveLog:
    """Committed frames of one trace: event `base + 1 + i` is `frames[i]`; `base` is None until the first commit."""

    base: int | None = None
    frames: list[bytes] = field(default_factory=list)
    ended: bool = False
    readers: set[Reader] = field(default_factory=set)
    active: bool = False

    @property
    def last(self) -> int:
        """Number of the last committed event, 0 before the first."""
        return (self.base or 0) + len(self.frames)

    def wake(self) -> None:
        """Wake all readers of this trace."""
        for reader in self.readers:
            reader.wake()


class EventLog:
    """Writes and serves the events of all traces. `start` and `close` belong on the event loop."""

    def __init__(self, db: Database, *, batch_s: float = BATCH_S, ping_s: float = 15.0) -> None:
        self._db = db
        self._batch_s = batch_s
        self._ping_s = ping_s
        self._next_seq: dict[str, int] = {}
        self._live: dict[str, LiveLog] = {}
        self._pending: list[_Pending] = []
        self._urgent = False
        self._closing = False
        self._wakeup = threading.Condition()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._trouble: str | None = None
        self._trouble_since: float | None = None
        self._committing_since: float | None = None
        self.commits = 0
        self.committed_events = 0
        self.open_streams = 0
        self.on_reader_change: Callable[[str], None] = lambda _trace_id: None
        self.on_lost: Callable[[str], None] = lambda _trace_id: None

    @property
    def trouble(self) -> str | None:
        """Why the writer currently cannot commit, or None."""
        if self._trouble is None and self._stuck_since is not None:
            return f"a commit has taken more than {COMMIT_PATIENCE_S:g} s"
        return self._trouble

    @property
    def trouble_since(self) -> float | None:
        """Start of the trouble, on the monotonic clock."""
        return self._trouble_since or self._stuck_since

    @property
    def _stuck_since(self) -> float | None:
        since = self._committing_since
        return since if since is not None and time.monotonic() - since > COMMIT_PATIENCE_S else None

    # ---- writing

    def start(self) -> None:
        """Start the writer thread; call on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._write_forever, name="event-writer", daemon=True)
        self._thread.start()

    async def close(self, timeout_s: float = 3.0) -> None:
        """Commit pending events and stop the writer."""
        with self._wakeup:
            self._closing = True
            self._wakeup.notify()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._thread is not None and self._thread.is_alive():
                    await asyncio.sleep(0.005)

    def open(self, trace_id: str, last_seq: int) -> None:
        """Activate `trace_id` after event `last_seq`; keep its frames in memory."""
        self._next_seq[trace_id] = last_seq + 1
        live = self._live.setdefault(trace_id, LiveLog())
        live.active = True
        live.ended = False

    def show(self, trace_id: str, seq: int, type_: str, data: str) -> None:
        """Show readers an event that was committed elsewhere (a trace's first one)."""
        self._shown(_Pending(trace_id, seq, type_, data, None, None))

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
        done: asyncio.Future[bool] = loop.create_future()
        pending = _Pending(trace_id, seq, type_, encode(data), update, done, follows)
        with self._wakeup:
            self._pending.append(pending)
            self._urgent = self._urgent or urgent
            if urgent or len(self._pending) == 1:
                self._wakeup.notify()
        return done

    def leave(self, trace_id: str) -> None:
        """Deactivate an ended or paused trace; drop its frames once it has no readers."""
        self._next_seq.pop(trace_id, None)
        live = self._live.get(trace_id)
        if live is not None:
            live.active = False
            self._forget_if_idle(trace_id, live)

    def lose(self, trace_id: str) -> None:
        """Deactivate a trace that another server ended; its readers continue from the database."""
        self._next_seq.pop(trace_id, None)
        live = self._live.get(trace_id)
        if live is not None:
            live.base, live.frames = None, []
            live.active = live.ended = False
            live.wake()
            self._forget_if_idle(trace_id, live)

    def delete(self, trace_id: str) -> None:
        """End the readers of a deleted trace."""
        self._next_seq.pop(trace_id, None)
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
        """Number of traces whose frames are kept."""
        return len(self._live)

    async def read(self, trace_id: str, after: int) -> AsyncIterator[bytes]:
        """Yield the trace's events with ids > `after` until the terminal one, and keep-alive comments in silence.

        Available frames are yielded together, so that slow readers catch up in few writes and delay nothing.
        """
        reader = Reader(self._ping_s)
        live = self._live.setdefault(trace_id, LiveLog())
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
                        if stored[-1][1] in TERMINAL_EVENTS:
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

    def stored(self, trace_id: str, after: int = 0, limit: int | None = None) -> list[tuple[int, str, str]]:
        """Committed events (seq, type, data) with seq > `after`; blocking."""
        e = tables.events.c
        query = sa.select(e.seq, e.type, e.data).where(e.trace_id == trace_id, e.seq > after).order_by(e.seq)
        with self._db.read() as connection:
            return [tuple(row) for row in connection.execute(query.limit(limit))]

    def _forget_if_idle(self, trace_id: str, live: LiveLog) -> None:
        if not live.active and not live.readers and self._live.get(trace_id) is live:
            del self._live[trace_id]

    # ---- the writer thread

    def _write_forever(self) -> None:
        last_commit = 0.0
        while True:
            with self._wakeup:
                while not self._pending and not self._closing:
                    self._wakeup.wait()
                # The first event after a pause is committed immediately; under load a commit collects 20 ms or more.
                while not self._urgent and not self._closing:
                    left = last_commit + self._batch_s * num_batches(self.open_streams) - time.monotonic()
                    if left <= 0:
                        break
                    self._wakeup.wait(left)
                batch, self._pending, self._urgent = self._pending, [], False
                if not batch and self._closing:
                    return
            last_commit = time.monotonic()
            self._commit_until_done(batch)

    def _commit_until_done(self, batch: list[_Pending]) -> None:
        delay, tried = 0.1, False
        while True:
            began = time.monotonic()
            lost: set[str] = set()
            try:
                lost = self._commit(batch, tried_before=tried)
            except (sa.exc.IntegrityError, sa.exc.DataError):  # an invalid event: a retry would fail, too
                if len({entry.trace_id for entry in batch}) > 1:
                    for trace_id in dict.fromkeys(entry.trace_id for entry in batch):
                        self._commit_until_done([entry for entry in batch if entry.trace_id == trace_id])
                    return
                log.exception("trace %s: %d events do not fit the database", batch[0].trace_id, len(batch))
            except Exception as error:
                self._trouble_since = self._trouble_since or began
                self._trouble = str(error).splitlines()[0] or type(error).__name__
                log.error("committing events failed, retrying: %s", self._trouble)
                tried = True
                with self._wakeup:
                    if self._closing:
                        return
                    self._wakeup.wait(delay)
                delay = min(2 * delay, 2.0)
                continue
            if self._trouble is not None:
                log.info("committing events works again")
            self._trouble = self._trouble_since = None
            assert self._loop is not None
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self._loop.call_soon_threadsafe(self._show_batch, batch, lost)
            return

    def _commit(self, batch: list[_Pending], *, tried_before: bool = False) -> set[str]:
        self._committing_since = time.monotonic()
        try:
            return self._commit_rows(batch, tried_before=tried_before)
        finally:
            self._committing_since = None

    def _commit_rows(self, batch: list[_Pending], *, tried_before: bool) -> set[str]:
        """Commit the batch; returns the ids of traces that another server ended and whose events were dropped."""
        first: dict[str, _Pending] = {}
        for entry in batch:
            first.setdefault(entry.trace_id, entry)
        with self._db.write() as connection:
            # After a connection error during a commit, it is unknown whether the commit succeeded.
            there = {id_ for id_, entry in first.items() if _is_there(connection, entry)} if tried_before else set()
            status = store.statuses(connection, first)
            lost = {id_ for id_, e in first.items() if id_ not in there and status.get(id_) not in e.follows}
            new = [entry for entry in batch if entry.trace_id not in there | lost]
            if new:
                rows = [{"trace_id": e.trace_id, "seq": e.seq, "type": e.type, "data": e.data} for e in new]
                connection.execute(sa.insert(tables.events), rows)
            for entry in new:
                if entry.update is not None:
                    entry.update(connection)
        return lost

    def _show_batch(self, batch: list[_Pending], lost: set[str]) -> None:
        kept = [entry for entry in batch if entry.trace_id not in lost]
        self._show_committed(kept)
        for entry in batch:
            if entry.trace_id in lost and entry.done is not None and not entry.done.done():
                entry.done.set_result(False)
        for trace_id in lost:
            self.lose(trace_id)
            self.on_lost(trace_id)

    def _show_committed(self, batch: list[_Pending]) -> None:
        self.commits += 1
        self.committed_events += len(batch)
        touched = {}
        for entry in batch:
            live = self._shown(entry, wake=False)
            if live is not None:
                touched[entry.trace_id] = live
            if entry.done is not None and not entry.done.done():
                entry.done.set_result(True)
        for live in touched.values():
            live.wake()

    def _shown(self, entry: _Pending, *, wake: bool = True) -> LiveLog | None:
        live = self._live.get(entry.trace_id)
        if live is None:
            return None
        if live.base is None:
            live.base = entry.seq - 1
        live.frames.append(frame(entry.seq, entry.type, entry.data))
        live.ended = entry.type in TERMINAL_EVENTS
        if wake:
            live.wake()
        return live


def _is_there(connection: Connection, entry: _Pending) -> bool:
    """Whether exactly this event is committed, and with it the trace's other events of the batch."""
    e = tables.events.c
    found = sa.select(e.type, e.data).where(e.trace_id == entry.trace_id, e.seq == entry.seq)
    return connection.execute(found).one_or_none() == (entry.type, entry.data)

"""The writer thread: commits the events of all traces in batches, each with its trace's and its group's row.

Every commit checks that the trace's status still allows the event; see :mod:`app.traces.event_log`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.storage import tables
from app.storage.database import Database
from app.storage.dialects import announce
from app.traces.records import store

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
class Pending:
    """An event to commit, with the change of its trace's row."""

    trace_id: str
    seq: int
    type: str
    data: str
    update: Update | None
    done: asyncio.Future[bool] | None
    follows: tuple[str, ...] = store.IN_WORK
    group: GroupEvent | None = None


@dataclass(frozen=True)
class GroupEvent:
    """The same event in its group's log."""

    group_id: str
    seq: int
    data: str

    @classmethod
    def of(cls, group_id: str, seq: int, trace_id: str, data: str) -> GroupEvent:
        """Event `seq` of a group: an event of one of its traces."""
        return cls(group_id, seq, store.with_trace_id(trace_id, data))


class EventWriter:
    """Owns the thread. `put` may be called from the event loop; `on_commit` is called there."""

    def __init__(
        self,
        db: Database,
        *,
        batch_s: float,
        open_streams: Callable[[], int],
        on_commit: Callable[[list[Pending], set[str]], None],
    ) -> None:
        """Set what happens after a commit.

        `on_commit` gets the batch, and the ids of its traces whose events were dropped because another server ended
        them.
        """
        self._db = db
        self._batch_s = batch_s
        self._open_streams = open_streams
        self._on_commit = on_commit
        self._pending: list[Pending] = []
        self._urgent = False
        self._closing = False
        self._wakeup = threading.Condition()
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._trouble: str | None = None
        self._trouble_since: float | None = None
        self._committing_since: float | None = None

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

    def start(self) -> None:
        """Start the thread; call on the running loop."""
        self._loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._write_forever, name="event-writer", daemon=True)
        self._thread.start()

    async def close(self, timeout_s: float) -> None:
        """Commit pending events and stop."""
        with self._wakeup:
            self._closing = True
            self._wakeup.notify()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._thread is not None and self._thread.is_alive():
                    await asyncio.sleep(0.005)

    def put(self, pending: Pending, *, urgent: bool) -> None:
        """Queue an event for the next commit; urgent ones are committed at once."""
        with self._wakeup:
            self._pending.append(pending)
            self._urgent = self._urgent or urgent
            if urgent or len(self._pending) == 1:
                self._wakeup.notify()

    def _write_forever(self) -> None:
        last_commit = 0.0
        while True:
            with self._wakeup:
                while not self._pending and not self._closing:
                    self._wakeup.wait()
                # The first event after a pause is committed immediately; under load a commit collects 20 ms or more.
                while not self._urgent and not self._closing:
                    left = last_commit + self._batch_s * num_batches(self._open_streams()) - time.monotonic()
                    if left <= 0:
                        break
                    self._wakeup.wait(left)
                batch, self._pending, self._urgent = self._pending, [], False
                if not batch and self._closing:
                    return
            last_commit = time.monotonic()
            self._commit_until_done(batch)

    def _commit_until_done(self, batch: list[Pending]) -> None:
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
                self._loop.call_soon_threadsafe(self._on_commit, batch, lost)
            return

    def _commit(self, batch: list[Pending], *, tried_before: bool = False) -> set[str]:
        self._committing_since = time.monotonic()
        try:
            return self._commit_rows(batch, tried_before=tried_before)
        finally:
            self._committing_since = None

    def _commit_rows(self, batch: list[Pending], *, tried_before: bool) -> set[str]:
        """Commit the batch; returns the ids of traces that another server ended and whose events were dropped."""
        first: dict[str, Pending] = {}
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
                again = [(e.type, e.group) for e in new if e.group is not None]
                if again:
                    rows = [{"group_id": g.group_id, "seq": g.seq, "type": type_, "data": g.data} for type_, g in again]
                    connection.execute(sa.insert(tables.group_events), rows)
            for entry in new:
                if entry.update is not None:
                    entry.update(connection)
            announce(connection, [*(e.trace_id for e in new), *(e.group.group_id for e in new if e.group is not None)])
        return lost


def _is_there(connection: Connection, entry: Pending) -> bool:
    """Whether exactly this event is committed, and with it the trace's other events of the batch."""
    e = tables.events.c
    found = sa.select(e.type, e.data).where(e.trace_id == entry.trace_id, e.seq == entry.seq)
    return connection.execute(found).one_or_none() == (entry.type, entry.data)

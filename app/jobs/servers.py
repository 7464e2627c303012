"""Heartbeats of the servers on one database; each server ends the traces and jobs of dead ones.

A server counts as dead when its heartbeat is older than promised, by the database's clock, on two consecutive checks.
A server that was away that long itself (suspended, or without the database) restarts its checks: the others may have
been away, too. Clocks of different machines are never compared.

A server wrongly considered dead does no harm when it returns: its next commit for a trace detects that the trace has
ended (:mod:`app.traces.event_log`), and its jobs are distinguished by attempt (:mod:`app.jobs.store`).
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from app.common import pools
from app.contract.words import TERMINAL
from app.jobs import store as job_store
from app.storage import tables
from app.storage.database import Database
from app.storage.dialects import clock
from app.traces.records import group_store
from app.traces.records import store as trace_store

log = logging.getLogger("omni_r1.servers")

S = tables.servers
BEATS = 6  # heartbeats per `dead_after_s`
LOOKS_IN_VAIN = 2
DIED = {
    "code": "interrupted",
    "detail": "the server that ran the trace stopped responding; try again",
}
JOB_DIED = {
    "code": "interrupted",
    "detail": "the server that ran the job stopped responding; the job can be resumed there when it is back",
}


@dataclass(frozen=True)
class _Sight:
    """The last seen heartbeat and how often it was unchanged since."""

    heartbeat_at: float
    in_vain: int = 0


class ServerWatch:
    """Sends this server's heartbeat and watches the others."""

    def __init__(
        self,
        db: Database,
        server_id: Callable[[], str],
        *,
        dead_after_s: float,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._db = db
        self._server_id = server_id
        self._dead_after_s = dead_after_s
        self.active: Callable[[], Sequence[str]] = tuple  # ids of this server's active traces
        self.end_elsewhere: Callable[[str], None] = lambda _trace_id: None  # called per trace that another server ended
        self._monotonic = monotonic
        self._seen: dict[str, _Sight] = {}
        self._looked_at: float | None = None
        self._closing = threading.Event()
        self._thread: threading.Thread | None = None
        self._dead: frozenset[str] = frozenset()

    def is_dead(self, server_id: str) -> bool:
        """Whether another server counts as dead, as of the last check."""
        return server_id in self._dead

    def beat(self, active: Iterable[str] = ()) -> list[str]:
        """Send a heartbeat and end the work of dead servers; blocking.

        Returns the `active` traces that another server ended.
        """
        with self._db.write() as connection:
            self._send(connection)
            self._dead = self._find_dead(connection)
            traces: list[str] = []
            jobs: list[str] = []
            if self._dead:
                traces = group_store.end_left_over(connection, self._dead, DIED)
                jobs = job_store.interrupt_left_over(connection, self._dead, JOB_DIED)
            statuses = trace_store.statuses(connection, active)
        self._looked_at = self._monotonic()
        if traces or jobs:
            log.warning("%d traces and %d jobs of a dead server marked as interrupted", len(traces), len(jobs))
        return [trace_id for trace_id, status in statuses.items() if status in TERMINAL]

    def start(self) -> None:
        """Start the heartbeat in its own thread; call on the running loop."""
        loop = asyncio.get_running_loop()
        self._thread = threading.Thread(target=self._beat_forever, args=(loop,), name="heartbeat", daemon=True)
        self._thread.start()

    async def close(self, timeout_s: float = 1.0) -> None:
        """Stop the heartbeat."""
        self._closing.set()
        if self._thread is not None:
            await pools.files.run(self._thread.join, timeout_s)

    def _beat_forever(self, loop: asyncio.AbstractEventLoop) -> None:
        in_trouble = False
        while not self._closing.wait(self._dead_after_s / BEATS):
            try:
                for trace_id in self.beat(self.active()):
                    loop.call_soon_threadsafe(self.end_elsewhere, trace_id)
                in_trouble = False
            except Exception as error:
                if not in_trouble and not self._closing.is_set():
                    log.error("writing the heartbeat failed, retrying: %s", _first_line(error))
                in_trouble = True

    def _send(self, connection: Connection) -> None:
        values = {"heartbeat_at": clock(), "dead_after_s": self._dead_after_s}
        beaten = sa.update(S).where(S.c.id == self._server_id()).values(values)
        if connection.execute(beaten).rowcount == 0:
            connection.execute(sa.insert(S).values(id=self._server_id(), **values))

    def _find_dead(self, connection: Connection) -> frozenset[str]:
        now = self._monotonic()
        if self._looked_at is None or now - self._looked_at > self._dead_after_s:
            self._seen = {}
        silence = sa.func.abs(clock() - S.c.heartbeat_at)  # the database's clock may have been set back
        query = sa.select(S.c.id, S.c.heartbeat_at, (silence > S.c.dead_after_s).label("silent"))
        dead = set()
        for row in connection.execute(query.where(S.c.id != self._server_id())):
            last = self._seen.get(row.id)
            same = last is not None and last.heartbeat_at == row.heartbeat_at
            in_vain = last.in_vain + 1 if last is not None and same else 0
            self._seen[row.id] = _Sight(row.heartbeat_at, in_vain)
            if row.silent and in_vain >= LOOKS_IN_VAIN:
                dead.add(row.id)
        return frozenset(dead)


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]

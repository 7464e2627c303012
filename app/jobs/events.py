"""Readers of job events: stored rows as server-sent events, live until the job has ended.

Resumed jobs may have several terminal `job.status` events in their log: a stream ends when the job has ended and all
stored events are sent. Knows nothing about writers.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from functools import partial

from app.contract.words import JOB_TERMINAL
from app.jobs import store
from app.storage.database import Database
from app.storage.stream_reader import REPLAY_CHUNK, if_database_answers, polled

LOOK_EVERY_S = 1.0  # jobs of other servers on the database send no wake-ups


class JobEvents:
    """The event streams of all jobs on the database. On the event loop."""

    def __init__(self, db: Database, *, server_id: Callable[[], str], ping_s: float) -> None:
        self._db = db
        self._server_id = server_id
        self._ping_s = ping_s
        self._readers: dict[str, set[asyncio.Event]] = {}
        self._closing = False

    @property
    def open_streams(self) -> int:
        """Number of readers, over all jobs."""
        return sum(len(readers) for readers in self._readers.values())

    def wake(self, job_id: str) -> None:
        """Wake the readers of this job."""
        for reader in self._readers.get(job_id, ()):
            reader.set()

    def close(self) -> None:
        """End every stream at shutdown."""
        self._closing = True
        for job_id in list(self._readers):
            self.wake(job_id)

    async def read(self, job_id: str, after: int) -> AsyncIterator[bytes]:
        """Yield the job's events with ids > `after` until it has ended, and keep-alive comments in silence."""
        wake = asyncio.Event()
        self._readers.setdefault(job_id, set()).add(wake)
        look = partial(self._look, job_id)
        try:
            here = await if_database_answers(self._is_here, job_id)
            every_s = self._ping_s if here else LOOK_EVERY_S
            async for frames in polled(
                look,
                after,
                ping_s=self._ping_s,
                every_s=every_s,
                chunk=REPLAY_CHUNK,
                wake=wake,
                closing=lambda: self._closing,
            ):
                yield frames
        finally:
            readers = self._readers.get(job_id, set())
            readers.discard(wake)
            if not readers:
                self._readers.pop(job_id, None)

    def _is_here(self, job_id: str) -> bool:
        """Whether this server runs the job, so that its writer wakes the readers; blocking."""
        with self._db.read() as connection:
            row = store.get_row(connection, job_id)
            return row is not None and row.server_id == self._server_id()

    def _look(self, job_id: str, after: int) -> tuple[list[tuple[int, str, str]], bool]:
        """Events and whether they are the last, in one snapshot; blocking."""
        with self._db.read() as connection:
            row = store.get_row(connection, job_id)
            if row is None:
                return [], True
            return store.events_after(connection, job_id, after, REPLAY_CHUNK), row.status in JOB_TERMINAL

    def past_the_end(self, job_id: str, after: int) -> bool | None:
        """Whether a reader at `after` has seen all events of an ended job; None for an unknown job. Blocking."""
        with self._db.read() as connection:
            row = store.get_row(connection, job_id)
            if row is None:
                return None
            return row.status in JOB_TERMINAL and after >= store.last_seq(connection, job_id)

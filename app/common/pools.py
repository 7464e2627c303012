"""Thread pools for blocking work: one small bounded pool per kind, so that reads never queue behind slow work.

    row = await reads.run(look, trace_id)

All threads are daemons, so a hanging database, disk or network cannot block process exit. Work that exceeds its pool's
deadline raises :class:`TooSlow` in the caller. Queued work is then dropped; work that has begun continues in its
thread, and `undo` reverts its result.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import logging
import threading
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Literal, ParamSpec, TypeVar

log = logging.getLogger("omni_r1.pools")

P = ParamSpec("P")
T = TypeVar("T")
Waits = Literal["database", "disk"]  # what the pool's work mostly waits for


class TooSlow(Exception):
    """Blocking work missed its pool's deadline; `waits_for` names the resource."""

    def __init__(self, pool: str, waits_for: Waits, deadline_s: float) -> None:
        super().__init__(f"{pool}: the {waits_for} did not answer within {deadline_s:g} s")
        self.waits_for = waits_for


@dataclass(eq=False)
class _Job:
    work: Callable[[], Any]
    undo: Callable[[Any], None] | None
    loop: asyncio.AbstractEventLoop
    outcome: asyncio.Future[Any]
    lock: threading.Lock = field(default_factory=threading.Lock)
    begun: bool = False
    abandoned: bool = False
    ended: tuple[Any, BaseException | None] | None = None

    def abandon(self) -> bool:
        """The caller gives up; False when the work has just finished."""
        with self.lock:
            self.abandoned = self.ended is None
            return self.abandoned

    def begin(self) -> bool:
        """Whether the caller is still waiting."""
        with self.lock:
            self.begun = not self.abandoned
            return self.begun

    def run(self) -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = self.work()
        except StopIteration as stop:  # futures reject StopIteration
            error = RuntimeError(f"StopIteration: {stop}")
        except BaseException as failure:
            error = failure
        with self.lock:
            self.ended = (result, error)
        if not self.abandoned:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                self.loop.call_soon_threadsafe(self._deliver)
        elif error is None and self.undo is not None:
            try:
                self.undo(result)
            except Exception:
                log.exception("undoing late work failed")

    def _deliver(self) -> None:
        assert self.ended is not None
        result, error = self.ended
        if self.outcome.done():
            return
        if error is not None:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(result)


class Pool:
    """At most `threads` daemon threads, started on demand."""

    def __init__(self, name: str, *, threads: int, deadline_s: float | None, waits_for: Waits = "disk") -> None:
        """`deadline_s` includes the wait for a thread; None: no deadline."""
        self.name = name
        self.deadline_s = deadline_s
        self._waits_for: Waits = waits_for
        self._most = threads
        self._running = 0
        self._idle = 0
        self._stuck = 0  # threads whose callers gave up
        self._queue: deque[_Job] = deque()
        self._changed = threading.Condition()

    async def run(self, work: Callable[..., T], *args: Any, undo: Callable[[T], None] | None = None) -> T:
        """Return the result of `work(*args)`.

        `undo` gets the result, in the thread, when the work finishes after the caller gave up (too late or cancelled).

        Raises:
            TooSlow: the deadline passed; otherwise whatever `work` raises.
        """
        if self._stuck >= self._most:
            raise TooSlow(self.name, self._waits_for, self.deadline_s or 0.0)
        loop = asyncio.get_running_loop()
        context = contextvars.copy_context()
        job = _Job(functools.partial(context.run, work, *args), undo, loop, loop.create_future())
        self._submit(job)
        try:
            async with asyncio.timeout(self.deadline_s) as deadline:
                result: T = await job.outcome
        except (TimeoutError, asyncio.CancelledError) as error:
            if isinstance(error, TimeoutError) and not deadline.expired():
                raise  # raised by the work itself
            if not self._abandon(job) and isinstance(error, TimeoutError):
                assert job.ended is not None
                result, failure = job.ended
                if failure is not None:
                    raise failure from None
                return result
            if isinstance(error, TimeoutError):
                raise TooSlow(self.name, self._waits_for, self.deadline_s or 0.0) from None
            raise
        return result

    def _abandon(self, job: _Job) -> bool:
        """The caller gives up; False when the work has just finished."""
        with self._changed:
            left = job.abandon()
            self._stuck += left and job.begun
            return left

    def _submit(self, job: _Job) -> None:
        with self._changed:
            self._queue.append(job)
            if self._idle >= len(self._queue):
                self._changed.notify()
            elif self._running < self._most:
                self._running += 1
                threading.Thread(target=self._serve, name=f"{self.name}-{self._running}", daemon=True).start()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                while not self._queue:
                    self._changed.wait()
                self._idle -= 1
                job = self._queue.popleft()
            if job.begin():
                job.run()
                with self._changed:
                    self._stuck -= job.abandoned
            del job


# Database reads of requests and streams.
reads = Pool("reads", threads=8, deadline_s=20, waits_for="database")
streams = Pool("streams", threads=4, deadline_s=20, waits_for="database")
writes = Pool("writes", threads=4, deadline_s=30, waits_for="database")
probe = Pool("probe", threads=1, deadline_s=2, waits_for="database")  # for /readyz only
# Files of requests: in the home, or first fetched from the object store.
fetches = Pool("fetches", threads=8, deadline_s=60)
# Checkpoints from the object store: gigabytes.
transfers = Pool("transfers", threads=2, deadline_s=None)
# Validation of new traces, jobs and uploads: reading files, decoding images.
intake = Pool("intake", threads=4, deadline_s=120)
# Running traces: writing images, running checkers.
work = Pool("work", threads=4, deadline_s=60)
# Films of traces: some tens of megabytes each.
films = Pool("films", threads=1, deadline_s=60)
# Exports of traces, piece by piece.
exports = Pool("exports", threads=2, deadline_s=60)
# Checks of data sets, each in a child process.
checks = Pool("checks", threads=2, deadline_s=120)
# The job runner's loops.
jobs = Pool("jobs", threads=4, deadline_s=None)
# Slow file operations: checkpoint folders, deletions, the sweep.
files = Pool("files", threads=2, deadline_s=120)


def in_pool(pool: Pool) -> Callable[[Callable[P, T]], Callable[P, Awaitable[T]]]:
    """Turn a blocking route into a coroutine that runs in `pool` instead of FastAPI's shared pool."""

    def decorate(route: Callable[P, T]) -> Callable[P, Awaitable[T]]:
        @functools.wraps(route)
        async def run(*args: P.args, **kwargs: P.kwargs) -> T:
            return await pool.run(functools.partial(route, *args, **kwargs))

        return run

    return decorate

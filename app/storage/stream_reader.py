"""Waiting of open event streams: for the next event, or for an unavailable database. On the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import ParamSpec, TypeVar

from app.common import pools
from app.contract.frames import frame
from app.storage.faults import from_storage

T = TypeVar("T")
P = ParamSpec("P")

PING = b": ping\n\n"
REPLAY_CHUNK = 500  # events per database read
LOOK_AGAIN_S = 1.0  # while the database is unavailable; open streams stay open


async def if_database_answers(look: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T | None:
    """The result of `look`, run in a thread; None after a pause while the database is unavailable."""
    try:
        return await pools.streams.run(partial(look, *args, **kwargs))
    except Exception as error:
        if from_storage(error) is None:
            raise
    await asyncio.sleep(LOOK_AGAIN_S)
    return None


async def polled(
    look: Callable[[int], tuple[list[tuple[int, str, str]], bool]],
    after: int,
    *,
    ping_s: float,
    every_s: float,
    chunk: int,
    wake: asyncio.Event | None = None,
    closing: Callable[[], bool] = lambda: False,
) -> AsyncIterator[bytes]:
    """Yield a log in the database as stream frames: the events above `after` until its end, and keep-alive comments.

    `look(after)` reads the next events, at most `chunk`, and whether the log has ended; blocking. It is called again
    after `every_s` seconds, or once `wake` is set.
    """
    heard = time.monotonic()
    while True:
        if wake is not None:
            wake.clear()
        found = await if_database_answers(look, after)
        if found is None:
            if closing():
                return
            yield PING
            continue
        rows, ended = found
        if rows:
            after, heard = rows[-1][0], time.monotonic()
            yield b"".join(frame(*row) for row in rows)
        if len(rows) >= chunk:
            continue
        if ended or closing():
            return
        left = max(0.0, heard + ping_s - time.monotonic())
        await _either(wake, min(left, every_s))
        if time.monotonic() >= heard + ping_s:
            heard = time.monotonic()
            yield PING


async def _either(wake: asyncio.Event | None, seconds: float) -> None:
    """Wait for the event, at most that long."""
    if wake is None:
        await asyncio.sleep(seconds)
        return
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await wake.wait()


class Reader:
    """Waits of one stream: for `wake` or for `ping_s` seconds of silence. On the event loop.

    One timer is set and moved when it fires, so that wake-ups create no timers.
    """

    def __init__(self, ping_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._ping_s = ping_s
        self._waiter: asyncio.Future[None] | None = None
        self.woken = False
        self._last = self._loop.time()
        self._timer = self._loop.call_later(ping_s, self._ring)

    def arm(self) -> None:
        """Count wake-ups from here on."""
        self.woken = False

    def wake(self) -> None:
        """End the current wait; without one, the next `wait` returns at once."""
        self.woken = True
        self._go_on()

    async def wait(self) -> bool:
        """True when woken since `arm`, False when a keep-alive comment is due."""
        if not self.woken:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        self._last = self._loop.time()
        return self.woken

    def close(self) -> None:
        """Cancel the timer."""
        self._timer.cancel()

    def _ring(self) -> None:
        left = self._last + self._ping_s - self._loop.time()
        if left <= 0:
            self._go_on()
            left = self._ping_s
        self._timer = self._loop.call_later(left, self._ring)

    def _go_on(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

"""Timestamps from the wall clock, ages from the monotonic clock.

The wall clock may be set while the server runs. Timestamps keep the wall time of their moment; ages never count a
forward step, so nothing expires early.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

STEP_S = 1.0  # clocks drift; a larger difference is a step
REMEMBERED_S = 7 * 24 * 3600.0


class Clock:
    """Seconds since the epoch from `wall`, elapsed seconds from `steady`."""

    def __init__(self, wall: Callable[[], float] = time.time, steady: Callable[[], float] = time.monotonic) -> None:
        self._wall = wall
        self._steady = steady
        self._lock = threading.Lock()
        self._offsets: list[tuple[float, float]] = []  # (steady time of the change, wall - steady), newest last

    def now(self) -> str:
        """The current time in the API's format: RFC 3339, UTC, milliseconds."""
        return stamp(datetime.fromtimestamp(self._look()[0], UTC))

    def before(self, age: timedelta) -> str:
        """The latest timestamp that is older than every one this process issued within `age`."""
        wall, steady = self._look()
        first = steady - age.total_seconds()
        with self._lock:
            since = [at for at, _ in self._offsets]
            within = [
                offset
                for k, (_, offset) in enumerate(self._offsets)
                if k + 1 == len(since) or since[k + 1] > first  # in force within the age
            ]
        lowest = min([wall - steady, *within])
        return stamp(datetime.fromtimestamp(max(0.0, first + lowest), UTC))

    def _look(self) -> tuple[float, float]:
        """Read both clocks and record a step of the wall clock."""
        wall, steady = self._wall(), self._steady()
        offset = wall - steady
        with self._lock:
            if not self._offsets or abs(offset - self._offsets[-1][1]) > STEP_S:
                self._offsets.append((steady, offset))
                while len(self._offsets) > 1 and self._offsets[1][0] < steady - REMEMBERED_S:
                    del self._offsets[0]
        return wall, steady


def stamp(moment: datetime) -> str:
    """`moment` (UTC) as RFC 3339 text that sorts by time."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{moment.microsecond // 1000:03d}Z"

"""Whether a job shall stop at its next step boundary."""

from __future__ import annotations

from typing import Protocol


class Stop(Protocol):
    """True once the job shall stop at its next step boundary (`training.jobs.loop.StopFlag` is one)."""

    def __bool__(self) -> bool: ...


class NeverStop:
    """For jobs that nobody can stop, as in tests."""

    def __bool__(self) -> bool:
        return False

"""Stop condition of jobs."""

from __future__ import annotations

from typing import Protocol


class Stop(Protocol):
    """True once the job should stop at its next step boundary (for example `training.jobs.loop.StopFlag`)."""

    def __bool__(self) -> bool: ...


class NeverStop:
    """Never stops, for tests."""

    def __bool__(self) -> bool:
        return False

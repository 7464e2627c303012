"""A trace in work: what the server keeps in memory between its start and its end (or pause)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from app.checkpoints.pool import Lease
from app.contract.words import Mode
from app.storage.images import StoredImage
from model.engine.messages import ImageInput, SamplingRequest


@dataclass
class LiveTrace:
    """One queued or running trace. Lives on the event loop; nothing here survives the process."""

    id: str
    checkpoint: str
    weight_version: int
    question: str
    images: tuple[ImageInput, ...]
    sampling: SamplingRequest
    mode: Mode
    partial_images: int
    background: bool
    task_id: str | None
    began: float  # by the monotonic clock: when it came into work
    timings: dict[str, Any]
    lease: Lease  # on its checkpoint, until it is out of work
    worked_ms: int = 0  # before that: until it was paused
    started: bool = False  # it has a slot (or is just being resumed into one)
    resumed: bool = False
    submitted: bool = False  # the engine knows it
    ended: bool = False  # its terminal event is on the way
    lost: bool = False  # another server has ended it
    was_read: bool = False  # somebody has followed its events
    position: int | None = None
    cancel_reason: str | None = None
    step_text: dict[int, str] = field(default_factory=dict)
    pngs: dict[int, bytes] = field(default_factory=dict)  # functional images by step, for the checkers
    unlisted: list[tuple[bytes, StoredImage]] = field(default_factory=list)  # images whose event was not committed
    runner: asyncio.Task[None] | None = None

    @classmethod
    def from_row(cls, row: Mapping[str, Any], images: tuple[ImageInput, ...], lease: Lease) -> LiveTrace:
        """The trace of a row that is to run: a new one, or one that was paused."""
        timings = dict(row["timings"])
        return cls(
            id=row["id"],
            checkpoint=row["checkpoint"],
            weight_version=row["weight_version"],
            question=row["question"],
            images=images,
            sampling=SamplingRequest(**row["sampling"]),
            mode=row["mode"],
            partial_images=row["partial_images"],
            background=row["background"],
            task_id=row["task_id"],
            began=time.monotonic(),
            worked_ms=_worked_ms(timings),
            timings=timings,
            lease=lease,
        )

    def elapsed_ms(self) -> int:
        """Milliseconds that the trace has been in work, pauses left out."""
        return self.worked_ms + round((time.monotonic() - self.began) * 1000)


def _worked_ms(timings: Mapping[str, Any]) -> int:
    """How long a trace had run when it was paused; rows of earlier versions do not have the total."""
    return int(next((ms for name in ("total_ms", "first_text_ms", "queued_ms") if (ms := timings.get(name))), 0))

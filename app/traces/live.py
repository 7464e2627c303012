"""Active traces: their in-memory state between start and end (or pause), and the end of those whose readers left."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from app.checkpoints.pool import Lease
from app.contract.words import Mode
from app.storage.images import StoredImage
from app.traces.event_log import EventLog
from app.traces.intake import Kept, Prepared
from model.engine.messages import ImageInput, Prefix
from model.engine.sequence import SamplingParams


@dataclass
class LiveTrace:
    """One queued or running trace. Lives on the event loop; not persisted."""

    id: str
    checkpoint: str
    weight_version: int
    question: str
    images: tuple[ImageInput, ...]
    sampling: SamplingParams
    mode: Mode
    partial_images: int
    background: bool
    task_id: str | None
    began: float  # monotonic start time of this run
    timings: dict[str, Any]
    lease: Lease  # on its checkpoint, until the trace is inactive
    worked_ms: int = 0  # in earlier runs, before pauses
    started: bool = False  # it has a slot, or is being resumed into one
    resumed: bool = False
    submitted: bool = False  # the engine has the request
    ended: bool = False  # its terminal event is queued
    lost: bool = False  # another server ended it
    was_read: bool = False  # it has had a reader
    position: int | None = None
    cancel_reason: str | None = None
    group_id: str | None = None
    verifier: str = ""  # the checkpoint that chooses among candidates
    prefix: Prefix = field(default_factory=Prefix)
    kept: tuple[Kept, ...] = ()
    step_text: dict[int, str] = field(default_factory=dict)
    seen: asyncio.Task[bytes] | None = None  # the question's image as the model sees it, for the checkers
    pngs: dict[int, bytes] = field(default_factory=dict)  # functional images by step, for the checkers
    unlisted: list[tuple[bytes, StoredImage]] = field(default_factory=list)  # images whose event was not committed
    runner: asyncio.Task[None] | None = None

    @classmethod
    def from_row(
        cls, row: Mapping[str, Any], images: tuple[ImageInput, ...], lease: Lease, prepared: Prepared | None = None
    ) -> LiveTrace:
        """Build from the row of a new trace (with what it was `prepared` to keep) or of a paused one."""
        timings = dict(row["timings"])
        verify = row["verify"] or {}
        return cls(
            id=row["id"],
            checkpoint=row["checkpoint"],
            weight_version=row["weight_version"],
            question=row["question"],
            images=images,
            sampling=SamplingParams(**row["sampling"], candidates=verify.get("candidates", 1)),
            mode=row["mode"],
            partial_images=row["partial_images"],
            background=row["background"],
            task_id=row["task_id"],
            began=time.monotonic(),
            worked_ms=_worked_ms(timings),
            timings=timings,
            lease=lease,
            group_id=row.get("group_id"),
            verifier=verify.get("verifier", ""),
            prefix=prepared.prefix if prepared is not None else Prefix(),
            kept=prepared.kept if prepared is not None else (),
        )

    def elapsed_ms(self) -> int:
        """Milliseconds of active time, without pauses."""
        return self.worked_ms + round((time.monotonic() - self.began) * 1000)


class GraceWatch:
    """Calls `give_up(trace_id)` when a trace with `background: false` has had no readers for `grace_s` seconds.

    A trace that never had a reader is left alone. On the event loop.
    """

    def __init__(
        self, events: EventLog, live: Mapping[str, LiveTrace], grace_s: float, give_up: Callable[[str], None]
    ) -> None:
        self._events = events
        self._live = live
        self._grace_s = grace_s
        self._give_up = give_up
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._closed = False
        events.on_reader_change = self._readers_changed

    def look(self, trace_id: str) -> None:
        """Check the trace after a change of its readers or state."""
        timer = self._timers.pop(trace_id, None)
        if timer is not None:
            timer.cancel()
        if self._closed or not self._lonely(trace_id):
            return
        loop = asyncio.get_running_loop()
        self._timers[trace_id] = loop.call_later(self._grace_s, self._nobody_came_back, trace_id)

    def _readers_changed(self, log_id: str) -> None:
        members = [live.id for live in self._live.values() if live.group_id == log_id]
        for trace_id in members or [log_id]:
            self.look(trace_id)

    def close(self) -> None:
        """Stop watching."""
        self._closed = True
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _lonely(self, trace_id: str) -> bool:
        live = self._live.get(trace_id)
        if live is None or live.background or live.ended:
            return False
        if self._events.readers(trace_id) or (live.group_id is not None and self._events.readers(live.group_id)):
            live.was_read = True
            return False
        return live.was_read

    def _nobody_came_back(self, trace_id: str) -> None:
        self._timers.pop(trace_id, None)
        if self._lonely(trace_id):
            self._give_up(trace_id)


def _worked_ms(timings: Mapping[str, Any]) -> int:
    """Active time before the last pause; rows of earlier versions lack the total."""
    return int(next((ms for name in ("total_ms", "first_text_ms", "queued_ms") if (ms := timings.get(name))), 0))

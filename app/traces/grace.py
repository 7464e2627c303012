"""Cancels traces with `background: false` a grace time after their last reader leaves.

A trace that never had a reader is not cancelled. On the event loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from app.traces.event_log import EventLog
from app.traces.live import LiveTrace


class GraceWatch:
    """Calls `give_up(trace_id)` when an active trace has had no readers for `grace_s` seconds."""

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

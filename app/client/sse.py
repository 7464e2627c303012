"""Reading `text/event-stream`: bytes in, events out, and where to go on after a broken connection.

Knows the wire format and the numbering of a log (contiguous from 1), and nothing of HTTP: `app.client.follow` feeds
it. Lines may end in LF, CR or CRLF and may be split anywhere, inside a character too.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from app.contract.words import JOB_TERMINAL, TERMINAL_EVENTS


class MalformedStream(Exception):
    """The server sent something that is not an event of this API."""


@dataclass(frozen=True)
class Event:
    """One event of a trace's log. `raw` is the data line as it came, `data` the object in it."""

    seq: int
    type: str
    data: dict[str, Any]
    raw: str = field(repr=False, compare=False, default="")

    @property
    def terminal(self) -> bool:
        return self.type in TERMINAL_EVENTS


class EventParser:
    """Incremental parser for one connection; a frame without its closing empty line is dropped, as in browsers."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._first = True
        self._after_cr = False
        self._data: list[str] = []
        self._type = ""
        self._id = ""

    def feed(self, chunk: bytes) -> list[Event]:
        """Takes the next bytes and returns the events that they complete. Raises MalformedStream."""
        self._buffer += chunk
        events = []
        while (line := self._next_line()) is not None:
            event = self._take(line)
            if event is not None:
                events.append(event)
        return events

    def _next_line(self) -> str | None:
        buffer = self._buffer
        if self._after_cr and buffer:  # the second half of a CRLF that was split
            self._after_cr = False
            if buffer[0] == 0x0A:
                del buffer[0]
        ends = [at for at in (buffer.find(b"\n"), buffer.find(b"\r")) if at >= 0]
        if not ends:
            return None
        end = min(ends)
        self._after_cr = buffer[end] == 0x0D
        line = buffer[:end].decode("utf-8", errors="replace")
        del buffer[: end + 1]
        if self._first:
            self._first = False
            line = line.removeprefix("\ufeff")
        return line

    def _take(self, line: str) -> Event | None:
        if not line:
            return self._dispatch()
        if line.startswith(":"):
            return None
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._type = value
        elif name == "id" and "\0" not in value:
            self._id = value
        return None

    def _dispatch(self) -> Event | None:
        raw, kind, self._data, self._type = "\n".join(self._data), self._type or "message", [], ""
        if not raw:
            return None
        try:
            data = json.loads(raw)
            seq = int(self._id)
        except ValueError as error:
            raise MalformedStream(f"event {kind!r} with id {self._id!r} is not JSON with a number: {error}") from error
        if not isinstance(data, dict):
            raise MalformedStream(f"event {kind!r} holds {type(data).__name__} instead of an object")
        return Event(seq=seq, type=kind, data=data, raw=raw)


class Cursor:
    """Where a reader stands in a log, across connections: lets every event through once and in order.

    `accept` answers whether the event is the next one; one seen before is passed over, and a gap raises
    MalformedStream, upon which the connection is to be opened again from `seq`.
    """

    def __init__(self, after: int = 0) -> None:
        self.seq = after
        self.done = False

    def accept(self, event: Event) -> bool:
        if self.done or event.seq <= self.seq:
            return False
        if event.seq != self.seq + 1:
            raise MalformedStream(f"event {event.seq} came after event {self.seq}")
        self.seq = event.seq
        self.done = event.terminal
        return True

    def closed(self) -> None:
        """The server has closed the stream; a trace's own last event says whether there is more."""

    def headers(self) -> dict[str, str]:
        position = {"Last-Event-ID": str(self.seq)} if self.seq else {}
        return {"Accept": "text/event-stream", "Cache-Control": "no-store", **position}


class JobCursor(Cursor):
    """The same in a job's log. A resumed job goes on after an end, so only the server knows which end is the last."""

    def __init__(self, after: int = 0) -> None:
        super().__init__(after)
        self._ended = False

    def accept(self, event: Event) -> bool:
        fresh = super().accept(event)
        if fresh:
            self._ended = event.type == "job.status" and event.data.get("status") in JOB_TERMINAL
        return fresh

    def closed(self) -> None:
        self.done = self._ended

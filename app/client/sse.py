"""Parser for `text/event-stream`, and the position for resuming after a broken connection.

Knows the wire format and the numbering of a log (contiguous from 1), but no HTTP: `app.client.follow` feeds it. Lines
may end in LF, CR or CRLF and may be split anywhere, even inside a character.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from app.contract.words import GROUP_END, JOB_TERMINAL, TERMINAL_EVENTS


class MalformedStream(Exception):
    """The stream contains something that is not an event of this API."""


@dataclass(frozen=True)
class Event:
    """One event of a log. `raw` is the data line as received, `data` its parsed object."""

    seq: int
    type: str
    data: dict[str, Any]
    raw: str = field(repr=False, compare=False, default="")

    @property
    def terminal(self) -> bool:
        """Whether this is the last event of a trace (in a group's log, of a member)."""
        return self.type in TERMINAL_EVENTS


class EventParser:
    """Incremental parser for one connection; drops a final frame without its empty line, as browsers do."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._first = True
        self._after_cr = False
        self._data: list[str] = []
        self._type = ""
        self._id = ""

    def feed(self, chunk: bytes) -> list[Event]:
        """Parses the next bytes and returns the completed events. Raises MalformedStream."""
        self._buffer += chunk
        events = []
        while (line := self._next_line()) is not None:
            event = self._take(line)
            if event is not None:
                events.append(event)
        return events

    def _next_line(self) -> str | None:
        buffer = self._buffer
        if self._after_cr and buffer:  # second half of a split CRLF
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
    """A reader's position in a log, across connections: passes every event once and in order.

    `accept` returns whether the event is the next one. It skips known events; a gap raises MalformedStream, after which
    the reader reconnects from `seq`.
    """

    def __init__(self, after: int = 0) -> None:
        self.seq = after
        self.done = False

    def accept(self, event: Event) -> bool:
        """Takes the next event and moves the position; see the class."""
        if self.done or event.seq <= self.seq:
            return False
        if event.seq != self.seq + 1:
            raise MalformedStream(f"event {event.seq} came after event {self.seq}")
        self.seq = event.seq
        self.done = self.ends(event)
        return True

    def ends(self, event: Event) -> bool:
        """Whether nothing follows this event."""
        return event.terminal

    def closed(self) -> None:
        """The server closed the stream; for traces and groups the last event decides whether more follows."""

    def headers(self) -> dict[str, str]:
        """Headers of a request that continues from this position."""
        position = {"Last-Event-ID": str(self.seq)} if self.seq else {}
        return {"Accept": "text/event-stream", "Cache-Control": "no-store", **position}


class GroupCursor(Cursor):
    """A position in a group's log, which goes on after the end of a member."""

    def ends(self, event: Event) -> bool:
        """Only the group's own end is the last event."""
        return event.type == GROUP_END


class JobCursor(Cursor):
    """A position in a job's log. A job may be resumed after its end, so only the server knows the last end."""

    def __init__(self, after: int = 0) -> None:
        super().__init__(after)
        self._ended = False

    def accept(self, event: Event) -> bool:
        """Also notes whether the event ends the job."""
        fresh = super().accept(event)
        if fresh:
            self._ended = event.type == "job.status" and event.data.get("status") in JOB_TERMINAL
        return fresh

    def closed(self) -> None:
        """The log is complete if its last event was an end of the job."""
        self.done = self._ended

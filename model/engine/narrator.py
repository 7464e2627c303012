"""From tokens to the typed events of a trace, in token order.

:class:`Narrator` follows one sequence: it feeds the token stream to the template's parser, turns what the parser finds
into :class:`TraceEvent`s, asks for pictures to be decoded, and holds back the events behind an unfinished final picture
until it is there; a partial picture that is not done by then is dropped. It decodes nothing itself and knows no thread,
no URL and no store.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.text.parser import ParseEvent, TraceParser


@dataclass(frozen=True, slots=True)
class TraceEvent:
    """One event of a trace as the API names it; `data` lacks only what the server adds (image_id, url, skill)."""

    type: str
    data: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Told:
    """An event whose turn has come, with its picture if it has one."""

    event: TraceEvent
    png: bytes | None = None
    codes: tuple[int, ...] | None = None
    seen: bytes | None = None


@dataclass(frozen=True, slots=True)
class ImageJob:
    """A picture to decode. `codes` are the first k of N; the rest may be taken from `previous`."""

    ticket: int
    is_final: bool
    codes: tuple[int, ...]
    previous: tuple[int, ...] | None
    is_first: bool = False  # the trace's first whole picture: `previous` is the question's


@dataclass(frozen=True, slots=True)
class ImageResult:
    """A decoded picture. `stats` only of final ones: {codes, flatness, tv, perception_reward}; `seen` is the decode of
    the job's `previous`, where that was asked for."""

    png: bytes
    width: int
    height: int
    stats: dict[str, float] | None = None
    seen: bytes | None = None


@dataclass(slots=True)
class _Entry:
    """One place in the order of events; `waits` until its picture is there."""

    event: TraceEvent | None
    end: object = None
    png: bytes | None = None
    codes: tuple[int, ...] | None = None
    seen: bytes | None = None
    waits: bool = False
    ticket: int = -1


class Narrator:
    """One request's events. Call `feed` for each token, `finish` or `end` once, and `take` after each."""

    def __init__(
        self,
        parser: TraceParser,
        *,
        partial_images: int = 0,
        previous: tuple[int, ...] | None = None,
        skip: int = 0,
        step_mode: bool = False,
    ) -> None:
        """`previous` are the codes of the question's last picture, `skip` how many parse events were told before (a
        resumed trace, whose tokens are fed again), `step_mode` whether to pause where a step ends."""
        self.parser = parser
        self.step_mode = step_mode
        self.paused_after: int | None = None  # the step whose end paused this narration
        self.num_parsed = 0  # parse events told, those skipped included
        self.num_images = 0
        self._partial_images = partial_images
        self._previous = previous
        self._skip = skip
        self._codes: list[int] = []
        self._partial_at: dict[int, int] = {}
        self._entries: deque[_Entry] = deque()
        self._waiting: dict[int, _Entry] = {}
        self._next_ticket = 0

    def feed(self, token_id: int) -> list[ImageJob]:
        """Take the next token. Returns the pictures to decode now."""
        return self._tell(self.parser.feed(token_id))

    def finish(self) -> list[ImageJob]:
        """The sequence is over: what the parser held back comes out."""
        self.step_mode = False
        return self._tell(self.parser.finish())

    def end(self, value: object) -> None:
        """Put `value` behind all events; `take` returns it when its turn comes."""
        self._entries.append(_Entry(None, end=value))

    def image_done(self, ticket: int, result: ImageResult) -> None:
        """A picture is decoded. One that was dropped meanwhile is ignored."""
        entry = self._waiting.pop(ticket, None)
        if entry is None or entry.event is None:
            return
        entry.png, entry.seen, entry.waits = result.png, result.seen, False
        if entry.event.type == "image.completed":
            entry.event.data.update(width=result.width, height=result.height, stats=result.stats)
            self._drop_partials_before(entry)

    def image_skipped(self, ticket: int) -> None:
        """A partial picture will not be decoded: its event goes out without one."""
        entry = self._waiting.pop(ticket, None)
        if entry is not None:
            entry.waits = False

    def take(self) -> list[Told | object]:
        """Everything whose turn has come."""
        told: list[Told | object] = []
        while self._entries and not self._entries[0].waits:
            entry = self._entries.popleft()
            told.append(entry.end if entry.event is None else Told(entry.event, entry.png, entry.codes, entry.seen))
        return told

    def _tell(self, events: Iterable[ParseEvent]) -> list[ImageJob]:
        jobs: list[ImageJob] = []
        for event in events:
            if self.paused_after is not None:
                break  # told when the trace goes on: its tokens are fed again then
            self.num_parsed += 1
            jobs += self._tell_one(event, silent=self.num_parsed <= self._skip)
        return jobs

    def _tell_one(self, event: ParseEvent, *, silent: bool) -> list[ImageJob]:
        from model.text import parser as p

        match event:
            case p.StepStarted(step=step):
                self._add("step.started", {"step": step}, silent)
            case p.TextDelta(step=step, text=text):
                self._add("text.delta", {"step": step, "text": text}, silent)
            case p.AnswerDelta(text=text):
                self._add("answer.delta", {"text": text}, silent)
            case p.ImageStarted(step=step):
                self._codes = []
                self._add("image.started", {"step": step}, silent)
            case p.CodeDrawn():
                return self._code(event, silent)
            case p.ImageCompleted(step=step, codes=codes):
                self.num_images += 1
                before, self._previous = self._previous, codes
                if not silent:
                    return [self._image(TraceEvent("image.completed", {"step": step}), codes, before, final=True)]
            case p.StepCompleted(step=step):
                self._add("step.completed", {"step": step}, silent)
                if self.step_mode and not silent:
                    self.paused_after = step
        return []

    def _code(self, event: Any, silent: bool) -> list[ImageJob]:
        if not self._codes:
            count, parts = event.count, self._partial_images
            self._partial_at = {round(count * (i + 1) / (parts + 1)): i for i in range(parts + 1)} if parts else {}
        self._codes.append(event.code)
        done = len(self._codes)
        index = self._partial_at.get(done)
        if index is None or silent:
            return []
        data = {"step": event.step, "index": index, "codes_done": done, "codes_total": event.count}
        if done == event.count:  # the whole picture comes next; until it is decoded, this says what is waited for
            self._add("image.partial", data, silent)
            return []
        return [self._image(TraceEvent("image.partial", data), tuple(self._codes), self._previous, final=False)]

    def _image(
        self, event: TraceEvent, codes: tuple[int, ...], previous: tuple[int, ...] | None, *, final: bool
    ) -> ImageJob:
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        entry = _Entry(event, codes=codes if final else None, waits=True, ticket=ticket)
        self._entries.append(entry)
        self._waiting[ticket] = entry
        return ImageJob(ticket, final, codes, previous, is_first=final and self.num_images == 1)

    def _add(self, kind: str, data: dict[str, Any], silent: bool) -> None:
        if not silent:
            self._entries.append(_Entry(TraceEvent(kind, data)))

    def _drop_partials_before(self, final: _Entry) -> None:
        kept: deque[_Entry] = deque()
        behind = False
        for entry in self._entries:
            behind = behind or entry is final
            late = not behind and entry.waits and entry.event is not None and entry.event.type == "image.partial"
            if late:
                self._waiting.pop(entry.ticket, None)
            else:
                kept.append(entry)
        self._entries = kept

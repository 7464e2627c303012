"""Converts tokens into the typed events of a trace, in token order.

:class:`Narrator` follows one sequence: it feeds the token stream to the template's parser, converts the parser's output
into :class:`Emitted` events and requests image decoding. Events after a complete image wait until it is decoded; a
partial image that is late is dropped. It decodes nothing itself and knows no threads, URLs or storage.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from model.engine.messages import Emitted, Tokens, TraceEvent

if TYPE_CHECKING:
    from model.text.parser import ParseEvent, TraceParser


@dataclass(frozen=True, slots=True)
class ImageJob:
    """An image to decode. `codes` are the first k of N; the rest may be taken from `previous`."""

    ticket: int
    is_final: bool
    codes: tuple[int, ...]
    previous: tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class ImageResult:
    """A decoded image. `stats` only for final ones: {codes, flatness, tv, perception_reward, copied?, passes?}."""

    png: bytes
    width: int
    height: int
    stats: dict[str, float] | None = None


@dataclass(slots=True)
class _Entry:
    """One position in the order of events; `waits` for its image."""

    event: TraceEvent | None
    end: object = None
    png: bytes | None = None
    tokens: Tokens | None = None
    waits: bool = False
    ticket: int = -1
    passes: int = 0  # of a generated image
    images: dict[int, bytes | None] = field(default_factory=dict)  # of several images, by ticket
    parsed: int = 0  # parse events up to this one
    begins: int = 0  # tokens before an image with candidates


class Narrator:
    """One request's events. Call `feed` for each token, `finish` or `end` once, and `take` after each."""

    def __init__(
        self,
        parser: TraceParser,
        *,
        partial_images: int = 0,
        previous: tuple[int, ...] | None = None,
        skip: int = 0,
        given: tuple[int, int] = (0, 0),
        step_mode: bool = False,
    ) -> None:
        """`previous` are the codes of the question's last image, `step_mode` whether to pause after each step.

        A resumed trace feeds its tokens again: `skip` is the number of parse events to suppress, `given` those of its
        given steps and of their tokens.
        """
        self.parser = parser
        self.step_mode = step_mode
        self.paused_after: int | None = None  # the step at whose end the narration paused
        self.num_parsed = 0  # parse events so far, skipped ones included
        self.num_images = 0
        self.logprobs: list[float] = []  # of all tokens so far
        self._num_told = 0  # parse events up to the last one that was taken
        self._num_given = 0  # parse events of given steps
        self._partial_images = partial_images
        self._previous = previous
        self._skip = skip
        self._codes: list[int] = []
        self.passes: list[int] = []  # forward passes of each image so far
        self._num_begun = 0  # images
        self._held: ImageJob | None = None  # a partial image whose pass goes on
        self._partial_at: dict[int, int] = {}
        self._entries: deque[_Entry] = deque()
        self._waiting: dict[int, _Entry] = {}
        self._next_ticket = 0
        self.given = given  # steps, and their tokens
        self._ids: list[int] = []  # tokens since the last complete step
        self._logprobs: list[float] = []

    def feed(
        self, token_id: int, logprob: float = math.nan, *, ends_pass: bool = True, passes: int = 0
    ) -> list[ImageJob]:
        """Take the next token; return the images to decode now.

        Of the partial images of one forward pass, only the last is decoded. `passes` counts the forward passes of an
        image up to this code; a given code had none.
        """
        self._note(token_id, logprob)
        if passes:
            self.passes[-1] = passes
        jobs = []
        for job in self._emit(self.parser.feed(token_id)):
            if job.is_final:
                jobs.append(job)
            else:
                self._skip_held()
                self._held = job
        if ends_pass and self._held is not None:
            jobs.append(self._held)
            self._held = None
        return jobs

    def _skip_held(self) -> None:
        if self._held is not None:
            self.image_skipped(self._held.ticket)

    def _note(self, token_id: int, logprob: float) -> None:
        self.logprobs.append(logprob)
        self._ids.append(token_id)
        self._logprobs.append(logprob)

    def feed_again(
        self, tokens: Sequence[int], logprobs: Sequence[float] = (), passes: Sequence[int] = ()
    ) -> list[ImageJob]:
        """Take the tokens of a resumed trace, whose first `skip` events were emitted before.

        Without `logprobs`, those after the last complete step count as taken. `passes` are those of its images.
        """
        jobs, self.passes = [], list(passes)
        for token, logprob in zip(tokens, logprobs or [math.nan] * len(tokens), strict=True):
            self._note(token, logprob)
            jobs += self._emit(self.parser.feed(token))
            if len(self.logprobs) <= self.given[1]:
                self._ids, self._logprobs = [], []
        if not logprobs:
            self._ids, self._logprobs = [], []
        return jobs

    def keep(self, step: int, tokens: Iterable[int], *, decode: bool) -> list[ImageJob]:
        """Take a given step as one `step.kept`; `decode` its image, if it has one, since it is not known yet."""
        ids = tuple(tokens)
        images = self.num_images
        skip, self._skip = self._skip, 1 << 62
        for token in ids:
            self._emit(self.parser.feed(token))
        self._skip = skip
        self.logprobs += [math.nan] * len(ids)
        self.given = step, len(self.logprobs)
        self._num_given = self.num_parsed
        event = TraceEvent("step.kept", {"step": step})
        given = Tokens(ids, (math.nan,) * len(ids))
        if not decode or self.num_images == images or self._previous is None:
            self._append(_Entry(event, tokens=given))
            return []
        return [self._image(event, self._previous, None, final=True, tokens=given)]

    def begin(self, tokens: Iterable[int]) -> list[ImageJob]:
        """Take the given beginning of the next part; its text becomes one delta."""
        jobs = [job for token in tokens for job in self.feed(token)]
        merged: deque[_Entry] = deque()
        for entry in self._entries:
            last = merged[-1].event if merged else None
            if last is not None and entry.event is not None and last.type == entry.event.type == "text.delta":
                last.data["text"] += entry.event.data["text"]
                merged[-1].parsed = entry.parsed
            else:
                merged.append(entry)
        self._entries = merged
        return jobs

    def candidates(self, images: Sequence[tuple[int, ...]], scores: Sequence[float], chosen: int) -> list[ImageJob]:
        """Take the codes and scores of the running image's candidates; the chosen one's codes are fed as usual."""
        shown = [round(score, 6) if math.isfinite(score) else None for score in scores]
        event = TraceEvent("image.candidates", {"step": len(self.parser.steps), "scores": shown, "chosen": chosen})
        entry = _Entry(event, waits=True, begins=len(self.logprobs) - len(images[chosen]))
        self._append(entry)
        jobs = []
        for codes in images:
            ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
            entry.images[ticket], self._waiting[ticket] = None, entry
            jobs.append(ImageJob(ticket, True, codes, self._previous))
        return jobs

    def finish(self) -> list[ImageJob]:
        """End the sequence and flush the parser."""
        self.step_mode = False
        return self._emit(self.parser.finish())

    def end(self, value: object) -> None:
        """Append `value` after all events; `take` returns it in order."""
        self._append(_Entry(None, end=value))

    def take_tokens(self) -> Tokens:
        """The tokens since the last complete step, once."""
        tokens = Tokens(tuple(self._ids), tuple(self._logprobs))
        self._ids, self._logprobs = [], []
        return tokens

    def image_done(self, ticket: int, result: ImageResult) -> None:
        """Store a decoded image; results for dropped images are ignored."""
        entry = self._waiting.pop(ticket, None)
        if entry is None or entry.event is None:
            return
        if entry.images:
            entry.images[ticket] = result.png
            entry.waits = None in entry.images.values()
            return
        entry.png, entry.waits = result.png, False
        if entry.event.type != "image.partial":
            stats = result.stats
            if stats is not None and entry.passes:
                stats = {**stats, "passes": entry.passes}
            entry.event.data.update(width=result.width, height=result.height, stats=stats)
            self._drop_partials_before(entry)

    def image_skipped(self, ticket: int) -> None:
        """Emit a partial event without its image."""
        entry = self._waiting.pop(ticket, None)
        if entry is not None:
            entry.waits = False

    def take(self) -> list[Emitted | object]:
        """Return every event that is ready."""
        ready: list[Emitted | object] = []
        while self._entries and not self._entries[0].waits:
            entry = self._entries.popleft()
            self._num_told = entry.parsed if self._entries else self.num_parsed
            images = tuple(png for png in entry.images.values() if png is not None)
            ready.append(entry.end if entry.event is None else Emitted(entry.event, entry.png, entry.tokens, images))
        return ready

    @property
    def resumable(self) -> tuple[int, int] | None:
        """Tokens and parse events from which a narrator goes on after what was taken; None among the given steps.

        The tokens end before an image whose candidates have not been taken: those are drawn again.
        """
        if self._num_told < self._num_given:
            return None
        begins = [entry.begins for entry in self._entries if entry.images]
        return min([len(self.logprobs), *begins]), self._num_told

    def _append(self, entry: _Entry) -> None:
        entry.parsed = self.num_parsed
        self._entries.append(entry)

    def _emit(self, events: Iterable[ParseEvent]) -> list[ImageJob]:
        jobs: list[ImageJob] = []
        for event in events:
            if self.paused_after is not None:
                break  # emitted after the trace resumes: its tokens are fed again
            self.num_parsed += 1
            jobs += self._emit_one(event, silent=self.num_parsed <= self._skip)
        return jobs

    def _emit_one(self, event: ParseEvent, *, silent: bool) -> list[ImageJob]:
        from model.text import parser as p

        match event:
            case p.StepStarted(step=step):
                self._add("step.started", {"step": step}, silent)
            case p.TextDelta(step=step, text=text):
                self._add("text.delta", {"step": step, "text": text}, silent)
            case p.AnswerDelta(text=text):
                self._add("answer.delta", {"text": text}, silent)
            case p.ImageStarted(step=step):
                self._codes, self._num_begun = [], self._num_begun + 1
                self.passes += [0] * (self._num_begun - len(self.passes))
                self._add("image.started", {"step": step}, silent)
            case p.CodeGenerated():
                return self._code(event, silent)
            case p.ImageCompleted(step=step, codes=codes):
                self.num_images += 1
                before, self._previous = self._previous, codes
                if not silent:
                    return [self._image(TraceEvent("image.completed", {"step": step}), codes, before, final=True)]
            case p.StepCompleted(step=step) if step > self.given[0]:
                self._add("step.completed", {"step": step}, silent, self.take_tokens())
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
        if done == event.count:  # the complete image follows; this event announces it
            self._add("image.partial", data, silent)
            return []
        return [self._image(TraceEvent("image.partial", data), tuple(self._codes), self._previous, final=False)]

    def _image(
        self,
        event: TraceEvent,
        codes: tuple[int, ...],
        previous: tuple[int, ...] | None,
        *,
        final: bool,
        tokens: Tokens | None = None,
    ) -> ImageJob:
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        passes = self.passes[self._num_begun - 1] if self._num_begun else 0
        entry = _Entry(event, tokens=tokens, waits=True, ticket=ticket, passes=passes)
        self._append(entry)
        self._waiting[ticket] = entry
        return ImageJob(ticket, final, codes, previous)

    def _add(self, kind: str, data: dict[str, Any], silent: bool, tokens: Tokens | None = None) -> None:
        if not silent:
            self._append(_Entry(TraceEvent(kind, data), tokens=tokens))

    def _drop_partials_before(self, final: _Entry) -> None:
        kept: deque[_Entry] = deque()
        reached = False
        for entry in self._entries:
            reached = reached or entry is final
            late = not reached and entry.waits and entry.event is not None and entry.event.type == "image.partial"
            if late:
                self._waiting.pop(entry.ticket, None)
            else:
                kept.append(entry)
        self._entries = kept

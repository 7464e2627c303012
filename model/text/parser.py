"""A response's token ids -> steps, images and answer, one token at a time.

Steps count from 1 and start with their first visible text or their image. A step ends at its end-of-image, at the next
step's mark, at the answer, or with the sequence. Marks (``THOUGHT k:`` with any number; ``Final Answer:`` in the
*plain* template, the reserved brackets and the lead phrase before them in the *tagged* one) are never part of a text: a
possible prefix of a mark is held back, as is white space, which only counts between two words of one text. Hence the
deltas of a step add up exactly to its text, and those of the answer to the answer.

Knows nothing of engines, wire events or pixels. :mod:`model.text.template` renders.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from model.text.tokenizer import IncrementalDetokenizer, TextTokenizer
from model.text.vocab import Vocabulary

FINAL_ANSWER = "Final Answer:"
_THOUGHT = "THOUGHT "
_STEP_MARK = re.compile(r"THOUGHT [0-9]{1,3}:")
_MARK = re.compile(r"THOUGHT [0-9]{1,3}:|Final Answer:")
_HALF_MARK = re.compile(r"THOUGHT [0-9]{0,3}")
_LONGEST_MARK = 13
_LONGEST_LEAD = 80


def thought_mark(k: int) -> str:
    """The mark that opens step ``k`` in the plain template."""
    return f"{_THOUGHT}{k}:"


def mark_pattern(template: str) -> re.Pattern[str]:
    """The marks that are text in this template; *tagged* brackets its answer."""
    return _STEP_MARK if template == "tagged" else _MARK


@dataclass(frozen=True)
class StepStarted:
    """A step starts (``step`` from 1)."""

    step: int


@dataclass(frozen=True)
class TextDelta:
    """More of the step's text."""

    step: int
    text: str


@dataclass(frozen=True)
class ImageStarted:
    """The step's image starts."""

    step: int


@dataclass(frozen=True)
class CodeGenerated:
    """Code number ``index`` (from 0) of the step's image, of ``count`` (N) in all."""

    step: int
    index: int
    count: int
    code: int


@dataclass(frozen=True)
class ImageCompleted:
    """End-of-image after exactly N ``codes``; ``index`` counts the response's images from 0."""

    step: int
    index: int
    codes: tuple[int, ...]


@dataclass(frozen=True)
class StepCompleted:
    """The step is complete."""

    step: int


@dataclass(frozen=True)
class AnswerDelta:
    """More of the answer."""

    text: str


ParseEvent = StepStarted | TextDelta | ImageStarted | CodeGenerated | ImageCompleted | StepCompleted | AnswerDelta


class TraceParser:
    """Parses a response's ids incrementally, emitting events once they are certain.

    Attributes (final after :meth:`finish`):
        steps: text and codes (None: no complete image) of each step so far.
        answer: the text after the answer mark, stripped; None without a mark.
        unmarked: the answer is the text after the last image, since a *plain* response ended without a mark, as with
            the authors' checkpoints; the text also stays in its steps.
        well_formed: the response is a complete trajectory of its template: at least one step, every image complete, one
            answer with text, the brackets in order (*tagged*), EOS, and nothing else.
    """

    def __init__(self, template: str, vocab: Vocabulary, tokenizer: TextTokenizer) -> None:
        self._vocab = vocab
        self._detokenizer: IncrementalDetokenizer = tokenizer.detokenizer()
        self._brackets: list[int | None] = []
        self._marks = mark_pattern(template)
        if template == "tagged":
            v = vocab
            self._brackets = [v.thought_open_id, v.thought_close_id, v.answer_open_id, v.answer_close_id]
        self._seen_brackets = 0
        self._held = ""  # text that may become a mark, or white space that may be outer
        self._codes: list[int] | None = None  # codes of the current image
        self._num_images = 0
        self._open = False  # whether a step is open
        self._answering = False
        self._leading = bool(self._brackets)  # before the first bracket: the lead phrase is not a step
        self._faults = False
        self._ended = False
        self._finished = False
        self._texts: list[str] = []
        self._images: list[tuple[int, ...] | None] = []
        self._answer: str | None = None
        self._unmarked = False

    @property
    def steps(self) -> list[tuple[str, tuple[int, ...] | None]]:
        """Text and codes of each step so far."""
        return list(zip(self._texts, self._images, strict=True))

    @property
    def answer(self) -> str | None:
        """The answer so far, or None before its mark."""
        return self._answer

    @property
    def unmarked(self) -> bool:
        """Whether a finished response has an answer without a mark."""
        return self._unmarked

    @property
    def well_formed(self) -> bool:
        """Whether a finished response is a complete trajectory (method: R_Fmt)."""
        brackets_closed = self._seen_brackets == len(self._brackets)
        return (
            self._finished
            and self._ended
            and not self._faults
            and brackets_closed
            and bool(self._texts and self._answer and not self._unmarked)
        )

    def feed(self, token_id: int) -> list[ParseEvent]:
        """Take the response's next id; return the events that it makes certain."""
        if self._finished or self._ended:
            self._faults = True
            return []
        vocab = self._vocab
        if self._codes is not None:
            return self._feed_image(self._codes, token_id)
        if token_id in vocab.reserved_ids or vocab.is_code(token_id):
            events = self._text(self._detokenizer.flush())
            return events + self._feed_special(token_id)
        return self._text(self._detokenizer.push(token_id))

    def finish(self) -> list[ParseEvent]:
        """End the response: flush held text and close an open step; a second call returns nothing."""
        if self._finished:
            return []
        events: list[ParseEvent] = []
        if self._codes is not None:
            self._faults = True
            self._codes = None
        else:
            events += self._text(self._detokenizer.flush()) + self._release()
        self._finished = True
        return events + self._end_step() + self._unmarked_answer()

    def _unmarked_answer(self) -> list[ParseEvent]:
        """The text after the last image of a plain response that ended without an answer mark."""
        if self._brackets or self._answer is not None or not self._ended or not self._num_images:
            return []
        last = max(k for k, codes in enumerate(self._images) if codes is not None)
        text = "\n".join(filter(None, self._texts[last + 1 :]))
        if not text:
            return []
        self._answer, self._unmarked = text, True
        return [AnswerDelta(text)]

    def _feed_image(self, codes: list[int], token_id: int) -> list[ParseEvent]:
        total, step = self._vocab.codes_per_image, len(self._texts)
        code = self._vocab.id_to_code(token_id)
        if code is not None and len(codes) < total:
            codes.append(code)
            return [CodeGenerated(step, len(codes) - 1, total, code)]
        self._codes = None
        if token_id == self._vocab.eoi_id and len(codes) == total:
            self._images[-1] = tuple(codes)
            self._num_images += 1
            return [ImageCompleted(step, self._num_images - 1, tuple(codes)), *self._end_step()]
        self._faults = True  # truncated, or too long
        events = self._end_step()
        return events if token_id == self._vocab.eoi_id else events + self.feed(token_id)

    def _feed_special(self, token_id: int) -> list[ParseEvent]:
        if token_id == self._vocab.boi_id:
            events = self._release()
            self._faults |= self._answering or self._outside()
            self._codes = []
            return [*events, *self._begin_step(), ImageStarted(len(self._texts))]
        if token_id == self._vocab.eos_id:
            self._ended = True
            return self._release()
        if token_id in self._brackets:
            return self._bracket(self._brackets.index(token_id))
        self._faults = True
        return []

    def _bracket(self, which: int) -> list[ParseEvent]:
        """Handle thought-open, thought-close, answer-open or answer-close."""
        if which == 0 and self._leading and len(self._held) <= _LONGEST_LEAD:
            self._held = ""
        events = self._release()
        self._leading = False
        if which != self._seen_brackets:
            self._faults = True
        self._seen_brackets = max(self._seen_brackets, which + 1)
        if which == 1 or (which == 2 and self._open):
            events += self._end_step()
        if which == 2 and self._answer is None:
            self._answer = ""
        self._answering = which == 2
        return events

    def _outside(self) -> bool:
        """Whether text or images at this position are outside every part of the tagged template."""
        return bool(self._brackets) and self._seen_brackets not in (1, 3)

    def _text(self, text: str) -> list[ParseEvent]:
        """Take new characters: emit certain text, hold back the rest."""
        if not text:
            return []
        self._held += text
        if self._leading:
            if len(self._held) <= _LONGEST_LEAD:
                return []
            self._leading = False
        events: list[ParseEvent] = []
        while not self._answering and (match := self._marks.search(self._held)):
            before, self._held = self._held[: match.start()], self._held[match.end() :]
            events += self._emit(before.rstrip()) + self._end_step()
            if match[0] == FINAL_ANSWER:
                self._answering = True
                self._answer = ""
        certain = len(self._held) if self._answering else _certain_length(self._held)
        certain = len(self._held[:certain].rstrip())
        said, self._held = self._held[:certain], self._held[certain:]
        return events + self._emit(said)

    def _release(self) -> list[ParseEvent]:
        """Emit the held text without its outer white space: nothing more can join it."""
        self._leading = False
        said, self._held = self._held.rstrip(), ""
        return self._emit(said)

    def _emit(self, text: str) -> list[ParseEvent]:
        """Emit text to the answer or the current step, opening one if needed."""
        if self._answering and self._answer is not None:
            text = text if self._answer else text.lstrip()
            self._answer += text
            return [AnswerDelta(text)] if text else []
        text = text if self._open and self._texts[-1] else text.lstrip()
        if not text:
            return []
        if self._outside():
            self._faults = True
            if self._answer is not None:
                return []  # nothing is emitted after the answer
        events = self._begin_step()
        self._texts[-1] += text
        return [*events, TextDelta(len(self._texts), text)]

    def _begin_step(self) -> list[ParseEvent]:
        if self._open:
            return []
        self._open = True
        self._texts.append("")
        self._images.append(None)
        return [StepStarted(len(self._texts))]

    def _end_step(self) -> list[ParseEvent]:
        if not self._open:
            return []
        self._open = False
        return [StepCompleted(len(self._texts))]


def _certain_length(text: str) -> int:
    """Number of leading characters of ``text`` (without a complete mark) that can no longer belong to a mark."""
    for start in range(max(0, len(text) - _LONGEST_MARK), len(text)):
        rest = text[start:]
        if _THOUGHT.startswith(rest) or FINAL_ANSWER.startswith(rest) or _HALF_MARK.fullmatch(rest):
            return start
    return len(text)

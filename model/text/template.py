r"""The only renderer of prompts and trajectories: parts -> ids + loss mask. The inverse is :mod:`model.text.parser`.

A checkpoint's manifest names one of two templates:

* *plain* (Omni-R1): ``BOS, question with its images`` ‖ ``THOUGHT k: text, image`` for each step, then
  ``\nFinal Answer: answer, EOS``;
* *tagged* (Omni-R1-Zero): ``BOS, prefix, question with its images, suffix`` ‖ ``lead phrase, <thought> text, image
  ... </thought> <answer> answer </answer>, EOS`` with four reserved tokens as brackets.

‖ is the loss boundary: prompt tokens carry no loss. ``<image_k>`` places a question's images; the others precede its
text. Question, step texts and answer are literal text otherwise: they never produce special tokens. The wire strings
are those of the released checkpoints and must not be reworded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from model.text.parser import (
    FINAL_ANSWER,
    AnswerDelta,
    CodeGenerated,
    ImageCompleted,
    ImageStarted,
    ParseEvent,
    StepCompleted,
    StepStarted,
    TextDelta,
    TraceParser,
    mark_pattern,
    thought_mark,
)
from model.text.places import split_places
from model.text.tokenizer import TextTokenizer
from model.text.vocab import Vocabulary

__all__ = [
    "AnswerDelta",
    "CodeGenerated",
    "ImageCompleted",
    "ImagePart",
    "ImageStarted",
    "ParseEvent",
    "Rendered",
    "StepCompleted",
    "StepPart",
    "StepStarted",
    "Template",
    "TemplateName",
    "TextDelta",
    "TextPart",
    "TraceParser",
    "question_parts",
]

TemplateName = Literal["plain", "tagged"]

_PREFIX = "You are a helpful assistant.\nUser: "
_SUFFIX = (
    " Think with images first. The image reasoning process and answer are enclosed within "
    "<reserved12856> <reserved12857> and <reserved12866> <reserved12867> XML tags, respectively.\nAssistant:"
)
LEAD_PHRASE = "Let's think step-by-step."


@dataclass(frozen=True)
class TextPart:
    """Literal text."""

    text: str


@dataclass(frozen=True)
class ImagePart:
    """An image by its codes; None stands for an image that is only counted."""

    codes: tuple[int, ...] | None


Part = TextPart | ImagePart


@dataclass(frozen=True)
class StepPart:
    """One reasoning step: its text and the functional image that ends it, if any."""

    text: str
    image: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Rendered:
    """A token sequence and, of equal length, its loss mask: 0 prompt, 1 response."""

    ids: list[int]
    loss_mask: list[int]


def question_parts(text: str, images: Sequence[tuple[int, ...] | None]) -> list[Part]:
    """Split a question into parts in reading order; images without an ``<image_k>`` placeholder come first.

    Raises:
        PlaceError: the text names a missing image.
    """
    pieces = split_places(text, len(images))
    return [TextPart(piece) if isinstance(piece, str) else ImagePart(images[piece]) for piece in pieces]


class Template:
    """Renders and parses the sequences of one checkpoint."""

    def __init__(self, name: TemplateName, vocab: Vocabulary, tokenizer: TextTokenizer) -> None:
        """Bind a template to a checkpoint's vocabulary and tokenizer.

        Raises:
            ValueError: an unknown name, or *tagged* for a vocabulary without the four reserved tags.
        """
        if name not in get_args(TemplateName):
            raise ValueError(f"unknown template {name!r}: use plain or tagged")
        if name == "tagged" and not vocab.has_tags:
            raise ValueError("the tagged template needs the four reserved tags, which this vocabulary lacks")
        self.name: TemplateName = name
        self.vocab = vocab
        self.tokenizer = tokenizer
        self._before = [vocab.bos_id]
        self._after: list[int] = []
        if name == "tagged":
            self._before = [vocab.bos_id, *tokenizer.encode(_PREFIX)]
            self._after = self._wire_ids(_SUFFIX)

    @classmethod
    def read(cls, folder: str | Path, name: TemplateName | None = None) -> Template:
        """Read the template of a checkpoint folder: the manifest's, or ``name`` if given.

        Raises:
            ConfigError: tokenizer or config is missing or broken.
            ValueError: the name is unknown or does not fit the vocabulary.
        """
        return cls(name or _manifest_template(Path(folder)), Vocabulary.read(folder), TextTokenizer(folder))

    def prompt_ids(self, question: str | Sequence[Part], images: Sequence[tuple[int, ...] | None] = ()) -> list[int]:
        """Everything before the loss boundary.

        Args:
            question: its parts in order, or its text, with ``<image_k>`` as the placeholder of image k.
            images: codes of a text's images; None for one that is only counted. Those without a placeholder come first.

        Raises:
            PlaceError: the text names a missing image.
        """
        parts = question_parts(question, images) if isinstance(question, str) else question
        return [*self._before, *self._parts_ids(parts), *self._after]

    def prompt_len(self, question: str, num_images: int = 0) -> int:
        """Length of :meth:`prompt_ids` for that many images."""
        return len(self.prompt_ids(question, [None] * num_images))

    def render(
        self,
        question: str,
        images: Sequence[tuple[int, ...] | None],
        steps: Sequence[StepPart],
        answer: str,
        *,
        images_in_response: bool = True,
    ) -> Rendered:
        """Render a complete trajectory. ``images_in_response=False`` omits images (the text-only control)."""
        if not images_in_response:
            steps = [StepPart(step.text) for step in steps]
        prompt = self.prompt_ids(question, images)
        response = self.response_ids(steps, answer)
        return Rendered(prompt + response, [0] * len(prompt) + [1] * len(response))

    def response_ids(self, steps: Sequence[StepPart], answer: str) -> list[int]:
        """Everything after the loss boundary, including EOS."""
        vocab, encode = self.vocab, self.tokenizer.encode
        steps_ids = self.steps_ids(steps)
        if self.name == "plain":
            return [*steps_ids, *encode(f"\n{FINAL_ANSWER} {answer}"), vocab.eos_id]
        return [
            *self.opening_ids(),
            *steps_ids,
            *self.answer_mark_ids(),
            *encode(answer),
            *_present(vocab.answer_close_id),
            vocab.eos_id,
        ]

    def opening_ids(self) -> list[int]:
        """The ids between the loss boundary and the first step."""
        if self.name == "plain":
            return []
        return [*self.tokenizer.encode(LEAD_PHRASE), *_present(self.vocab.thought_open_id)]

    def steps_ids(self, steps: Sequence[StepPart], first: int = 1) -> list[int]:
        """The steps alone, numbered from ``first``.

        *plain* marks each step; *tagged* only if the previous step did not end with an image. A mark after text starts
        a new line.
        """
        ids: list[int] = []
        after_text = False
        for k, step in enumerate(steps, first):
            ids += self.step_ids(step, k, after_text=after_text)
            after_text = step.image is None
        return ids

    def step_ids(self, step: StepPart, number: int, *, after_text: bool) -> list[int]:
        """One step; ``after_text``: the previous step has no image."""
        mark = thought_mark(number) if self.name == "plain" or after_text else ""
        text = step.text if not mark else f"{mark} {step.text}" if step.text else mark
        ids = self.tokenizer.encode(f"\n{text}" if after_text else text)
        return ids if step.image is None else ids + self._image_ids(step.image)

    def answer_mark_ids(self) -> list[int]:
        """The ids that end the steps and begin the answer."""
        if self.name == "plain":
            return self.tokenizer.encode(f"\n{FINAL_ANSWER}")
        return _present(self.vocab.thought_close_id, self.vocab.answer_open_id)

    def has_mark(self, text: str) -> bool:
        """Whether a text contains a mark of this template, which would end the step or begin the answer."""
        return mark_pattern(self.name).search(text) is not None

    def answer_tokens(self, response: Sequence[int]) -> range:
        """Where the answer's tokens stand in a response, without its mark and what closes it; empty without an answer.

        An answer without a mark begins after the last image (:attr:`TraceParser.unmarked`).
        """
        parser, start = self.parser(), None
        for i, token in enumerate(response):
            parser.feed(token)
            if start is None and parser.answer is not None:
                start = i if parser.answer else i + 1  # a token may hold the end of the mark and the answer's beginning
        parser.finish()
        if parser.unmarked:
            start = len(response) - list(reversed(response)).index(self.vocab.eoi_id)
        if start is None:
            return range(0)
        stop = next((i for i in range(start, len(response)) if response[i] in self.vocab.reserved_ids), len(response))
        return range(start, stop)

    def render_parts(self, prompt: Sequence[Part], response: Sequence[Part]) -> Rendered:
        """BOS + prompt ‖ response + EOS without marks: captions, drawing instructions and the like."""
        return self.render_turns([(prompt, response)])

    def render_turns(self, turns: Sequence[tuple[Sequence[Part], Sequence[Part]]]) -> Rendered:
        """BOS + (prompt ‖ response) in turn + EOS, unmarked: several orders in a row. Prompts carry no loss."""
        ids, mask = [self.vocab.bos_id], [0]
        for prompt, response in turns:
            for parts, learnt in ((prompt, 0), (response, 1)):
                piece = self._parts_ids(parts)
                ids += piece
                mask += [learnt] * len(piece)
        return Rendered([*ids, self.vocab.eos_id], [*mask, 1])

    def text_legal_ids(self) -> list[int]:
        """Ids that may be sampled as text: plain BPE tokens, this template's brackets and EOS (not begin-image)."""
        v = self.vocab
        marks = (
            (v.thought_open_id, v.thought_close_id, v.answer_open_id, v.answer_close_id)
            if self.name == "tagged"
            else ()
        )
        return sorted({*v.text_ids, *_present(*marks), v.eos_id})

    def parser(self) -> TraceParser:
        """Create a parser for one response."""
        return TraceParser(self.name, self.vocab, self.tokenizer)

    def _image_ids(self, codes: tuple[int, ...] | None) -> list[int]:
        return self.vocab.placeholder_ids() if codes is None else self.vocab.image_ids(codes)

    def _parts_ids(self, parts: Sequence[Part]) -> list[int]:
        ids: list[int] = []
        for part in parts:
            ids += self.tokenizer.encode(part.text) if isinstance(part, TextPart) else self._image_ids(part.codes)
        return ids

    def _wire_ids(self, text: str) -> list[int]:
        """Encode our own wire text, in which the reserved tags stand for their tokens."""
        ids: list[int] = []
        for piece in re.split(r"(<reserved\d+>)", text):
            known = self.vocab.tokens.get(piece)
            ids += self.tokenizer.encode(piece) if known is None else [known]
        return ids


def _present(*ids: int | None) -> list[int]:
    return [i for i in ids if i is not None]


def _manifest_template(folder: Path) -> TemplateName:
    try:
        name = json.loads((folder / "manifest.json").read_text("utf-8"))["template"]
    except (OSError, ValueError, KeyError, TypeError):
        return "plain"
    if name not in get_args(TemplateName):
        raise ValueError(f"manifest.json names the template {name!r}: use plain or tagged")
    return "plain" if name == "plain" else "tagged"

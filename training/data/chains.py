"""Text-only chains of thought, the input of Omni-R1-Zero (method, section 4).

A chain is a question, its image (if any), a few step texts and an answer. Chains come from the procedural world (the
steps' texts without images) or from M3CoT; a rationale is split into steps by an explicit list, by numbered lines or by
sentences, and neighbours are merged until at most N are left. Knows no models or tokens.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from training.data.row_images import SampleError
from training.data.traces import TokenIds

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from PIL.Image import Image

    from training.data.traces import TraceSample
    from training.world.task import Task

SplitBy = Literal["auto", "list", "numbered", "sentences"]
LETTERS = "ABCDEFGHIJ"

_NUMBERED = re.compile(r"^[ \t]*(?:(?:step|thought)[ \t]*)?\(?\d{1,3}[.):][ \t]+", re.IGNORECASE | re.MULTILINE)
_BOUNDARY = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[^\W_a-z])|\n\s*\n")
_ABBREVIATION = re.compile(r"\b(?:e\.g|i\.e|cf|vs|figs?|eq|dr|mrs?|ms|prof|approx|resp)\.$", re.IGNORECASE)


@dataclass(frozen=True)
class TextChain:
    """A question with a textual chain of thought. `task` is set if the world knows the right images."""

    chain_id: str
    slice: str
    question: str
    image: Image | None
    steps: tuple[str, ...]
    answer: str
    task: Task | None = None
    kind: str = ""  # of question, within the slice


class ChainError(SampleError):
    """The row is not a usable chain; the message names the field."""

    def __init__(self, detail: str) -> None:
        super().__init__("broken_row", detail)


def split_steps(rationale: str | Sequence[str], *, max_steps: int, by: SplitBy = "auto") -> list[str]:
    """Split a chain of thought into steps, at most ``max_steps``, in order and with every word kept.

    Args:
        rationale: the text, or a list of steps.
        max_steps: limit; neighbours are merged, the shortest pair first.
        by: ``auto`` uses the list, else two or more numbered lines, else sentences.

    Raises:
        ValueError: ``max_steps`` below 1, or ``list`` for a text.
    """
    if max_steps < 1:
        raise ValueError(f"max_steps must be at least 1, got {max_steps}")
    if not isinstance(rationale, str):
        steps = [" ".join(step.split()) for step in rationale]
    elif by == "list":
        raise ValueError("the splitter expects a list, but the rationale is one text")
    elif by == "numbered" or (by == "auto" and len(_NUMBERED.findall(rationale)) > 1):
        steps = _numbered(rationale)
    else:
        steps = _sentences(rationale)
    return _merged([step for step in steps if step], max_steps)


def _numbered(text: str) -> list[str]:
    """Split at the numbers; text before the first number belongs to the first step."""
    pieces = [" ".join(piece.split()) for piece in _NUMBERED.split(text)]
    if len(pieces) > 1 and pieces[0]:
        pieces[:2] = [f"{pieces[0]} {pieces[1]}".strip()]
    return pieces


def _sentences(text: str) -> list[str]:
    out: list[str] = []
    start = 0
    for match in _BOUNDARY.finditer(text):
        piece = text[start : match.start()].rstrip()
        if "\n" not in match[0] and _ABBREVIATION.search(piece):
            continue
        out.append(" ".join(text[start : match.end()].split()))
        start = match.end()
    return [*out, " ".join(text[start:].split())]


def _merged(steps: list[str], limit: int) -> list[str]:
    while len(steps) > limit:
        shortest = min(range(len(steps) - 1), key=lambda i: len(steps[i]) + len(steps[i + 1]))
        steps[shortest : shortest + 2] = [f"{steps[shortest]} {steps[shortest + 1]}"]
    return steps


def world_chain(task: Task, *, max_steps: int) -> TextChain:
    """The text of a task of the world; its images are only known to the judge of drawings."""
    steps = tuple(split_steps([step.text for step in task.steps], max_steps=max_steps))
    known = task if len(steps) == len(task.steps) else None  # merged steps have no image to compare with
    return TextChain(task.task_id, task.slice, task.question, task.image, steps, task.answer, known, task.family)


def m3cot_chain(row: Mapping[str, Any], image: Image | None, *, max_steps: int, by: SplitBy = "auto") -> TextChain:
    """Convert a row of M3CoT into a chain: the question with its choices, and the answer as ``(B) its text``.

    Args:
        row: ``id, question, choices, answer (a letter), rationale, domain`` and more.
        image: its opened image.
        max_steps: maximum number of steps.
        by: how to split the rationale.

    Raises:
        ChainError: question, answer or rationale is missing, or the answer names no choice.
    """
    question, rationale = _text(row, "question"), row.get("rationale")
    if isinstance(rationale, str):
        rationale = rationale.strip()
    if not rationale:
        raise ChainError("rationale is empty")
    if not isinstance(rationale, str) and not _are_texts(rationale):
        raise ChainError("rationale is neither a text nor a list of texts")
    choices = choices_of(row)
    answer = _text(row, "answer")
    if choices:
        letter = answer.strip("(). ").upper()
        if len(letter) != 1 or letter not in LETTERS[: len(choices)]:
            raise ChainError(f"answer {answer!r} names none of {len(choices)} choices")
        options = "\n".join(f"({LETTERS[i]}) {choice}" for i, choice in enumerate(choices[: len(LETTERS)]))
        question, answer = f"{question}\n{options}", f"({letter}) {choices[LETTERS.index(letter)]}"
    steps = split_steps(rationale, max_steps=max_steps, by=by)
    return TextChain(str(row.get("id", "")), str(row.get("domain") or "m3cot"), question, image, tuple(steps), answer)


def trace_chain(sample: TraceSample, *, max_steps: int, by: SplitBy = "auto") -> TextChain:
    """The text of a trace without its images; the question may have one.

    Raises:
        SampleError: ``too_many_pictures``, ``wrong_type`` for an image of token ids, or ``empty_reasoning``.
    """
    if len(sample.images) > 1:
        detail = f"the question has {len(sample.images)} images, but a chain starts from one"
        raise SampleError("too_many_pictures", detail)
    image = sample.images[0] if sample.images else None
    if isinstance(image, TokenIds):
        raise SampleError("wrong_type", "the question's image is token ids: a chain needs pixels")
    texts = [step.text for step in sample.steps if step.text]
    if not texts:
        raise SampleError("empty_reasoning", "no step has a text")
    steps = split_steps(texts if by in ("list", "auto") else "\n".join(texts), max_steps=max_steps, by=by)
    return TextChain(sample.where, sample.slice or "traces", sample.question, image, tuple(steps), sample.answer)


def choices_of(row: Mapping[str, Any]) -> tuple[str, ...]:
    """The options of a row of M3CoT, if any.

    Raises:
        ChainError: they are not a list of texts or numbers.
    """
    choices = row.get("choices")
    if choices is None:
        return ()
    if not isinstance(choices, list | tuple) or not all(isinstance(c, str | int | float) for c in choices):
        raise ChainError("choices is not a list of texts")
    return tuple(str(choice).strip() for choice in choices)


def _are_texts(value: object) -> bool:
    return isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)


def _text(row: Mapping[str, Any], field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str) or not value.strip():
        raise ChainError(f"{field} is empty")
    return value.strip()


def assigned_ids(chains: Iterable[TextChain]) -> Iterator[TextChain]:
    """Make the chains' ids non-empty and unique by appending their index where needed."""
    seen: set[str] = set()
    for number, chain in enumerate(chains):
        name = chain.chain_id
        if not name or name in seen:
            name = f"{name or 'row'}-{number}"
        seen.add(name)
        yield replace(chain, chain_id=name)

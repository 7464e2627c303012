"""Rows -> training traces: the authors' PeSFT jsonl, Zebra-CoT and saved traces; and the inverse.

All three have the fields ``Question``, ``Text Reasoning Trace`` and ``Final Answer``. A text refers to images as
``<image_start>[key]<image_end>``; the row has them under that key: as token ids (N + 2 with begin- and end-image, as
the authors' code writes them, or the N codes' alone), or as an image in any form that :mod:`training.data.rows` opens.

A row without a trace is a question (:func:`parse_question`). It may have the plain fields ``question``, ``answer`` and
``image`` or ``images`` instead.

A reasoning trace is split into steps at its ``THOUGHT k:`` marks and after every image, and rendered by the
checkpoint's own template, so that training matches serving. ``<image_k>`` in :attr:`TraceSample.question` places the
question's images; the others precede its text. Knows no models or vocabularies.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from training.data.places import NAMED, named_places, numbered, with_names
from training.data.row_images import SampleError, is_image
from training.data.rows import Rejection, Row, read_parsed

QUESTION, REASONING, ANSWER = "Question", "Text Reasoning Trace", "Final Answer"
_THOUGHT = re.compile(r"THOUGHT\s*\d{1,3}\s*:")
_FINAL = re.compile(r"(?:\A|\n|\s)Final Answer\s*:")
_PROBLEM_KEY = re.compile(r"problem_image_(\d+)")
PLAIN_QUESTION, PLAIN_ANSWER, PLAIN_IMAGES = "question", "answer", ("image", "images")


@dataclass(frozen=True)
class TokenIds:
    """An image by its token ids, as in the authors' data."""

    ids: tuple[int, ...]


SampleImage = Image.Image | TokenIds
RowImage = Image.Image | bytes | list[int]


@dataclass(frozen=True)
class SampleStep:
    """One step: its text, the image that ends it, and the written-out state (for the control that reads it)."""

    text: str
    image: SampleImage | None = None
    state: str = ""


@dataclass(frozen=True)
class TraceSample:
    """A question with its images, the steps that lead to the answer, and its source."""

    where: str
    question: str
    images: tuple[SampleImage, ...]
    steps: tuple[SampleStep, ...]
    answer: str
    slice: str | None = None


def read_traces(
    path: str | Path, image_size: int | None = None, columns: Mapping[str, str] | None = None
) -> Iterator[TraceSample | Rejection]:
    """Read every trace of a file, a folder or the hub, or a rejection with file and line.

    Args:
        path: of a file or folder, or an address on the hub.
        image_size: pixels a side of the model that the images are for.
        columns: the data's own names of fields, by ours.

    Raises:
        training.data.rows.DataError: no known data was found.
    """
    return read_parsed(path, parse_trace, image_size, columns)


def parse_trace(row: Row) -> TraceSample:
    """Parse one row as a trace.

    Raises:
        SampleError: ``empty_question``, ``empty_answer``, ``empty_reasoning``, ``missing_picture``,
            ``broken_picture``, ``bad_place``, or ``wrong_type`` for a text of another type.
    """
    return with_steps(row, parse_question(row))


def parse_question(row: Row) -> TraceSample:
    """Parse question, images and answer of one row; the trace, if any, is not read.

    Raises:
        SampleError: see :func:`parse_trace`.
    """
    question, images = _question(row)
    answer = _FINAL.split(_text(row.data, ANSWER) or _plain_answer(row.data))[-1].strip()
    if not answer:
        raise SampleError("empty_answer", f"{ANSWER!r} is empty")
    slice_ = row.data.get("slice")
    return TraceSample(row.where, question, images, (), answer, slice_ if isinstance(slice_, str) else None)


def with_steps(row: Row, question: TraceSample) -> TraceSample:
    """Add the trace of its row to a question.

    Raises:
        SampleError: see :func:`parse_trace`.
    """
    steps = _steps(row, _text(row.data, REASONING))
    if not steps:
        raise SampleError("empty_reasoning", f"{REASONING!r} is empty")
    return replace(question, steps=steps)


def trace_row(
    question: str,
    images: Sequence[RowImage],
    steps: Sequence[tuple[str, RowImage | None]],
    answer: str,
    **extra: Any,
) -> dict[str, Any]:
    """Convert a trace to a row of the authors' format; :func:`parse_trace` is the inverse.

    Args:
        question: its text, with ``<image_k>`` placeholders.
        images: of the question, each an image or the bytes of its file (both become base64), or its token ids.
        steps: text and image of each.
        answer: the final answer.
        extra: additional keys.
    """
    row: dict[str, Any] = {}
    for k, given in enumerate(images, 1):
        row[f"problem_image_{k}"] = _in_row(given)
    texts, drawn = [], 0
    for k, (text, image) in enumerate(steps, 1):
        place = ""
        if image is not None:
            drawn += 1
            place = f"<image_start>[reasoning_image_{drawn}]<image_end>"
            row[f"reasoning_image_{drawn}"] = _in_row(image)
        texts.append(f"THOUGHT {k}: {text}{place}")
    return {QUESTION: with_names(question, len(images)), REASONING: "\n".join(texts), ANSWER: answer, **extra, **row}


def _question(row: Row) -> tuple[str, tuple[SampleImage, ...]]:
    """The question's text with image placeholders, and its images: the named ones, or else all of the row.

    If it names keys, ``<image>`` is text.
    """
    text = _text(row.data, QUESTION) or _text(row.data, PLAIN_QUESTION)
    if not NAMED.sub("", text).strip():
        raise SampleError("empty_question", f"{QUESTION!r} is empty")
    if keys := list(dict.fromkeys(NAMED.findall(text))):
        return named_places(text, keys), tuple(_image(row, key) for key in keys)
    found = ((m, k) for k, v in row.data.items() if v is not None and (m := _PROBLEM_KEY.fullmatch(k)))
    keys = [key for _, key in sorted((int(match[1]), key) for match, key in found)]
    images = tuple(_image(row, key) for key in keys) or _plain_images(row)
    return numbered(text, len(images)), images


def _plain_images(row: Row) -> tuple[SampleImage, ...]:
    """The images of the field ``image`` or ``images``: one, or a list."""
    found: list[SampleImage] = []
    for key in PLAIN_IMAGES:
        value = row.data.get(key)
        values = [value]
        if isinstance(value, list | tuple) and not all(type(v) is int for v in value):
            values = list(value)
        found += [_image_of(row, key, one) for one in values if one is not None and one != "" and one != []]
    return tuple(found)


def _plain_answer(data: Mapping[str, Any]) -> str:
    """The field ``answer``; a number is converted."""
    value = data.get(PLAIN_ANSWER)
    is_number = isinstance(value, int | float) and not isinstance(value, bool) and value == value
    return str(value) if is_number else _text(data, PLAIN_ANSWER)


def _steps(row: Row, reasoning: str) -> tuple[SampleStep, ...]:
    steps: list[SampleStep] = []
    body = _FINAL.split(reasoning)[0] if not NAMED.search(_after_final(reasoning)) else reasoning
    for thought in _THOUGHT.split(body):
        end = 0
        for place in NAMED.finditer(thought):
            steps.append(SampleStep(thought[end : place.start()].strip(), _image(row, place[1])))
            end = place.end()
        if rest := thought[end:].strip():
            steps.append(SampleStep(rest))
    return tuple(steps)


def _after_final(reasoning: str) -> str:
    """The text after the first final-answer mark; an image there means that the mark is only mentioned."""
    match = _FINAL.search(reasoning)
    return reasoning[match.end() :] if match else ""


def _image(row: Row, key: str) -> SampleImage:
    value = row.data.get(key)
    if value is None:
        raise SampleError("missing_picture", f"the text names {key!r}, but the row has no such picture")
    return _image_of(row, key, value)


def _image_of(row: Row, key: str, value: Any) -> SampleImage:
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if not value or not all(type(v) is int for v in value):
            raise SampleError("broken_picture", f"{key!r} is not a list of token ids")
        return TokenIds(tuple(value))
    if not is_image(value):
        raise SampleError("broken_picture", f"{key!r} is neither token ids nor an image")
    try:
        return row.image(value)
    except SampleError as error:
        raise SampleError(error.code, f"{key!r}: {error.detail}") from error


def _text(data: Mapping[str, Any], field: str) -> str:
    value = data.get(field)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise SampleError("wrong_type", f"{field!r} is {type(value).__name__}, not text")
    return value.strip()


def _in_row(image: RowImage) -> str | list[int]:
    if isinstance(image, list):
        return image
    if not isinstance(image, bytes):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        image = buffer.getvalue()
    return base64.b64encode(image).decode()

"""Omni-Bench's parquet files -> questions with images, answers and slices.

A row has ``image`` (base64, a data URL or a list of them; ``<TLTS>`` stands for a missing one), ``question`` and
``answer``; all other columns are kept. ``<image>`` and ``<image_k>`` are placeholders of a question's images. Six data
sets make four slices (paper, section 4); a row's data set comes from a column, else from the file name. Knows no
models.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from training.data.places import numbered
from training.data.row_images import SampleError
from training.data.rows import Rejection, Row, read_parsed

MISSING = "<TLTS>"
SLICE_OF = {
    "vstar": "natural",
    "arxivqa": "structured",
    "chartqa": "structured",
    "geometry3k": "diagrammatic",
    "mathvista": "diagrammatic",
    "vicbench": "operational",
}
_SOURCE_COLUMNS = ("slice", "benchmark", "dataset", "data_source", "source", "task", "category")
_CHOICE_COLUMNS = ("choices", "options")
_SPLITS = re.compile(r"(?:^|[-_.])(?:test|train|val|validation|dev|\d+|of)(?=$|[-_.])", re.IGNORECASE)
_OPTION = re.compile(r"^[ \t]*\(?([A-J])[).:][ \t]+(\S.*?)[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class BenchQuestion:
    """One question. ``source`` is its data set, ``slice`` the data set's slice (or the data set itself)."""

    where: str
    question_id: str
    text: str
    images: tuple[Image.Image, ...]
    answer: str
    source: str
    slice: str
    choices: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)


def read_omni_bench(
    path: str | Path, image_size: int | None = None, columns: Mapping[str, str] | None = None
) -> Iterator[BenchQuestion | Rejection]:
    """Read the questions of a file, a folder or the hub; unusable rows become rejections with file and row.

    Raises:
        training.data.rows.DataError: no known data was found.
    """
    return read_parsed(path, parse_question, image_size, columns)


def parse_question(row: Row) -> BenchQuestion:
    """Parse one row as a question.

    Raises:
        SampleError: ``empty_question``, ``empty_answer``, ``missing_picture``, ``broken_picture`` or ``bad_place``.
    """
    data = row.data
    text = _text(data.get("question"))
    if not text:
        raise SampleError("empty_question", "'question' is empty")
    answer = _text(data.get("answer"))
    if not answer:
        raise SampleError("empty_answer", "'answer' is empty")
    source = source_of(row)
    images = _images(data.get("image"), row)
    return BenchQuestion(
        where=row.where,
        question_id=_text(data.get("id") or data.get("question_id")) or row.where,
        text=numbered(text, len(images)),
        images=images,
        answer=answer,
        source=source,
        slice=slice_of(source),
        choices=choices_in(data, text),
        extra={k: v for k, v in data.items() if k not in ("image", "question", "answer") and _is_plain(v)},
    )


def source_of(row: Row) -> str:
    """The data set of a row: from a column, else from the file name without the split."""
    for column in _SOURCE_COLUMNS:
        if name := _text(row.data.get(column)):
            return name[:100]
    return _SPLITS.sub("", row.file.stem).strip("-_. ") or row.file.stem


def slice_of(source: str) -> str:
    """The slice of a data set: one of the paper's four, or the data set itself if unknown."""
    plain = re.sub(r"[^a-z0-9]", "", source.lower().replace("*", "star"))
    return next((slice_ for name, slice_ in SLICE_OF.items() if plain.startswith(name)), source)


def options_in(text: str) -> tuple[str, ...]:
    """The options that a question lists on separate lines, ``(A) ...`` or ``A. ...``, from A without gaps."""
    found = _OPTION.findall(text)
    if len(found) < 2 or "".join(label for label, _ in found) != "ABCDEFGHIJ"[: len(found)]:
        return ()
    return tuple(option for _, option in found)


def choices_in(data: Mapping[str, Any], text: str) -> tuple[str, ...]:
    """The options of a row: from the field ``choices`` or ``options``, else those that its question lists.

    Raises:
        SampleError: ``wrong_type``, they are no list of texts or numbers.
    """
    for column in _CHOICE_COLUMNS:
        value = data.get(column)
        if isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) > 1:
            if any(not isinstance(choice, str | int | float) for choice in value):
                raise SampleError("wrong_type", f"{column!r} is not a list of texts")
            return tuple(str(choice).strip() for choice in value)
    return options_in(text)


def _images(value: Any, row: Row) -> tuple[Image.Image, ...]:
    if value is None or value == MISSING or value == "":
        return ()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return tuple(image for one in value for image in _images(one, row))
    return (row.image(value),)


def _text(value: Any) -> str:
    """Text of a field; numbers are converted, lists are not, and NaN counts as missing."""
    if isinstance(value, bool) or not isinstance(value, str | int | float) or value != value:
        return ""
    return str(value).strip()


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool | int | float) or (isinstance(value, str) and len(value) <= 2_000)

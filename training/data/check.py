"""The check of a data set before a job: which rows each method can use, every rejection, a preview of the first rows.

One pass over the rows in flat memory, without torch or a checkpoint. Every row is parsed as its method parses it:
fields, types, places of images, ids. Images of the previewed rows are decoded; of all others it is checked that they
exist, that their base64 is valid, and that their first bytes are of a readable kind. Not checked: whether a row fits a
checkpoint's context, or whether token ids are images of its vocabulary; a job rejects such rows itself.

Launch: ``python -m training.data.check PATH OUT``, as the server does for ``POST /v1/datasets``.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from PIL import Image

from training.data.chains import trace_chain
from training.data.questions import Question, SeenIds, question_of
from training.data.rows import DataError, Rejection, Row, parsed, read_rows
from training.data.traces import SampleImage, TokenIds, TraceSample, parse_question, with_steps

METHODS = ("pesft", "perpo", "zero", "benchmark")
FROM_QUESTIONS, FROM_TRACES = ("perpo", "benchmark"), ("pesft", "zero")
PREVIEW_ROWS = 5
PREVIEW_FROM = 50  # the first so many rows may be shown
PREVIEW_IMAGES = 8  # of the question, and of the steps
PREVIEW_CHARS = 2_000
IMAGE_SIZE = 256  # pixels a side of a preview's image: a model's square view
FIRST = 20  # rejections in the report
SECONDS = 60.0  # of a check by the server
FULL_DISK = 3  # exit code
REPORT, REJECTIONS = "report.json", "rejections.jsonl"

Keep = Callable[[str, Image.Image], None]


@dataclass
class Findings:
    """What a check has found.

    Attributes:
        rows: number of rows that were read.
        usable: number of usable rows by method.
        rejected: number of rows that some method rejects, by method and under ``any``.
        reasons: number of rejections by code, by method and under ``any``.
        first: the first rejections, by method and under ``any``.
        preview: the first rows that some method can use.
        most_images: of one question.
        complete: False if the time was up before the last row.
    """

    rows: int = 0
    usable: Counter[str] = field(default_factory=Counter)
    rejected: Counter[str] = field(default_factory=Counter)
    reasons: dict[str, Counter[str]] = field(default_factory=lambda: {key: Counter() for key in ("any", *METHODS)})
    first: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {key: [] for key in ("any", *METHODS)})
    preview: list[dict[str, Any]] = field(default_factory=list)
    most_images: int = 0
    complete: bool = True

    def to_json(self) -> dict[str, Any]:
        """As written to ``report.json``; :func:`report_for` makes a report of it."""
        usable = {method: self.usable[method] for method in METHODS}
        known = ("rows", "rejected", "reasons", "first", "preview", "most_images", "complete")
        return {"usable_for": usable, **{name: getattr(self, name) for name in known}}


def report_for(found: Mapping[str, Any], method: str | None) -> dict[str, Any]:
    """The report of :meth:`Findings.to_json` for one method, or for all of them."""
    key = method or "any"
    return {
        "rows": found["rows"],
        "complete": found["complete"],
        "method": method,
        "usable_for": dict(found["usable_for"]),
        "most_images": found["most_images"],
        "rejected": {
            "rows": found["rejected"].get(key, 0),
            "reasons": dict(found["reasons"][key]),
            "first": list(found["first"][key]),
        },
        "preview": list(found["preview"]),
    }


def check_data(
    path: str | Path,
    *,
    columns: Mapping[str, str] | None = None,
    most: int | None = None,
    on_rejection: Callable[[dict[str, Any]], object] = lambda _: None,
    keep_image: Keep = lambda _name, _image: None,
    seconds: float | None = None,
) -> Findings:
    """Check a file, a folder or a data set on the hub.

    Args:
        path: of the data.
        columns: the data's own names of fields, by ours.
        most: check only the first so many rows, with ``complete`` False if there are more.
        on_rejection: called with every rejection ``{where, row, code, detail, methods}``, in order.
        keep_image: called with the name and image of every image of the preview.
        seconds: stop after this time, with ``complete`` False.

    Raises:
        DataError: there are no files of a known kind.
    """
    found, seen, started = Findings(), SeenIds(), time.monotonic()
    for row in read_rows(path, IMAGE_SIZE, columns=columns, decode=False):
        if found.rows == most or (seconds is not None and time.monotonic() - started > seconds):
            found.complete = False
            break
        found.rows += 1
        if isinstance(row, Rejection):
            found.rejected["any"] += 1
            _reject(found, on_rejection, row, METHODS)
            continue
        show = len(found.preview) < PREVIEW_ROWS and found.rows <= PREVIEW_FROM
        judged = _judge(replace(row, decode=True) if show else row, seen)
        for method in judged.usable:
            found.usable[method] += 1
        for rejection, methods in judged.rejections:
            _reject(found, on_rejection, rejection, methods)
        if judged.rejections:
            found.rejected["any"] += 1
        if judged.question is not None:
            found.most_images = max(found.most_images, len(judged.question.images))
        if show and judged.usable:
            found.preview.append(_preview(len(found.preview) + 1, judged, keep_image))
    return found


@dataclass(frozen=True)
class _Judged:
    """One row: the methods that can use it, and the reasons of the others."""

    row: Row
    usable: tuple[str, ...]
    rejections: tuple[tuple[Rejection, tuple[str, ...]], ...]
    sample: TraceSample | None = None
    question: Question | None = None


def _judge(row: Row, seen: SeenIds) -> _Judged:
    asked = parsed(row, parse_question)
    if isinstance(asked, Rejection):
        return _Judged(row, (), ((asked, METHODS),))
    outcomes: dict[str, Any] = dict.fromkeys(FROM_QUESTIONS, parsed(row, lambda row: question_of(row, asked, seen)))
    traced = parsed(row, lambda row: with_steps(row, asked))
    chain = traced if isinstance(traced, Rejection) else parsed(row, lambda _: trace_chain(traced, max_steps=1))
    outcomes |= {"pesft": traced, "zero": chain}
    grouped: dict[Rejection, list[str]] = {}
    for method in METHODS:
        if isinstance(outcomes[method], Rejection):
            grouped.setdefault(outcomes[method], []).append(method)
    question = outcomes["perpo"]
    return _Judged(
        row,
        tuple(method for method in METHODS if not isinstance(outcomes[method], Rejection)),
        tuple((rejection, tuple(methods)) for rejection, methods in grouped.items()),
        asked if isinstance(traced, Rejection) else traced,
        None if isinstance(question, Rejection) else question,
    )


def _reject(
    found: Findings, on_rejection: Callable[[dict[str, Any]], object], rejection: Rejection, methods: Iterable[str]
) -> None:
    methods = list(methods)
    number = rejection.where.rpartition(":")[2]
    entry = {
        "where": rejection.where,
        "row": int(number) if number.isdecimal() else 0,
        "code": rejection.code,
        "detail": rejection.detail,
        "methods": methods,
    }
    on_rejection(entry)
    for key in ("any", *methods):
        found.reasons[key][rejection.code] += 1
        if key != "any":
            found.rejected[key] += 1
        if len(found.first[key]) < FIRST:
            found.first[key].append(entry)


def _preview(number: int, judged: _Judged, keep: Keep) -> dict[str, Any]:
    sample, question = judged.sample, judged.question
    assert sample is not None
    drawn = [step.image for step in sample.steps if step.image is not None]

    def shown(image: SampleImage, name: str) -> dict[str, Any]:
        if isinstance(image, TokenIds):
            return {"token_ids": len(image.ids)}
        keep(name, image)
        return {"file": name}

    images = [shown(image, f"{number}-question-{k}.png") for k, image in enumerate(sample.images[:PREVIEW_IMAGES], 1)]
    steps: list[dict[str, Any]] = []
    for k, step in enumerate(sample.steps[: 2 * PREVIEW_IMAGES], 1):
        has_room = sum(one["image"] is not None for one in steps) < PREVIEW_IMAGES
        image = None if step.image is None or not has_room else shown(step.image, f"{number}-step-{k}.png")
        steps.append({"text": step.text[:PREVIEW_CHARS], "image": image})
    return {
        "where": sample.where,
        "question": (question.text if question else sample.question)[:PREVIEW_CHARS],
        "images": images,
        "images_total": len(sample.images),
        "steps": steps,
        "steps_total": len(sample.steps),
        "step_images_total": len(drawn),
        "answer": sample.answer[:PREVIEW_CHARS],
        "choices": [choice[:200] for choice in (question.choices if question else ())[:26]],
        "slice": question.slice if question else sample.slice,
        "usable_for": list(judged.usable),
    }


def check_into(path: Path, out: Path, *, seconds: float | None = SECONDS) -> dict[str, Any]:
    """Check `path` and write ``report.json``, ``rejections.jsonl`` and the preview's images into the folder `out`.

    Raises:
        DataError: see :func:`check_data`.
    """
    with (out / REJECTIONS).open("w", encoding="utf-8", errors="replace") as file:
        found = check_data(
            path,
            on_rejection=lambda entry: file.write(json.dumps(entry, ensure_ascii=False) + "\n"),
            keep_image=lambda name, image: image.save(out / name),
            seconds=seconds,
        ).to_json()
    text = json.dumps(found, ensure_ascii=False)
    (out / REPORT).write_text(text, "utf-8", "replace")
    return found


def main(argv: list[str]) -> int:
    """Check for the server, at a lower priority: exit code 2 for data of no known kind, 3 on a full disk."""
    os.nice(5)
    try:
        check_into(Path(argv[0]), Path(argv[1]))
    except DataError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        return FULL_DISK
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Traces as files: JSON, PeSFT's jsonl, a page of HTML, or a zip of all that. Blocking.

A file is made piece by piece: of its traces and images, only one trace or one image is in memory at a time. Nothing is
written to disk.
"""

from __future__ import annotations

import base64
import functools
import io
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy.engine import Connection

from app.contract.problems import Problem, field_problem
from app.contract.schemas_curation import MAX_HTML_TRACES, ExportCreate
from app.contract.words import ExportFormat
from app.storage.database import Database
from app.traces.records import store
from app.traces.records.film import readable_question
from app.traces.records.store import Brief
from training.data.traces import trace_row

if TYPE_CHECKING:
    from jinja2 import Template

Trace = Mapping[str, Any]
ReadImage = Callable[[str], bytes]

MEDIA_TYPES: dict[ExportFormat, str] = {
    "json": "application/json",
    "jsonl": "application/x-ndjson",
    "zip": "application/zip",
    "html": "text/html; charset=utf-8",
}
_PIECE = 1 << 18  # bytes; smaller ones are joined
_PIXELATED = 128  # smaller images are enlarged without smoothing


@dataclass(frozen=True)
class Selection:
    """The traces of an export, and how many others were left out."""

    trace_ids: list[str]
    skipped: int


def selected(connection: Connection, wanted: ExportCreate) -> Selection:
    """The traces that an export takes.

    Raises:
        Problem: `invalid` for an unknown trace, or for too many in one page; `trace_live` for a running one that was
            named (those that a filter finds are skipped).
    """
    if wanted.trace_ids is not None:
        found = store.briefs(connection, wanted.trace_ids)
        for at, trace_id in enumerate(wanted.trace_ids):
            if trace_id not in found:
                raise field_problem("invalid", f"body.trace_ids.{at}", "unknown trace")
            if found[trace_id].is_live:
                raise _live(found[trace_id])
        briefs = [found[trace_id] for trace_id in dict.fromkeys(wanted.trace_ids)]
    else:
        assert wanted.filter is not None
        briefs = store.briefs_matching(connection, wanted.filter.model_dump())
    chosen = _suitable(briefs, wanted.format)
    if wanted.format == "html" and len(chosen.trace_ids) > MAX_HTML_TRACES:
        detail = f"a page holds at most {MAX_HTML_TRACES} traces, not {len(chosen.trace_ids)}; use zip for more"
        raise field_problem("invalid", "body.format", detail)
    return chosen


def selected_one(connection: Connection, trace_id: str, format: ExportFormat) -> Selection | None:
    """One trace, or None if it is unknown.

    Raises:
        Problem: `trace_live`, or `invalid` for a trace that is no training data (jsonl).
    """
    brief = store.briefs(connection, [trace_id]).get(trace_id)
    if brief is None:
        return None
    if brief.is_live:
        raise _live(brief)
    chosen = _suitable([brief], format)
    if not chosen.trace_ids:
        raise field_problem("invalid", "query.format", "jsonl holds completed traces with an answer; use json")
    return chosen


def _live(brief: Brief) -> Problem:
    return Problem("trace_live", f"trace {brief.id} is {brief.status}; export it once it has ended or is paused")


def _suitable(briefs: Sequence[Brief], format: ExportFormat) -> Selection:
    ids = [one.id for one in briefs if (one.is_training_data if format == "jsonl" else not one.is_live)]
    return Selection(ids, len(briefs) - len(ids))


def pieces(
    db: Database, trace_ids: Sequence[str], format: ExportFormat, read: ReadImage, *, alone: bool = False
) -> Iterator[bytes]:
    """The bytes of the file; traces that are deleted meanwhile are left out.

    Args:
        db: the database with the traces.
        trace_ids: the traces, in the file's order.
        format: of the file.
        read: the PNG of an image id; what it raises ends the file.
        alone: the one trace as an object instead of a list (JSON).
    """
    traces = _traces(db, trace_ids)
    if format == "json":
        return _joined(_json_pieces(traces, alone=alone))
    if format == "jsonl":
        return _joined(_line(pesft_row(trace, read)) for trace in traces)
    if format == "html":
        return _joined(_page_pieces(traces, len(trace_ids), read))
    return _joined(_zip_pieces(traces, read))


def pesft_row(trace: Trace, read: ReadImage) -> dict[str, Any]:
    """A completed trace as PeSFT reads it, with its images inside; edited steps have the image that the model saw."""
    steps = [(step["text"], read(step["image"]["image_id"]) if step.get("image") else None) for step in trace["steps"]]
    images = [read(image["image_id"]) for image in trace["images"]]
    about = {"trace_id": trace["id"]}
    if trace.get("task_id"):
        about["slice"] = trace["task_id"].rpartition("-")[0]
    return trace_row(trace["question"], images, steps, trace["answer"] or "", **about)


def _traces(db: Database, trace_ids: Iterable[str]) -> Iterator[Trace]:
    for trace_id in trace_ids:
        with db.read() as connection:
            trace = store.whole(connection, trace_id)
        if trace is not None:
            yield trace


def _joined(parts: Iterable[bytes]) -> Iterator[bytes]:
    held = bytearray()
    for part in parts:
        held += part
        if len(held) >= _PIECE:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


def _pretty(trace: Trace) -> bytes:
    return json.dumps(trace, ensure_ascii=False, indent=2).encode()


def _line(row: Mapping[str, Any]) -> bytes:
    """In ASCII: some readers also end lines at other characters, such as U+2028."""
    return json.dumps(row).encode() + b"\n"


def _json_pieces(traces: Iterable[Trace], *, alone: bool) -> Iterator[bytes]:
    if alone:
        for trace in traces:
            yield _pretty(trace) + b"\n"
        return
    before = b"[\n"
    for trace in traces:
        yield before + _pretty(trace)
        before = b",\n"
    yield b"\n]\n" if before == b",\n" else b"[]\n"


# ---- zip


class _Drain(io.RawIOBase):
    """Takes what a writer writes, until it is taken; not seekable, so zipfile appends sizes to the data."""

    def __init__(self) -> None:
        self._held = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self._held += data
        return len(data)

    def take(self) -> bytes:
        taken = bytes(self._held)
        self._held.clear()
        return taken


def _zip_pieces(traces: Iterable[Trace], read: ReadImage) -> Iterator[bytes]:
    """A folder for each trace: the trace as JSON, its images, and its page."""
    out = _Drain()
    with zipfile.ZipFile(out, "w") as archive:
        for trace in traces:
            for name, data in _files(trace, read):
                packed = zipfile.ZIP_STORED if name.endswith(".png") else zipfile.ZIP_DEFLATED
                file = zipfile.ZipInfo(f"{trace['id']}/{name}", _zip_time(trace["created_at"]))
                file.external_attr = 0o644 << 16
                archive.writestr(file, data, packed)
                yield out.take()
    yield out.take()


def _files(trace: Trace, read: ReadImage) -> Iterator[tuple[str, bytes]]:
    yield "trace.json", _pretty(trace) + b"\n"
    yield "trace.html", b"".join(_page_pieces([trace], 1, read))
    for number, image in enumerate(trace["images"], 1):
        yield f"question-{number}.png", read(image["image_id"])
    for step in trace["steps"]:
        if step.get("image"):
            yield f"step-{step['index']}.png", read(step["image"]["image_id"])


def _zip_time(moment: str) -> tuple[int, int, int, int, int, int]:
    """An RFC 3339 time as zip files have it."""
    year, month, day = map(int, moment[:10].split("-"))
    hour, minute, second = map(int, moment[11:19].split(":"))
    return max(year, 1980), month, day, hour, minute, second


# ---- html


def _page_pieces(traces: Iterable[Trace], count: int, read: ReadImage) -> Iterator[bytes]:
    """A page that needs nothing else: images as data URLs, no scripts."""

    def source(image: Mapping[str, Any]) -> str:
        return "data:image/png;base64," + base64.b64encode(read(image["image_id"])).decode()

    for text in _template().generate(traces=traces, count=count, source=source, pixelated=_PIXELATED):
        yield text.encode()


@functools.cache
def _template() -> Template:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # an export can wait for it, the start cannot

    environment = Environment(
        loader=PackageLoader("app.traces.records", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["readable"] = readable_question
    return environment.get_template("page.html")

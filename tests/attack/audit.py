"""What a settled database must satisfy, read from its tables and the homes' files, without any server.

Logs are contiguous and end once, rows say what their logs say, images have the content that their name promises.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from app.contract.words import GROUP_END, JOB_TERMINAL, TERMINAL, TERMINAL_EVENTS
from app.storage import tables
from app.storage.database import Database
from app.traces.records import store

T, G, J = tables.traces, tables.groups, tables.jobs
END_STATUS = {
    "trace.completed": ("completed",),
    "trace.cancelled": ("cancelled",),
    "trace.failed": ("failed", "interrupted"),
}


class Audit:
    """Checks one database and the image folders of its servers; remembers the images that it has read."""

    def __init__(self, url: str, homes: Iterable[Path]) -> None:
        self._db = Database(url)
        self._homes = {(home / "server-id").read_text().strip(): home for home in homes}
        self._right: set[tuple[str, str]] = set()

    def close(self) -> None:
        """Close the connections."""
        self._db.close()

    def faults(self, *, working: frozenset[str] = frozenset()) -> list[str]:
        """One line per fault. `working` are the jobs that have a worker; no trace may be queued or running."""
        with self._db.read() as connection:
            return [
                *(f"trace {row.id}: {fault}" for row in _rows(connection, T) for fault in self._trace(connection, row)),
                *(f"group {row.id}: {fault}" for row in _rows(connection, G) for fault in _group(connection, row)),
                *(f"job {row.id}: {fault}" for row in _rows(connection, J) for fault in _job(connection, row, working)),
            ]

    def differ(self, logs: Iterable[tuple[str, list[str]]]) -> list[str]:
        """The ids of the logs that are not what is stored: (id, the data of its events) as a reader saw them."""
        with self._db.read() as connection:
            return [
                log_id for log_id, seen in logs if seen != [data for _, _, data in store.events_of(connection, log_id)]
            ]

    def _trace(self, connection: Connection, row: Row[Any]) -> Iterator[str]:
        log = store.events_of(connection, row.id)
        yield from _numbers(seq for seq, _, _ in log)
        ends = [type_ for _, type_, _ in log if type_ in TERMINAL_EVENTS]
        if row.status not in TERMINAL:
            if row.status in store.IN_WORK:
                yield f"status {row.status} without a runner"
            if ends:
                yield f"status {row.status} with {' and '.join(ends)}"
        elif ends != [log[-1][1]]:
            yield f"{len(ends)} terminal events, the last event is {log[-1][1]}"
        elif row.status not in END_STATUS[ends[0]]:
            yield f"status {row.status} after {ends[0]}"
        else:
            yield from _end(row, log)
        yield from self._images(connection, row)

    def _images(self, connection: Connection, row: Row[Any]) -> Iterator[str]:
        linked = sa.select(tables.trace_images.c.image_id).where(tables.trace_images.c.trace_id == row.id)
        ids = set(connection.execute(linked).scalars())
        shown = {step["image"]["image_id"] for step in row.steps or () if "image" in step}
        if shown - ids:
            yield f"{len(shown - ids)} images of its steps are not linked"
        home = self._homes[row.server_id]
        for image_id in ids | shown:
            if (row.server_id, image_id) in self._right:
                continue
            file = home / "images" / image_id[:2] / f"{image_id}.png"
            if not file.is_file():
                yield f"image {image_id} is missing"
            elif hashlib.sha256(file.read_bytes()).hexdigest() != image_id:
                yield f"image {image_id} has another content"
            else:
                self._right.add((row.server_id, image_id))


def _rows(connection: Connection, table: sa.Table) -> list[Row[Any]]:
    columns = [column for column in table.c if column.name != "resume"]
    return list(connection.execute(sa.select(*columns)))


def _numbers(seqs: Iterable[int]) -> Iterator[str]:
    found = list(seqs)
    if found != list(range(1, len(found) + 1)):
        yield "numbers with gaps or repetitions"


def _end(row: Row[Any], log: list[tuple[int, str, str]]) -> Iterator[str]:
    """The terminal event and the row of an ended trace hold the same facts."""
    data, folded = json.loads(log[-1][2]), store.fold(log)
    if row.finished_at is None:
        yield "no time of its end"
    if data.get("error") != row.error:
        yield f"error {row.error} after {data.get('error')}"
    if row.status == "completed":
        for name in ("answer", "finish_reason", "usage"):
            if data[name] != getattr(row, name):
                yield f"{name} {getattr(row, name)!r} after {data[name]!r}"
    if [_drawn(step) for step in row.steps or ()] != [_drawn(step) for step in folded["steps"]]:
        yield "other steps than in its log"


def _drawn(step: Mapping[str, Any]) -> tuple[int, str, str | None]:
    return step["index"], step["text"], step.get("image", {}).get("image_id")


def _group(connection: Connection, row: Row[Any]) -> Iterator[str]:
    log = store.events_of(connection, row.id)
    yield from _numbers(seq for seq, _, _ in log)
    ends = [type_ for _, type_, _ in log].count(GROUP_END)
    members = store.statuses(connection, row.trace_ids)
    over = all(status in TERMINAL for status in members.values())
    if (row.finished_at is not None) != over:
        yield f"finished at {row.finished_at}, its members are {sorted(members.values())}"
    if ends != over or (over and log[-1][1] != GROUP_END):
        yield f"{ends} ends in its log, its members are {sorted(members.values())}"
    for trace_id in members:
        own = [store.with_trace_id(trace_id, line) for _, _, line in store.events_of(connection, trace_id)]
        here = [line for _, _, line in log if line.startswith(store.with_trace_id(trace_id, "{}")[:-1])]
        if own != here:
            yield f"its log holds other events of {trace_id} than that trace's"


def _job(connection: Connection, row: Row[Any], working: frozenset[str]) -> Iterator[str]:
    e = tables.job_events.c
    query = sa.select(e.seq, e.type, e.data).where(e.job_id == row.id).order_by(e.seq)
    log = list(connection.execute(query))
    yield from _numbers(event.seq for event in log)
    said = [json.loads(event.data)["status"] for event in log if event.type == "job.status"]
    if not said or said[-1] != row.status:
        yield f"status {row.status} after {said[-1:]}"
    if row.status == "running" and row.id not in working:
        yield "status running without a worker"
    if row.status == "succeeded" and row.result is None:
        yield "succeeded without a result"
    if row.status == "failed" and row.error is None:
        yield "failed without an error"
    if row.status in JOB_TERMINAL and row.finished_at is None:
        yield "no time of its end"

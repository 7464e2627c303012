"""Reads a job's folder for its runner: the worker's events, the end of its output, its result."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

log = logging.getLogger("omni_r1.jobs")

LOG_TAIL_LINES, LOG_TAIL_BYTES = 20, 8_000
CHUNK_BYTES = 1 << 20
LONGEST_LINE = 16 << 20


@dataclass(frozen=True)
class WorkerEvent:
    """One line of the worker's `events.jsonl`."""

    type: str
    time: str
    data: dict[str, Any] = field(default_factory=dict)


def read_events(path: Path, offset: int) -> tuple[list[WorkerEvent], int]:
    """Read complete lines of an `events.jsonl` from byte `offset`, about a megabyte; also return the next offset.

    Invalid lines (such as half of one, from a killed writer) are skipped.
    """
    try:
        with path.open("rb") as file:
            file.seek(offset)
            chunk = file.read(CHUNK_BYTES)
            while b"\n" not in chunk and len(chunk) < LONGEST_LINE:
                more = file.read(CHUNK_BYTES)
                if not more:
                    break
                chunk += more
    except FileNotFoundError:
        return [], offset
    end = chunk.rfind(b"\n") + 1
    if end == 0 and len(chunk) >= LONGEST_LINE:
        end = len(chunk)
    found = [event for line in chunk[:end].splitlines() if (event := _event(line)) is not None]
    return found, offset + end


def _event(line: bytes) -> WorkerEvent | None:
    try:
        event = json.loads(line)
        data = event["data"]
        return WorkerEvent(str(event["type"]), str(event["time"]), dict(data))
    except (ValueError, TypeError, KeyError, RecursionError):
        if line.strip():
            log.warning("invalid line of %d bytes in events.jsonl", len(line))
        return None


def log_tail(folder: Path) -> list[str]:
    """The last lines of the worker's output."""
    try:
        with (folder / "log.txt").open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - LOG_TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    lines = ["".join(c for c in line if c.isprintable() or c == "\t") for line in text.splitlines()]
    return [line for line in lines if line.strip()][-LOG_TAIL_LINES:]


def read_object(path: Path) -> dict[str, Any] | None:
    """Read a JSON object from a file; None if missing."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def last_progress_only(events: Sequence[WorkerEvent]) -> list[WorkerEvent]:
    """Drop progress events that a later one supersedes."""
    last = max((at for at, event in enumerate(events) if event.type == "progress"), default=-1)
    return [event for at, event in enumerate(events) if event.type != "progress" or at == last]

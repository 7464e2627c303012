"""The words of the contract as an ES module: `python -m app.contract.javascript > static/shared/contract.js`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable
from typing import get_args

from app.contract.events import TRACE_EVENTS
from app.contract.events_jobs import JOB_EVENTS
from app.contract.words import GROUP_END, JOB_TERMINAL, TERMINAL, TERMINAL_EVENTS, JobStatus, Slice, Status

_HEAD = "// Generated from app/contract by `python -m app.contract.javascript`: statuses, events, slices.\n"


def module() -> str:
    """The text of the module; statuses and events keep the order of their definitions."""
    constants = {
        "SLICES": get_args(Slice),
        "TRACE_TERMINAL": _in_order(Status, TERMINAL),
        "TRACE_EVENTS": TRACE_EVENTS,
        "TRACE_ENDS": [event for event in TRACE_EVENTS if event in TERMINAL_EVENTS],
        "GROUP_END": GROUP_END,
        "JOB_TERMINAL": _in_order(JobStatus, JOB_TERMINAL),
        "JOB_EVENTS": JOB_EVENTS,
    }
    return _HEAD + "".join(f"export const {name} = {_literal(value)};\n" for name, value in constants.items())


def _in_order(literal: object, members: Iterable[str]) -> list[str]:
    wanted = set(members)
    return [status for status in get_args(literal) if status in wanted]


def _literal(value: str | Iterable[str]) -> str:
    """As prettier writes it."""
    if isinstance(value, str):
        return _quoted(value)
    items = [_quoted(item) for item in value]
    line = f"[{', '.join(items)}]"
    return line if len(line) < 90 else "[\n" + "".join(f"  {item},\n" for item in items) + "]"


def _quoted(text: str) -> str:
    return "'" + json.dumps(text)[1:-1] + "'"


if __name__ == "__main__":
    sys.stdout.write(module())

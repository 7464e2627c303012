"""Checks events against the contract's models; the suites' helpers call it for every event that they read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from app.contract.events import TRACE_EVENTS
from app.contract.events_groups import GROUP_EVENTS
from app.contract.events_jobs import JOB_EVENTS
from model.engine.messages import Emitted, TraceEvent
from tests.fakes import Item

MODELS = {"traces": TRACE_EVENTS, "groups": GROUP_EVENTS, "jobs": JOB_EVENTS}


def check_event(stream: str, type_: str, data: Mapping[str, Any]) -> None:
    """Fails unless the data fits the model of its type: no other field, no other type."""
    MODELS[stream][type_].model_validate_json(json.dumps(data), strict=True)


def check_worker_event(row: Mapping[str, Any]) -> None:
    """Fails unless the server can show this line of a worker's `events.jsonl`."""
    data = {key: value for key, value in row["data"].items() if (row["type"], key) != ("checkpoint", "folder")}
    check_event("jobs", row["type"], {**data, "time": row["time"]})


def preferred_to(others: Sequence[bytes], items: Sequence[Item]) -> list[Item]:
    """The output of a step in which its image is chosen among others, which have no score."""
    out: list[Item] = []
    for item in items:
        if others and isinstance(item, Emitted) and item.event.type == "image.completed" and item.png is not None:
            data = {"step": item.event.data["step"], "scores": [*(None for _ in others), -1.5], "chosen": len(others)}
            out.append(Emitted(TraceEvent("image.candidates", data), images=(*others, item.png)))
        out.append(item)
    return out

"""Jobs for tests: a context without a worker, and access to its log."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.app.stream_events import check_worker_event
from training.jobs.context import JobContext
from training.jobs.log import JobLog
from training.spec.spec import parse_spec


class StopAfter:
    """A stop flag that is raised at its n-th check."""

    def __init__(self, times: int) -> None:
        self.left = times

    def __bool__(self) -> bool:
        self.left -= 1
        return self.left < 0


def job(
    folder: Path,
    spec: Mapping[str, Any],
    base: Path,
    *,
    resume: bool = False,
    stop: Any = None,
    checkpoints: Mapping[str, Path] | None = None,
) -> JobContext:
    """The context of a job in ``folder``, with ``base`` as its base checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    given = {} if stop is None else {"stop": stop}
    return JobContext(
        folder=folder,
        spec=parse_spec({"base_checkpoint": "tiny", **spec}),
        base_folder=base,
        checkpoints=checkpoints or {},
        log=JobLog(folder, tensorboard=False),
        output_prefix="made",
        resume=resume,
        **given,
    )


def events_of(ctx: JobContext, kind: str) -> list[dict[str, Any]]:
    """The data of every event of one type."""
    ctx.log.close()
    events = [json.loads(line) for line in (ctx.folder / "events.jsonl").read_text().splitlines()]
    for event in events:
        check_worker_event(event)
    return [event["data"] for event in events if event["type"] == kind]

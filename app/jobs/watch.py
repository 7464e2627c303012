"""A job and its worker in sight, as the runner holds them: what is known, and what cannot be known any more."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from app.jobs.process import WorkerProcess
from training.jobs.folder import read_object

log = logging.getLogger("omni_r1.jobs")

INTERRUPTED = {"code": "interrupted", "detail": "the server stopped or died while the job ran"}

End = Literal["succeeded", "failed", "cancelled", "interrupted"]


@dataclass(frozen=True)
class Job:
    """What the runner needs to know of a job."""

    id: str
    folder: Path
    spec: Mapping[str, Any]
    resume: bool = False
    log_offset: int = 0  # bytes of events.jsonl that the store has
    cancel_requested: bool = False

    @property
    def worker(self) -> WorkerProcess:
        """The process that was started last for it."""
        return WorkerProcess(self.folder)

    @property
    def method(self) -> str:
        return str(self.spec["method"])


@dataclass
class Told:
    """How much of a worker's events the store has."""

    job: Job
    offset: int


@dataclass
class Watch(Told):
    """A worker in sight."""

    process: subprocess.Popen[bytes]
    nudge: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False
    asked_at: float | None = None
    killed: bool = False
    trouble: str | None = None


@contextlib.contextmanager
def telling(what: str, watch: Watch | None = None) -> Iterator[None]:
    """Log an error once instead of raising it: the database's trouble must not end a training run."""
    try:
        yield
    except Exception as error:
        text = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if watch is None or watch.trouble != text:
            log.error("%s: %s", what, text)
        if watch is not None:
            watch.trouble = text
    else:
        if watch is not None:
            watch.trouble = None


def end_without_exit_code(job: Job) -> tuple[End, dict[str, Any]]:
    """What a job came to whose worker's exit nobody saw and that left no result."""
    told = read_object(job.folder / "error.json")
    if told is not None and "code" in told:
        return "failed", {"code": str(told["code"]), "detail": str(told.get("detail", ""))}
    return "interrupted", dict(INTERRUPTED)

"""The runner's view of a job and its worker."""

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
    """What the runner knows about a job."""

    id: str
    folder: Path
    spec: Mapping[str, Any]
    resume: bool = False
    log_offset: int = 0  # bytes of events.jsonl already stored
    cancel_requested: bool = False

    @property
    def worker(self) -> WorkerProcess:
        """The job's latest worker."""
        return WorkerProcess(self.folder)

    @property
    def method(self) -> str:
        """`pesft`, `perpo`, `zero`, `benchmark` or `pipeline`."""
        return str(self.spec["method"])


@dataclass
class Tail:
    """How much of a worker's events is stored."""

    job: Job
    offset: int


@dataclass
class Watch(Tail):
    """A running worker."""

    process: subprocess.Popen[bytes]
    nudge: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False
    term_sent_at: float | None = None
    killed: bool = False
    trouble: str | None = None


@contextlib.contextmanager
def logged_errors(what: str, watch: Watch | None = None) -> Iterator[None]:
    """Log errors, repeated ones once, instead of raising: database trouble must not end a training run."""
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
    """The end of a job whose worker left neither exit code nor result."""
    error = read_object(job.folder / "error.json")
    if error is not None and "code" in error:
        return "failed", {"code": str(error["code"]), "detail": str(error.get("detail", ""))}
    return "interrupted", dict(INTERRUPTED)

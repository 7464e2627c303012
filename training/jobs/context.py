"""What a job's loop is given, and how it says that it cannot go on. Knows neither tensors nor the server."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.home_paths import located, record
from training.jobs.stop import NeverStop, Stop

if TYPE_CHECKING:
    from training.jobs.disk import Disk
    from training.jobs.log import JobLog
    from training.spec.spec import AnySpec


class JobError(Exception):
    """The job cannot go on: ``code`` for programs, ``detail`` for people. Written to ``error.json``."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail


class JobStopped(Exception):
    """A signal asked the job to stop; it finished its step and saved its state."""


@dataclass(frozen=True)
class JobContext:
    """Everything a method's ``run(ctx)`` needs.

    Attributes:
        folder: the job's own (``job.json``, ``checkpoints/``, ``runs/``, ``samples/``).
        spec: what was asked for.
        base_folder: of the checkpoint to start from.
        checkpoints: folders of all checkpoints known by name when the job began.
        log: where progress, metrics, samples and checkpoints are told.
        output_prefix: new checkpoints are called ``<output_prefix>-step-<N>``.
        resume: go on with the states in ``runs/``.
        stop: asked at every step boundary.
        device: torch's name of the device to train on.
        stage: name of the pipeline's stage, or None when the job is one method.
        provenance: commit, versions and machine, for the lineage of what is made.
    """

    folder: Path
    spec: AnySpec
    base_folder: Path
    checkpoints: Mapping[str, Path]
    log: JobLog
    output_prefix: str
    resume: bool = False
    stop: Stop = field(default_factory=NeverStop)
    device: str = "cpu"
    stage: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def job_id(self) -> str:
        """The job's id: the name of its folder."""
        return self.folder.name

    @property
    def disk(self) -> Disk:
        """Where everything is written that must not be lost: it waits for room."""
        return self.log.disk

    def clock(self) -> float:
        """Seconds for the pace of the work: monotonic, without waits for room on the disk."""
        return time.monotonic() - self.disk.waited_s

    def record(self, value: Any) -> Any:
        """A JSON value as it is kept in files: with paths relative to the home."""
        return record(value, self.folder.parents[1])

    def located(self, value: Any) -> Any:
        """What :meth:`record` made of a value, or an earlier version kept, with paths that lead somewhere."""
        return located(value, self.folder)

    def run_folder(self, stage: str) -> Path:
        """Where a stage keeps its state and whatever it has worked out."""
        folder = self.folder / "runs" / stage
        self.disk.write(lambda: folder.mkdir(parents=True, exist_ok=True))
        return folder

    def checkpoint_name(self, step: int) -> str:
        """``<prefix>-step-<N>``, in a pipeline ``<prefix>-<stage>-step-<N>``."""
        middle = f"-{self.stage}" if self.stage else ""
        return f"{self.output_prefix}{middle}-step-{step}"

    def checkpoint_folder(self, step: int) -> Path:
        """Where the checkpoint of a step goes."""
        return self.folder / "checkpoints" / self.checkpoint_name(step)

    def for_stage(self, stage: str, spec: AnySpec, base_folder: Path) -> JobContext:
        """The same job as one of a pipeline's stages sees it."""
        return replace(self, stage=stage, spec=spec, base_folder=base_folder)

    def check_stop(self) -> None:
        """Leave at a place where there is nothing to save.

        Raises:
            JobStopped: a signal arrived.
        """
        if self.stop:
            raise JobStopped

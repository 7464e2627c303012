"""Context of a job's loop, and its ways to abort. Knows neither tensors nor the server."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.home_paths import located, record
from training.jobs.stop import NeverStop, Stop
from training.parallel.group import ALONE, Ranks

if TYPE_CHECKING:
    from training.jobs.disk import Disk
    from training.jobs.log import JobLog
    from training.spec.spec import AnySpec


class JobError(Exception):
    """The job cannot continue: ``code`` for programs, ``detail`` for people. Written to ``error.json``."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail


class JobStopped(Exception):
    """A signal stopped the job after it finished its step and saved its state."""


@dataclass(frozen=True)
class JobContext:
    """Everything a method's ``run(ctx)`` needs.

    Attributes:
        folder: the job's folder (``job.json``, ``checkpoints/``, ``runs/``, ``samples/``).
        spec: the requested specification.
        base_folder: folder of the base checkpoint.
        checkpoints: folders of all checkpoints by name when the job started.
        log: receives progress, metrics, samples and checkpoints.
        output_prefix: new checkpoints are called ``<output_prefix>-step-<N>``.
        resume: continue from the states in ``runs/``.
        stop: checked at every step boundary.
        device: torch's name of the device to train on.
        stage: name of the pipeline's stage, or None outside pipelines.
        ranks: the processes that train together; only the first one's ``log`` writes.
        provenance: commit, versions and machine, for the lineage of the results.
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
    ranks: Ranks = ALONE
    provenance: Mapping[str, Any] = field(default_factory=dict)

    @property
    def job_id(self) -> str:
        """The job's id: the name of its folder."""
        return self.folder.name

    @property
    def disk(self) -> Disk:
        """Writes that must not be lost; it waits for disk space."""
        return self.log.disk

    def clock(self) -> float:
        """Monotonic seconds for measuring pace, without waits for disk space."""
        return time.monotonic() - self.disk.waited_s

    def record(self, value: Any) -> Any:
        """Convert a JSON value for records: paths relative to the home."""
        return record(value, self.folder.parents[1])

    def located(self, value: Any) -> Any:
        """Convert a recorded value back to absolute, existing paths; also for records of earlier versions."""
        return located(value, self.folder)

    def run_folder(self, stage: str) -> Path:
        """Folder of a stage's state and intermediate results."""
        folder = self.folder / "runs" / stage
        self.disk.write(lambda: folder.mkdir(parents=True, exist_ok=True))
        return folder

    def checkpoint_name(self, step: int) -> str:
        """``<prefix>-step-<N>``, in a pipeline ``<prefix>-<stage>-step-<N>``."""
        middle = f"-{self.stage}" if self.stage else ""
        return f"{self.output_prefix}{middle}-step-{step}"

    def checkpoint_folder(self, step: int) -> Path:
        """Folder of a step's checkpoint."""
        return self.folder / "checkpoints" / self.checkpoint_name(step)

    def for_stage(self, stage: str, spec: AnySpec, base_folder: Path) -> JobContext:
        """Derive the context of one pipeline stage."""
        return replace(self, stage=stage, spec=spec, base_folder=base_folder)

    def check_stop(self) -> None:
        """Stop at a point where nothing needs saving.

        Raises:
            JobStopped: a signal arrived.
        """
        if self.stop:
            raise JobStopped

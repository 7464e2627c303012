"""The JSON of jobs as the contract shows it; what comes in is `training.spec.spec`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from app.contract.schemas import Out
from app.contract.words import JobStatus, Method


class WaitingOut(Out):
    """What a running job waits for: room on the disk of its home."""

    for_: Literal["disk"] = Field(alias="for")
    needed_bytes: int
    free_bytes: int


class ProgressOut(Out):
    """How far the running stage is."""

    stage: str | None
    step: int | None
    total: int | None
    eta_s: float | None
    waiting: WaitingOut | None = Field(None, description="there while the job waits, absent otherwise")


class JobErrorOut(Out):
    """Why a job did not succeed."""

    code: str
    detail: str
    log_tail: list[str] | None = Field(None, description="the last lines of the worker's output")


class JobCheckpointOut(Out):
    """A checkpoint that the job made; it can be asked for and activated by its name."""

    name: str
    stage: str | None
    step: int | None
    metrics: dict[str, Any]
    created_at: str


class JobOut(Out):
    """A training, bootstrapping or benchmark task."""

    id: str
    status: JobStatus
    method: Method
    progress: ProgressOut | None
    metrics: dict[str, float | None] = Field(description="the newest value of each")
    spec: dict[str, Any] = Field(description="with every default resolved")
    result: dict[str, Any] | None = Field(description="what the job's method sums up at its end")
    error: JobErrorOut | None
    checkpoints: list[JobCheckpointOut]
    attempt: int = Field(ge=0, description="how often it was started; more than one after a resume")
    cancel_requested: bool = Field(description="it will stop at its next step boundary")
    created_at: str
    started_at: str | None
    finished_at: str | None
    running_s: float = Field(ge=0, description="seconds that its workers have run, whatever the wall clock did")
    resumable: bool = Field(description="POST …/resume will go on from what it has saved")
    heartbeat_at: str | None = Field(description="when its running worker was last seen alive")
    last_event: int = Field(description="number of its newest event")


class JobList(Out):
    """A page of jobs, newest first."""

    data: list[JobOut]
    has_more: bool


class DatasetOut(Out):
    """An uploaded training file; `path` is what `data.path` of a job may say."""

    path: str
    rows: int
    bytes: int


class MetricsRow(Out):
    """The metrics of one step; `seq` is the number of its event."""

    seq: int
    stage: str | None = None
    step: int | None = None
    values: dict[str, float | None]
    time: str


class MetricsPage(Out):
    """Metrics, oldest first."""

    data: list[MetricsRow]
    has_more: bool

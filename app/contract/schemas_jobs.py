"""The API's JSON of jobs; requests are in `training.spec.spec`."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from app.contract.schemas import Out
from app.contract.words import JobStatus, Method


class WaitingOut(Out):
    """What a running job waits for: space on the disk of its home."""

    for_: Literal["disk"] = Field(alias="for")
    needed_bytes: int
    free_bytes: int


class ProgressOut(Out):
    """Progress of the running stage."""

    stage: str | None
    step: int | None
    total: int | None
    eta_s: float | None
    waiting: WaitingOut | None = Field(None, description="present only while the job waits")


class JobErrorOut(Out):
    """Why a job did not succeed."""

    code: str
    detail: str
    log_tail: list[str] | None = Field(None, description="the last lines of the worker's output")


class JobCheckpointOut(Out):
    """A checkpoint that the job wrote; its name can be used in requests and activated."""

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
    metrics: dict[str, float | None] = Field(description="the latest values")
    spec: dict[str, Any] = Field(description="with all defaults resolved")
    result: dict[str, Any] | None = Field(description="the method's summary at the end")
    error: JobErrorOut | None
    checkpoints: list[JobCheckpointOut]
    attempt: int = Field(ge=0, description="number of starts; more than one after a resume")
    cancel_requested: bool = Field(description="the job stops at its next step boundary")
    created_at: str
    started_at: str | None
    finished_at: str | None
    running_s: float = Field(ge=0, description="total run time of its workers, by the monotonic clock")
    resumable: bool = Field(description="POST …/resume continues from the saved state")
    heartbeat_at: str | None = Field(description="last sign of life of the running worker")
    last_event: int = Field(description="sequence number of the latest event")


class JobList(Out):
    """A page of jobs, newest first."""

    data: list[JobOut]
    has_more: bool


class MetricsRow(Out):
    """The metrics of one step; `seq` is the event's number."""

    seq: int
    stage: str | None = None
    step: int | None = None
    values: dict[str, float | None]
    time: str


class MetricsPage(Out):
    """Metrics, oldest first."""

    data: list[MetricsRow]
    has_more: bool

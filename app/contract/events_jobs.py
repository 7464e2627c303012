"""The events of a job's stream as pydantic models, like those of traces in `app.contract.events`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import ConfigDict, Field

from app.contract.examples import JOB_ID, METRICS, example
from app.contract.schemas import Out
from app.contract.schemas_jobs import JobErrorOut, ProgressOut
from app.contract.words import JobStatus


class JobEventData(Out):
    """Base of the events of jobs."""

    time: str = Field(description="RFC 3339")


class SampleStepOut(Out):
    """A step of a sampled trace."""

    text: str
    image: str | None = Field(description="an address on this server")


class SampleRewardsOut(Out):
    """Rewards of a sampled trace; each method reports those that it computes."""

    total: float | None = None
    accuracy: float | None = None
    format: float | None = None
    perception: float | None = None
    functional: float | None = None
    custom: dict[str, float] | None = Field(None, description="of rewards of your own by label, parts as `label/part`")


class JobStatusData(JobEventData):
    """The job's status has changed. The first event of a job holds only `status` and `time`."""

    model_config = example(
        status="running",
        attempt=1,
        started_at="2026-11-28T16:04:17.152Z",
        finished_at=None,
        time="2026-11-28T16:04:17.158Z",
    )

    status: JobStatus
    attempt: int | None = Field(None, ge=0, description="number of starts; more than one after a resume")
    started_at: str | None = None
    finished_at: str | None = None
    error: JobErrorOut | None = Field(None, description="why the job did not succeed")
    result: dict[str, Any] | None = Field(None, description="the method's summary at the end")


class JobProgressData(ProgressOut, JobEventData):
    """Progress of the running stage; rapid updates are merged into the newest."""

    model_config = example(stage="pesft", step=2, total=4, eta_s=1.8, time="2026-11-28T16:04:24.715+00:00")


class JobMetricsData(JobEventData):
    """Metrics of one step; the later of two rows for one step counts."""

    model_config = example(stage="pesft", step=4, values=METRICS, time="2026-11-28T16:04:26.394+00:00")

    stage: str
    step: int
    values: dict[str, float | None] = Field(description="by `group/name`; null if not finite")


class JobSampleData(JobEventData):
    """A trace sampled from the model."""

    model_config = example(
        stage="pesft",
        step=4,
        question="What is the shape of the red thing?",
        question_image=f"/v1/jobs/{JOB_ID}/files/samples/pesft-4-0-0-q.png",
        steps=[{"text": "I zoom in on the mark.", "image": f"/v1/jobs/{JOB_ID}/files/samples/pesft-4-0-0-1.png"}],
        answer="diamond",
        reference="diamond",
        slice="natural",
        rewards={"total": 0.975, "accuracy": 1.0, "format": 1.0, "perception": 0.5},
        advantage=None,
        prompt=0,
        index=0,
        time="2026-11-28T16:04:26.490+00:00",
    )

    stage: str
    step: int
    question: str
    question_image: str | None = Field(description="an address on this server")
    steps: list[SampleStepOut]
    answer: str | None
    reference: str | None = Field(description="the right answer")
    slice: str | None = Field(description="of the world or the benchmark")
    rewards: SampleRewardsOut
    advantage: float | None = Field(description="within the group of traces for the same question")
    prompt: int = Field(ge=0, description="number of the question within the step")
    index: int = Field(ge=0, description="number of the trace within its group")


class JobCheckpointData(JobEventData):
    """A checkpoint is registered; from now on traces can request it."""

    model_config = example(
        name="circles-step-4", stage="pesft", step=4, metrics=METRICS, time="2026-11-28T16:04:26.617+00:00"
    )

    name: str
    stage: str
    step: int
    metrics: dict[str, float]


class JobWarningData(JobEventData):
    """A problem that does not end the job."""

    model_config = example(
        code="samples_rejected", detail="4 of 8,000 samples left out", time="2026-11-28T16:04:20.753+00:00"
    )

    code: str
    detail: str


class JobLogData(JobEventData):
    """A line for people."""

    model_config = example(line="all 64 samples are usable", time="2026-11-28T16:04:20.753+00:00")

    line: str


class JobReportData(JobEventData):
    """A larger result; `kind` determines the other fields."""

    model_config = ConfigDict(extra="allow") | example(
        kind="data", kept=64, rejected=0, reasons={}, first=[], time="2026-11-28T16:04:20.754+00:00"
    )

    kind: Literal["data", "bootstrapping", "benchmark", "comparison"]


JOB_EVENTS: Mapping[str, type[Out]] = {
    "job.status": JobStatusData,
    "progress": JobProgressData,
    "metrics": JobMetricsData,
    "sample": JobSampleData,
    "checkpoint": JobCheckpointData,
    "warning": JobWarningData,
    "log": JobLogData,
    "report": JobReportData,
}

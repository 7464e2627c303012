"""The API's JSON of jobs; requests are in `training.spec.spec`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from app.contract.examples import JOB_ID, JOB_SPEC, example
from app.contract.schemas import In, Out, clean_text, plain_json
from app.contract.schemas_curation import MAX_NOTE_CHARS, MAX_TAGS, Tag, clean_tag
from app.contract.words import JobStatus, Method

MAX_JOB_NAME = 100


class WaitingOut(Out):
    """What a running job waits for: space on the disk of its home, or room in a Ray cluster."""

    for_: Literal["disk", "cluster"] = Field(alias="for")
    needed_bytes: int | None = Field(None, description="of the disk")
    free_bytes: int | None = Field(None, description="of the disk")
    detail: str | None = Field(None, description="what the job needs of the cluster, and what that has")


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


def _set(values: list[str]) -> list[str]:
    """Without repetitions."""
    return list(dict.fromkeys(values))


class JobUpdate(In):
    """Body of `PATCH /v1/jobs/{id}`; absent fields stay unchanged."""

    model_config = example(name="circles", tags=["baseline"], note="The paper's learning rate.")

    name: Annotated[str, Field(max_length=MAX_JOB_NAME), AfterValidator(clean_tag)] | None = Field(
        None, description="several jobs may have the same; null removes it"
    )
    tags: Annotated[list[Tag], Field(max_length=MAX_TAGS), AfterValidator(_set)] = Field(
        default_factory=list, description="all tags of the job, in place of its current ones"
    )
    note: Annotated[str, Field(max_length=MAX_NOTE_CHARS), AfterValidator(clean_text)] | None = Field(
        None, description="null or an empty text removes the note"
    )


class JobContinue(In):
    """Body of `POST /v1/jobs/{id}/continue`."""

    model_config = example(steps=200, name="circles, longer")

    steps: Annotated[int, Field(ge=1, le=10_000_000)] = Field(description="further steps")
    name: Annotated[str, Field(max_length=MAX_JOB_NAME), AfterValidator(clean_tag)] | None = Field(
        None, description="of the new job; the finished one's when absent"
    )
    output_name: Annotated[str, Field(max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = Field(
        None, description="checkpoints: <this>-step-N; a new name when absent"
    )


class ContinuesOut(Out):
    """The finished job from which a job goes on."""

    job_id: str
    steps: int = Field(description="its steps, after which this job starts")
    differs: list[str] = Field(description="what one longer run does differently; empty if the result is the same")


class SweepRefOut(Out):
    """The sweep of a job, and what is its own in it."""

    id: str
    values: dict[str, Any] = Field(description="by path in the spec")


class JobOut(Out):
    """A training, bootstrapping or benchmark task."""

    id: str
    status: JobStatus
    method: Method
    name: str | None = Field(description="several jobs may have the same")
    tags: list[str]
    note: str | None
    continues: ContinuesOut | None = Field(description="null unless it goes on from a finished job")
    sweep: SweepRefOut | None
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


class PointOut(Out):
    """A value of a metric and its step."""

    step: int
    value: float


class SeriesOut(Out):
    """One metric of one job; a null value was not finite."""

    job_id: str
    stage: str
    key: str
    steps: list[int]
    values: list[float | None]
    total: int = Field(ge=0, description="number of values between the two steps")
    exact: bool = Field(description="all of them are here, not a sample")
    nulls: int = Field(ge=0, description="how many of them were not finite")
    min: PointOut | None
    max: PointOut | None
    last: PointOut | None


class SeriesKeyOut(Out):
    """A metric that some of the jobs have."""

    stage: str
    key: str


class SeriesList(Out):
    """Metrics of several jobs, in the order of the ids."""

    model_config = example(
        data=[
            {
                "job_id": JOB_ID,
                "stage": "pesft",
                "key": "loss/ce",
                "steps": [1, 2, 3, 4],
                "values": [0.9127043, 0.7719881, None, 0.5439918],
                "total": 4,
                "exact": True,
                "nulls": 1,
                "min": {"step": 4, "value": 0.5439918},
                "max": {"step": 1, "value": 0.9127043},
                "last": {"step": 4, "value": 0.5439918},
            }
        ],
        keys=[{"stage": "pesft", "key": "loss/ce"}],
        points=500,
        missing=[],
    )

    data: list[SeriesOut]
    keys: list[SeriesKeyOut] = Field(description="all metrics of these jobs")
    points: int = Field(description="the most values of one series")
    missing: list[str] = Field(description="ids that no job has")


Grid = Annotated[dict[str, Annotated[list[Any], Field(min_length=1)]], Field(min_length=1), AfterValidator(plain_json)]


class SweepCreate(In):
    """Body of `POST /v1/sweeps`."""

    model_config = example(
        name="rates",
        spec={key: value for key, value in JOB_SPEC.items() if key not in ("seed", "output_name")},
        grid={"hyperparameters.lr": [0.001, 0.0005], "seed": [0, 1, 2]},
    )

    name: Annotated[str, Field(max_length=MAX_JOB_NAME), AfterValidator(clean_tag)] | None = None
    spec: Annotated[dict[str, Any], AfterValidator(plain_json)] = Field(description="what all jobs share")
    grid: Grid = Field(description="values by path in the spec; one job for each combination, at most 100")


class SweepEntry(Out):
    """A sweep without its jobs."""

    id: str
    name: str | None
    spec: dict[str, Any]
    grid: dict[str, list[Any]]
    counts: dict[JobStatus, int] = Field(description="number of its jobs by status")
    created_at: str


class SweepOut(Out):
    """A sweep with its jobs, oldest first."""

    id: str
    name: str | None
    spec: dict[str, Any]
    grid: dict[str, list[Any]]
    counts: dict[JobStatus, int]
    created_at: str
    jobs: list[JobOut]


class SweepList(Out):
    """A page of sweeps, newest first."""

    data: list[SweepEntry]
    has_more: bool


class ResultOut(Out):
    """What a finished benchmark measured of one checkpoint."""

    checkpoint: str
    job_id: str
    data: dict[str, Any] = Field(description="the questions")
    settings: dict[str, Any] = Field(description="hyperparameters of the benchmark that are not the default")
    tasks: int
    accuracy: float | None
    accuracy_ci95: list[float] | None
    drawings_right: float | None
    malformed: float | None
    finished_at: str | None


class Leaderboard(Out):
    """Results of benchmarks, newest first."""

    model_config = example(
        data=[
            {
                "checkpoint": "nano-omni-r1",
                "job_id": JOB_ID,
                "data": {"source": "unitasks", "num_samples": 1000, "level": "normal"},
                "settings": {},
                "tasks": 1000,
                "accuracy": 0.926,
                "accuracy_ci95": [0.9081, 0.9407],
                "drawings_right": 0.916,
                "malformed": 0.0,
                "finished_at": "2026-11-28T16:04:27.626Z",
            }
        ]
    )

    data: list[ResultOut]


class EstimateOut(Out):
    """The expected time of a job, in seconds; null if no job like it has finished here."""

    model_config = example(seconds=184.5, steps=200, step_s=0.9, start_s=4.5, job_ids=[JOB_ID])

    seconds: float | None
    steps: int | None
    step_s: float | None = Field(description="of a step")
    start_s: float | None = Field(description="of all before the first step")
    job_ids: list[str] = Field(description="the jobs from which it comes")

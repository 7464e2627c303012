"""The JSON of many jobs at once, as typed dictionaries."""

from __future__ import annotations

from typing import Any, TypedDict

from app.client.types import Job
from app.contract.words import JobStatus


class MetricsRow(TypedDict):
    """The metrics of one training step; `seq` is the position in the job's log."""

    seq: int
    stage: str
    step: int
    values: dict[str, float | None]
    time: str


class MetricsPage(TypedDict):
    """A page of metrics; `has_more` if later rows follow."""

    data: list[MetricsRow]
    has_more: bool


class Point(TypedDict):
    """A value of a metric and its step."""

    step: int
    value: float


class Series(TypedDict):
    """One metric of one job; `exact` if no value between the two steps is left out, None where none was finite."""

    job_id: str
    stage: str
    key: str
    steps: list[int]
    values: list[float | None]
    total: int
    exact: bool
    nulls: int
    min: Point | None
    max: Point | None
    last: Point | None


class SeriesKey(TypedDict):
    """A metric that some of the jobs have."""

    stage: str
    key: str


class SeriesList(TypedDict):
    """Metrics of several jobs; `missing` are the ids that no job has."""

    data: list[Series]
    keys: list[SeriesKey]
    points: int
    missing: list[str]


class SweepEntry(TypedDict):
    """A sweep without its jobs; `counts` has the number of jobs by status."""

    id: str
    name: str | None
    spec: dict[str, Any]
    grid: dict[str, list[Any]]
    counts: dict[JobStatus, int]
    created_at: str


class Sweep(SweepEntry):
    """A sweep with its jobs, oldest first."""

    jobs: list[Job]


class SweepPage(TypedDict):
    """A page of sweeps; `has_more` if older ones follow."""

    data: list[SweepEntry]
    has_more: bool


class Result(TypedDict):
    """What a benchmark measured of a checkpoint; comparable where `data` and `settings` are the same."""

    checkpoint: str
    job_id: str
    data: dict[str, Any]
    settings: dict[str, Any]
    tasks: int
    accuracy: float | None
    accuracy_ci95: list[float] | None
    drawings_right: float | None
    malformed: float | None
    finished_at: str | None


class Estimate(TypedDict):
    """The expected time of a job in seconds, None if no job like it has finished on this server."""

    seconds: float | None
    steps: int | None
    step_s: float | None
    start_s: float | None
    job_ids: list[str]

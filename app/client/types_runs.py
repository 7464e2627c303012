"""The JSON of many jobs at once, as typed dictionaries."""

from __future__ import annotations

from typing import TypedDict


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

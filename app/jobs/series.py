"""Metrics of jobs as series of numbers: folded from their events, and sampled down for charts.

A chart of fifty runs reads one metric of each. Their events are half a million lines of JSON, so rows of metrics are
folded into `job_series`, where a metric's numbers lie side by side; only the last ones are still read from events.
Blocking functions on a connection; know no HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import sqlalchemy as sa
from numpy.typing import NDArray
from sqlalchemy.engine import Connection

from app.storage import tables

J, E, S = tables.jobs, tables.job_events, tables.job_series

MOST_UNFOLDED = 1_000  # events of a running job that charts read one by one
MOST_FOLDED = 2_000  # rows of metrics that one call folds
STEP_BITS = 31  # of a stored step

Key = tuple[str, str]  # stage, metric
Pairs = dict[Key, tuple[list[int], list[float]]]  # steps and values


@dataclass(frozen=True)
class Series:
    """One metric of one job: strictly increasing steps, and values of the same length, NaN where none was finite."""

    job_id: str
    stage: str
    key: str
    steps: NDArray[np.int64]
    values: NDArray[np.float64]


def fold(connection: Connection, job_id: str, *, after: int = 0) -> bool:
    """Move metrics from the job's events to its series; returns whether more are left.

    Args:
        connection: in a write transaction.
        job_id: unknown ids are ignored.
        after: do nothing while at most so many events came after the last ones folded.
    """
    done = connection.execute(sa.select(J.c.series_seq).where(J.c.id == job_id)).scalar()
    last = connection.execute(sa.select(sa.func.max(E.c.seq)).where(E.c.job_id == job_id)).scalar()
    if done is None or last is None or last - done <= after:
        return False
    rows = _unfolded(connection, job_id, done, MOST_FOLDED)
    more = len(rows) == MOST_FOLDED
    end = rows[-1][0] if more else last
    found = [
        {"job_id": job_id, "stage": stage, "key": key, "part": done, "steps": _bytes(steps), "values": _bytes(values)}
        for (stage, key), (steps, values) in _columns(rows).items()
    ]
    if found:
        connection.execute(sa.insert(S), found)
    connection.execute(sa.update(J).where(J.c.id == job_id).values(series_seq=end))
    return more


def unfolded(connection: Connection, job_ids: Sequence[str]) -> list[str]:
    """Those of the jobs whose charts would read many events, as after an update from an earlier version."""
    last = sa.select(sa.func.max(E.c.seq)).where(E.c.job_id == J.c.id).correlate(J).scalar_subquery()
    query = sa.select(J.c.id).where(J.c.id.in_(job_ids), last - J.c.series_seq > 2 * MOST_UNFOLDED)
    return list(connection.execute(query).scalars())


def read(connection: Connection, job_ids: Sequence[str], keys: Sequence[str]) -> tuple[list[Series], list[Key]]:
    """The metrics `keys` of the jobs, by job and stage, and all stages and metrics that these jobs have."""
    parts: dict[str, dict[Key, list[tuple[NDArray[np.int64], NDArray[np.float64]]]]] = {}
    known: dict[Key, None] = {}
    names = sa.select(S.c.stage, S.c.key).where(S.c.job_id.in_(job_ids)).distinct()
    known.update(((stage, key), None) for stage, key in connection.execute(names))
    query = sa.select(S.c.job_id, S.c.stage, S.c.key, S.c.steps, S.c["values"])
    query = query.where(S.c.job_id.in_(job_ids), S.c.key.in_(keys))
    for job_id, stage, key, steps, values in connection.execute(query.order_by(S.c.job_id, S.c.part)):
        numbers = np.frombuffer(steps, "<i4").astype(np.int64), np.frombuffer(values, "<f8").astype(np.float64)
        parts.setdefault(job_id, {}).setdefault((stage, key), []).append(numbers)
    for job_id, done in connection.execute(sa.select(J.c.id, J.c.series_seq).where(J.c.id.in_(job_ids))).all():
        columns = _columns(_unfolded(connection, job_id, done, None))
        known.update(dict.fromkeys(columns))
        for name, (rest, last) in columns.items():
            if name[1] in keys:
                numbers = np.array(rest, np.int64), np.array(last, np.float64)
                parts.setdefault(job_id, {}).setdefault(name, []).append(numbers)
    found = [
        _whole(job_id, stage, key, pieces)
        for job_id in job_ids
        for (stage, key), pieces in sorted(parts.get(job_id, {}).items())
    ]
    return found, sorted(known)


def _unfolded(connection: Connection, job_id: str, after: int, limit: int | None) -> Sequence[Any]:
    query = sa.select(E.c.seq, E.c.data).where(E.c.job_id == job_id, E.c.type == "metrics", E.c.seq > after)
    return connection.execute(query.order_by(E.c.seq).limit(limit)).all()


def _columns(rows: Sequence[Any]) -> Pairs:
    """Rows of metrics (seq, data) as columns."""
    found: Pairs = {}
    for _, data in rows:
        row = json.loads(data)
        step = row.get("step")
        if not isinstance(step, int) or not 0 <= step < 2**STEP_BITS:
            continue
        for key, value in _numbers(row.get("values")):
            steps, values = found.setdefault((str(row.get("stage") or ""), key), ([], []))
            steps.append(step)
            values.append(value)
    return found


def _numbers(values: Any) -> Iterator[tuple[str, float]]:
    for key, value in values.items() if isinstance(values, Mapping) else ():
        if value is None or isinstance(value, int | float):
            yield str(key), float("nan") if value is None else float(value)


def _bytes(numbers: list[int] | list[float]) -> bytes:
    kind = "<f8" if isinstance(numbers[0], float) else "<i4"
    return np.array(numbers, kind).tobytes()


def _whole(
    job_id: str, stage: str, key: str, pieces: Sequence[tuple[NDArray[np.int64], NDArray[np.float64]]]
) -> Series:
    """The pieces as one series. A resumed job repeats steps: from there on, the later rows count."""
    steps, values = np.concatenate([one for one, _ in pieces]), np.concatenate([one for _, one in pieces])
    later = np.minimum.accumulate(steps[::-1])[::-1]
    kept = np.append(steps[:-1] < later[1:], True)
    return Series(job_id, stage, key, steps[kept], values[kept])


# ---- sampling


def chosen(values: NDArray[np.float64], points: int) -> NDArray[np.int64]:
    """Positions of at most `points` values (at least 5) that look like all of them in a chart, in order.

    First, last, and of each bucket of neighbours the least, the greatest and the first NaN, so that no peak and no
    failure disappears. All positions if there are no more than that.
    """
    if len(values) <= points:
        return np.arange(len(values))
    missing = np.isnan(values)
    per_bucket = 3 if missing.any() else 2
    width = -(-len(values) // max(1, (points - 2) // per_bucket))
    rows = -(-len(values) // width)
    padded = np.full(rows * width, np.nan)
    padded[: len(values)] = values
    grid, starts = padded.reshape(rows, width), np.arange(rows) * width
    low, high = np.where(np.isnan(grid), np.inf, grid), np.where(np.isnan(grid), -np.inf, grid)
    found = [starts + low.argmin(1), starts + high.argmax(1), np.array([0, len(values) - 1])]
    if per_bucket == 3:
        flags = np.zeros(rows * width, bool)
        flags[: len(values)] = missing
        gaps = flags.reshape(rows, width)
        found.append((starts + gaps.argmax(1))[gaps.any(1)])
    return np.unique(np.concatenate(found))


def shown(series: Series, *, first: int | None, last: int | None, points: int) -> dict[str, Any]:
    """The API's JSON of the series between two steps, both included."""
    inside = slice(
        0 if first is None else np.searchsorted(series.steps, first),
        len(series.steps) if last is None else np.searchsorted(series.steps, last, side="right"),
    )
    steps, values = series.steps[inside], series.values[inside]
    at = chosen(values, points)
    finite = np.flatnonzero(~np.isnan(values))
    least = greatest = newest = None
    if len(finite):
        places = finite[values[finite].argmin()], finite[values[finite].argmax()], finite[-1]
        least, greatest, newest = ({"step": int(steps[one]), "value": float(values[one])} for one in places)
    return {
        "job_id": series.job_id,
        "stage": series.stage,
        "key": series.key,
        "steps": steps[at].tolist(),
        "values": [None if np.isnan(value) else value for value in values[at].tolist()],
        "total": len(steps),
        "exact": len(at) == len(steps),
        "nulls": len(steps) - len(finite),
        "min": least,
        "max": greatest,
        "last": newest,
    }

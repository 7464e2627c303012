"""Series of metrics: folded from events without loss, sampled without losing peaks or failures, within a budget."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sqlalchemy as sa

from app.jobs import series, store
from app.jobs.runs import MOST_POINTS, Runs
from app.storage import tables
from app.storage.database import Database
from training.jobs.folder import WorkerEvent

STEPS = 10_000
Row = tuple[int, dict[str, Any]]


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('series') / 'jobs.db'}")
    database.migrate()
    yield database
    database.close()


def add(db: Database, job_id: str) -> None:
    row = {"method": "pesft", "gpu": "shared", "base_checkpoint": "b", "spec": {}, "output_prefix": "p"}
    with db.write() as connection:
        store.insert(connection, id=job_id, server_id="here", **row)


def record(db: Database, job_id: str, rows: Sequence[Row], at: int = 0) -> None:
    table = store.JobTable(db, lambda: "here", Path("jobs"))
    events = [WorkerEvent("metrics", "t", {"stage": "s", "step": step, "values": values}) for step, values in rows]
    table.record(job_id, events, at)


def runs(db: Database) -> Runs:
    return Runs(db, None)  # type: ignore[arg-type]


def shown(db: Database, job_id: str, key: str = "loss/ce", **wanted: Any) -> dict[str, Any]:
    given = {"points": 20_000, "first": None, "last": None, **wanted}
    (one,) = runs(db).series([job_id], [key], **given)["data"]
    return dict(one)


def folded(db: Database, job_id: str) -> int:
    with db.read() as connection:
        query = sa.select(sa.func.count()).select_from(tables.job_series)
        return int(connection.execute(query.where(tables.job_series.c.job_id == job_id)).scalar_one())


def test_folded_numbers_are_those_of_the_events(db: Database) -> None:
    add(db, "job_fold")
    rng = np.random.default_rng(0)
    values = [round(float(value), 7) for value in rng.normal(size=3 * series.MOST_UNFOLDED)]
    rows = [(step, {"loss/ce": value, "kl": step}) for step, value in enumerate(values, 1)]
    seen = []
    for start in range(0, len(rows), 700):
        record(db, "job_fold", rows[start : start + 700])
        seen.append(shown(db, "job_fold")["values"] == values[: start + 700])
    assert all(seen)
    assert folded(db, "job_fold") > 2
    assert shown(db, "job_fold", "kl")["values"] == [float(step) for step, _ in rows]
    (key,) = {one["stage"] for one in runs(db).series(["job_fold"], [], points=5, first=None, last=None)["keys"]}
    assert key == "s"


def test_unfolded_log_of_an_earlier_version_is_folded_at_its_first_chart(db: Database) -> None:
    add(db, "job_old")
    line = json.dumps({"stage": "s", "step": 0, "values": {"loss/ce": 0.5}, "time": "t"})
    count = 5 * series.MOST_UNFOLDED
    rows = [
        {"job_id": "job_old", "seq": step + 1, "type": "metrics", "data": line.replace('"step": 0', f'"step": {step}')}
        for step in range(1, count + 1)
    ]
    with db.write() as connection:
        connection.execute(sa.insert(tables.job_events), rows)
    assert shown(db, "job_old")["steps"] == list(range(1, count + 1))
    assert folded(db, "job_old") > 1
    assert shown(db, "job_old")["total"] == count


def test_later_rows_of_a_resumed_job_count(db: Database) -> None:
    add(db, "job_again")
    record(db, "job_again", [(step, {"loss/ce": 1.0}) for step in range(1, 8)])
    with db.write() as connection:
        series.fold(connection, "job_again")
    record(db, "job_again", [(step, {"loss/ce": 2.0}) for step in range(5, 10)])
    one = shown(db, "job_again")
    assert one["steps"] == list(range(1, 10))
    assert one["values"] == [1.0] * 4 + [2.0] * 5


def test_values_that_are_not_finite_stay_visible(db: Database) -> None:
    add(db, "job_nan")
    bad = {4_000: float("nan"), 7_777: float("inf")}
    record(db, "job_nan", [(step, {"loss/ce": bad.get(step, 0.5)}) for step in range(1, STEPS + 1)])
    one = shown(db, "job_nan", points=100)
    assert (one["nulls"], one["exact"], one["total"]) == (2, False, STEPS)
    assert [step for step, value in zip(one["steps"], one["values"], strict=True) if value is None] == list(bad)
    record(db, "job_nan", [(STEPS + 1, {"all/nan": float("nan")})])
    empty = shown(db, "job_nan", "all/nan")
    assert (empty["min"], empty["max"], empty["last"], empty["values"]) == (None, None, None, [None])


@pytest.mark.parametrize("points", [5, 6, 50, 333, 9_999])
def test_sample_keeps_ends_and_extremes_within_its_size(points: int) -> None:
    rng = np.random.default_rng(points)
    for length in (points, points + 1, 2 * points, 10_007):
        values = rng.normal(size=length)
        at = series.chosen(values, points)
        assert len(at) <= points
        assert (np.diff(at) > 0).all()
        assert {0, length - 1, int(values.argmin()), int(values.argmax())} <= set(at.tolist())


def test_zoom_is_exact(db: Database) -> None:
    add(db, "job_zoom")
    rows = [(step, {"loss/ce": float(step)}) for step in range(10, 3_000, 3)]
    record(db, "job_zoom", rows)
    one = shown(db, "job_zoom", points=50, first=1_000, last=1_090)
    assert one["exact"]
    assert one["steps"] == [step for step, _ in rows if 1_000 <= step <= 1_090]
    assert shown(db, "job_zoom", first=4_000)["total"] == 0


def test_chart_of_fifty_long_runs_stays_below_its_budget(db: Database) -> None:
    """2 MB on the wire; the numbers are as long as a worker rounds them."""
    add(db, "job_first")
    rng = np.random.default_rng(1)
    rows = [(step, {"loss/ce": round(float(value), 7)}) for step, value in enumerate(rng.normal(size=STEPS), 90_000)]
    record(db, "job_first", rows)
    ids = [f"job_b{k}" for k in range(50)]
    copy = 'INSERT INTO job_series SELECT :to, key, stage, part, steps, "values" FROM job_series WHERE job_id = :of'
    for job_id in ids:
        add(db, job_id)
    with db.write() as connection:
        series.fold(connection, "job_first")
        connection.execute(sa.text(copy), [{"to": job_id, "of": "job_first"} for job_id in ids])
    found = runs(db).series([*ids, "job_gone"], ["loss/ce"], points=20_000, first=None, last=None)
    assert (len(found["data"]), found["missing"]) == (50, ["job_gone"])
    assert sum(len(one["steps"]) for one in found["data"]) <= MOST_POINTS
    assert len(json.dumps(found)) < 2_000_000

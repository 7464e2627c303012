"""Jobs in SQL: exclusive claims, and constant cost for pages of metrics."""

from __future__ import annotations

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.jobs import shown, store
from app.storage import tables
from app.storage.database import Database
from training.jobs.folder import WorkerEvent

ROWS = 100_000


@pytest.fixture(scope="module")
def db(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Database]:
    database = Database(f"sqlite:///{tmp_path_factory.mktemp('jobs') / 'jobs.db'}")
    database.migrate()
    yield database
    database.close()


def add(db: Database, job_id: str, server: str = "here", **values: Any) -> None:
    row = {
        "method": "pesft",
        "gpu": "shared",
        "base_checkpoint": "b",
        "spec": {"method": "pesft"},
        "output_prefix": "p",
    }
    with db.write() as connection:
        store.insert(connection, id=job_id, server_id=server, **row | values)


def table(db: Database, server: str) -> store.JobTable:
    return store.JobTable(db, lambda: server, Path("jobs"))


def test_job_is_claimed_once(db: Database) -> None:
    for k in range(20):
        add(db, f"job_{k:03}", "race")
    with ThreadPoolExecutor(8) as pool:
        claimed = [job.id for job in pool.map(lambda _: table(db, "race").claim(1000), range(40)) if job is not None]
    assert sorted(claimed) == [f"job_{k:03}" for k in range(20)]
    with db.read() as connection:
        rows = connection.execute(sa.select(tables.jobs.c.attempt).where(tables.jobs.c.server_id == "race"))
        assert set(rows.scalars()) == {1}


def test_each_end_of_a_job_is_counted_once(db: Database) -> None:
    add(db, "job_counted", "counting")
    ended: list[str] = []
    counting = store.JobTable(db, lambda: "counting", Path("jobs"), ended.append)
    assert counting.claim(9) is not None
    for _ in range(2):  # the second one finds it ended
        counting.finish("job_counted", "failed", error={"code": "x"}, result=None)
    assert ended == ["failed"]


def test_claim_respects_server_limit_and_order(db: Database) -> None:
    for k, gpu in enumerate(("shared", "exclusive", "shared")):
        add(db, f"job_x{k}", "mine", gpu=gpu)
    assert table(db, "theirs").claim(9) is None
    first = table(db, "mine").claim(9)
    assert first is not None
    assert first.id == "job_x0"
    assert table(db, "mine").claim(9) is None  # the exclusive job waits and is not overtaken
    table(db, "mine").finish("job_x0", "succeeded", error=None, result={})
    alone = table(db, "mine").claim(9)
    assert alone is not None
    assert alone.id == "job_x1"
    assert table(db, "mine").claim(9) is None


def test_ended_job_stays_unchanged(db: Database) -> None:
    add(db, "job_end", "ends")
    assert table(db, "ends").claim(1) is not None
    table(db, "ends").finish("job_end", "failed", error={"code": "x", "detail": ""}, result=None)
    table(db, "ends").finish("job_end", "succeeded", error=None, result=None)
    with db.read() as connection:
        job = shown.whole(connection, "job_end")
    assert job is not None
    assert (job["status"], job["last_event"]) == ("failed", 3)


def test_metrics_page_of_a_long_job_is_fast(db: Database) -> None:
    add(db, "job_long", "long")
    fill = """
        WITH RECURSIVE n(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM n WHERE k < :rows)
        INSERT INTO job_events SELECT 'job_long', k + 1, 'metrics',
        json_object('stage', 's', 'step', k, 'values', json_object('loss/ce', .5), 'time', 't') FROM n"""
    with db.write() as connection:
        connection.execute(sa.text(fill), {"rows": ROWS - 1})
    last = WorkerEvent("metrics", "t", {"stage": "s", "step": ROWS, "values": {"loss/ce": 0.25}})
    table(db, "long").record("job_long", [last], 1)
    with db.read() as connection:
        page, more = store.metrics_page(connection, "job_long", after=ROWS - 50, limit=100)
        assert ([row["step"] for row in page][-1], len(page), more) == (ROWS, 51, False)
        page, more = store.metrics_page(connection, "job_long", after=50_000, limit=1000)
        assert ([row["step"] for row in page], more) == (list(range(50_000, 51_000)), True)

        def plan(query: str, **values: Any) -> str:
            rows = connection.execute(sa.text(f"EXPLAIN QUERY PLAN {query}"), values).all()
            return " ".join(str(row[3]) for row in rows)

        requested = plan(
            "SELECT seq, data FROM job_events WHERE job_id = :j AND type = 'metrics' AND seq > :s ORDER BY seq LIMIT 9",
            j="job_long",
            s=99_000,
        )
        assert "job_id=? AND type=? AND seq>?" in requested
        assert "TEMP B-TREE" not in requested
        assert "SEARCH" in plan("SELECT max(seq) FROM job_events WHERE job_id = :j", j="job_long")
        job = shown.whole(connection, "job_long")
    assert job is not None
    assert job["metrics"] == {"loss/ce": 0.25}
    assert len(json.dumps(job)) < 2000  # the job itself holds only the latest values


def test_compared_checkpoint_keeps_the_jobs_metrics(db: Database) -> None:
    add(db, "job_compare", "comparing")
    own = {"stage": "benchmark", "step": 10, "values": {"accuracy/all": 0.9, "response/len": 4}}
    other = {"stage": "benchmark:other", "step": 10, "values": {"accuracy/all": 0.1}}
    events = [WorkerEvent("metrics", "2026-01-01T00:00:00Z", row) for row in (own, other)]
    table(db, "comparing").record("job_compare", events, 1)
    with db.read() as connection:
        metrics = connection.execute(sa.select(tables.jobs.c.metrics).where(tables.jobs.c.id == "job_compare")).scalar()
    assert metrics == own["values"]

"""Dead servers and concurrent writes: in every order, a trace or attempt ends exactly once."""

from __future__ import annotations

import contextlib
import itertools
import json
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.contract.frames import encode
from app.contract.words import JOB_TERMINAL, TERMINAL, TERMINAL_EVENTS
from app.jobs import store as job_store
from app.jobs.process import WorkerProcess
from app.jobs.servers import DIED, ServerWatch
from app.storage.database import Database, now
from app.storage.dialects import clock
from app.traces.event_log import EventLog
from app.traces.event_writer import Pending
from app.traces.records import group_store, store
from tests.app.conftest import both_databases
from training.jobs.folder import WorkerEvent

TYPE_OF = {"completed": "trace.completed", "cancelled": "trace.cancelled", "failed": "trace.failed"}


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    database = Database(database_url)
    database.migrate()
    yield database
    database.close()


def insert_trace(db: Database, trace_id: str, server_id: str = "one", status: str = "running") -> None:
    row = {
        "id": trace_id,
        "server_id": server_id,
        "status": status,
        "question": "?",
        "images": [],
        "mode": "auto",
        "checkpoint": "c",
        "weight_version": 1,
        "sampling": {},
        "partial_images": 0,
        "background": True,
        "metadata": {},
        "timings": {},
        "created_at": now(),
    }
    with db.write() as connection:
        store.insert(connection, row, ("trace.queued", "{}"))


def insert_job(db: Database, job_id: str, server_id: str = "one") -> None:
    row = {"method": "pesft", "gpu": "shared", "base_checkpoint": "b", "spec": {"method": "pesft"}}
    with db.write() as connection:
        job_store.insert(connection, id=job_id, server_id=server_id, output_prefix=job_id, **row)


def log_of(db: Database, trace_id: str) -> list[tuple[int, str, str]]:
    with db.read() as connection:
        return store.events_of(connection, trace_id)


def has_one_end(db: Database, trace_id: str) -> None:
    """The log is gapless, only its last event is terminal, and the row agrees."""
    log = log_of(db, trace_id)
    assert [seq for seq, _, _ in log] == list(range(1, len(log) + 1))
    assert [type_ in TERMINAL_EVENTS for _, type_, _ in log] == [False] * (len(log) - 1) + [True]
    with db.read() as connection:
        row = store.get_row(connection, trace_id)
    assert row is not None
    assert row.status in TERMINAL
    assert log[-1][1] == TYPE_OF.get(row.status, "trace.failed")
    assert row.finished_at is not None


# ---- rows only: every order of two servers' actions


class BreakingDatabase:
    """A database whose connection breaks `before` or `after` the next commit, as the writer sees it."""

    def __init__(self, db: Database) -> None:
        self._db = db
        self.breaks: str | None = None

    @contextlib.contextmanager
    def write(self) -> Iterator[Any]:
        breaks, self.breaks = self.breaks, None
        with self._db.write() as connection:
            yield connection
            if breaks == "before":
                raise sa.exc.OperationalError("COMMIT", None, ConnectionError("gone"))
        if breaks == "after":
            raise sa.exc.OperationalError("COMMIT", None, ConnectionError("gone"))


class Writer:
    """The event log's writer for one trace, commit by commit."""

    def __init__(self, db: Database, trace_id: str) -> None:
        self.trace_id = trace_id
        self.database = BreakingDatabase(db)
        self._log = EventLog(self.database)  # type: ignore[arg-type]
        self._seq = 1
        self.lost = False
        self.committed: list[str] = []

    def batch(self, *whats: str) -> list[Pending]:
        made = []
        for what in whats:
            self._seq += 1
            follows = ("paused",) if what in ("running", "cancelled-paused") else store.IN_WORK
            status = what.removesuffix("-paused")
            type_ = TYPE_OF.get(status, f"trace.{status}" if status != "text" else "text.delta")
            data = encode({"step": 1, "text": f"{what} {self._seq}"})
            made.append(Pending(self.trace_id, self._seq, type_, data, self._update(status), None, follows))
        return made

    def _update(self, status: str) -> Callable[[Any], None] | None:
        if status == "text":
            return None
        if status in TERMINAL:
            return lambda connection: store.finish(connection, self.trace_id, status=status)
        return lambda connection: store.update(connection, self.trace_id, status=status)

    def commit(self, batch: list[Pending], *, again: bool = False) -> None:
        if self._log._writer._commit(batch, tried_before=again):
            self.lost = True
        else:
            self.committed += [entry.data for entry in batch]


SCRIPTS: list[list[tuple[str, ...]]] = [
    [("text",), ("text", "completed")],
    [("text", "paused"), ("running", "text"), ("text",), ("failed",)],
    [("paused",), ("cancelled-paused",)],
    [("cancelled",)],
]


def end_left_over(db: Database) -> None:
    with db.write() as connection:
        group_store.end_left_over(connection, ["one"], DIED)


@both_databases
@pytest.mark.parametrize("script", range(len(SCRIPTS)))
def test_every_interleaving_has_one_terminal_event(db: Database, script: int) -> None:
    batches = SCRIPTS[script]
    breaks = list(itertools.product((None, "before", "after"), repeat=len(batches)))
    random.Random(script).shuffle(breaks)
    for number, how in enumerate(breaks[:9]):
        for moment in range(2 * len(batches) + 1):  # before, between attempt and retry, after each commit
            trace_id = f"t{script}-{number}-{moment}"
            insert_trace(db, trace_id)
            writer = Writer(db, trace_id)
            for at, batch in enumerate(writer.batch(*whats) for whats in batches):
                if moment == 2 * at:
                    end_left_over(db)
                writer.database.breaks = how[at]
                try:
                    writer.commit(batch)
                except sa.exc.OperationalError:
                    if moment == 2 * at + 1:
                        end_left_over(db)
                    writer.commit(batch, again=True)
                if writer.lost:
                    break
            end_left_over(db)
            has_one_end(db, trace_id)
            kept = [data for _, _, data in log_of(db, trace_id)]
            assert kept[1 : 1 + len(writer.committed)] == writer.committed


@both_databases
def test_concurrent_writers_give_one_terminal_event(db: Database, database_url: str) -> None:
    other = Database(database_url)
    for number in range(12):
        trace_id = f"race{number}"
        insert_trace(db, trace_id)
        writer = Writer(db, trace_id)
        gate = threading.Barrier(2)

        def write(writer: Writer = writer, gate: threading.Barrier = gate) -> None:
            batches = [writer.batch("text") for _ in range(5)] + [writer.batch("completed")]
            gate.wait()
            for batch in batches:
                if not writer.lost:
                    writer.commit(batch)

        thread = threading.Thread(target=write)
        thread.start()
        gate.wait()
        end_left_over(other)
        thread.join()
        has_one_end(db, trace_id)
        assert writer.lost == (log_of(db, trace_id)[-1][2] == encode({"error": DIED}))
    other.close()


# ---- dead servers


class Hand:
    """Manually controlled time of the watch and the database."""

    def __init__(self, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
        self.db = db
        self.now, self.database = 1000.0, 5000.0
        monkeypatch.setattr("app.jobs.servers.clock", lambda: sa.literal(self.database, sa.Double()))

    def watch(self, server_id: str) -> ServerWatch:
        return ServerWatch(self.db, lambda: server_id, dead_after_s=30.0, monotonic=lambda: self.now)

    def pass_(self, seconds: float, *, database: float | None = None) -> None:
        self.now += seconds
        self.database += seconds if database is None else database


@pytest.fixture
def hand(db: Database, monkeypatch: pytest.MonkeyPatch) -> Hand:
    return Hand(db, monkeypatch)


@both_databases
def test_database_clock_counts_seconds(db: Database) -> None:
    with db.read() as connection:
        first = connection.execute(sa.select(clock())).scalar_one()
    with db.read() as connection:
        second = connection.execute(sa.select(clock())).scalar_one()
    assert isinstance(first, float)
    assert abs(first - time.time()) < 600  # on the same machine here
    assert first <= second


@both_databases
def test_silent_server_dies_once(db: Database, hand: Hand) -> None:
    one, two, three = hand.watch("one"), hand.watch("two"), hand.watch("three")
    for name, server, status in (("a", "one", "running"), ("b", "one", "queued"), ("c", "one", "paused")):
        insert_trace(db, name, server, status)
    insert_trace(db, "d", "three")
    one.beat()
    for _ in range(5):
        two.beat(), three.beat()
        hand.pass_(5)
    assert not two.is_dead("one")
    for _ in range(4):
        two.beat(), three.beat()
        hand.pass_(5)
    assert two.is_dead("one")
    assert not two.is_dead("three")
    with db.read() as connection:
        assert store.statuses(connection, "abcd") == {
            "a": "interrupted",
            "b": "interrupted",
            "c": "paused",
            "d": "running",
        }
    has_one_end(db, "a")
    assert one.beat(["a", "c", "unknown"]) == ["a"]
    two.beat()
    assert not two.is_dead("one")


@both_databases
def test_returning_server_waits_before_judging_others(db: Database, hand: Hand) -> None:
    one, two = hand.watch("one"), hand.watch("two")
    insert_trace(db, "a", "one")
    for _ in range(3):
        one.beat(), two.beat()
        hand.pass_(5)
    hand.pass_(600)  # the database was away, or both machines suspended
    two.beat()
    hand.pass_(5)
    one.beat(), two.beat()
    for _ in range(9):
        hand.pass_(5)
        one.beat(), two.beat()
    with db.read() as connection:
        assert store.statuses(connection, "a") == {"a": "running"}


@both_databases
@pytest.mark.parametrize("step", [-7200.0, 7200.0])
def test_database_clock_step_kills_no_live_server(db: Database, hand: Hand, step: float) -> None:
    one, two = hand.watch("one"), hand.watch("two")
    insert_trace(db, "a", "one")
    for number in range(12):
        one.beat(), two.beat()
        hand.pass_(5, database=step if number == 6 else 5)
    assert not two.is_dead("one")
    for _ in range(3):  # a silent server dies despite clock steps
        two.beat()
        hand.pass_(5, database=step)
    two.beat()
    assert two.is_dead("one")
    has_one_end(db, "a")


# ---- rows of jobs


class Jobs:
    def __init__(self, db: Database) -> None:
        self.db = db
        self.table = job_store.JobTable(db, lambda: "one", Path("jobs"))

    def claimed(self, job_id: str) -> None:
        insert_job(self.db, job_id)
        job = self.table.claim(1000)
        assert job is not None
        assert job.id == job_id

    def interrupt(self) -> None:
        with self.db.write() as connection:
            job_store.interrupt_left_over(connection, ["one"], {"code": "interrupted", "detail": "dead"})

    def reported(self, job_id: str) -> list[tuple[str, int]]:
        """Statuses and attempts from the log."""
        with self.db.read() as connection:
            rows = job_store.events_after(connection, job_id, 0, 1000)
        assert [seq for seq, _, _ in rows] == list(range(1, len(rows) + 1))
        reported = [json.loads(data) for _, type_, data in rows if type_ == "job.status"]
        return [(data["status"], data.get("attempt", 0)) for data in reported]

    def row(self, job_id: str) -> Any:
        with self.db.read() as connection:
            return job_store.get_row(connection, job_id)


@both_databases
@pytest.mark.parametrize("end", ["succeeded", "failed", "cancelled", "interrupted"])
def test_every_attempt_ends_once(db: Database, tmp_path: Path, end: Any) -> None:
    jobs = Jobs(db)
    steps = [
        lambda job_id: jobs.table.started(job_id, WorkerProcess(tmp_path)),
        lambda job_id: jobs.table.beat(job_id),
        lambda job_id: jobs.table.record(job_id, [WorkerEvent("progress", "t", {"step": 1})], 10),
        lambda job_id: jobs.table.finish(job_id, end, error=None, result=None),
    ]
    for moment in range(len(steps) + 1):
        job_id = f"job_{end}_{moment}"
        jobs.claimed(job_id)
        for at, step in enumerate(steps):
            if at == moment:
                jobs.interrupt()
            step(job_id)
        jobs.interrupt()
        reported = jobs.reported(job_id)
        ends = [(status, attempt) for status, attempt in reported if status in JOB_TERMINAL]
        assert len({attempt for _, attempt in ends}) == len(ends) == jobs.row(job_id).attempt, reported
        assert reported[-1][0] == jobs.row(job_id).status == end
        assert not jobs.row(job_id).unsettled
        assert [job.id for job in jobs.table.left_over()] == []


@both_databases
def test_job_ended_elsewhere_stays_left_over(db: Database, tmp_path: Path) -> None:
    jobs = Jobs(db)
    jobs.claimed("job_1")
    jobs.table.started("job_1", WorkerProcess(tmp_path))
    insert_job(db, "job_2")  # queued: it waits for its server
    jobs.interrupt()
    (left,) = jobs.table.left_over()
    assert left.id == "job_1"
    with db.write() as connection:
        assert not job_store.delete(connection, "job_1")
    jobs.table.finish("job_1", "interrupted", error=None, result=None)
    assert jobs.reported("job_1") == [("queued", 0), ("running", 1), ("interrupted", 1)]
    assert jobs.row("job_1").error["detail"] == "dead"
    assert jobs.row("job_2").status == "queued"
    with db.write() as connection:
        assert job_store.delete(connection, "job_1")

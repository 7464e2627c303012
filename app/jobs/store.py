"""Jobs in SQL: the rows and events that the runner writes.

`JobTable` is the `app.jobs.runner.JobStore` of one server: it claims and changes only rows with its `server_id`.
Another server on the database may request a cancellation, and marks the job `interrupted` if the job's server seems
dead (`interrupt_left_over`). Such a row is `unsettled` until its server has checked the job's files: if the worker is
still running or exited by itself, the server takes the job back as the next attempt; otherwise the job stays
interrupted. Every attempt thus ends exactly once. Blocking; knows no HTTP and no processes.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Row

from app.common.spans import Spans
from app.contract.words import JOB_TERMINAL
from app.jobs import series
from app.jobs.process import WorkerProcess
from app.jobs.watch import End, Job
from app.storage import tables
from app.storage.database import Database, not_before, now
from app.storage.dialects import clock
from app.storage.ids import SortableIds
from app.storage.keys import note_deletion
from app.storage.mirror import Mirror
from training.jobs.folder import WorkerEvent

J = tables.jobs
E = tables.job_events

STATUS_EVENT = "job.status"
MOST_ATTEMPTS = 5  # of a sweep's job that goes on by itself: it may be what kills the server

JobIds = functools.partial(SortableIds, "job_")


class JobTable:
    """The jobs of one server, for its runner."""

    def __init__(
        self,
        db: Database,
        server_id: Callable[[], str],
        folder: Path,
        ended: Callable[[End], None] = lambda _status: None,
        spans: Spans | None = None,
        mirror: Mirror | None = None,
        *,
        shares_devices: bool = True,
    ) -> None:
        """`ended` is called once for each recorded end, from the thread that records it.

        Unless its jobs share devices, none waits for an `exclusive` one.
        """
        self._shares_devices = shares_devices
        self._db = db
        self._server_id = server_id
        self._folder = folder
        self._ended = ended
        self._spans = spans or Spans()
        self.mirror = mirror or Mirror()
        self._seen: dict[str, float] = {}  # last sign of life of running jobs, monotonic

    def folder(self, job_id: str) -> Path:
        """The job's folder."""
        return self._folder / job_id

    def claim(self, max_running: int) -> Job | None:
        """Mark the oldest queued job `running` and return it; None while it must wait.

        An `exclusive` job waits until nothing runs, blocks other starts, and is not overtaken.
        """
        with self._db.read() as connection:
            if self._next(connection, max_running) is None:
                return None
        with self._db.write() as connection:
            head = self._next(connection, max_running)
            if head is None:
                return None
            claimed = sa.select(J.c.id).where(J.c.id == head, J.c.status == "queued").scalar_subquery()
            values = {"status": "running", "attempt": J.c.attempt + 1, "worker": None, "heartbeat_at": now()}
            update = sa.update(J).where(J.c.id == claimed, J.c.status == "queued")
            row = connection.execute(
                update.values(
                    **values, started_at=sa.func.coalesce(J.c.started_at, not_before(now(), J.c.created_at))
                ).returning(*J.c)
            ).one_or_none()
            if row is None:
                return None
            _append(connection, row.id, STATUS_EVENT, _status(row))
        self._seen[row.id] = time.monotonic()
        self._spans.job_began(row.id, row.method, row.base_checkpoint)
        return self._job(row)

    def _next(self, connection: Connection, max_running: int) -> str | None:
        mine = J.c.server_id == self._server_id()
        running = connection.execute(sa.select(J.c.gpu).where(mine, J.c.status == "running")).scalars().all()
        query = sa.select(J.c.id, J.c.gpu).where(mine, J.c.status == "queued").order_by(J.c.id).limit(1)
        head = connection.execute(query).one_or_none()
        if head is None or len(running) >= max_running:
            return None
        alone = self._shares_devices and "exclusive" in (head.gpu, *running)
        return None if alone and running else str(head.id)

    def left_over(self) -> list[Job]:
        """This server's jobs that are marked running or were ended by another server, oldest first."""
        left = (J.c.status == "running") | J.c.unsettled
        query = sa.select(J).where(J.c.server_id == self._server_id(), left).order_by(J.c.id)
        with self._db.read() as connection:
            return [self._job(row) for row in connection.execute(query)]

    def started(self, job_id: str, worker: WorkerProcess) -> None:
        """Record the job's process."""
        with self._db.write() as connection:
            _take_back(connection, job_id)
            update(connection, job_id, worker={"pid": worker.pid}, heartbeat_at=now())

    def beat(self, job_id: str) -> bool:
        """Record a sign of life; returns whether cancellation was requested."""
        with self._db.write() as connection:
            _take_back(connection, job_id)
            since, seen = self._since(job_id)
            changed = sa.update(J).where(J.c.id == job_id).values(heartbeat_at=now(), running_s=J.c.running_s + since)
            cancelled = bool(connection.execute(changed.returning(J.c.cancel_requested)).scalar())
        self._seen[job_id] = seen
        return cancelled

    def record(self, job_id: str, events: Sequence[WorkerEvent], log_offset: int) -> None:
        """Store events, the progress and metrics in them, and the file position."""
        values: dict[str, Any] = {"log_offset": log_offset}
        metrics: dict[str, Any] = {}
        rows = []
        for event in events:
            data = _plain({**event.data, "time": event.time})
            rows.append((event.type, data))
            if event.type == "progress":
                values["progress"] = {key: data.get(key) for key in ("stage", "step", "total", "eta_s")}
                if data.get("waiting"):
                    values["progress"]["waiting"] = data["waiting"]
            elif event.type == "metrics" and isinstance(data.get("values"), dict) and _is_own(data):
                metrics |= data["values"]

        def keep(connection: Connection) -> None:
            if metrics:
                known = connection.execute(sa.select(J.c.metrics).where(J.c.id == job_id)).scalar() or {}
                values["metrics"] = known | metrics
            update(connection, job_id, **values)
            seq = last_seq(connection, job_id)
            if rows:
                connection.execute(
                    sa.insert(E),
                    [
                        {"job_id": job_id, "seq": seq + at, "type": type_, "data": _encode(data)}
                        for at, (type_, data) in enumerate(rows, 1)
                    ],
                )
            series.fold(connection, job_id, after=series.MOST_UNFOLDED)

        self._db.change(keep)
        for type_, data in rows:
            self._spans.job_event(job_id, type_, data)

    def finish(
        self, job_id: str, status: End, *, error: Mapping[str, Any] | None, result: Mapping[str, Any] | None
    ) -> None:
        """Record the job's end and its last event, in one transaction."""

        def end(connection: Connection) -> bool:
            if status == "interrupted":
                update(connection, job_id, unsettled=False, worker=None)  # another server may have ended it already
            else:
                _take_back(connection, job_id)
            since, _ = self._since(job_id)
            changed = change_status(
                connection,
                job_id,
                from_=("running",),
                status=status,
                error=_plain(dict(error)) if error is not None else None,
                result=_plain(dict(result)) if result is not None else None,
                finished_at=finished_at(),
                running_s=J.c.running_s + since,
                worker=None,
            )
            series.fold(connection, job_id)
            if status == "interrupted":
                _go_on(connection, job_id)
            self.mirror.put(connection, self.folder(job_id))
            return changed

        if self._db.change(end):
            self._ended(status)
            self._spans.job_ended(job_id, status, error)
        self._seen.pop(job_id, None)

    def delete(self, connection: Connection, job_id: str) -> bool:
        """Delete an ended job, its checkpoints excepted; False if it is missing or has not ended."""
        deleted = delete(connection, job_id)
        if deleted:
            self.mirror.drop(connection, self.folder(job_id), folder=True)
        return deleted

    def _since(self, job_id: str) -> tuple[float, float]:
        """Seconds since the last sign of life (0 for jobs of a dead server), and the current time."""
        moment = time.monotonic()
        return moment - self._seen.get(job_id, moment), moment

    def _job(self, row: Row[Any]) -> Job:
        return Job(
            id=row.id,
            folder=self.folder(row.id),
            spec=row.spec,
            resume=row.attempt > 1,
            log_offset=row.log_offset,
            cancel_requested=row.cancel_requested,
        )


# ---- rows


def finished_at() -> sa.ColumnElement[str]:
    """The end time of a job: now, but not before its creation and start."""
    return not_before(now(), J.c.created_at, J.c.started_at)


def insert(connection: Connection, **values: Any) -> None:
    """Insert a queued job and its first event."""
    row = {
        "status": "queued",
        "metrics": {},
        "attempt": 0,
        "cancel_requested": False,
        "log_offset": 0,
        "created_at": now(),
        **values,
    }
    connection.execute(sa.insert(J).values(**row))
    _append(connection, values["id"], STATUS_EVENT, {"status": "queued", "time": row["created_at"]})


def update(connection: Connection, job_id: str, **values: Any) -> None:
    """Set columns of the job's row."""
    connection.execute(sa.update(J).where(J.c.id == job_id).values(**values))


def change_status(connection: Connection, job_id: str, *, from_: Iterable[str], **values: Any) -> bool:
    """Change the status and log it; False unless the current status is in `from_`."""
    changed = sa.update(J).where(J.c.id == job_id, J.c.status.in_(tuple(from_))).values(**values).returning(*J.c)
    row = connection.execute(changed).one_or_none()
    if row is None:
        return False
    _append(connection, job_id, STATUS_EVENT, _status(row))
    return True


def interrupt_left_over(connection: Connection, server_ids: Iterable[str], error: Mapping[str, Any]) -> list[str]:
    """Mark every running job of these dead servers `interrupted`; returns the ids. Queued jobs stay."""
    query = sa.select(J.c.id).where(J.c.server_id.in_(tuple(server_ids)), J.c.status == "running")
    ids = list(connection.execute(query).scalars())
    for job_id in ids:
        values = {"status": "interrupted", "unsettled": True, "error": dict(error), "finished_at": now()}
        change_status(connection, job_id, from_=("running",), **values)
    return ids


def _go_on(connection: Connection, job_id: str) -> None:
    """Queue an interrupted job of a sweep again: nobody watches over a hundred jobs."""
    row = get_row(connection, job_id)
    if row is not None and row.sweep_id is not None and row.attempt < MOST_ATTEMPTS and not row.cancel_requested:
        again = {"status": "queued", "error": None, "finished_at": None}
        change_status(connection, job_id, from_=("interrupted",), **again)


def _take_back(connection: Connection, job_id: str) -> None:
    """Continue a job that another server ended, as its next attempt; no-op for any other."""
    taken = sa.update(J).where(J.c.id == job_id, J.c.unsettled, J.c.status == "interrupted")
    values = {"status": "running", "unsettled": False, "error": None, "finished_at": None}
    row = connection.execute(taken.values(**values, attempt=J.c.attempt + 1).returning(*J.c)).one_or_none()
    if row is not None:
        _append(connection, job_id, STATUS_EVENT, _status(row))
        alive = sa.update(tables.servers).where(tables.servers.c.id == row.server_id)
        connection.execute(alive.values(heartbeat_at=clock()))  # keeps the job from being ended again immediately


def get_row(connection: Connection, job_id: str) -> Row[Any] | None:
    """The job's row."""
    return connection.execute(sa.select(J).where(J.c.id == job_id)).one_or_none()


def delete(connection: Connection, job_id: str) -> bool:
    """Delete an ended job and its events; False if it is missing or has not ended."""
    ended = (J.c.id == job_id, J.c.status.in_(tuple(JOB_TERMINAL)), sa.not_(J.c.unsettled))
    if connection.execute(sa.select(J.c.id).where(*ended)).first() is None:
        return False
    note_deletion(connection, job_id)
    return connection.execute(sa.delete(J).where(*ended)).rowcount > 0


def newest_id(connection: Connection) -> str | None:
    """The id of the latest job."""
    return connection.execute(sa.select(sa.func.max(J.c.id))).scalar()


def named(connection: Connection, prefixes: Sequence[str]) -> Sequence[Any]:
    """Jobs by the name prefix of their checkpoints: id, status, server_id, output_prefix."""
    query = sa.select(J.c.id, J.c.status, J.c.server_id, J.c.output_prefix)
    return connection.execute(query.where(J.c.output_prefix.in_(prefixes)).order_by(J.c.id)).all()


# ---- events


def last_seq(connection: Connection, job_id: str) -> int:
    """Number of the job's last event, 0 without any."""
    return connection.execute(sa.select(sa.func.max(E.c.seq)).where(E.c.job_id == job_id)).scalar() or 0


def events_after(connection: Connection, job_id: str, after: int, limit: int) -> list[tuple[int, str, str]]:
    """Events (seq, type, data) with seq > `after`, in order."""
    query = sa.select(E.c.seq, E.c.type, E.c.data).where(E.c.job_id == job_id, E.c.seq > after).order_by(E.c.seq)
    return [(row.seq, row.type, row.data) for row in connection.execute(query.limit(limit))]


def _is_own(row: Mapping[str, Any]) -> bool:
    """Whether metrics belong to the job itself, not to a checkpoint it compares with (``benchmark:NAME``)."""
    return ":" not in str(row.get("stage", ""))


def metrics_page(connection: Connection, job_id: str, *, after: int, limit: int) -> tuple[list[dict[str, Any]], bool]:
    """Rows of metrics with seq > `after`, oldest first, and whether more follow; every page costs the same."""
    query = sa.select(E.c.seq, E.c.data).where(E.c.job_id == job_id, E.c.type == "metrics", E.c.seq > after)
    rows = connection.execute(query.order_by(E.c.seq).limit(limit + 1)).all()
    return [{"seq": row.seq, **json.loads(row.data)} for row in rows[:limit]], len(rows) > limit


def _append(connection: Connection, job_id: str, type_: str, data: Mapping[str, Any]) -> None:
    seq = last_seq(connection, job_id) + 1
    connection.execute(sa.insert(E).values(job_id=job_id, seq=seq, type=type_, data=_encode(data)))


def _status(row: Row[Any]) -> dict[str, Any]:
    shown = {
        "status": row.status,
        "attempt": row.attempt,
        "started_at": row.started_at,
        "finished_at": row.finished_at,
        "time": now(),
    }
    return shown | {key: value for key in ("error", "result") if (value := getattr(row, key)) is not None}


def _encode(data: Mapping[str, Any]) -> str:
    return json.dumps(data, separators=(",", ":"), allow_nan=False)


def _plain(value: Any) -> Any:
    """The value as valid JSON: NaN and infinity become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if value is None or isinstance(value, str | int | bool) else str(value)

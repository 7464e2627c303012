"""The job service: create, show, cancel, resume and delete training jobs.

Also implements the hooks of the runner (`app.jobs.runner`): it describes the job's start, registers its checkpoints
before their events are visible, and activates the last one on request. Public coroutines live on the server's event
loop; blocking work runs in threads. Knows no HTTP: errors are
:class:`app.contract.problems.Problem`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from sqlalchemy.engine import Connection

from app.checkpoints.activation import Activation
from app.common import pools
from app.common.settings import Settings
from app.contract.problems import Problem
from app.jobs import files, shown, store
from app.jobs.custom import CustomRules
from app.jobs.events import JobEvents
from app.jobs.intake import RESUMABLE, JobIntake, require_free
from app.jobs.runner import JobRunner
from app.jobs.watch import Job
from app.storage.database import Database, now
from app.storage.home import Home
from app.storage.idempotency import Claim, forget
from app.storage.keys import admit_job, key_name
from training.home_paths import located, record
from training.jobs.context import JobError
from training.jobs.folder import WorkerEvent
from training.jobs.ranks import CPU_RANKS
from training.spec.spec import AnySpec

Columns = Mapping[str, Any]
Wanted = Sequence[tuple[AnySpec, Columns]]  # specifications with further columns of the rows
StoreToo = Callable[[Connection, list[dict[str, Any]]], None]
NO_PROGRESS = {"stage": None, "step": None, "total": None, "eta_s": None}


class JobCheckpoints(Protocol):
    """The part of the checkpoint registry that jobs use."""

    def register_job_checkpoint(
        self,
        name: str,
        folder: Path,
        base: str,
        job_id: str,
        stage: str | None,
        step: int | None,
        metrics: Mapping[str, Any],
    ) -> None:
        """Register a folder under its name; idempotent. Blocking."""
        ...


class JobService:
    """The jobs of one server."""

    def __init__(
        self,
        settings: Settings,
        *,
        db: Database,
        home: Home,
        checkpoints: JobCheckpoints,
        activation: Activation,
        intake: JobIntake,
        command: Sequence[str],
        table: store.JobTable,
    ) -> None:
        self._db = db
        self._home = home
        self._checkpoints = checkpoints
        self._activation = activation
        self._intake = intake
        self._ids = store.JobIds()
        self._table = table
        self._events = JobEvents(db, server_id=lambda: home.server_id, ping_s=settings.ping_s)
        self._runner = JobRunner(
            self._table,
            self,
            command=command,
            max_running=settings.max_jobs,
            patience_s=settings.job_patience_s,
            environment={"OMNI_R1_DEVICE": settings.device, CPU_RANKS: str(settings.cpu_ranks)},
        )

    # ---- start and stop

    def recover(self) -> int:
        """Record the end of jobs that a dead process left running; blocking, before the first request."""
        with self._db.read() as connection:
            self._ids.not_before(store.newest_id(connection))
        return self._runner.recover()

    def start(self) -> None:
        """Start processing the queue; on the loop, once checkpoints can be loaded."""
        if not self._runner.stopping:
            self._runner.start()

    async def stop(self) -> None:
        """Let the workers save and exit; readers get all events until then."""
        await self._runner.stop()
        self._events.close()

    @property
    def server_id(self) -> str:
        """The id of this server."""
        return self._home.server_id

    @property
    def running(self) -> int:
        """Number of running jobs."""
        return len(self._runner.running)

    @property
    def open_streams(self) -> int:
        """Number of open event streams."""
        return self._events.open_streams

    # ---- create and read

    @property
    def custom(self) -> CustomRules:
        """The rewards and task families of your own that this server knows."""
        return self._intake.custom

    def folder(self, job_id: str) -> Path:
        """The job's folder on this server."""
        return self._table.folder(job_id)

    async def create(self, spec: AnySpec, claim: Claim, **columns: Any) -> dict[str, Any]:
        """Validate and queue a job, with further columns of its row; returns the whole job."""
        (job,) = await self.create_all([(spec, columns)], lambda db, jobs: claim.store(db, jobs[0]["id"], jobs[0], 202))
        return job

    async def create_all(self, wanted: Wanted, store_too: StoreToo) -> list[dict[str, Any]]:
        """Validate and queue jobs, all or none; `store_too` gets them in the transaction that creates them."""
        if self._runner.stopping:
            raise Problem("stopping", "retry when the server is back", headers={"Retry-After": "5"})
        await self._intake.bring([spec for spec, _ in wanted])
        jobs = await pools.intake.run(self._create, wanted, store_too, undo=self._forget)
        self._runner.wake()
        return jobs

    def _create(self, wanted: Wanted, store_too: StoreToo) -> list[dict[str, Any]]:
        ids = [self._ids.new() for _ in wanted]
        checked = [(new, *one, *self._intake.check(one[0], new)) for new, one in zip(ids, wanted, strict=True)]
        with self._db.write() as connection:
            admit_job(connection)
            jobs = [self._insert(connection, *one) for one in checked]
            store_too(connection, jobs)
        return jobs

    def _insert(
        self, connection: Connection, job_id: str, spec: AnySpec, columns: Columns, resolved: Columns, prefix: str
    ) -> dict[str, Any]:
        if spec.output_name is not None:
            require_free(connection, prefix, self._home.server_id, self._is_resumable)
        store.insert(
            connection,
            id=job_id,
            server_id=self._home.server_id,
            method=spec.method,
            gpu=spec.gpu,
            base_checkpoint=spec.base_checkpoint,
            spec=resolved,
            output_prefix=prefix,
            key_name=key_name(),
            **columns,
        )
        shown.label(connection, job_id, {"name": spec.name, "note": spec.note, "tags": spec.tags})
        job = shown.whole(connection, job_id, self._more)
        assert job is not None
        return job

    def _forget(self, jobs: list[dict[str, Any]]) -> None:
        """Remove jobs whose request failed before the database answered, unless they were claimed."""
        with self._db.write() as connection:
            for job in jobs:
                if store.change_status(connection, job["id"], from_=("queued",), status="cancelled", finished_at=now()):
                    store.delete(connection, job["id"])
                    forget(connection, job["id"])

    def _is_resumable(self, row: Any) -> bool:
        """Whether an ended job of this server has saved state. Blocking."""
        here = row.server_id == self._home.server_id
        return row.status in RESUMABLE and here and files.has_saved_state(self._table.folder(row.id))

    def _more(self, row: Any) -> dict[str, Any]:
        """Details of a job from its folder and the runner."""
        more: dict[str, Any] = {"resumable": self._is_resumable(row)}
        if row.server_id == self._home.server_id:
            more |= {name: located(getattr(row, name), self._table.folder(row.id)) for name in ("spec", "result")}
        if row.status == "running" and row.server_id == self._home.server_id:
            waiting = self._runner.waiting(row.id)
            progress = shown.without_waiting(row.progress)
            if waiting is not None:
                progress = {**(progress or NO_PROGRESS), "waiting": waiting}
            more["progress"] = progress
        return more

    def page(self, **wanted: Any) -> tuple[list[dict[str, Any]], bool]:
        """A page of jobs, newest first, and whether more follow; see :func:`app.jobs.shown.page`. Blocking."""
        with self._db.read() as connection:
            return shown.page(connection, self._more, **wanted)

    async def get(self, job_id: str) -> dict[str, Any]:
        """The whole job; 404 if unknown."""
        return await pools.reads.run(self._whole, job_id)

    def _whole(self, job_id: str) -> dict[str, Any]:
        with self._db.read() as connection:
            job = shown.whole(connection, job_id, self._more)
        if job is None:
            raise no_job()
        return job

    def metrics(self, job_id: str, *, after: int, limit: int) -> tuple[list[dict[str, Any]], bool]:
        """A page of metrics, oldest first; blocking."""
        with self._db.read() as connection:
            if store.get_row(connection, job_id) is None:
                raise no_job()
            return store.metrics_page(connection, job_id, after=after, limit=limit)

    async def past_the_end(self, job_id: str, after: int) -> bool:
        """Whether a reader at `after` has seen all events; 404 for an unknown job."""
        past = await pools.reads.run(self._events.past_the_end, job_id, after)
        if past is None:
            raise no_job()
        return past

    def read(self, job_id: str, after: int) -> AsyncIterator[bytes]:
        """The job's events after `after` as stream frames."""
        return self._events.read(job_id, after)

    def file(self, job_id: str, name: str) -> Path:
        """An image, report or log of the job; 404 for other files in its folder. Blocking."""
        path = files.public_file(self._home.jobs, job_id, name, self._table.mirror)
        if path is None:
            raise Problem("not_found", "no such file; the job's sample and report events link its files")
        return path

    # ---- steer

    async def cancel(self, job_id: str) -> dict[str, Any]:
        """Stop at the next step boundary, or immediately when queued; no-op for ended jobs."""

        def ask(connection: Connection) -> None:
            ended = store.change_status(
                connection, job_id, from_=("queued",), status="cancelled", finished_at=store.finished_at()
            )
            if not ended:
                store.update(connection, job_id, cancel_requested=True)

        job = await self.change(job_id, ask)
        self._runner.wake(job_id)
        self.changed(job_id)
        return job

    async def resume(self, job_id: str) -> dict[str, Any]:
        """Queue an ended job again to continue from its saved state; 409 without one."""
        if self._runner.stopping:
            raise Problem("stopping", "retry when the server is back", headers={"Retry-After": "5"})

        def again(connection: Connection) -> None:
            self.require_here(connection, job_id)
            row = store.get_row(connection, job_id)
            assert row is not None
            if row.status not in RESUMABLE:
                may = "only a cancelled, failed or interrupted job can be resumed"
                raise Problem("not_resumable", f"the job is {row.status}; {may}")
            if row.unsettled:
                raise Problem("not_resumable", "the server is still checking its worker's files; retry in a moment")
            if not self._is_resumable(row):
                raise Problem("not_resumable", "the job has no saved state; start it again with POST /v1/jobs")
            store.change_status(
                connection,
                job_id,
                from_=RESUMABLE,
                status="queued",
                cancel_requested=False,
                error=None,
                result=None,
                finished_at=None,
            )

        job = await self.change(job_id, again)
        self._runner.wake()
        self.changed(job_id)
        return job

    async def delete(self, job_id: str) -> None:
        """Delete row, log and samples of an ended job; its checkpoints stay."""

        def remove(connection: Connection) -> None:
            self.require_here(connection, job_id)
            if not self._table.delete(connection, job_id):
                raise Problem("job_live", "the job is queued or running; cancel it first")

        await self.change(job_id, remove)
        self.changed(job_id)
        await pools.files.run(files.remove_all_but_checkpoints, self._table.folder(job_id))

    async def change(self, job_id: str, change: Callable[[Connection], None]) -> dict[str, Any]:
        """Change a job's row and return the job, which is empty after its deletion; 404 if unknown."""

        def work(connection: Connection) -> dict[str, Any]:
            if store.get_row(connection, job_id) is None:
                raise no_job()
            change(connection)
            return shown.whole(connection, job_id, self._more) or {}

        return await pools.writes.run(self._db.change, work)

    def require_here(self, connection: Connection, job_id: str) -> None:
        """Raise the problem of a job whose files another server has."""
        row = store.get_row(connection, job_id)
        if row is not None and row.server_id != self._home.server_id:
            raise Problem("job_elsewhere", "the job's files are on another server; send the request there")

    # ---- runner hooks

    def describe(self, job: Job) -> dict[str, Any]:
        """The content of `job.json`."""
        described = self._intake.describe(job.id, job.spec, job.folder)
        with self._db.read() as connection:
            row = store.get_row(connection, job.id)
        assert row is not None
        kept: dict[str, Any] = record(described, self._home.path)
        if row.continues is not None:
            before = self._table.folder(row.continues["job_id"])
            kept["continues"] = {**row.continues, "folder": self._home.recorded(before)}
        return kept | {
            "output_prefix": row.output_prefix,
            "created_at": row.created_at,
            "provenance": files.provenance(),
        }

    def before_record(self, job: Job, event: WorkerEvent) -> WorkerEvent:
        """Register a checkpoint; replace image paths with URLs."""
        data = dict(event.data)
        if event.type == "checkpoint":
            return self._register(job, event)
        if event.type in ("sample", "report"):
            data = files.with_addresses(data, job.folder, f"/v1/jobs/{job.id}/files/")
        return WorkerEvent(event.type, event.time, data)

    def _register(self, job: Job, event: WorkerEvent) -> WorkerEvent:
        """The event of a newly registered checkpoint, or a warning if its name was taken meanwhile."""
        data = dict(event.data)
        try:
            self._checkpoints.register_job_checkpoint(
                name=str(data["name"]),
                folder=job.folder / "checkpoints" / Path(data.pop("folder")).name,
                base=str(job.spec["base_checkpoint"]),
                job_id=job.id,
                stage=data.get("stage"),
                step=data.get("step"),
                metrics=data.get("metrics") or {},
            )
        except Problem as problem:
            if problem.code != "checkpoint_exists":
                raise
            return WorkerEvent("warning", event.time, {"code": problem.code, "detail": problem.detail})
        return WorkerEvent(event.type, event.time, data)

    async def conclude(self, job: Job, result: Mapping[str, Any]) -> Mapping[str, Any]:
        """Activate the job's last checkpoint if requested."""
        result = record(result, self._home.path)  # workers of earlier versions wrote absolute paths
        if not job.spec.get("activate"):
            return result
        name = result.get("checkpoint") or await pools.jobs.run(self._last_checkpoint, job.id)
        if not isinstance(name, str):
            raise JobError("activation_failed", "the job created no checkpoint to activate")
        try:
            activated = await self._activation.activate(name)
        except Problem as problem:
            raise JobError("activation_failed", f"{name}: {problem.detail}") from None
        except Exception as error:
            raise JobError("activation_failed", f"{name}: {type(error).__name__}: {error}") from error
        return {**result, "activated": {"checkpoint": name, "weight_version": activated.weight_version}}

    def _last_checkpoint(self, job_id: str) -> str | None:
        made = self._whole(job_id)["checkpoints"]
        return made[-1]["name"] if made else None

    def changed(self, job_id: str) -> None:
        """Wake the job's readers."""
        self._events.wake(job_id)


def no_job() -> Problem:
    """404: no job has the id."""
    return Problem("job_not_found", "no job has this id; GET /v1/jobs lists them")

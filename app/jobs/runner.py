"""Runs queued jobs: claims one, starts its worker in a process group, follows it, and records its end.

A job is one subprocess (`python -m training.jobs.worker JOB_DIR`) and one folder. The worker writes the folder, this
runner the job's row through a :class:`JobStore`; everything else the server does (base checkpoints, registration,
activation) comes in as :class:`JobHooks`. Knows no SQL, no HTTP and no tensors.

Exit codes: 0 (succeeded), 3 (stopped, state saved), anything else (failed). SIGTERM and the end of stdin, a pipe from
the server, request a stop. After `patience_s` the worker is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from app.common import pools
from app.common.locations import ROOT
from app.jobs.process import COMMAND, WorkerProcess, exit_code, start_worker
from app.jobs.watch import INTERRUPTED, End, Job, Tail, Watch, end_without_exit_code, logged_errors
from training.jobs.context import JobError
from training.jobs.disk import MARGIN_BYTES, WAITING, is_full
from training.jobs.folder import WorkerEvent, last_progress_only, log_tail, read_events, read_object

log = logging.getLogger("omni_r1.jobs")

STOPPED = 3
SECRETS = frozenset({"OMNI_R1_API_KEY", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"})  # not passed to workers
RETRY_S = 2.0


class JobStore(Protocol):
    """Storage of jobs. Blocking; called from threads. Every method is one transaction."""

    def claim(self, max_running: int) -> Job | None:
        """Atomically mark the oldest startable queued job `running` and return it; None if there is none."""
        ...

    def left_over(self) -> list[Job]:
        """The jobs marked running: at start-up, those of a dead process."""
        ...

    def started(self, job_id: str, worker: WorkerProcess) -> None:
        """Record the job's process."""
        ...

    def beat(self, job_id: str) -> bool:
        """Record a sign of life; returns whether cancellation was requested."""
        ...

    def record(self, job_id: str, events: Sequence[WorkerEvent], log_offset: int) -> None:
        """Store events together with the file position read so far."""
        ...

    def finish(
        self, job_id: str, status: End, *, error: Mapping[str, Any] | None, result: Mapping[str, Any] | None
    ) -> None:
        """Record the job's end."""
        ...


class JobHooks(Protocol):
    """What the server contributes to a job."""

    def describe(self, job: Job) -> dict[str, Any]:
        """The content of `job.json`; blocking. Raises :class:`JobError` if the job can no longer start."""
        ...

    def before_record(self, job: Job, event: WorkerEvent) -> WorkerEvent:
        """The event for readers, after its side effects (registering a checkpoint)."""
        ...

    async def conclude(self, job: Job, result: Mapping[str, Any]) -> Mapping[str, Any]:
        """Finish a job whose worker succeeded; returns the extended result. Raises :class:`JobError`."""
        ...

    def changed(self, job_id: str) -> None:
        """Row or events of the job have changed; called on the event loop."""
        ...


class JobRunner:
    """The runner of one server. Its coroutines belong to one event loop."""

    def __init__(
        self,
        store: JobStore,
        hooks: JobHooks,
        *,
        command: Sequence[str] = COMMAND,
        max_running: int = 2,
        patience_s: float = 60.0,
        poll_s: float = 0.2,
        beat_s: float = 2.0,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self._store = store
        self._hooks = hooks
        self._command = tuple(command)
        self._max_running = max_running
        self._patience_s = patience_s
        self._poll_s = poll_s
        self._beat_s = beat_s
        self._environment = dict(environment or {})
        self._queue_changed = asyncio.Event()
        self._watched: dict[str, Watch] = {}
        self._waiting: dict[str, dict[str, Any]] = {}  # what jobs wait for, by job id
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._dispatcher: asyncio.Task[None] | None = None
        self._left: list[Job] = []
        self.stopping = False

    @property
    def running(self) -> list[str]:
        """Ids of the running jobs."""
        return list(self._tasks)

    def waiting(self, job_id: str) -> dict[str, Any] | None:
        """What a running job waits for, as `WaitingOut`, or None."""
        return self._waiting.get(job_id)

    # ---- start and stop

    def recover(self, wait_s: float = 3.0) -> int:
        """Stop the workers of a dead server and mark their jobs `interrupted`; blocking.

        Workers that take longer than `wait_s` and jobs that ended on their own are settled after :meth:`start`.
        """
        left = self._store.left_over()
        for job in left:
            if job.worker.alive:
                job.worker.signal_group(signal.SIGTERM)
            else:
                job.worker.kill_survivors()
        deadline = time.monotonic() + wait_s
        while any(job.worker.alive for job in left) and time.monotonic() < deadline:
            time.sleep(0.05)
        for job in left:
            if job.worker.alive or (job.folder / "result.json").exists():
                self._left.append(job)
            else:
                self._drain(Tail(job, job.log_offset))
                end, error = end_without_exit_code(job)
                self._store.finish(job.id, end, error=error, result=None)
        return len(left)

    def start(self) -> None:
        """Start processing the queue; on the running loop."""
        for job in self._left:
            self._tasks[job.id] = asyncio.create_task(self._settle(job), name=f"job {job.id}")
        self._left = []
        self._dispatcher = asyncio.create_task(self._dispatch(), name="job dispatcher")

    def wake(self, job_id: str | None = None) -> None:
        """Check the queue now, or with an id that running job's cancellation."""
        self._queue_changed.set()
        watch = self._watched.get(job_id or "")
        if watch is not None:
            watch.nudge.set()

    async def stop(self, timeout_s: float = 3.0) -> None:
        """Start no more jobs, stop the workers and wait up to `timeout_s`; slower ones save on their own."""
        self.stopping = True
        if self._dispatcher is not None:
            self._dispatcher.cancel()
            await asyncio.gather(self._dispatcher, return_exceptions=True)
        for watch in self._watched.values():
            watch.nudge.set()
        tasks = list(self._tasks.values())
        if tasks:
            await asyncio.wait(tasks, timeout=timeout_s)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # ---- the queue

    async def _dispatch(self) -> None:
        while True:
            self._queue_changed.clear()
            with logged_errors("reading the job queue failed"):
                while (job := await pools.jobs.run(self._store.claim, self._max_running)) is not None:
                    task = asyncio.create_task(self._work(job), name=f"job {job.id}")
                    self._tasks[job.id] = task
                    self._hooks.changed(job.id)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._beat_s):  # a queue may also be filled by another process
                    await self._queue_changed.wait()

    async def _work(self, job: Job) -> None:
        try:
            try:
                process = await self._start_worker(job)
            except JobError as error:
                await self._finish(job, "failed", {"code": error.code, "detail": error.detail})
                return
            except Exception as error:
                log.exception("job %s: starting its worker failed", job.id)
                await self._finish(job, "failed", {"code": "not_started", "detail": str(error)})
                return
            if process is None:
                return
            watch = self._watched[job.id] = Watch(job, job.log_offset, process)
            log.info("job %s (%s) started as process %d", job.id, job.method, process.pid)
            await self._until_done(lambda: self._store.started(job.id, job.worker))
            code = await self._follow(watch)
            await self._end(watch, code)
        except Exception as error:
            log.exception("following job %s failed", job.id)
            await self._finish(job, "failed", {"code": "internal", "detail": f"{type(error).__name__}: {error}"})
        finally:
            self._watched.pop(job.id, None)
            self._waiting.pop(job.id, None)
            self._tasks.pop(job.id, None)
            self._queue_changed.set()

    async def _start_worker(self, job: Job) -> subprocess.Popen[bytes] | None:
        """Start the job's process once the disk has enough space; None if the job ended before."""
        cancelled = job.cancel_requested
        while True:
            free = shutil.disk_usage(job.folder.parent).free
            try:
                if free >= MARGIN_BYTES:
                    process: subprocess.Popen[bytes] = await pools.jobs.run(self._spawn, job)
                    self._waiting.pop(job.id, None)
                    return process
            except OSError as error:
                if not is_full(error):
                    raise
            self._waiting[job.id] = {"for": "disk", "needed_bytes": MARGIN_BYTES, "free_bytes": free}
            with logged_errors("writing a job's row failed"):
                cancelled = await pools.jobs.run(self._store.beat, job.id) or cancelled
            if cancelled or self.stopping:
                interrupted = None if cancelled else dict(INTERRUPTED)
                await self._finish(job, "cancelled" if cancelled else "interrupted", interrupted)
                return None
            await asyncio.sleep(self._poll_s)

    def _spawn(self, job: Job) -> subprocess.Popen[bytes]:
        job.folder.mkdir(parents=True, exist_ok=True)
        described = json.dumps(self._hooks.describe(job), indent=2, ensure_ascii=False)
        for name in ("result.json", "error.json", WAITING):
            (job.folder / name).unlink(missing_ok=True)
        (job.folder / "job.json").write_text(described + "\n", "utf-8")
        threads = str(job.spec.get("threads") or 1)
        bounds = {"OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
        environment = {k: v for k, v in os.environ.items() if k not in SECRETS} | bounds | self._environment
        with (job.folder / "log.txt").open("ab") as output:
            return start_worker(
                [*self._command, str(job.folder), "--attached", *(["--resume"] if job.resume else [])],
                job.folder,
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
            )

    # ---- one job

    async def _follow(self, watch: Watch) -> int:
        """Store the worker's events until it exits; returns its exit code."""
        job = watch.job
        beat_at = time.monotonic() + self._beat_s
        while True:
            code: int | None = await pools.jobs.run(exit_code, watch.process)
            if code is not None:
                await self._until_done(lambda: self._drain(watch))
                return code
            if time.monotonic() >= beat_at or watch.nudge.is_set():
                watch.nudge.clear()
                beats = 10 if job.id in self._waiting else 1  # spare a full disk
                beat_at = time.monotonic() + self._beat_s * beats
                with logged_errors(f"job {job.id}: writing its row failed", watch):
                    watch.cancelled = await pools.jobs.run(self._store.beat, job.id) or watch.cancelled
            with logged_errors(f"job {job.id}: storing its events failed", watch):
                while await pools.jobs.run(self._tail, watch):
                    self._hooks.changed(job.id)
            waiting = await pools.jobs.run(read_object, job.folder / WAITING)
            if waiting is None:
                self._waiting.pop(job.id, None)
            else:
                self._waiting[job.id] = waiting
            self._enforce_stop(watch)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._poll_s):
                    await watch.nudge.wait()

    def _enforce_stop(self, watch: Watch) -> None:
        """Send one SIGTERM when the job must stop, SIGKILL after the grace period."""
        if not (watch.cancelled or self.stopping):
            return
        if watch.term_sent_at is None:
            watch.term_sent_at = time.monotonic()
            watch.job.worker.signal_group(signal.SIGTERM)
        elif time.monotonic() - watch.term_sent_at > self._patience_s and not watch.killed:
            log.warning("job %s did not stop within %g s; killing its worker", watch.job.id, self._patience_s)
            watch.killed = True
            watch.job.worker.signal_group(signal.SIGKILL)

    def _tail(self, tail: Tail) -> bool:
        """Store the next events; returns whether there were any. Blocking."""
        events, end = read_events(tail.job.folder / "events.jsonl", tail.offset)
        if end == tail.offset:
            return False
        shown = [self._hooks.before_record(tail.job, event) for event in last_progress_only(events)]
        self._store.record(tail.job.id, shown, end)
        tail.offset = end
        return True

    def _drain(self, tail: Tail) -> None:
        while self._tail(tail):
            pass

    async def _end(self, watch: Watch, code: int) -> None:
        job = watch.job
        stopped = code == STOPPED or (watch.term_sent_at is not None and (watch.killed or code == -signal.SIGTERM))
        found = read_object(job.folder / "error.json") or {}
        if code == 0:
            await self._conclude(job)
        elif stopped and watch.cancelled:
            killed = {
                "code": "killed",
                "detail": f"it did not stop within {self._patience_s:g} s; progress since its last checkpoint is lost",
            }
            await self._finish(job, "cancelled", killed if watch.killed else None)
        elif stopped:
            await self._finish(job, "interrupted", dict(INTERRUPTED))
        else:
            how = f"signal {-code}" if code < 0 else f"exit code {code}"
            died = {"code": "worker_died", "detail": f"the worker exited with {how} and reported no error"}
            error = {"code": str(found["code"]), "detail": str(found.get("detail", ""))} if "code" in found else died
            await self._finish(job, "failed", error)

    async def _conclude(self, job: Job) -> None:
        result = read_object(job.folder / "result.json") or {}
        try:
            final = await self._hooks.conclude(job, result)
        except JobError as error:
            await self._finish(job, "failed", {"code": error.code, "detail": error.detail}, result)
        else:
            await self._finish(job, "succeeded", None, final)

    async def _settle(self, job: Job) -> None:
        """End a job whose server died, once its worker has stopped."""
        try:
            deadline = time.monotonic() + self._patience_s
            while job.worker.alive:
                if time.monotonic() > deadline:
                    log.warning("job %s: killing the worker of a dead server", job.id)
                    job.worker.signal_group(signal.SIGKILL)
                await asyncio.sleep(self._poll_s)
            tail = Tail(job, job.log_offset)
            await self._until_done(lambda: self._drain(tail))
            if (job.folder / "result.json").exists():
                await self._conclude(job)
            else:
                end, error = end_without_exit_code(job)
                await self._finish(job, end, error)
        finally:
            self._tasks.pop(job.id, None)
            self._queue_changed.set()

    async def _finish(
        self, job: Job, status: End, error: dict[str, Any] | None, result: Mapping[str, Any] | None = None
    ) -> None:
        if error is not None and status == "failed":
            error = {**error, "log_tail": log_tail(job.folder)}

        def write() -> None:
            self._store.finish(job.id, status, error=error, result=result)

        await self._until_done(write)
        log.info("job %s is %s%s", job.id, status, f" ({error['code']})" if error else "")
        self._hooks.changed(job.id)

    async def _until_done(self, work: Callable[[], None]) -> None:
        """Run `work` in a thread, retrying until the database accepts it: every end must be recorded."""
        done = False
        while not done:
            with logged_errors("writing a job's row failed, retrying"):
                await pools.jobs.run(work)
                done = True
            if not done:
                await asyncio.sleep(RETRY_S)

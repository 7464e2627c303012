"""The trace service: create, read, pause, continue, cancel, delete; admission; cancellation when readers leave.

Public methods are coroutines on the server's event loop; blocking work runs in threads. Knows no HTTP: errors are
:class:`app.contract.problems.Problem`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import replace
from typing import Any
from weakref import WeakValueDictionary

from app.checkpoints.pool import Lease
from app.checkpoints.registry import CheckpointRegistry
from app.common import pools
from app.common.metrics import Metrics
from app.contract.problems import Problem
from app.contract.schemas import TraceCreate
from app.contract.schemas_branches import BranchCreate
from app.contract.schemas_curation import TraceUpdate
from app.contract.words import Mode
from app.storage.database import Database
from app.storage.idempotency import Claim
from app.storage.images import PartialStore
from app.traces.branches import BranchIntake
from app.traces.event_log import EventLog
from app.traces.intake import Intake, samples_of
from app.traces.launch import Launcher
from app.traces.live import GraceWatch, LiveTrace
from app.traces.reader import TraceReader, no_trace
from app.traces.records import curation, group_store, responses, store
from app.traces.runner import INTERRUPTED, TraceRunner
from model.engine.messages import Generation

log = logging.getLogger("omni_r1.traces")

ENGINE_STOP_S = 10.0
STORAGE_PATIENCE_S = 10.0
ENDS_S = 3.0  # time limit for writing all ends at shutdown


class TraceService:
    """The traces of one server."""

    def __init__(
        self,
        *,
        db: Database,
        events: EventLog,
        generation: Generation,
        checkpoints: CheckpointRegistry,
        partials: PartialStore,
        intake: Intake,
        branches: BranchIntake,
        launcher: Launcher,
        runner: TraceRunner,
        reader: TraceReader,
        metrics: Metrics,
        max_queue: int,
        grace_s: float,
    ) -> None:
        self._db = db
        self._events = events
        self._generation = generation
        self._checkpoints = checkpoints
        self._partials = partials
        self._intake = intake
        self._branches = branches
        self._launcher = launcher
        self._runner = runner
        self.reader = reader
        self._metrics = metrics
        self.max_queue = max_queue
        self._live = launcher.live
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._background: set[asyncio.Task[Any]] = set()
        self._grace = GraceWatch(events, self._live, grace_s, self._disconnected)
        runner.on_leave = self._left
        events.on_lost = self._lose

    # ---- start and stop

    @property
    def stopping(self) -> bool:
        """Whether the server is stopping."""
        return self._launcher.stopping

    def recover(self) -> None:
        """End the traces that a dead process left active; blocking, before the first request."""
        with self._db.write() as connection:
            ended = group_store.end_left_over(connection, [self._launcher.server_id()], INTERRUPTED)
            self._launcher.not_before(connection)
        if ended:
            log.warning("%d traces were active when the server last stopped; marked as interrupted", len(ended))

    async def stop(self) -> None:
        """Reject new traces and end every active one as `interrupted`, visible to its readers."""
        self._launcher.stopping = True
        self._grace.close()
        # Traces that are being created or resumed have no runner yet; their coroutines check `stopping`.
        live = [trace for trace in self._live.values() if trace.runner is not None]
        try:
            async with asyncio.timeout(ENDS_S):
                await asyncio.gather(*(self._runner.interrupt(trace) for trace in live))
        except TimeoutError:
            log.error("%d traces could not be ended; the next start ends them", len(live))
        for trace in live:
            assert trace.runner is not None
            trace.runner.cancel()
        await asyncio.gather(*(t.runner for t in live if t.runner is not None), return_exceptions=True)

    async def watch_storage(self) -> None:
        """Fail traces whose events have been unwritable for long, to free the engine."""
        while True:
            await asyncio.sleep(1)
            since = self._events.trouble_since
            if since is not None and time.monotonic() - since > STORAGE_PATIENCE_S:
                for live in list(self._live.values()):
                    if not live.ended:
                        log.error("trace %s stops: %s", live.id, self._events.trouble)
                        self._spawn(self._runner.fail(live, "database_unavailable", "storing its events failed"))
                        self._spawn(self._generation.abort(live.id))

    # ---- metrics

    @property
    def waiting(self) -> int:
        """Number of traces without a slot."""
        return self._launcher.waiting

    @property
    def running(self) -> int:
        """Number of traces with a slot."""
        return sum(live.started for live in self._live.values())

    # ---- create

    async def create(
        self,
        body: TraceCreate,
        *,
        background: bool,
        claim: Claim,
        request: dict[str, Any] | None = None,
        previous_id: str | None = None,
    ) -> dict[str, Any]:
        """Validate, store and start a trace, or a group of samples; returns the first whole trace.

        `request` is what a program sent to `/v1/responses`; `previous_id` is the trace that it asks about again.
        """
        self.admit(body.n)
        info, lease = await self._checkpoints.lend(body.checkpoint)
        with lease:
            prepared = replace(await self._intake.prepared(body, info), request=request)
            if previous_id is not None:
                prepared.row.update(await pools.reads.run(self._asking_again, previous_id))
            await self._checkpoints.lend_verifier(prepared.row["verify"], lease)
            self.admit(body.n)
            each = samples_of(prepared, body.n)
            return await self._launcher.start(each, "samples", lease, background=background, claim=claim)

    async def branch(
        self, parent_id: str, body: BranchCreate, *, background: bool | None, claim: Claim
    ) -> dict[str, Any]:
        """Validate, store and start branches of a trace; returns their list."""
        self.admit(body.n)
        parent = await pools.reads.run(self._branches.parent, parent_id)
        if body.checkpoint is None:
            row = parent.row
            info, lease = await self._checkpoints.lend_row(row.checkpoint, row.weight_version)
        else:
            info, lease = await self._checkpoints.lend(body.checkpoint)
        with lease:
            prepared = await self._branches.prepared(parent, body, info)
            await self._checkpoints.lend_verifier(prepared.row["verify"], lease)
            self.admit(body.n)
            keeps_on = parent.row.background if background is None else background
            each = samples_of(prepared, body.n)
            return await self._launcher.start(each, "branches", lease, background=keeps_on, claim=claim)

    def _asking_again(self, previous_id: str) -> dict[str, Any]:
        with self._db.read() as connection:
            row = store.get_row(connection, previous_id)
        if row is None:
            raise no_trace()
        return responses.asking_again(row)

    def admit(self, count: int = 1) -> None:
        """Raise :class:`Problem` if `count` traces cannot be accepted now."""
        if self._launcher.stopping:
            raise Problem("stopping", "retry when the server is back", headers={"Retry-After": "5"})
        status = self._generation.status()
        if status.phase != "ready":
            raise Problem("not_ready", status.detail or f"the engine is {status.phase}", headers={"Retry-After": "1"})
        if self._events.trouble is not None:
            raise Problem("database_unavailable", "events cannot be stored currently", headers={"Retry-After": "2"})
        waiting = self.waiting
        if waiting + count > self.max_queue:
            full = "is full" if waiting >= self.max_queue else f"has no room for {count} traces"
            raise Problem(
                "queue_full",
                f"the queue {full} ({waiting} of {self.max_queue} places are taken); retry in a few seconds",
                headers={"Retry-After": "2"},
                members={"queue": {"running": self.running, "waiting": waiting, "max": self.max_queue}},
            )

    # ---- curate

    async def update(self, trace_id: str, change: TraceUpdate) -> dict[str, Any]:
        """Set what `change` gives of rating, tags and note, in any state of the trace; returns the whole trace."""

        def write() -> bool:
            with self._db.write() as connection:
                return curation.change(connection, trace_id, change.model_dump(exclude_unset=True))

        if not await pools.writes.run(write):
            raise no_trace()
        return await self.reader.get(trace_id)

    # ---- steer

    async def pause(self, trace_id: str) -> dict[str, Any]:
        """Pause at the end of the running step; no-op for paused and ended traces."""
        live = self._live.get(trace_id)
        if live is None:
            await self.reader.require_here(trace_id)
        elif not live.ended and live.mode != "step":
            live.mode = "step"

            def note() -> None:
                with self._db.write() as connection:
                    store.update_active(connection, trace_id, mode="step")

            await pools.writes.run(note)
            if live.submitted and not live.ended:
                await self._generation.pause(trace_id)
        return await self.reader.get(trace_id)

    async def continue_(self, trace_id: str, mode: Mode) -> dict[str, Any]:
        """Continue a paused trace; 409 unless it is paused and its weights are available."""
        async with self._lock(trace_id):
            await self.reader.require_here(trace_id)
            row = await pools.reads.run(self._row_with_resume, trace_id)
            if row is None:
                raise no_trace()
            leaving = self._live.get(trace_id)
            if row.status != "paused" or (leaving is not None and not leaving.ended):
                raise Problem("not_paused", f"the trace is {row.status}; only paused traces can be continued")
            if leaving is not None and leaving.runner is not None:
                await asyncio.wait([leaving.runner])
            self.admit()
            _, lease = await self._checkpoints.lend_row(row.checkpoint, row.weight_version)
            with lease:
                await self._checkpoints.lend_verifier(row.verify, lease)
                await self._resume(row, mode, lease)
            return await self.reader.get(trace_id)

    async def _resume(self, row: Any, mode: Mode, lease: Lease) -> None:
        inputs = await pools.intake.run(self._intake.inputs, row.images)
        last = await pools.reads.run(self._last_seq, row.id)
        last_of_group = await pools.reads.run(self._last_seq, row.group_id) if row.group_id is not None else 0
        self.admit()
        live = LiveTrace.from_row({**row._mapping, "mode": mode}, inputs, lease)
        live.started = live.resumed = live.was_read = True
        self._live[row.id] = live
        if row.group_id is not None and not self._events.has_open(row.group_id):
            self._events.open(row.group_id, last_of_group)
        self._events.open(row.id, last, group_id=row.group_id)

        def update(connection: Any) -> None:
            store.update(connection, row.id, status="running", mode=mode)

        resumed = {"mode": mode}
        written = self._events.append(row.id, "trace.resumed", resumed, urgent=True, update=update, follows=("paused",))
        if not await written:
            raise Problem("not_paused", "another server ended it meanwhile")
        if self._launcher.stopping:
            await self._runner.interrupt(live)
            return
        live.runner = asyncio.create_task(self._runner.run(live, row.resume), name=f"trace {row.id}")
        self._grace.look(row.id)

    async def cancel(self, trace_id: str, reason: str = "user") -> dict[str, Any]:
        """Cancel the trace; returns when the engine has stopped. No-op for ended traces."""
        async with self._lock(trace_id):
            live = self._live.get(trace_id)
            if live is not None:
                await self._stop_live(live, reason)
            else:
                await self.reader.require_here(trace_id, or_dead=True)
            trace = await self.reader.get(trace_id)
            if trace["status"] == "paused":
                await self._cancel_paused(trace_id, trace["group_id"], reason)
                trace = await self.reader.get(trace_id)
            return trace

    async def cancel_running(self) -> None:
        """Cancel all active traces; paused ones stay."""
        await asyncio.gather(*(self.cancel(trace_id) for trace_id in list(self._live)))

    async def _stop_live(self, live: LiveTrace, reason: str) -> None:
        live.cancel_reason = live.cancel_reason or reason
        try:
            async with asyncio.timeout(ENGINE_STOP_S):
                if live.submitted and not live.ended:
                    await self._generation.abort(live.id)
                if live.runner is not None:
                    await asyncio.wait([live.runner])
        except TimeoutError:
            log.warning("trace %s: the engine did not confirm the cancellation in %.0f s", live.id, ENGINE_STOP_S)
        except Exception:
            log.exception("trace %s: the engine failed to cancel it", live.id)
        await self._runner.cancel_now(live)  # no-op if the engine's answer ended it

    async def _cancel_paused(self, trace_id: str, group_id: str | None, reason: str) -> None:
        if group_id is not None and not self._events.has_open(group_id):
            self._events.open(group_id, await pools.reads.run(self._last_seq, group_id))
        self._events.open(trace_id, await pools.reads.run(self._last_seq, trace_id), group_id=group_id)
        if await self._runner.end_paused(trace_id, group_id, reason):
            self._metrics.traces_ended.labels("cancelled").inc()
        self._events.leave(trace_id)

    async def delete(self, trace_id: str) -> None:
        """Delete the trace, its events and partial images; an active one is cancelled first."""
        await self.cancel(trace_id)

        def remove() -> bool:
            with self._db.write() as connection:
                found = store.delete(connection, trace_id)
                self._partials.drop(connection, trace_id)
            self._partials.delete(trace_id)
            return found

        if not await pools.writes.run(remove):
            raise no_trace()
        self._events.delete(trace_id)

    # ---- traces ended by another server on the same database

    @property
    def active_ids(self) -> list[str]:
        """Ids of this server's active traces."""
        return list(self._live)

    def end_elsewhere(self, trace_id: str) -> None:
        """Stop a trace that another server ended because this one seemed dead."""
        live = self._live.get(trace_id)
        if live is not None and not live.ended:  # otherwise its own last event detects it
            self._events.lose(trace_id)
            self._lose(trace_id)

    def _lose(self, trace_id: str) -> None:
        live = self._live.get(trace_id)
        if live is None or live.lost:
            return
        live.lost = live.ended = True
        log.warning("trace %s: ended by another server; stopping it here", trace_id)
        self._metrics.traces_ended.labels("interrupted").inc()
        self._spawn(self._runner.let_go(live))

    # ---- helpers

    def _left(self, live: LiveTrace) -> None:
        """Called when a trace has become inactive."""
        live.lease.release()
        if self._live.get(live.id) is live:
            del self._live[live.id]

    def _disconnected(self, trace_id: str) -> None:
        log.info("trace %s: all readers have left", trace_id)
        self._spawn(self.cancel(trace_id, "disconnected"))

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _lock(self, trace_id: str) -> asyncio.Lock:
        lock = self._locks.get(trace_id)
        if lock is None:
            lock = self._locks[trace_id] = asyncio.Lock()
        return lock

    def _row_with_resume(self, trace_id: str) -> Any:
        with self._db.read() as connection:
            return store.get_row(connection, trace_id, resume=True)

    def _last_seq(self, trace_id: str) -> int:
        with self._db.read() as connection:
            return store.last_seq(connection, trace_id)

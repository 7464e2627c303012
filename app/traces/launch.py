"""The start of traces: rows, first events and groups in one transaction, then one task per trace."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from sqlalchemy.engine import Connection

from app.checkpoints.pool import Lease
from app.common import pools
from app.common.metrics import Metrics
from app.contract.frames import encode
from app.contract.words import TERMINAL, GroupKind
from app.storage.database import Database, now
from app.storage.idempotency import Claim
from app.storage.keys import admit_traces, key_name
from app.traces.event_log import EventLog
from app.traces.intake import Prepared
from app.traces.live import LiveTrace
from app.traces.records import group_store, responses, store
from app.traces.runner import TraceRunner


class Launcher:
    """Starts traces and enters them in `live`. On the event loop."""

    def __init__(
        self,
        *,
        db: Database,
        events: EventLog,
        runner: TraceRunner,
        metrics: Metrics,
        server_id: Callable[[], str],
    ) -> None:
        self._db = db
        self._events = events
        self._runner = runner
        self._metrics = metrics
        for status in TERMINAL:
            metrics.traces_ended.labels(status)  # from 0 on, so that the first failure shows as an increase
        self.server_id = server_id
        self._ids = store.TraceIds()
        self._group_ids = group_store.GroupIds()
        self.live: dict[str, LiveTrace] = {}
        self.stopping = False

    def not_before(self, connection: Connection) -> None:
        """Make new ids sort after the stored ones."""
        self._ids.not_before(store.newest_id(connection))
        self._group_ids.not_before(group_store.newest_id(connection))

    @property
    def waiting(self) -> int:
        """Number of traces without a slot."""
        return sum(not live.started for live in self.live.values())

    async def start(
        self,
        each: Sequence[Prepared],
        kind: GroupKind,
        lease: Lease,
        *,
        background: bool,
        claim: Claim,
        about: Callable[[list[str]], dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Store traces and their group in one transaction, then run them.

        A single trace has no group, unless it is an intervention. `about` gives more columns of the group's row, from
        the ids of its traces.

        Returns:
            The first trace of samples, the list of branches, or the group of an intervention.
        """
        group_id = self._group_ids.new() if len(each) > 1 or kind == "intervention" else None
        common = {
            "server_id": self.server_id(),
            "status": "queued",
            "weight_version": lease.version,
            "background": background,
            "group_id": group_id,
            "key_name": key_name(),
            "timings": {"queued_ms": None, "first_text_ms": None, "total_ms": None},
            "created_at": now(),
        }
        rows = [prepared.row | common | {"id": self._ids.new()} for prepared in each]
        leases = [lease, *(lease.again() for _ in rows[1:])]
        lives = [
            LiveTrace.from_row(row, prepared.inputs, one, prepared)
            for row, prepared, one in zip(rows, each, leases, strict=False)
        ]
        for live in lives:
            live.position = self.waiting
            self.live[live.id] = live
        queued = [encode({"position": live.position}) for live in lives]

        def insert() -> dict[str, Any]:
            with self._db.write() as connection:
                admit_traces(connection, len(rows))
                for row, prepared, line in zip(rows, each, queued, strict=True):
                    store.insert(connection, row, ("trace.queued", line))
                    if prepared.request is not None:
                        responses.put(connection, row["id"], prepared.request)
                if group_id is not None:
                    group: dict[str, Any] = {"id": group_id, "server_id": self.server_id(), "kind": kind}
                    group |= {"trace_ids": [live.id for live in lives], "created_at": common["created_at"]}
                    group |= about([live.id for live in lives]) if about is not None else {}
                    group_store.insert(connection, group, [(live.id, q) for live, q in zip(lives, queued, strict=True)])
                if kind == "intervention" and group_id is not None:
                    resource, made = group_id, group_store.whole(connection, group_id) or {}
                else:
                    traces = [store.whole(connection, live.id) or {} for live in lives]
                    resource, made = lives[0].id, traces[0] if kind == "samples" else {"data": traces}
                claim.store(connection, resource, made)
            return made

        def forget(_made: dict[str, Any]) -> None:
            """The request failed before the database answered."""
            with self._db.write() as connection:
                for live in lives:
                    store.delete(connection, live.id)
                if group_id is not None:
                    group_store.delete(connection, group_id)
                claim.forget(connection)

        try:
            made = await pools.writes.run(insert, undo=forget)
        except BaseException:
            for live in lives:
                self.live.pop(live.id, None)
            for one in leases[1:]:
                one.release()
            raise
        if not rows:
            lease.release()
        if group_id is not None and lives:
            self._events.open(group_id, len(lives))
        for seq, (live, line) in enumerate(zip(lives, queued, strict=True), 1):
            self._events.open(live.id, 1, group_id=group_id)
            self._events.show(live.id, 1, "trace.queued", line)
            if group_id is not None:
                self._events.show(group_id, seq, "trace.queued", store.with_trace_id(live.id, line))
            self._metrics.traces_created.inc()
            self._events.spans.trace_began(live.id, live.checkpoint)
            if self.stopping:
                await self._runner.interrupt(live)
            else:
                live.runner = asyncio.create_task(self._runner.run(live), name=f"trace {live.id}")
        return made

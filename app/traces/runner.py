"""Turns engine output into events: one task per trace, in order, with exactly one end.

Implements "Life of a trace". Runs on the event loop; images are written and checkers run in threads.
Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy.engine import Connection

from app.common import metrics as m
from app.common import pools
from app.contract.words import GROUP_END
from app.storage.database import not_before, now
from app.storage.faults import from_storage
from app.storage.images import ImageStore, PartialStore, StoredImage
from app.traces.event_log import EventLog
from app.traces.judge import Judge
from app.traces.kept import drawn, kept_step, link_all
from app.traces.live import LiveTrace
from app.traces.records import group_store, store, tokens
from app.traces.tasks import skill_of
from model.engine.messages import (
    Cancelled,
    Emitted,
    Failed,
    Finished,
    Generation,
    GenerationRequest,
    Paused,
    Prefix,
    QueuePosition,
    Started,
    Terminal,
    Tokens,
)

log = logging.getLogger("omni_r1.traces")

INTERRUPTED = {
    "code": "interrupted",
    "detail": "the server stopped before the trace finished; try again",
}


class TraceRunner:
    """Runs active traces; `on_leave(live)` is called when a trace has ended or paused."""

    def __init__(
        self,
        *,
        events: EventLog,
        generation: Generation,
        images: ImageStore,
        partials: PartialStore,
        judge: Judge,
        metrics: m.Metrics,
    ) -> None:
        self._events = events
        self._generation = generation
        self._images = images
        self._partials = partials
        self._judge = judge
        self._metrics = metrics
        self.on_leave: Callable[[LiveTrace], None] = lambda _live: None

    async def run(self, live: LiveTrace, resume: bytes | None = None) -> None:
        """Run the trace until it pauses or ends; never raises."""
        try:
            if live.cancel_reason is not None:
                await self._cancelled(live)
                return
            request = GenerationRequest(
                request_id=live.id,
                checkpoint=live.checkpoint,
                question=live.question,
                images=live.images,
                sampling=live.sampling,
                mode=live.mode,
                partial_images=live.partial_images,
                resume=resume,
                prefix=Prefix() if resume is not None else live.prefix,
                group=live.group_id,
                verifier=live.verifier,
            )
            live.submitted = True
            last: Terminal | None = None
            if live.task_id is not None and live.images:
                live.seen = asyncio.create_task(self._generation.seen(live.id))  # runs once the request is sent
                live.seen.add_done_callback(_note)
            async with contextlib.aclosing(self._generation.generate(request)) as outputs:  # type: ignore[type-var]
                async for output in outputs:
                    if isinstance(output, Terminal):
                        last = output
                        break
                    await self._take(live, output)
            await self._leave_with(live, last)
        except asyncio.CancelledError:
            raise
        except Exception as error:
            problem = from_storage(error)
            log.error("trace %s failed: %s", live.id, str(error).partition("\n")[0], exc_info=problem is None)
            await self._stop_engine(live)
            if problem is None:
                await self._failed(live, "internal", "see the server's log; try again")
            else:
                await self._failed(live, problem.code, problem.detail)

    async def _stop_engine(self, live: LiveTrace) -> None:
        try:
            async with asyncio.timeout(10):
                await self._generation.abort(live.id)
        except Exception:
            log.exception("trace %s: stopping the engine failed", live.id)

    async def _take(self, live: LiveTrace, output: QueuePosition | Started | Emitted) -> None:
        """Handle an intermediate output."""
        match output:
            case QueuePosition(position):
                self._queued(live, position)
            case Started():
                self._started(live, output)
            case Emitted():
                await self._emitted(live, output)

    async def _leave_with(self, live: LiveTrace, output: Terminal | None) -> None:
        """Handle the last output; the engine has already dropped the request."""
        match output:
            case None:
                await self._failed(live, "engine_error", "the engine returned no result; try again")
            case Paused(step, resume):
                await self._paused(live, step, resume)
            case Finished():
                await self._finished(live, output)
            case Failed(code="interrupted"):
                await self.interrupt(live)
            case Failed(code, detail) if live.cancel_reason is None:
                await self._failed(live, code, detail)
            case Cancelled() | Failed():
                await self._cancelled(live)

    # ---- intermediate outputs

    def _queued(self, live: LiveTrace, position: int) -> None:
        if position == live.position or live.ended:
            return
        live.position = position
        update = None
        if live.started:  # resumed, but no slot was free
            live.started = False
            update = _setter(live.id, status="queued")
        self._events.append(live.id, "trace.queued", {"position": position}, update=update)

    def _started(self, live: LiveTrace, started: Started) -> None:
        if live.ended or live.started:
            return  # resumed straight into a slot; `trace.resumed` reported it
        first_start = not live.resumed
        live.started = True
        live.position = None
        live.weight_version = started.weight_version
        values: dict[str, Any] = {"status": "running", "weight_version": started.weight_version, "codec": started.codec}
        if first_start:
            live.timings["queued_ms"] = live.elapsed_ms()
            values |= {"started_at": not_before(now(), store.T.c.created_at), "timings": dict(live.timings)}
            self._metrics.queued_seconds.observe(live.timings["queued_ms"] / 1000)
        data = {
            "seed": live.sampling.seed,
            "checkpoint": live.checkpoint,
            "weight_version": started.weight_version,
            "prompt_tokens": started.prompt_tokens,
            "budget": {
                "context_len": started.context_len,
                "max_new_tokens": started.max_new_tokens,
                "room_images": started.room_images,
            },
        }
        self._events.append(live.id, "trace.started", data, update=_setter(live.id, **values))

    async def _emitted(self, live: LiveTrace, emitted: Emitted) -> None:
        if live.ended:
            return
        type_, data, png = emitted.event.type, dict(emitted.event.data), emitted.png
        urgent = False
        brought: list[tuple[bytes, StoredImage]] = []
        update: Callable[[Connection], None] | None = None
        match type_:
            case "text.delta" | "answer.delta":
                if type_ == "text.delta":
                    live.step_text[data["step"]] = live.step_text.get(data["step"], "") + data["text"]
                if live.timings.get("first_text_ms") is None:
                    urgent = True
                    live.timings["first_text_ms"] = live.elapsed_ms()
                    self._metrics.first_text_seconds.observe(live.timings["first_text_ms"] / 1000)
                    update = _setter(live.id, timings=dict(live.timings))
            case "image.started":
                skill = await pools.work.run(skill_of, live.step_text.get(data["step"], ""), live.task_id, data["step"])
                if skill is not None:
                    data["skill"] = skill
            case "image.partial":
                data["url"] = None
                if png is not None:
                    name = f"{data['step']}-{data['index']}"
                    data["url"] = await pools.work.run(self._partials.put, live.id, name, png)
                    update = partial(self._partials.enter, trace_id=live.id, name=name)
            case "image.completed":
                assert png is not None, "a completed image has its pixels"
                live.pngs[data["step"]] = png
                stored = await pools.work.run(self._images.bring, png)
                brought.append((png, stored))
                data = {"step": data["step"], **stored.as_json(), "stats": data.get("stats") or {}}
                update = drawn(self._images, live.id, stored, len(png))
            case "image.candidates":
                for candidate in emitted.images:
                    brought.append((candidate, await pools.work.run(self._images.bring, candidate)))
                data["images"] = [stored.as_json() for _, stored in brought]
                update = partial(link_all, images=self._images, trace_id=live.id, brought=brought)
            case "step.kept":
                if png is not None:
                    brought.append((png, await pools.work.run(self._images.bring, png)))
                data, update = await kept_step(live, emitted, brought[0][1] if brought else None, self._images)
            case "step.completed" if (given := emitted.tokens) is not None:
                update = partial(tokens.put, trace_id=live.id, part=data["step"], tokens=given)
                self._metrics.tokens.inc(given.num_generated)
        written = self._append(live, type_, data, urgent=urgent, update=update)
        if written is not None and brought:
            written.add_done_callback(lambda committed: self._settle(live, brought, listed=committed.result()))
            return
        for bytes_, stored in brought:
            self._images.settle(stored)
            await pools.work.run(self._images.put, bytes_, stored.width, stored.height)  # so that the sweep finds it

    def _settle(self, live: LiveTrace, brought: list[tuple[bytes, StoredImage]], *, listed: bool) -> None:
        for _, stored in brought:
            self._images.settle(stored)
        if not listed:
            live.unlisted += brought

    def _append(
        self,
        live: LiveTrace,
        type_: str,
        data: dict[str, Any],
        *,
        urgent: bool,
        update: Callable[[Connection], None] | None,
    ) -> asyncio.Future[bool] | None:
        """None if the trace has ended, possibly while work was running in a thread."""
        return None if live.ended else self._events.append(live.id, type_, data, urgent=urgent, update=update)

    async def _paused(self, live: LiveTrace, step: int, resume: bytes) -> None:
        if live.ended:
            return
        live.ended = True
        live.timings["total_ms"] = live.elapsed_ms()
        update = _setter(live.id, status="paused", mode="step", resume=resume, timings=dict(live.timings))
        if await self._events.append(live.id, "trace.paused", {"step": step}, urgent=True, update=update):
            self._leave(live)

    # ---- ends

    async def _finished(self, live: LiveTrace, finished: Finished) -> None:
        self._metrics.tokens.inc(finished.tokens.num_generated)
        verdict = await self._judge.verdict(live, finished.answer) if live.task_id is not None else None
        live.timings["total_ms"] = live.elapsed_ms()
        timings = {"queued_ms": None, "first_text_ms": None, **live.timings}
        answer = finished.answer.strip() if finished.answer is not None else None
        data: dict[str, Any] = {
            "answer": answer,
            "finish_reason": finished.reason,
            "usage": finished.usage,
            "timings": timings,
        }
        if finished.unmarked:
            data["unmarked"] = True
        row: dict[str, Any] = {
            "answer": answer,
            "finish_reason": finished.reason,
            "usage": finished.usage,
            "timings": timings,
        }
        if verdict is not None:
            row |= {
                "verdict": verdict.answer,
                "drawings_right": verdict.drawings_right,
                "drawings_total": verdict.drawings_total,
                "drawings": verdict.drawings,
            }
        await self._end(live, "completed", "trace.completed", data, row, finished.tokens)

    async def _cancelled(self, live: LiveTrace) -> None:
        data = {"reason": live.cancel_reason or "user"}
        await self._end(live, "cancelled", "trace.cancelled", data, {"timings": dict(live.timings)})

    async def _failed(self, live: LiveTrace, code: str, detail: str) -> None:
        error = {"code": code, "detail": detail}
        row = {"error": error, "timings": dict(live.timings)}
        await self._end(live, "failed", "trace.failed", {"error": error}, row)

    async def interrupt(self, live: LiveTrace) -> None:
        """End the trace because the server is stopping."""
        row = {"error": INTERRUPTED, "timings": dict(live.timings)}
        await self._end(live, "interrupted", "trace.failed", {"error": INTERRUPTED}, row)

    async def cancel_now(self, live: LiveTrace) -> None:
        """End the trace as cancelled without waiting for the engine."""
        await self._cancelled(live)

    async def fail(self, live: LiveTrace, code: str, detail: str) -> None:
        """End the trace for a reason outside the engine."""
        await self._failed(live, code, detail)

    async def let_go(self, live: LiveTrace) -> None:
        """Stop a trace that another server ended, without adding to its log."""
        if live.submitted:
            await self._stop_engine(live)
        if live.runner is not None:
            live.runner.cancel()
            await asyncio.wait([live.runner])
        self._leave(live)
        for png, stored in live.unlisted:
            await pools.work.run(self._images.put, png, stored.width, stored.height)  # so that the sweep finds it

    async def _end(
        self,
        live: LiveTrace,
        status: str,
        type_: str,
        data: dict[str, Any],
        row: dict[str, Any],
        last: Tokens | None = None,
    ) -> None:
        if live.ended or not self._events.has_open(live.id):
            return  # a trace that is being stored has no log yet; it stops, if at all, once it runs
        live.ended = True

        def update(connection: Connection) -> None:
            if last is not None:
                tokens.put(connection, live.id, tokens.LAST, last)
            store.finish(connection, live.id, status=status, **row)

        if not await self._append_end(live.id, live.group_id, type_, data, update):
            return  # another server ended it first; `let_go` cleans up
        self._metrics.traces_ended.labels(status).inc()
        log.info("trace %s %s after %d ms", live.id, status, live.elapsed_ms())
        self._leave(live)

    async def end_paused(self, trace_id: str, group_id: str | None, reason: str) -> bool:
        """Cancel a paused trace, whose log is open; False when another server changed it first."""
        cancel = partial(store.finish, trace_id=trace_id, status="cancelled")
        data = {"reason": reason}
        return await self._append_end(trace_id, group_id, "trace.cancelled", data, cancel, follows=("paused",))

    async def _append_end(
        self,
        trace_id: str,
        group_id: str | None,
        type_: str,
        data: dict[str, Any],
        update: Callable[[Connection], None],
        **more: Any,
    ) -> bool:
        """Append a terminal event with the row's end; the last one of a group also ends the group."""
        group_end: list[tuple[int, str]] = []

        def end(connection: Connection) -> None:
            update(connection)
            ended = group_store.complete(connection, group_id) if group_id is not None else None
            group_end[:] = [ended] if ended is not None else []

        committed = await self._events.append(trace_id, type_, data, urgent=True, update=end, **more)
        if committed and group_id is not None and group_end:
            seq, line = group_end[0]
            self._events.show(group_id, seq, GROUP_END, line)
            self._events.leave(group_id)
        return committed

    def _leave(self, live: LiveTrace) -> None:
        self._events.leave(live.id)
        self.on_leave(live)


def _setter(trace_id: str, **values: Any) -> Callable[[Connection], None]:
    def update(connection: Connection) -> None:
        store.update(connection, trace_id, **values)

    return update


def _note(task: asyncio.Task[bytes]) -> None:
    """Take note of an error that is of no interest if the trace ends without a verdict."""
    if not task.cancelled():
        task.exception()

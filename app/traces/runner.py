"""Turns engine output into events: one task per trace, in order, with exactly one end.

Implements "Life of a trace". Runs on the event loop; images are written and checkers run in threads.
Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import Any

from sqlalchemy.engine import Connection

from app.common import metrics as m
from app.common import pools
from app.contract.problems import from_storage
from app.storage.database import Database, not_before, now
from app.storage.images import ImageStore, PartialStore, StoredImage
from app.traces import store
from app.traces.event_log import EventLog
from app.traces.live import LiveTrace
from app.traces.tasks import TaskWorld, Verdict, skill_of
from model.engine.messages import (
    Cancelled,
    Emitted,
    Failed,
    Finished,
    Generation,
    GenerationRequest,
    Paused,
    QueuePosition,
    Started,
    Terminal,
)

log = logging.getLogger("omni_r1.traces")

SEEN = "0-0"  # partial image with the question's image as the model sees it, for the checkers
INTERRUPTED = {
    "code": "interrupted",
    "detail": "the server stopped before the trace finished; try again",
}


class TraceRunner:
    """Runs active traces; `on_leave(live)` is called when a trace has ended or paused."""

    def __init__(
        self,
        *,
        db: Database,
        events: EventLog,
        generation: Generation,
        images: ImageStore,
        partials: PartialStore,
        world: TaskWorld,
        metrics: m.Metrics,
    ) -> None:
        self._db = db
        self._events = events
        self._generation = generation
        self._images = images
        self._partials = partials
        self._world = world
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
                show_seen=live.task_id is not None,
                resume=resume,
            )
            live.submitted = True
            last: Terminal | None = None
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
            log.exception("trace %s failed", live.id)
            problem = from_storage(error)
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
            case Emitted(event, png, _codes, seen):
                if seen is not None:
                    await pools.work.run(self._partials.put, live.id, SEEN, seen)
                await self._emitted(live, event.type, dict(event.data), png)

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
        values: dict[str, Any] = {"status": "running", "weight_version": started.weight_version}
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

    async def _emitted(self, live: LiveTrace, type_: str, data: dict[str, Any], png: bytes | None) -> None:
        if live.ended:
            return
        urgent = False
        stored: StoredImage | None = None
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
            case "image.completed":
                assert png is not None, "a completed image has its pixels"
                live.pngs[data["step"]] = png
                stored = await pools.work.run(self._images.bring, png)
                data = {"step": data["step"], **stored.as_json(), "stats": data.get("stats") or {}}
                update = self._drawn(live.id, stored, len(png))
        written = self._append(live, type_, data, urgent=urgent, update=update)
        if stored is None or png is None:
            return
        if written is not None:
            written.add_done_callback(lambda committed: self._settle(live, png, stored, listed=committed.result()))
        else:
            self._images.settle(stored)
            await pools.work.run(self._images.put, png, stored.width, stored.height)  # so that the sweep finds it

    def _settle(self, live: LiveTrace, png: bytes, stored: StoredImage, *, listed: bool) -> None:
        self._images.settle(stored)
        if not listed:
            live.unlisted.append((png, stored))

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

    def _drawn(self, trace_id: str, image: StoredImage, num_bytes: int) -> Callable[[Connection], None]:
        def update(connection: Connection) -> None:
            self._images.enter(connection, image, num_bytes)
            store.link_image(connection, trace_id, image.image_id)
            store.update(connection, trace_id, last_image=image.as_json())

        return update

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
        verdict = await self._judge(live, finished.answer) if live.task_id is not None else None
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
            }
        await self._end(live, "completed", "trace.completed", data, row)

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

    async def _end(self, live: LiveTrace, status: str, type_: str, data: dict[str, Any], row: dict[str, Any]) -> None:
        if live.ended:
            return
        live.ended = True

        def update(connection: Connection) -> None:
            store.finish(connection, live.id, status=status, **row)

        if not await self._events.append(live.id, type_, data, urgent=True, update=update):
            return  # another server ended it first; `let_go` cleans up
        self._metrics.traces_ended.labels(status).inc()
        log.info("trace %s %s after %d ms", live.id, status, live.elapsed_ms())
        self._leave(live)

    def _leave(self, live: LiveTrace) -> None:
        self._events.leave(live.id)
        self.on_leave(live)

    async def _judge(self, live: LiveTrace, answer: str | None) -> Verdict | None:
        assert live.task_id is not None
        try:
            return await pools.work.run(self._judge_now, live.task_id, answer, live)
        except Exception:
            log.exception("trace %s: the checkers failed", live.id)
            return None

    def _judge_now(self, task_id: str, answer: str | None, live: LiveTrace) -> Verdict:
        pngs = dict(live.pngs)
        if live.resumed:  # drawn before a pause, perhaps by another process
            with self._db.read() as connection:
                folded = store.fold(store.events_of(connection, live.id))
            for step in folded["steps"]:
                if "image" in step and step["index"] not in pngs:
                    pngs[step["index"]] = self._images.read(step["image"]["image_id"])
        drawn = [pngs.get(step) for step in range(1, max(pngs, default=0) + 1)]
        seen = self._partials.path(live.id, SEEN).read_bytes() if drawn else None
        return self._world.judge(task_id, answer, seen, drawn)


def _setter(trace_id: str, **values: Any) -> Callable[[Connection], None]:
    def update(connection: Connection) -> None:
        store.update(connection, trace_id, **values)

    return update

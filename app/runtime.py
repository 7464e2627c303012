"""Start, readiness and shutdown of one server.

`prepare` (blocking) locks the home and migrates the database; `boot` starts the engine process and builds the pages in
parallel, so that `/livez` and `/metrics` answer long before both are ready. Knows no routes.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import Any, get_args

import sqlalchemy as sa
from sqlalchemy.exc import SQLAlchemyError
from starlette.responses import HTMLResponse, RedirectResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.checkpoints.registry import NoCheckpoint
from app.common import pools
from app.common.pools import TooSlow
from app.common.prefix import below
from app.http.deps import Services
from app.http.page_gate import not_found
from app.jobs.watch import End
from app.storage import keys, tables
from app.storage.database import Database
from app.storage.home import Home
from model.engine.messages import EngineError

log = logging.getLogger("omni_r1.server")

SWEEP_EVERY_S = 3600.0
RESERVE_EVERY_S = 5.0
ENGINE_CLOSE_S = 3.0
CLOSE_S = 2.0

# Builds the pages as an ASGI app with its own lifespan, from this server's address and key ("" without);
# blocking (imports Gradio).
BuildUI = Callable[[str, str], ASGIApp]


class UISlot:
    """Mounted at `/` from the start; forwards to the pages once they are built."""

    def __init__(self) -> None:
        self.page: ASGIApp | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Until the pages are built, answer 503 with a page that reloads itself."""
        if self.page is not None:
            await self.page(scope, receive, send)
        elif scope["type"] == "http":
            body = "<!doctype html><title>Omni-R1 Studio</title><p>The studio is starting…</p>"
            await HTMLResponse(body, 503, {"Retry-After": "1", "Refresh": "1"})(scope, receive, send)


class Runtime:
    """The lifecycle of one server."""

    def __init__(self, services: Services, home: Home, slot: UISlot, build_ui: BuildUI | None) -> None:
        self._services = services
        self._home = home
        self._slot = slot
        self._build_ui = build_ui
        self.base_url = ""  # this server's address, for its own pages
        self.failure: str | None = None  # why the server will never be ready
        self.on_failure: Callable[[], None] = lambda: None
        self._waits_for = {"engine": "the engine loads", "page": "the page is being built"}
        self._tasks: list[asyncio.Task[Any]] = []
        self._stop_page = asyncio.Event()
        self._prepared = False
        self._logged = ""
        self._born = time.monotonic()

    # ---- start

    def prepare(self) -> None:
        """Lock the home, migrate the database, end the work of a dead process; blocking.

        Raises HomeBusy, DatabaseTooNew, StoreUnusable, or the database's own errors.
        """
        if self._prepared:
            return
        if not self._home.locked:
            self._home.open()
        os.environ.setdefault("GRADIO_TEMP_DIR", str(self._home.tmp))
        self._services.db.migrate(self._home.path)
        self._services.mirror.begin(self._services.db, self._home)
        self._services.servers.beat()
        self._services.traces.recover()
        self._services.jobs.recover()
        self._prepared = True

    async def start(self) -> None:
        """Start everything else in the background."""
        if not self._prepared:
            await pools.jobs.run(self.prepare)
        self._services.events.start()
        loop, forget = asyncio.get_running_loop(), self._services.events.delete
        self._services.retention.forget = lambda trace_id: _call_soon(loop, forget, trace_id)
        self._tasks = [
            asyncio.create_task(self._boot(), name="boot"),
            asyncio.create_task(self._sweep(), name="sweep"),
            asyncio.create_task(self._keep_reserve(), name="reserve"),
            asyncio.create_task(self._services.traces.watch_storage(), name="storage watch"),
            asyncio.create_task(self._services.mirror.run(), name="store"),
        ]
        if self._services.settings.database_url is not None:  # a home's own database is used by one server
            self._services.servers.start()
            self._services.traces.reader.start()

    async def _boot(self) -> None:
        s = self._services
        try:
            await s.generation.start()  # in parallel with importing Gradio
            async with asyncio.TaskGroup() as group:
                group.create_task(self._boot_engine())
                group.create_task(self._boot_page())
        except* Exception as group_error:
            if not s.traces.stopping:  # otherwise the stop interrupted it
                self._fail(group_error.exceptions[0])
        gc.freeze()  # everything is imported: later collections, which stop every stream, skip it (3 ms instead of 80)

    def _fail(self, error: Exception) -> None:
        """Stop a server that will never be ready."""
        if not isinstance(error, NoCheckpoint | EngineError):  # theirs is the last line of the log
            log.error("the server cannot start", exc_info=error)
        self.failure = str(error)
        self.on_failure()

    async def _boot_engine(self) -> None:
        s = self._services
        candidates = await s.checkpoints.choose()
        while s.generation.status().phase == "starting":
            await asyncio.sleep(0.02)
        status = s.generation.status()
        if status.phase == "failed":
            s.jobs.start()
            return  # readyz reports why; the engine's client retries
        info, version = await s.checkpoints.start(candidates)
        await pools.intake.run(s.checkpoints.template, info)  # preloads the tokenizer
        del self._waits_for["engine"]
        s.jobs.start()
        log.info("checkpoint %s (version %d) is active after %.1f s", info.name, version, time.monotonic() - self._born)

    async def _boot_page(self) -> None:
        if self._build_ui is None:
            self._slot.page = _no_page
            del self._waits_for["page"]
            return
        build_ui = self._build_ui
        secret = self._services.settings.api_key
        key = secret.get_secret_value() if secret else ""
        page = await _in_daemon_thread(lambda: build_ui(self.base_url, key))
        # Lifespans must be entered and left by the same task.
        started = asyncio.Event()
        self._tasks.append(asyncio.create_task(self._hold_page(page, started), name="page"))
        await started.wait()

    async def _hold_page(self, page: Any, started: asyncio.Event) -> None:
        try:
            async with page.router.lifespan_context(page):
                status = await _get_root(page)
                if status != 200:
                    raise RuntimeError(f"the page at / answers {status}")
                self._slot.page = page
                del self._waits_for["page"]
                log.info("the pages are ready after %.1f s", time.monotonic() - self._born)
                started.set()
                await self._stop_page.wait()
        except Exception as error:
            log.exception("the page failed")
            self.failure = f"the page cannot be built: {error}"
        finally:
            started.set()

    async def _keep_reserve(self) -> None:
        while True:
            with contextlib.suppress(OSError):
                await pools.files.run(self._home.reserve.take)
            await asyncio.sleep(RESERVE_EVERY_S)

    async def _sweep(self) -> None:
        while True:
            try:
                if self._services.retention.limits.any:
                    await pools.jobs.run(self._services.retention.prune)
                await pools.files.run(self._sweep_now)
            except Exception:
                log.exception("the sweep failed")
            await asyncio.sleep(SWEEP_EVERY_S)

    def _sweep_now(self) -> None:
        s = self._services
        swept = s.images.sweep()
        if swept:
            log.info("deleted %d unused images", swept)
        s.idempotency.sweep()
        keys.sweep(s.db)
        with s.db.read() as connection:
            known = connection.execute(sa.select(tables.traces.c.id)).scalars().all()
        s.partials.sweep(known)
        s.retention.measure()

    # ---- readiness

    async def readiness(self) -> dict[str, Any]:
        """The body of `/readyz`."""
        s = self._services
        status = s.generation.status()
        active = s.checkpoints.active
        version = status.loaded.get(active) if active else None
        busy = s.checkpoints.pool.busy_with or ""
        reading = status.reading if busy else None
        if reading is not None:
            busy += f": {reading.done / 1e9:.1f} of {reading.total / 1e9:.1f} GB read"
        phase, detail = "ready", busy or s.checkpoints.note or status.detail or s.mirror.trouble or ""
        if s.traces.stopping:
            phase, detail = "stopping", "the server is stopping"
        elif self.failure is not None:
            phase, detail = "failed", "the server cannot start; see its log"
        elif status.phase != "ready":
            phase, detail = status.phase, status.detail or f"the engine is {status.phase}"
        elif self._waits_for:
            phase, detail = "starting", "; ".join([*self._waits_for.values(), *filter(None, [busy])])
        elif s.events.trouble is not None:
            phase, detail = "failed", "events cannot be stored; see the server's log"
        else:
            try:
                await pools.probe.run(s.db.ping)
            except Exception as error:
                self._log_once(f"the database is unavailable: {str(error).splitlines()[0]}")
                phase, detail = "failed", "the database is unavailable; see the server's log"
        read = None if reading is None else {"bytes_read": reading.done, "bytes_total": reading.total}
        return {
            "phase": phase,
            "checkpoint": active,
            "weight_version": version,
            "quant": s.checkpoints.pool.quant,
            "detail": detail,
            "loading": read,
        }

    def _log_once(self, message: str) -> None:
        """Log a reason that `/readyz` does not disclose, once."""
        if message != self._logged:
            log.error("%s", message)
            self._logged = message

    # ---- stop

    async def stop_traces(self) -> None:
        """End all traces while readers are still connected."""
        if not self._services.traces.stopping:
            log.info("stopping")
            self._services.image_intake.close()
            self._services.hub.kill()
            await asyncio.gather(self._services.traces.stop(), self._services.jobs.stop())

    async def close(self) -> None:
        """Close everything and release the home."""
        s = self._services
        await self.stop_traces()
        # In parallel: a part that hangs must not delay the others.
        await asyncio.gather(
            self._close_tasks(),
            self._close_engine(),
            s.events.close(CLOSE_S),
            s.servers.close(),
            s.traces.reader.close(),
        )
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await _in_daemon_thread(s.spans.close)
        with contextlib.suppress(TooSlow):
            await pools.probe.run(s.db.close)
        s.spool.close()
        s.grader.close()
        self._home.close()
        log.info("stopped")

    async def _close_tasks(self) -> None:
        self._stop_page.set()
        pages = [task for task in self._tasks if task.get_name() == "page"]
        others = [task for task in self._tasks if task.get_name() != "page"]
        for task in others:
            task.cancel()
        if pages:
            await asyncio.wait(pages, timeout=1)
            for task in pages:
                task.cancel()
        await asyncio.wait(self._tasks, timeout=CLOSE_S)

    async def _close_engine(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ENGINE_CLOSE_S):
                await self._services.generation.close()


async def _no_page(scope: Scope, receive: Receive, send: Send) -> None:
    """In place of the pages: `/` leads to the API's documentation."""
    if scope["type"] == "http":
        answer = RedirectResponse("docs") if below(scope) == "/" else not_found(scope)
        await answer(scope, receive, send)


async def _in_daemon_thread(work: Callable[[], Any]) -> Any:
    """Run `work` in a thread that cannot block process exit (importing Gradio takes long)."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def run() -> None:
        result: Any = None
        failure: BaseException | None = None
        try:
            result = work()
        except BaseException as error:
            failure = error

        def deliver() -> None:
            if done.done():
                return
            if failure is not None:
                done.set_exception(failure)
            else:
                done.set_result(result)

        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(deliver)

    threading.Thread(target=run, name="page", daemon=True).start()
    return await done


def _call_soon(loop: asyncio.AbstractEventLoop, call: Callable[[str], None], argument: str) -> None:
    """Call on the loop, from any thread; a closed loop has nothing left to tell."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(call, argument)


async def _get_root(page: ASGIApp) -> int:
    """The pages' status for `GET /`."""
    import httpx

    async with httpx.AsyncClient(transport=httpx.ASGITransport(page), base_url="http://127.0.0.1") as client:
        return (await client.get("/")).status_code


def reach_database(url: str) -> tuple[str, str | None]:
    """Where a database is, and why it does not answer; the place contains no password. Blocking."""
    database = Database(url)
    try:
        database.ping()
    except SQLAlchemyError as error:
        return database.place, str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    finally:
        database.close()
    return database.place, None


def publish(s: Services, home: Home) -> None:
    """Publish the state of the parts on `/metrics`."""
    watch, count = s.metrics.watch, s.metrics.count
    for status in get_args(End):
        s.metrics.jobs_ended.labels(status)  # from 0 on, so that the first failure shows as an increase
    watch("omni_r1_jobs_running", "Running jobs.", lambda: s.jobs.running)
    watch("omni_r1_checkpoints_loaded", "Checkpoints in memory.", lambda: len(s.generation.status().loaded))
    watch("omni_r1_traces_running", "Traces with a slot.", lambda: s.traces.running)
    watch("omni_r1_traces_waiting", "Traces waiting for a slot.", lambda: s.traces.waiting)
    watch("omni_r1_traces_waiting_max", "Traces that may wait.", lambda: s.settings.max_queue)
    watch("omni_r1_event_streams", "Open event streams.", lambda: s.events.open_streams + s.jobs.open_streams)
    count("omni_r1_event_commits", "Commits of the event writer.", lambda: s.events.commits)
    count("omni_r1_traces_pruned", "Traces deleted by age or size.", lambda: s.retention.pruned_traces)
    sizes = "Bytes in the home by kind, as of the last sweep."
    s.metrics.watch_each(
        "omni_r1_home_bytes", sizes, "kind", lambda: {str(kind): size for kind, size in s.retention.sizes.items()}
    )
    disk = "Bytes of the home's disk, as of the last five seconds."
    s.metrics.watch_each("omni_r1_disk_bytes", disk, "kind", lambda: home.reserve.disk)
    watch("omni_r1_store_waiting", "Uploads and deletions that wait for the store.", lambda: s.mirror.waiting.tasks)
    watch("omni_r1_store_oldest_seconds", "How long the oldest of them has waited.", lambda: s.mirror.oldest_s)
    count("omni_r1_store_failures", "Uploads and deletions that failed; they wait.", lambda: s.mirror.failed)
    count("omni_r1_events", "Committed events.", lambda: s.events.committed_events)
    watch("omni_r1_engine_ready", "1 while the engine is ready.", lambda: s.generation.status().phase == "ready")

"""The one place where the real parts are built and put together.

serve(read_settings())                            the studio, as `omni-r1 serve` runs it
create_app(settings, generation=FakeGeneration()) the same app on any `Generation`, for tests
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Sequence
from importlib.metadata import version
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI, Request
from fastapi.middleware.cors import CORSMiddleware
from fastapi.routing import APIRoute
from sqlalchemy.exc import SQLAlchemyError
from starlette.routing import Match
from starlette.types import ASGIApp

from app import logs
from app.api_docs import add_docs
from app.artifacts import MAX_UPLOAD_BYTES, ImageStore, PartialStore
from app.auth import ApiKey, GuardMiddleware, KeyMiddleware
from app.checkpoints import PACKAGE_FOLDER, CheckpointRegistry
from app.datasets import DatasetStore
from app.db import Database
from app.deps import Services
from app.dialects import DatabaseUnusable
from app.engine_pool import EnginePool
from app.errors import Problem, install_handlers
from app.event_log import EventLog
from app.home import Home, HomeBusy
from app.idempotency import IdempotencyKeys
from app.job_intake import JobIntake
from app.jobs import JobService
from app.metrics import Metrics, MetricsMiddleware
from app.registration import Registration
from app.routes import checkpoints, datasets, images, jobs, login, system, tasks, traces
from app.runtime import BuildUI, Runtime, UISlot
from app.settings import Settings
from app.tasks import TaskWorld
from app.trace_intake import Intake
from app.trace_reader import TraceReader
from app.trace_runner import TraceRunner
from app.traces import TraceService
from app.ui.assets import static_files
from model.engine.messages import Generation
from training.jobs import COMMAND

log = logging.getLogger("omni_r1.server")

ROUTES = (system, login, traces, images, tasks, jobs, datasets, checkpoints)
# A multipart envelope around a picture of the full size.
ENVELOPE_BYTES = 65_536
GRACEFUL_S = 2
LAST_WORD_S = 9.0
BAD_START = 2
SAME_REQUEST_S = 0.5


def create_app(
    settings: Settings,
    *,
    generation: Generation,
    build_ui: BuildUI | None = None,
    home: Home | None = None,
    package_folder: Path = PACKAGE_FOLDER,
    job_command: Sequence[str] = COMMAND,
) -> FastAPI:
    """The app on `generation`; its lifespan starts and stops everything. `app.state.runtime` is its life."""
    home = home or Home(settings.home)
    slot = UISlot()
    services = build_services(
        settings, generation=generation, home=home, package_folder=package_folder, job_command=job_command
    )
    runtime = Runtime(services, home, slot, build_ui)

    @contextlib.asynccontextmanager
    async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
        await runtime.start()
        try:
            yield
        finally:
            await runtime.close()

    app = FastAPI(
        title="Omni-R1 Studio",
        version=version("omni-r1-studio"),
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.services = services
    app.state.runtime = runtime
    install_handlers(app)
    for module in ROUTES:
        app.include_router(module.router)
    add_docs(app, with_key=services.key is not None)
    _add_unknown(app)
    app.mount("/static", static_files(), name="static")
    app.mount("/", slot, name="page")
    # The last one added stands outermost; a browser's CORS preflight carries no key.
    if services.key is not None:
        app.add_middleware(KeyMiddleware, key=services.key)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware, allow_origins=list(settings.cors_origins), allow_methods=["*"], allow_headers=["*"],
            expose_headers=["Location", "Retry-After", "Idempotent-Replayed"],
        )  # fmt: skip
    app.add_middleware(
        GuardMiddleware,
        hosts=(settings.host, *settings.allowed_hosts),
        cors_origins=settings.cors_origins,
        max_body=MAX_UPLOAD_BYTES + ENVELOPE_BYTES,
    )
    app.add_middleware(MetricsMiddleware, metrics=services.metrics)
    return app


def build_services(
    settings: Settings,
    *,
    generation: Generation,
    home: Home,
    package_folder: Path,
    job_command: Sequence[str] = COMMAND,
) -> Services:
    """Every part, wired; nothing is opened or started."""
    db = Database(settings.sqlalchemy_url, home.reserve)
    metrics = Metrics()
    events = EventLog(db, ping_s=settings.ping_s)
    image_store = ImageStore(home.images, db)
    partials = PartialStore(home.partials)
    world = TaskWorld(image_store)
    pool = EnginePool(generation, budget_mb=settings.memory_mb)
    registry = CheckpointRegistry(
        db,
        pool,
        home=home.path,
        server_id=lambda: home.server_id,
        package_folder=package_folder,
        extra=settings.checkpoint,
        roots=settings.allowed_roots,
    )
    intake = Intake(image_store, registry, world)
    runner = TraceRunner(
        db=db,
        events=events,
        generation=generation,
        images=image_store,
        partials=partials,
        world=world,
        metrics=metrics,
    )
    service = TraceService(
        db=db,
        events=events,
        generation=generation,
        checkpoints=registry,
        images=image_store,
        partials=partials,
        intake=intake,
        runner=runner,
        reader=TraceReader(db, events, lambda: home.server_id, ping_s=settings.ping_s),
        metrics=metrics,
        home=home,
        max_queue=settings.max_queue,
        grace_s=settings.grace_s,
    )
    job_service = JobService(
        db=db,
        home=home,
        checkpoints=registry,
        intake=JobIntake(db, registry, image_store, home=home, roots=settings.allowed_roots),
        ping_s=settings.ping_s,
        max_running=settings.max_jobs,
        patience_s=settings.job_patience_s,
        device=settings.device,
        command=job_command,
    )
    metrics.watch("omni_r1_jobs_running", "Jobs in work.", lambda: job_service.running)
    pool.cancel_running = service.cancel_running
    metrics.watch("omni_r1_checkpoints_loaded", "Checkpoints in memory.", lambda: len(generation.status().loaded))
    metrics.watch("omni_r1_traces_running", "Traces with a slot.", lambda: service.running)
    metrics.watch("omni_r1_traces_waiting", "Traces without one.", lambda: service.waiting)
    metrics.watch(
        "omni_r1_event_streams", "Open event streams.", lambda: events.open_streams + job_service.open_streams
    )
    metrics.watch("omni_r1_event_commits", "Commits of the event writer.", lambda: events.commits)
    metrics.watch("omni_r1_events", "Events committed.", lambda: events.committed_events)
    metrics.watch("omni_r1_engine_ready", "1 while the engine is ready.", lambda: generation.status().phase == "ready")
    return Services(
        settings=settings,
        db=db,
        events=events,
        generation=generation,
        checkpoints=registry,
        registration=Registration(db, registry, home=home),
        images=image_store,
        partials=partials,
        world=world,
        intake=intake,
        traces=service,
        jobs=job_service,
        datasets=DatasetStore(home.path),
        idempotency=IdempotencyKeys(db),
        metrics=metrics,
        key=ApiKey(settings.api_key.get_secret_value()) if settings.api_key else None,
    )


def _add_unknown(app: FastAPI) -> None:
    """404 and 405 under /v1 as problems; without this the page's mount would answer."""

    async def unknown(request: Request, rest: str) -> None:
        allowed: set[str] = set()
        for module in ROUTES:
            for route in module.router.routes:
                if isinstance(route, APIRoute) and route.matches(dict(request.scope))[0] is Match.PARTIAL:
                    allowed |= route.methods or set()
        if allowed:
            allow = ", ".join(sorted(allowed))
            raise Problem("method_not_allowed", f"use {allow} here", headers={"Allow": allow})
        raise Problem("not_found", "no such path; /docs shows what there is")

    methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
    app.add_api_route("/v1/{rest:path}", unknown, methods=methods, include_in_schema=False)


def build_page(base_url: str, api_key: str) -> ASGIApp:
    """The Gradio page on this server's own API; imports Gradio (seconds)."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from app.ui.quick_start import without_stubs

    with without_stubs():
        from app.ui.mount import build_page as build

    return build(base_url, api_key)


class StudioServer(uvicorn.Server):
    """uvicorn that ends traces before it closes connections, exits 0 on the first signal, at once on the second."""

    def __init__(self, config: uvicorn.Config, runtime: Runtime) -> None:
        super().__init__(config)
        self._runtime = runtime
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._signalled_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._signalled_at is None:
            self._signalled_at = now
        elif sig == signal.SIGTERM and now - self._signalled_at < SAME_REQUEST_S:
            return  # make passes on the SIGTERM that its process group has had already
        else:
            os._exit(128 + sig)
        self.stop()

    def stop(self) -> None:
        """Begin to stop; may be called from a signal handler."""
        if self._loop is None or not self.started:
            self.should_exit = True
        else:
            self._loop.call_soon_threadsafe(self._begin)

    def _begin(self) -> None:
        self._stopping = asyncio.ensure_future(self._stop())

    async def _stop(self) -> None:
        try:
            await self._runtime.stop_traces()
        finally:
            self.should_exit = True


def run_app(app: FastAPI, sock: socket.socket) -> int:
    """Serve `app` on a bound socket until a signal; the exit code."""
    runtime: Runtime = app.state.runtime
    host, port = sock.getsockname()[:2]
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    runtime.base_url = f"http://{f'[{reached}]' if ':' in reached else reached}:{port}"
    config = uvicorn.Config(
        app,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACEFUL_S,
        ws="none",
        lifespan="on",
    )
    server = StudioServer(config, runtime)
    runtime.on_failure = server.stop
    server.run(sockets=[sock])
    gc.freeze()  # else the interpreter's last collection walks all of Gradio: seconds on a busy machine
    if runtime.failure is not None:
        sys.stderr.write(f"omni-r1: {runtime.failure}\n")
        return BAD_START
    return 0


def serve(
    settings: Settings,
    *,
    generation: Generation | None = None,
    build_ui: BuildUI | None = build_page,
    job_command: Sequence[str] = COMMAND,
) -> int:
    """Run the studio until it is stopped; the exit code (0; 2 when it cannot start as asked)."""
    logs.configure(settings.log_format, settings.log_level)
    home = Home(settings.home)
    try:
        home.open()
        sock = bind(settings.host, settings.port)
    except (HomeBusy, OSError) as error:
        home.close()
        sys.stderr.write(f"omni-r1: {error}\n")
        return BAD_START
    host, port = sock.getsockname()[:2]
    home.note(host, port)
    if generation is None:
        from model.engine.client import EngineProcess

        process = EngineProcess({}, device=settings.device)
        process.spawn()  # it imports torch while this process opens the database and builds the page
        generation = process
    app = create_app(settings, generation=generation, build_ui=build_ui, home=home, job_command=job_command)
    try:
        app.state.runtime.prepare()
    except (DatabaseUnusable, SQLAlchemyError, OSError) as error:
        sock.close()
        home.close()
        sys.stderr.write(f"omni-r1: {_why_not(error)}\n")
        return BAD_START
    shown = f"[{host}]" if ":" in host else host
    sys.stdout.write(f"Omni-R1 Studio: http://{shown}:{port}  (Ctrl-C stops it)\n")
    sys.stdout.flush()
    return run_app(app, sock)


def _why_not(error: Exception) -> str:
    """One line on what is wrong with home or database; a driver's message names the place but no password."""
    first = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    return f"the database cannot be used: {first}" if isinstance(error, SQLAlchemyError) else first


def bind(host: str, port: int) -> socket.socket:
    """A listening address, taken before anything else starts; OSError with one line for a person."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # named, so that asyncio sets TCP_NODELAY
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host.strip("[]"), port))
        sock.listen(2048)
    except OSError as error:
        sock.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}; choose another port with PORT=") from None
    sock.set_inheritable(False)
    return sock


if __name__ == "__main__":
    from app.settings import SettingsError, read_settings

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until uvicorn takes the signals over
    try:
        code = serve(read_settings())
    except SettingsError as refusal:
        sys.stderr.write(f"omni-r1: {refusal}\n")
        code = BAD_START
    sys.exit(code)

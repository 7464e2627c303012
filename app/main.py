"""Builds and wires the parts of the server.

serve(read_settings())                            run the studio, as `omni-r1 serve` does
create_app(settings, generation=FakeGeneration()) the same app on any `Generation`, for tests
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from fastapi import Depends, FastAPI
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp

from app.checkpoints.activation import Activation
from app.checkpoints.hub import HubFetcher
from app.checkpoints.pool import EnginePool
from app.checkpoints.registration import Registration
from app.checkpoints.registry import CheckpointRegistry
from app.common import logs
from app.common.collector import SpansError, make_spans
from app.common.metrics import Metrics
from app.common.settings import Settings
from app.common.spans import Spans
from app.http.auth import ApiKey
from app.http.deps import Services, known_ids, known_query
from app.http.errors import install_handlers
from app.http.keys import Keys
from app.http.openapi import add_docs, operation_id
from app.http.page_gate import PageGate
from app.http.roles import allowed
from app.http.routes import (
    branches,
    checkpoints,
    datasets,
    exports,
    groups,
    images,
    jobs,
    login,
    responses,
    rewards,
    sweeps,
    system,
    tasks,
    traces,
    why,
)
from app.http.stack import add_middleware
from app.jobs.custom import CustomRules
from app.jobs.datasets import DatasetStore
from app.jobs.grader import Grader
from app.jobs.intake import JobIntake
from app.jobs.runner import COMMAND
from app.jobs.runs import Runs
from app.jobs.servers import ServerWatch
from app.jobs.service import JobService
from app.jobs.store import JobTable
from app.jobs.sweeps import Sweeps
from app.runtime import BuildUI, Runtime, UISlot, publish
from app.server import BAD_START, StudioServer, bind, run_app
from app.storage.database import Database
from app.storage.dialects import DatabaseUnusable
from app.storage.home import Home, HomeError
from app.storage.idempotency import IdempotencyKeys
from app.storage.image_intake import ImageIntake
from app.storage.images import ImageStore, PartialStore
from app.storage.keys import KeyStore
from app.storage.retention import GB, Limits, Retention
from app.storage.uploads import Spool
from app.traces.branches import BranchIntake
from app.traces.event_log import EventLog
from app.traces.groups import GroupService
from app.traces.intake import Intake
from app.traces.interventions import Interventions
from app.traces.judge import Judge
from app.traces.launch import Launcher
from app.traces.reader import TraceReader
from app.traces.runner import TraceRunner
from app.traces.service import TraceService
from app.traces.tasks import TaskWorld
from app.traces.token_service import TokenService
from app.ui.assets import static_files
from model.checkpoint.shards import SHIPPED
from model.engine.messages import Generation

__all__ = ["StudioServer", "bind", "build_page", "build_services", "create_app", "run_app", "serve"]

log = logging.getLogger("omni_r1.server")

ROUTES = (
    system,
    login,
    traces,
    branches,
    why,
    groups,
    responses,
    exports,
    images,
    tasks,
    jobs,
    datasets,
    checkpoints,
    rewards,
    sweeps,
)


def create_app(
    settings: Settings,
    *,
    generation: Generation,
    build_ui: BuildUI | None = None,
    home: Home | None = None,
    package_folder: Path = SHIPPED,
    job_command: Sequence[str] = COMMAND,
    spans: Spans | None = None,
) -> FastAPI:
    """The app on `generation`; its lifespan starts and stops everything. `app.state.runtime` is its runtime."""
    home, spans = home or Home(settings.home), spans or Spans()
    slot = UISlot()
    services = build_services(
        settings, generation=generation, home=home, package_folder=package_folder, job_command=job_command, spans=spans
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
        generate_unique_id_function=operation_id,
        telemetry=spans.fastapi,
    )
    app.state.services = services
    app.state.runtime = runtime
    install_handlers(app)
    for module in ROUTES:
        app.include_router(module.router, dependencies=[Depends(allowed), Depends(known_query), Depends(known_ids)])
    add_docs(app, with_key=services.key is not None, schemas=responses.event_schemas())
    app.mount("/static", static_files(), name="static")
    app.mount("/", PageGate(slot, [route for module in ROUTES for route in module.router.routes]), name="page")
    add_middleware(app, services)
    return app


@dataclass(frozen=True)
class _Core:
    """What most parts are built on."""

    settings: Settings
    generation: Generation
    home: Home
    db: Database
    events: EventLog
    images: ImageStore
    partials: PartialStore
    world: TaskWorld
    metrics: Metrics

    @classmethod
    def of(cls, settings: Settings, generation: Generation, home: Home) -> _Core:
        db = Database(settings.sqlalchemy_url, home.reserve)
        events, images = EventLog(db, ping_s=settings.ping_s), ImageStore(home.images, db)
        partials, world = PartialStore(home.partials), TaskWorld(images)
        return cls(settings, generation, home, db, events, images, partials, world, Metrics())


def build_services(
    settings: Settings,
    *,
    generation: Generation,
    home: Home,
    package_folder: Path,
    job_command: Sequence[str] = COMMAND,
    spans: Spans | None = None,
) -> Services:
    """Build and wire all parts; opens and starts nothing."""
    core = _Core.of(settings, generation, home)
    spans = core.events.spans = spans or Spans()
    hub = HubFetcher(timeout_s=settings.hub_timeout_s)
    registry = _registry(core, hub, package_folder)
    activation = Activation(registry)
    spool = Spool(home.tmp)
    image_intake = ImageIntake(core.images, spool)
    intake = Intake(core.images, image_intake, registry, core.world)
    servers = ServerWatch(core.db, lambda: home.server_id, dead_after_s=settings.dead_after_s)
    service, interventions = _traces(core, registry, intake, servers)
    tokens = TokenService(core.db, intake, registry, generation)
    jobs = _jobs(core, registry, activation, job_command)
    services = Services(
        settings=settings,
        db=core.db,
        events=core.events,
        generation=generation,
        checkpoints=registry,
        activation=activation,
        registration=Registration(core.db, registry, home=home, fetch=hub.fetch),
        hub=hub,
        images=core.images,
        image_intake=image_intake,
        spool=spool,
        partials=core.partials,
        world=core.world,
        intake=intake,
        traces=service,
        groups=GroupService(core.db, core.events, service),
        tokens=tokens,
        interventions=interventions,
        jobs=jobs,
        runs=Runs(core.db, jobs),
        sweeps=Sweeps(core.db, home, jobs),
        servers=servers,
        datasets=DatasetStore(home.path),
        idempotency=IdempotencyKeys(core.db),
        metrics=core.metrics,
        spans=spans,
        retention=_retention(core),
        grader=Grader(jobs.custom, tokens.parts, core.images.read),
        key=Keys(ApiKey(settings.api_key.get_secret_value()), KeyStore(core.db)) if settings.api_key else None,
    )
    publish(services, home)
    return services


def _retention(core: _Core) -> Retention:
    """The limits on what the home keeps."""
    settings = core.settings
    max_bytes = None if settings.home_max_gb is None else int(settings.home_max_gb * GB)
    limits, in_home = Limits(settings.keep_days, max_bytes), settings.database_url is None
    return Retention(core.db, core.home, core.partials, limits, in_home=in_home)


def _registry(core: _Core, hub: HubFetcher, package_folder: Path) -> CheckpointRegistry:
    """The checkpoints, and the pool of loaded ones."""
    return CheckpointRegistry(
        core.db,
        EnginePool(core.generation, budget_mb=core.settings.memory_mb, quant=core.settings.quant),
        home=core.home.path,
        server_id=lambda: core.home.server_id,
        package_folder=package_folder,
        extra=core.settings.checkpoint,
        roots=core.settings.allowed_roots,
        context=core.settings.context,
        fetch=hub.fetch,
    )


def _traces(
    core: _Core, registry: CheckpointRegistry, intake: Intake, servers: ServerWatch
) -> tuple[TraceService, Interventions]:
    """The traces, wired to the pool, which may cancel them, and to the servers, which may end them."""
    runner = TraceRunner(
        events=core.events,
        generation=core.generation,
        images=core.images,
        partials=core.partials,
        judge=Judge(core.db, core.images, core.world),
        metrics=core.metrics,
    )
    ping_s, server_id = core.settings.ping_s, lambda: core.home.server_id
    launcher = Launcher(db=core.db, events=core.events, runner=runner, metrics=core.metrics, server_id=server_id)
    branches = BranchIntake(core.db, intake, core.images, registry, core.world)
    service = TraceService(
        db=core.db,
        events=core.events,
        generation=core.generation,
        checkpoints=registry,
        partials=core.partials,
        intake=intake,
        branches=branches,
        launcher=launcher,
        runner=runner,
        reader=TraceReader(core.db, core.events, server_id, ping_s=ping_s, is_dead=servers.is_dead),
        metrics=core.metrics,
        max_queue=core.settings.max_queue,
        grace_s=core.settings.grace_s,
    )
    registry.pool.cancel_running = service.cancel_running
    servers.active, servers.end_elsewhere = lambda: service.active_ids, service.end_elsewhere
    interventions = Interventions(
        db=core.db,
        traces=service,
        branches=branches,
        images=core.images,
        world=core.world,
        checkpoints=registry,
        launcher=launcher,
    )
    return service, interventions


def _jobs(core: _Core, registry: CheckpointRegistry, activation: Activation, command: Sequence[str]) -> JobService:
    """The training jobs."""
    custom = CustomRules(core.settings.rewards_dir)
    intake = JobIntake(core.db, registry, core.images, home=core.home, settings=core.settings, custom=custom)
    db, home = core.db, core.home
    table = JobTable(db, lambda: home.server_id, home.jobs, core.metrics.job_ended, core.events.spans)
    return JobService(
        core.settings,
        db=db,
        home=home,
        checkpoints=registry,
        activation=activation,
        intake=intake,
        command=command,
        table=table,
    )


def build_page(base_url: str, api_key: str) -> ASGIApp:
    """The Gradio pages on this server's own API; imports Gradio (takes seconds)."""
    os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
    from app.ui.mount import build_page as build

    return build(base_url, api_key)


def serve(
    settings: Settings,
    *,
    generation: Generation | None = None,
    build_ui: BuildUI | None = build_page,
    job_command: Sequence[str] = COMMAND,
) -> int:
    """Run the studio until it is stopped; returns the exit code (0; 2 for a failed start)."""
    logs.configure(settings.log_format, settings.log_level)
    home = Home(settings.home)
    if os.path.expanduser("~") == "~":  # unknown user: libraries need a home, too
        os.environ["HOME"] = str(settings.home)
    try:
        spans = make_spans()
        home.open()
        sock = bind(settings.host, settings.port)
    except (HomeError, OSError, SpansError) as error:
        home.close()
        logs.fatal(str(error))
        return BAD_START
    host, port = sock.getsockname()[:2]
    home.note(host, port)
    kill_engine: Callable[[], None] | None = None
    if generation is None:
        from model.engine.client import EngineProcess

        process = EngineProcess({}, **settings.serving)
        process.spawn()  # it imports torch while this process opens the database and builds the pages
        generation, kill_engine = process, process.kill
    pages = build_ui if settings.pages else None
    app = create_app(settings, generation=generation, build_ui=pages, home=home, job_command=job_command, spans=spans)
    try:
        app.state.runtime.prepare()
    except (DatabaseUnusable, SQLAlchemyError, OSError) as error:
        sock.close()
        home.close()
        logs.fatal(_reason(error))
        return BAD_START
    shown = f"[{host}]" if ":" in host else host
    logs.announce(f"http://{shown}:{port}")
    return run_app(app, sock, kill_engine=kill_engine)


def _reason(error: Exception) -> str:
    """One line about the problem with home or database; drivers' messages contain no passwords."""
    first = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
    return f"the database cannot be used: {first}" if isinstance(error, SQLAlchemyError) else first


if __name__ == "__main__":
    from app.common.settings import SettingsError, read_settings

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # until uvicorn handles signals
    logs.begin()
    try:
        code = serve(read_settings())
    except SettingsError as refusal:
        logs.fatal(str(refusal))
        code = BAD_START
    sys.exit(code)

"""Builds and wires the parts of one server; opens and starts nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from app.checkpoints.activation import Activation
from app.checkpoints.hub import HubFetcher
from app.checkpoints.pool import EnginePool
from app.checkpoints.registration import Registration
from app.checkpoints.registry import CheckpointRegistry
from app.common.metrics import Metrics
from app.common.settings import Settings
from app.common.spans import Spans
from app.http.auth import ApiKey
from app.http.deps import Services
from app.http.keys import Keys
from app.jobs.custom import CustomRules
from app.jobs.datasets import DatasetStore
from app.jobs.grader import Grader
from app.jobs.intake import JobIntake
from app.jobs.process import COMMAND, ON_CLUSTER
from app.jobs.runs import Runs
from app.jobs.servers import ServerWatch
from app.jobs.service import JobService
from app.jobs.store import JobTable
from app.jobs.sweeps import Sweeps
from app.runtime import publish
from app.storage.database import Database
from app.storage.home import Home
from app.storage.idempotency import IdempotencyKeys
from app.storage.image_intake import ImageIntake
from app.storage.images import ImageStore, PartialStore
from app.storage.keys import KeyStore
from app.storage.mirror import Mirror, StoreMirror
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
from model.engine.messages import Generation


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
    mirror: Mirror
    world: TaskWorld
    metrics: Metrics

    @classmethod
    def of(cls, settings: Settings, generation: Generation, home: Home) -> _Core:
        db = Database(settings.sqlalchemy_url, home.reserve)
        mirror = Mirror() if settings.store is None else StoreMirror(settings.store, db, home)
        events, images = EventLog(db, ping_s=settings.ping_s), ImageStore(home.images, db, mirror)
        partials, world = PartialStore(home.partials, mirror), TaskWorld(images)
        return cls(settings, generation, home, db, events, images, partials, mirror, world, Metrics())


def build_services(
    settings: Settings,
    *,
    generation: Generation,
    home: Home,
    package_folder: Path,
    job_command: Sequence[str] | None = None,
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
        mirror=core.mirror,
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
        mirror=core.mirror,
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

    def server_id() -> str:
        return core.home.server_id

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
        reader=TraceReader(core.db, core.events, server_id, is_dead=servers.is_dead),
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


def _jobs(
    core: _Core, registry: CheckpointRegistry, activation: Activation, command: Sequence[str] | None
) -> JobService:
    """The training jobs; `command` is their worker's, instead of the settings'."""
    on_cluster = core.settings.jobs == "ray"
    custom = CustomRules(core.settings.rewards_dir)
    intake = JobIntake(core.db, registry, core.images, home=core.home, settings=core.settings, custom=custom)
    db, home = core.db, core.home
    table = JobTable(
        db,
        lambda: home.server_id,
        home.jobs,
        core.metrics.job_ended,
        core.events.spans,
        core.mirror,
        shares_devices=not on_cluster,
    )
    return JobService(
        core.settings,
        db=db,
        home=home,
        checkpoints=registry,
        activation=activation,
        intake=intake,
        command=command or (ON_CLUSTER if on_cluster else COMMAND),
        table=table,
    )

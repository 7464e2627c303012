"""Health, metrics, limits."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from app.common import pools
from app.common.build import build_version
from app.common.metrics import CONTENT_TYPE
from app.common.pools import in_pool
from app.contract.problems import field_problem
from app.contract.schemas import MAX_QUESTION_CHARS, LimitsIn
from app.contract.schemas_system import ExtensionsOut, LimitsOut, Live, PrunedOut, PruneIn, Ready, RoomOut, StorageOut
from app.http.deps import App, CheckpointName, Services, problems, require_json
from app.storage.images import MAX_UPLOAD_BYTES
from app.storage.retention import GB, Limits
from model.build import commit, package_version

router = APIRouter(tags=["system"])


@router.get("/livez", response_model=Live)
async def livez() -> dict[str, str]:
    """The process is up."""
    return {"status": "ok", "version": package_version(), "commit": commit()}


@router.get("/readyz", response_model=Ready, responses={503: {"model": Ready, "description": "Not ready"}})
async def readyz(request: Request) -> Response:
    """200 when engine, database and the page at `/` answer."""
    ready: dict[str, Any] = await request.app.state.runtime.readiness() | {"version": build_version()}
    return JSONResponse(ready, 200 if ready["phase"] == "ready" else 503)


@router.get(
    "/metrics", response_class=Response, responses={200: {"description": "Prometheus", "content": {"text/plain": {}}}}
)
async def metrics(app: App) -> Response:
    """Prometheus metrics."""
    return Response(app.metrics.render(), headers={"Content-Type": CONTENT_TYPE})


@router.get("/v1/limits", response_model=LimitsOut, responses=problems(422, 503))
@in_pool(pools.reads)
def get_limits(app: App, checkpoint: CheckpointName = None) -> dict[str, Any]:
    """The limits of requests to the active or named checkpoint."""
    return _limits(app, checkpoint)


@router.get("/v1/extensions", response_model=ExtensionsOut, response_model_exclude_unset=True, responses=problems(503))
@in_pool(pools.reads)
def list_extensions(app: App) -> dict[str, Any]:
    """The rewards and task families of your own that a job may name. Reads metadata and source; imports nothing."""
    return app.jobs.custom.known()


@router.get("/v1/storage", response_model=StorageOut, responses=problems(503))
@in_pool(pools.files)
def get_storage(app: App) -> dict[str, Any]:
    """What the home holds, by kind, and its limits."""
    kept, last = app.retention, app.retention.last
    sizes = kept.measure()
    limits = {"keep_days": kept.limits.keep_days, "max_bytes": kept.limits.max_bytes}
    last_prune, store = None if last is None else vars(last), app.mirror.status()
    return {"sizes": sizes, "total_bytes": sum(sizes.values()), **limits, "last_prune": last_prune, "store": store}


@router.post(
    "/v1/storage/prune",
    response_model=PrunedOut,
    dependencies=[Depends(require_json)],
    responses=problems(400, 403, 415, 422, 503),
)
async def prune_storage(body: PruneIn, app: App) -> dict[str, Any]:
    """Deletes this server's old traces as its settings say, or the given limits; a dry run only reports."""
    limits = app.retention.limits
    if body.keep_days is not None or body.max_gb is not None:
        limits = Limits(body.keep_days, None if body.max_gb is None else int(body.max_gb * GB))
    if not limits.any:
        hint = "no limit is set: give keep_days or max_gb, or set OMNI_R1_KEEP_DAYS or OMNI_R1_HOME_MAX_GB"
        raise field_problem("invalid", "body", hint)
    return vars(await pools.jobs.run(lambda: app.retention.prune(limits, dry_run=body.dry_run)))


def _limits(app: Services, checkpoint: str | None) -> dict[str, Any]:
    info = app.checkpoints.usable(checkpoint, path="query.checkpoint")
    assert info.manifest is not None
    return {
        "context_len": info.context_len,
        "tokens_per_image": info.tokens_per_image,
        "images": {"min": info.manifest.images.min, "max": info.manifest.images.max},
        "max_question_chars": MAX_QUESTION_CHARS,
        "max_upload_bytes": MAX_UPLOAD_BYTES,
        "queue": {"running": app.traces.running, "waiting": app.traces.waiting, "max": app.traces.max_queue},
    }


@router.post(
    "/v1/limits",
    response_model=RoomOut,
    dependencies=[Depends(require_json)],
    responses=problems(400, 403, 415, 422, 503),
)
async def measure_prompt(body: LimitsIn, app: App) -> dict[str, Any]:
    """The tokens of a question with images, the remaining context, and whether the checkpoint knows such questions."""

    def count() -> dict[str, Any]:
        info = app.checkpoints.usable(body.checkpoint)
        room = app.intake.room(body.question, body.images, info)
        judge = app.checkpoints.nearest_verifier(info)
        return {**vars(room), "familiar": info.knows(body.question), "verifier": judge}

    return await pools.intake.run(count)

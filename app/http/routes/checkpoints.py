"""`/v1/checkpoints` and `/v1/models`."""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse

from app.common import pools
from app.common.pools import in_pool
from app.contract.problems import Problem, field_problem
from app.contract.schemas import ActivateIn, CheckpointCreate, CheckpointList, CheckpointOut
from app.contract.schemas_jobs import Leaderboard
from app.contract.schemas_system import ModelList, ModelOut
from app.http.deps import LOCATION, App, CheckpointName, Key, create_once, problems, require_json

router = APIRouter(prefix="/v1", tags=["checkpoints"])


@router.get("/checkpoints", response_model=CheckpointList, response_model_exclude_unset=True, responses=problems(503))
@in_pool(pools.intake)
def list_checkpoints(app: App) -> dict[str, Any]:
    """All checkpoints, including unusable ones with the reason, and their results."""
    results: dict[str, list[Any]] = {}
    for one in app.runs.leaderboard():
        results.setdefault(one["checkpoint"], []).append(one)
    shown = (app.registration.shown(info) for info in app.checkpoints.scan().values())
    return {"data": [{**one, "benchmarks": results.get(one["id"], [])} for one in shown]}


@router.get("/leaderboard", response_model=Leaderboard, responses=problems(422, 503))
@in_pool(pools.reads)
def get_leaderboard(app: App, checkpoint: CheckpointName = None) -> dict[str, Any]:
    """Results of finished benchmarks, newest first; comparable where `data` and `settings` are the same."""
    return {"data": app.runs.leaderboard(checkpoint)}


@router.post(
    "/checkpoints",
    status_code=201,
    response_model=CheckpointOut,
    response_model_exclude_unset=True,
    dependencies=[Depends(require_json)],
    summary="Register a local folder or hub id",
    responses=problems(400, 403, 409, 413, 415, 422, 503, 504, 507, also={201: {"headers": LOCATION}}),
)
async def register_checkpoint(
    request: Request, body: CheckpointCreate, app: App, idempotency_key: Key = None
) -> Response:
    """The folder is validated completely and stays where it is; a LoRA adapter is copied into the home."""
    make = partial(app.registration.register, body)
    shown, headers = await create_once(request, app, idempotency_key, "/v1/checkpoints", make)
    return JSONResponse(shown, 201, headers)


@router.get(
    "/checkpoints/{checkpoint_id}",
    response_model=CheckpointOut,
    response_model_exclude_unset=True,
    responses=problems(404, 503),
)
@in_pool(pools.intake)
def get_checkpoint(checkpoint_id: str, app: App) -> dict[str, Any]:
    """One checkpoint; its id is its name."""
    info = app.checkpoints.find(checkpoint_id)
    if info is None:
        raise Problem("checkpoint_not_found", "no checkpoint has this name; GET /v1/checkpoints lists them")
    return app.registration.shown(info) | {"benchmarks": app.runs.leaderboard(checkpoint_id)}


@router.post(
    "/checkpoints/{checkpoint_id}/activate",
    response_model=CheckpointOut,
    response_model_exclude_unset=True,
    dependencies=[Depends(require_json)],
    summary="Activate a checkpoint for new traces",
    responses=problems(403, 404, 409, 415, 422, 503, 507),
)
async def activate_checkpoint(checkpoint_id: str, app: App, body: ActivateIn | None = None) -> Response:
    """Validates and loads it next to the running checkpoints, then activates it; existing traces keep their weights."""
    await app.activation.activate(checkpoint_id, body.drain if body else None)
    return JSONResponse(await get_checkpoint(checkpoint_id, app))


@router.delete("/checkpoints/{checkpoint_id}", status_code=204, responses=problems(403, 404, 409, 503))
async def delete_checkpoint(
    checkpoint_id: str,
    app: App,
    unload: Annotated[bool, Query(description="unload it first, if no trace uses it")] = False,
) -> Response:
    """Deletes it with the files that jobs or this home created; files of registered folders stay."""
    await app.registration.delete(checkpoint_id, unload=unload)
    return Response(status_code=204)


@router.get("/models", response_model=ModelList)
@in_pool(pools.intake)
def list_models(app: App) -> dict[str, Any]:
    """The valid values of `checkpoint`, in the OpenAI list format."""
    usable = (info for info in app.checkpoints.scan().values() if info.problem is None)
    return {"object": "list", "data": [_model(info) for info in usable]}


@router.get("/models/{model_id}", response_model=ModelOut, responses=problems(404, 503))
@in_pool(pools.intake)
def get_model(model_id: str, app: App) -> dict[str, Any]:
    """One usable checkpoint, in the OpenAI format."""
    info = app.checkpoints.find(model_id)
    if info is None or info.problem is not None:
        raise field_problem("model_not_found", "path.model_id", "no usable checkpoint has this name; see /v1/models")
    return _model(info)


def _model(info: Any) -> dict[str, Any]:
    return {"id": info.name, "object": "model", "created": _seconds(info.manifest), "owned_by": "omni-r1"}


def _seconds(manifest: Any) -> int:
    try:
        return int(datetime.fromisoformat(manifest.created_at).timestamp())
    except (ValueError, AttributeError):
        return 0

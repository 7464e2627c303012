"""`/v1/checkpoints` and `/v1/models`: what can be asked for (read only)."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from fastapi import APIRouter

from app.deps import App, problems
from app.errors import Problem
from app.schemas import CheckpointList, CheckpointOut, ModelList

router = APIRouter(prefix="/v1", tags=["checkpoints"])


@router.get("/checkpoints", response_model=CheckpointList, response_model_exclude_unset=True)
def list_checkpoints(app: App) -> dict[str, Any]:
    """Every checkpoint found, also those that cannot be used (with the reason)."""
    loaded = app.generation.status().loaded.get
    return {"data": [app.checkpoints.as_json(info, loaded) for info in app.checkpoints.scan().values()]}


@router.get(
    "/checkpoints/{checkpoint_id}",
    response_model=CheckpointOut,
    response_model_exclude_unset=True,
    responses=problems(404),
)
def get_checkpoint(checkpoint_id: str, app: App) -> dict[str, Any]:
    """One checkpoint; its id is its name."""
    info = app.checkpoints.scan().get(checkpoint_id)
    if info is None:
        raise Problem("checkpoint_not_found", "no checkpoint has this name; GET /v1/checkpoints lists them")
    return app.checkpoints.as_json(info, app.generation.status().loaded.get)


@router.get("/models", response_model=ModelList)
def list_models(app: App) -> dict[str, Any]:
    """What `checkpoint` may name, in the OpenAI list shape."""
    return {
        "object": "list",
        "data": [
            {"id": info.name, "object": "model", "created": _seconds(info.manifest), "owned_by": "omni-r1"}
            for info in app.checkpoints.scan().values()
            if info.problem is None
        ],
    }


def _seconds(manifest: Any) -> int:
    try:
        return int(datetime.fromisoformat(manifest.created_at).timestamp())
    except (ValueError, AttributeError):
        return 0

"""`/v1/tasks`: tasks of the procedural world, optionally with their answers."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from app.common import pools
from app.common.pools import in_pool
from app.contract.schemas_system import TaskOut
from app.contract.words import MAX_SEED, Level, Slice
from app.http.deps import App, problems

router = APIRouter(prefix="/v1/tasks", tags=["tasks"])


@router.get("", response_model=TaskOut, response_model_exclude_unset=True, responses=problems(422, 503, 507))
@in_pool(pools.intake)
def get_task(
    app: App,
    slice: Annotated[Slice | None, Query(description="random when absent")] = None,
    seed: Annotated[int | None, Query(ge=0, le=MAX_SEED, description="random and held out when absent")] = None,
    level: Annotated[Level, Query(description="1 … 8: graded, easy to beyond hard")] = "normal",
    reveal: Annotated[bool, Query(description="include answer and reference steps")] = False,
) -> dict[str, Any]:
    """The same slice, seed and level return the same task."""
    return app.world.as_json(app.world.draw(slice, seed, level), reveal=reveal)

"""`/v1/groups`: traces that were created together."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from fastapi.responses import JSONResponse

from app.common import pools
from app.common.pools import in_pool
from app.contract.schemas_branches import Group, GroupList
from app.http.deps import AfterGroup, App, Limit, Position, follow, problems, stream_answers

router = APIRouter(prefix="/v1/groups", tags=["groups"])


@router.get("", response_model=GroupList, responses=problems(422, 503))
@in_pool(pools.reads)
def list_groups(app: App, limit: Limit = 20, after: AfterGroup = None) -> Any:
    """Newest first."""
    return JSONResponse(app.groups.page(limit=limit, after=after))


@router.get("/{group_id}", response_model=Group, responses=problems(404, 503))
async def get_group(group_id: str, app: App) -> Response:
    """The group with the answers of its members so far."""
    return JSONResponse(await app.groups.get(group_id))


@router.get(
    "/{group_id}/events",
    response_class=Response,
    summary="The events of all members, live or replayed",
    responses=stream_answers("GroupEvent", "The position is past the terminal event"),
)
async def group_events(group_id: str, position: Position, app: App) -> Response:
    """One stream for all members: each event's data carries its `trace_id`; ends with `group.completed`."""
    app.traces.reader.check_kind(group_id, group=True)
    return await follow(app.traces.reader, group_id, position)


@router.post("/{group_id}/cancel", response_model=Group, responses=problems(403, 404, 409, 503))
async def cancel_group(group_id: str, app: App) -> Response:
    """Cancels every member that has not ended."""
    return JSONResponse(await app.groups.cancel(group_id))


@router.delete("/{group_id}", status_code=204, responses=problems(403, 404, 409, 503))
async def delete_group(group_id: str, app: App) -> Response:
    """Deletes the group and its members; active ones are cancelled first."""
    await app.groups.delete(group_id)
    return Response(status_code=204)

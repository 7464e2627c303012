"""`/v1/sweeps`: thin routes over the sweeps."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import JSONResponse

from app.common import pools
from app.common.pools import in_pool
from app.contract.schemas_jobs import SweepCreate, SweepList, SweepOut
from app.http.deps import LOCATION, App, Key, Limit, create_once, problems, require_json

router = APIRouter(prefix="/v1/sweeps", tags=["jobs"])
AfterSweep = Annotated[
    str | None, Query(pattern="^sw_[0-9a-z]{1,36}$", description="id of the last entry of the previous page")
]


@router.post(
    "",
    status_code=202,
    response_model=SweepOut,
    dependencies=[Depends(require_json)],
    summary="Start a job for each combination of a grid",
    responses=problems(
        400,
        403,
        409,
        413,
        415,
        422,
        429,
        503,
        507,
        also={202: {"description": "The sweep, queued", "headers": LOCATION}},
    ),
)
async def create_sweep(request: Request, body: SweepCreate, app: App, idempotency_key: Key = None) -> Response:
    """Every combination is validated first; all jobs are queued, or none."""
    make = partial(app.sweeps.create, body)
    sweep, headers = await create_once(request, app, idempotency_key, router.prefix, make)
    return JSONResponse(sweep, 202, headers)


@router.get("", response_model=SweepList, responses=problems(422, 503))
@in_pool(pools.reads)
def list_sweeps(app: App, limit: Limit = 20, after: AfterSweep = None) -> Any:
    """Newest first, without their jobs."""
    data, has_more = app.sweeps.page(limit=limit, after=after)
    return JSONResponse({"data": data, "has_more": has_more})


@router.get("/{sweep_id}", response_model=SweepOut, responses=problems(404, 503))
async def get_sweep(sweep_id: str, app: App) -> Response:
    """The sweep with its jobs."""
    return JSONResponse(await app.sweeps.get(sweep_id))


@router.post("/{sweep_id}/cancel", response_model=SweepOut, responses=problems(403, 404, 503))
async def cancel_sweep(sweep_id: str, app: App) -> Response:
    """Stops its jobs that have not ended."""
    return JSONResponse(await app.sweeps.cancel(sweep_id))


@router.post("/{sweep_id}/resume", status_code=202, response_model=SweepOut, responses=problems(403, 404, 409, 503))
async def resume_sweep(sweep_id: str, app: App) -> Response:
    """Queues its jobs again that ended without success and can be resumed."""
    return JSONResponse(await app.sweeps.resume(sweep_id), 202)

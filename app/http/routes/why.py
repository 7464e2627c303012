"""How much a trace depends on its images: reliance, attention, interventions."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from app.contract.schemas_branches import Group
from app.contract.schemas_why import AttentionIn, AttentionOut, InterventionsIn, RelianceOut
from app.http.deps import LOCATION, App, Key, create_once, problems, require_json
from app.storage.idempotency import Claim

router = APIRouter(prefix="/v1/traces", tags=["why"])


@router.post("/{trace_id}/reliance", response_model=RelianceOut, responses=problems(403, 404, 409, 503, 507))
async def measure_reliance(trace_id: str, app: App) -> Response:
    """What hiding each image from all later tokens costs the answer, by the trace's own weights; nothing is sampled."""
    return JSONResponse(await app.tokens.reliance(trace_id))


@router.post(
    "/{trace_id}/attention",
    response_model=AttentionOut,
    dependencies=[Depends(require_json)],
    responses=problems(400, 403, 404, 409, 415, 422, 503, 507),
)
async def measure_attention(trace_id: str, app: App, body: AttentionIn | None = None) -> Response:
    """How much the answer, or a step, attends to each image. Attention is not causation: see reliance."""
    return JSONResponse(await app.tokens.attention(trace_id, body or AttentionIn()))


@router.post(
    "/{trace_id}/interventions",
    status_code=202,
    response_model=Group,
    dependencies=[Depends(require_json)],
    responses=problems(
        400,
        403,
        404,
        409,
        415,
        422,
        429,
        503,
        507,
        also={202: {"description": "The group; its events end with `group.completed`", "headers": LOCATION}},
    ),
)
async def intervene(
    request: Request, trace_id: str, app: App, body: InterventionsIn | None = None, idempotency_key: Key = None
) -> Response:
    """Replaces one image at a time and lets the model go on greedily; the group's `effects` say what changed."""

    def make(claim: Claim) -> Awaitable[dict[str, Any]]:
        return app.interventions.start(trace_id, body or InterventionsIn(), claim=claim)

    where = f"{router.prefix}/{trace_id}/interventions"
    made, headers = await create_once(
        request, app, idempotency_key, where, make, lambda group: f"/v1/groups/{group['id']}"
    )
    return JSONResponse(made, 202, headers)

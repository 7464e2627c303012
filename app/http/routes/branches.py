"""Branches of a trace, its tree, its tokens and their alternatives."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import JSONResponse

from app.common import pools
from app.common.pools import in_pool
from app.contract.schemas_branches import (
    AlternativesIn,
    AlternativesOut,
    BranchCreate,
    BranchList,
    TokensOut,
    Tree,
)
from app.http.deps import App, Key, create_once, creation_answers, problems, require_json
from app.http.routes.traces import stream_created, wants_stream
from app.storage.idempotency import Claim

router = APIRouter(prefix="/v1/traces", tags=["branches"])


@router.post(
    "/{trace_id}/branches",
    status_code=201,
    response_model=BranchList,
    dependencies=[Depends(require_json)],
    summary="Branch a trace",
    responses=creation_answers(
        "The branches; with `Accept: text/event-stream` the events of the branch or its group", 404
    ),
)
async def create_branches(
    request: Request, trace_id: str, body: BranchCreate, app: App, idempotency_key: Key = None
) -> Response:
    """Keeps steps 1 … k of an ended or paused trace, edited if requested, and lets the model go on from there."""
    stream = wants_stream(request)
    background = body.background if body.background is not None else False if stream else None

    def make(claim: Claim) -> Awaitable[dict[str, Any]]:
        return app.traces.branch(trace_id, body, background=background, claim=claim)

    where = f"{router.prefix}/{trace_id}/branches"
    made, headers = await create_once(
        request, app, idempotency_key, where, make, lambda made: f"{router.prefix}/{made['data'][0]['id']}"
    )
    if stream:
        return await stream_created(app, made["data"][0], headers)
    return JSONResponse(made, 201, headers)


@router.get("/{trace_id}/tree", response_model=Tree, responses=problems(404, 503))
@in_pool(pools.reads)
def get_tree(trace_id: str, app: App) -> Response:
    """The trace with its relatives, oldest first."""
    return JSONResponse(app.traces.reader.tree(trace_id))


@router.get("/{trace_id}/tokens", response_model=TokensOut, responses=problems(404, 409, 503))
@in_pool(pools.reads)
def get_tokens(trace_id: str, app: App) -> Response:
    """Every token with its log-probability, and those of each image's codes."""
    return JSONResponse(app.tokens.tokens(trace_id))


@router.post(
    "/{trace_id}/alternatives",
    response_model=AlternativesOut,
    dependencies=[Depends(require_json)],
    responses=problems(400, 403, 404, 409, 415, 422, 503, 507),
)
async def get_alternatives(trace_id: str, body: AlternativesIn, app: App) -> Response:
    """The five likeliest tokens at a position, by the trace's own weights; one of them can begin a branch."""
    return JSONResponse(await app.tokens.alternatives(trace_id, body))

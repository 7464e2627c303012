"""`/v1/traces`: thin routes over the trace service."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import AfterValidator

from app.common import pools
from app.common.pools import in_pool
from app.contract.schemas import ContinueIn, Trace, TraceCreate, TraceList, clean_text
from app.contract.schemas_curation import MAX_TAG_CHARS, TraceUpdate
from app.contract.words import Slice, Status
from app.http.deps import (
    AfterTrace,
    App,
    CheckpointName,
    Key,
    Limit,
    Position,
    create_once,
    creation_answers,
    follow,
    problems,
    require_json,
    stream_answers,
)
from app.http.event_stream import EventStream
from app.storage.idempotency import Claim
from app.storage.ids import GROUP_ID, TRACE_ID

router = APIRouter(prefix="/v1/traces", tags=["traces"])

TraceId = str


def wants_stream(request: Request) -> bool:
    """Whether the client asks for server-sent events."""
    return "text/event-stream" in request.headers.get("accept", "")


@router.post(
    "",
    status_code=201,
    response_model=Trace,
    dependencies=[Depends(require_json)],
    summary="Create a trace and start it",
    responses=creation_answers("The trace; with `Accept: text/event-stream` its events (`TraceEvent`)"),
)
async def create_trace(request: Request, body: TraceCreate, app: App, idempotency_key: Key = None) -> Response:
    """All validation happens before the first byte of a stream, with its own status."""
    stream = wants_stream(request)
    background = body.background if body.background is not None else not stream

    def make(claim: Claim) -> Awaitable[dict[str, Any]]:
        return app.traces.create(body, background=background, claim=claim)

    trace, headers = await create_once(request, app, idempotency_key, router.prefix, make)
    if stream:
        return await stream_created(app, trace, headers)
    return JSONResponse(trace, 201, headers)


async def stream_created(app: App, trace: dict[str, Any], headers: dict[str, str]) -> Response:
    """The events of a new trace, or of the group it began."""
    log_id = trace.get("group_id") or trace["id"]
    await app.traces.reader.past_the_end(log_id, 0)  # 404 for a replay whose trace was deleted
    return EventStream(app.traces.reader.read(log_id, 0), status_code=201, headers=headers, limited=False)


@router.get("", response_model=TraceList, responses=problems(422, 503))
@in_pool(pools.reads)
def list_traces(
    app: App,
    limit: Limit = 20,
    after: AfterTrace = None,
    status: Status | None = None,
    checkpoint: CheckpointName = None,
    slice: Slice | None = None,
    verdict: Annotated[str | None, Query(pattern="^(right|wrong)$")] = None,
    rating: Annotated[int | None, Query(ge=-1, le=1)] = None,
    tag: Annotated[str | None, AfterValidator(clean_text), Query(max_length=MAX_TAG_CHARS)] = None,
    parent: Annotated[str | None, Query(pattern=f"^{TRACE_ID}$", description="branches of this trace")] = None,
    group: Annotated[str | None, Query(pattern=f"^{GROUP_ID}$", description="members of this group")] = None,
    q: Annotated[str | None, Query(max_length=200, description="text in question or answer")] = None,
) -> Any:
    """Newest first; entries omit the steps."""
    return JSONResponse(
        app.traces.reader.page(
            limit=limit,
            after=after,
            q=q.replace("\0", "") if q else None,
            status=status,
            checkpoint=checkpoint,
            slice=slice,
            verdict=verdict,
            rating=rating,
            tag=tag,
            parent=parent,
            group=group,
        )
    )


@router.get("/{trace_id}", response_model=Trace, responses=problems(404, 503))
async def get_trace(trace_id: TraceId, app: App) -> Response:
    """The whole trace, with its current progress."""
    return JSONResponse(await app.traces.reader.get(trace_id))


@router.patch(
    "/{trace_id}",
    response_model=Trace,
    dependencies=[Depends(require_json)],
    responses=problems(400, 403, 404, 415, 422, 503, 507),
)
async def update_trace(trace_id: TraceId, body: TraceUpdate, app: App) -> Response:
    """Sets rating, tags and note of a trace in any state; absent fields stay unchanged."""
    return JSONResponse(await app.traces.update(trace_id, body))


@router.get(
    "/{trace_id}/events",
    response_class=Response,
    summary="The trace's events, live or replayed",
    responses=stream_answers("TraceEvent", "The position is past the terminal event"),
)
async def trace_events(trace_id: TraceId, position: Position, app: App) -> Response:
    """Committed events only; keep-alive comments after 15 s of silence; ends after the terminal event."""
    app.traces.reader.check_kind(trace_id, group=False)
    return await follow(app.traces.reader, trace_id, position)


@router.post("/{trace_id}/pause", response_model=Trace, responses=problems(403, 404, 409, 503))
async def pause_trace(trace_id: TraceId, app: App) -> Response:
    """Pauses at the end of the running step; idempotent."""
    return JSONResponse(await app.traces.pause(trace_id))


@router.post(
    "/{trace_id}/continue",
    response_model=Trace,
    dependencies=[Depends(require_json)],
    responses=problems(400, 403, 404, 409, 415, 422, 429, 503),
)
async def continue_trace(trace_id: TraceId, app: App, body: ContinueIn | None = None) -> Response:
    """Runs one more step, or to the end; 409 unless the trace is paused."""
    return JSONResponse(await app.traces.continue_(trace_id, body.mode if body else "step"))


@router.post("/{trace_id}/cancel", response_model=Trace, responses=problems(403, 404, 409, 503))
async def cancel_trace(trace_id: TraceId, app: App) -> Response:
    """Returns when the engine has stopped; no-op for ended traces."""
    return JSONResponse(await app.traces.cancel(trace_id))


@router.delete("/{trace_id}", status_code=204, responses=problems(403, 404, 409, 503))
async def delete_trace(trace_id: TraceId, app: App) -> Response:
    """Deletes the trace with its events and partial images; an active one is cancelled first."""
    await app.traces.delete(trace_id)
    return Response(status_code=204)


@router.get(
    "/{trace_id}/film",
    response_class=Response,
    summary="The trace as an animated GIF",
    responses=problems(404, 409, 503, also={200: {"description": "GIF", "content": {"image/gif": {}}}}),
)
async def trace_film(trace_id: TraceId, app: App) -> Response:
    """The question's image, each functional image with its sentence, the answer; 409 while queued or running."""
    gif = await app.traces.reader.film(trace_id, app.images.read)
    name = f'inline; filename="{trace_id}.gif"'
    return Response(gif, media_type="image/gif", headers={"Content-Disposition": name, "Cache-Control": "no-store"})


@router.get(
    "/{trace_id}/partials/{name}",
    response_class=FileResponse,
    summary="A partial image of a trace",
    responses=problems(404, 503, also={200: {"description": "PNG", "content": {"image/png": {}}}}),
)
@in_pool(pools.fetches)
def partial_image(trace_id: TraceId, name: str, app: App) -> Response:
    """Previews linked by `image.partial`; deleted with the trace."""
    path = app.partials.file(trace_id, name)
    return FileResponse(path, media_type="image/png", headers={"Cache-Control": "private, max-age=31536000, immutable"})

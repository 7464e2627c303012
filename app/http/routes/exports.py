"""Exports: traces as files, streamed, with nothing stored on the server."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Depends, Request, Response

from app.contract.schemas_curation import ExportCreate
from app.contract.words import ExportFormat
from app.http.deps import SKIPPED, App, Key, exported, problems, require_json

router = APIRouter(prefix="/v1", tags=["exports"])

_FILE: dict[str, Any] = {
    "description": "The file",
    "headers": {SKIPPED: {"schema": {"type": "integer"}, "description": "number of traces that were left out"}},
    "content": {
        "application/json": {"schema": {}, "example": []},
        "application/x-ndjson": {},
        "application/zip": {},
        "text/html": {},
    },
}


@router.get(
    "/traces/{trace_id}/export",
    response_class=Response,
    summary="The trace as a file",
    responses=problems(404, 409, 422, 503, also={200: _FILE}),
)
async def export_trace(trace_id: str, format: ExportFormat, app: App) -> Response:
    """JSON, a row of PeSFT data, a page that needs nothing else, or a zip of all that and the images."""
    return exported(await app.traces.reader.export_one(trace_id, format, app.images.read))


@router.post(
    "/exports",
    response_class=Response,
    dependencies=[Depends(require_json)],
    summary="Many traces as one file",
    responses=problems(400, 403, 404, 409, 415, 422, 503, also={200: _FILE}),
)
async def export_traces(request: Request, body: ExportCreate, app: App, idempotency_key: Key = None) -> Response:
    """Given traces in their order, or all that match a filter, newest first."""
    # An export creates nothing: the same request gives the same file anyway.
    with app.idempotency.hold("POST /v1/exports", idempotency_key, await request.body()):
        return exported(await app.traces.reader.export(body, app.images.read))

"""`/v1/datasets`: a training file from a machine that is not the server's."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import UploadFile

from app.deps import App, problems
from app.errors import Problem, field_problem
from app.schemas_jobs import DatasetOut

router = APIRouter(prefix="/v1/datasets", tags=["jobs"])

RAW = ("application/x-ndjson", "application/jsonl")
BODY = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {"file": {"type": "string", "format": "binary"}},
                }
            },
            RAW[0]: {"schema": {"type": "string"}},
        },
    }
}


async def _upload(request: Request) -> bytes:
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind in RAW:
        return await request.body()
    if kind != "multipart/form-data":
        raise Problem("unsupported_dataset", f"send multipart/form-data with a field `file`, or jsonl as {RAW[0]}")
    async with request.form(max_files=4, max_fields=16) as form:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise field_problem("invalid", "body.file", "the form needs a file field called `file`")
        return await file.read()


@router.post(
    "",
    status_code=201,
    response_model=DatasetOut,
    openapi_extra=BODY,
    summary="Upload a training file",
    responses=problems(400, 403, 413, 415, 422, 507),
)
async def upload_dataset(request: Request, app: App) -> Response:
    """A jsonl file; every line is looked at, and a broken one is named. The same file again is the same upload."""
    return JSONResponse(await asyncio.to_thread(app.datasets.put, await _upload(request)), 201)

"""`/v1/datasets`: uploads of training files."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from app.common import pools
from app.contract.schemas_jobs import DatasetOut
from app.http.deps import App, problems
from app.storage.uploads import upload_body

router = APIRouter(prefix="/v1/datasets", tags=["jobs"])

RAW = ("application/x-ndjson", "application/jsonl")
REFUSAL = f"send multipart/form-data with a field `file`, or jsonl as {RAW[0]}"


@router.post(
    "",
    status_code=201,
    response_model=DatasetOut,
    openapi_extra=upload_body(RAW[0]),
    summary="Upload a training file",
    responses=problems(400, 403, 413, 415, 422, 503, 507),
)
async def upload_dataset(request: Request, app: App) -> Response:
    """A jsonl file; errors name the invalid line. Uploading the same file again returns the same dataset."""
    async with app.spool.receive(request, RAW, "unsupported_dataset", REFUSAL) as upload:
        return JSONResponse(await pools.intake.run(app.datasets.take, upload), 201)

"""`/v1/datasets`: uploads of data sets, and their checks."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from app.common import pools
from app.common.pools import in_pool
from app.contract.schemas_datasets import DatasetOut
from app.contract.words import DataMethod
from app.http.deps import App, problems
from app.storage.uploads import upload_body

router = APIRouter(prefix="/v1/datasets", tags=["jobs"])

NDJSON = "application/x-ndjson"
PARQUET, ZIP = "application/vnd.apache.parquet", "application/zip"
RAW = (NDJSON, "application/jsonl", PARQUET, ZIP, "application/x-zip-compressed", "application/octet-stream")
REFUSAL = f"send multipart/form-data with a field `file`, or the file as {NDJSON}, {PARQUET} or {ZIP}"

For = Annotated[DataMethod | None, Query(description="the method that the data is for")]


@router.post(
    "",
    status_code=201,
    response_model=DatasetOut,
    openapi_extra=upload_body(NDJSON, PARQUET, ZIP),
    summary="Upload and check a data set",
    responses=problems(400, 403, 413, 415, 422, 503, 507),
)
async def upload_dataset(request: Request, app: App, method: For = None) -> Response:
    """A jsonl, a parquet file, or a zip of such files with their images; the content decides which.

    Every row is checked for what each method needs, and the data set is stored. With `method`, data that the method
    cannot use at all is rejected (422 `unusable_dataset`) and not stored. Uploading the same file again returns the
    same data set.
    """
    async with app.spool.receive(request, RAW, "unsupported_dataset", REFUSAL) as upload:
        return JSONResponse(await pools.checks.run(app.datasets.take, upload, method), 201)


@router.get("/{dataset_id}", response_model=DatasetOut, summary="A data set's check", responses=problems(404, 422, 503))
async def get_dataset(dataset_id: str, app: App, method: For = None) -> dict[str, Any]:
    """The report of an upload, also after a restart."""
    return await pools.checks.run(app.datasets.report, dataset_id, method)


@router.get(
    "/{dataset_id}/rejections",
    response_class=FileResponse,
    summary="All rejections of a data set",
    responses=problems(404, 503) | {200: {"content": {NDJSON: {"schema": {"type": "string"}}}}},
)
@in_pool(pools.checks)
def get_dataset_rejections(dataset_id: str, app: App) -> Response:
    """One JSON object per line: `{where, row, code, detail, methods}`."""
    name = f"{dataset_id[:32]}-rejections.jsonl"
    return FileResponse(app.datasets.rejections(dataset_id), media_type=NDJSON, filename=name)


@router.get(
    "/{dataset_id}/images/{name}",
    response_class=FileResponse,
    summary="An image of a data set's preview",
    responses=problems(404, 503) | {200: {"content": {"image/png": {"schema": {"type": "string"}}}}},
)
@in_pool(pools.checks)
def get_dataset_image(dataset_id: str, name: str, app: App) -> Response:
    """A square of 256 pixels a side, cropped as for a model."""
    return FileResponse(app.datasets.image(dataset_id, name), media_type="image/png")

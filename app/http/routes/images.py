"""`/v1/images`: upload and download of images, and the model's view of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import FileResponse, JSONResponse

from app.common import pools
from app.contract.schemas import ImageOut
from app.contract.words import Fit
from app.http.deps import LOCATION, App, CheckpointName, Key, Services, problems
from app.storage.idempotency import Claim, Replay
from app.storage.uploads import upload_body

router = APIRouter(prefix="/v1/images", tags=["images"])

PNG: dict[str, Any] = {"description": "PNG", "content": {"image/png": {}}}
FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}
RAW = ("image/*",)
REFUSAL = "send multipart/form-data with a field `file`, or the image as image/…"


@router.post(
    "",
    status_code=201,
    response_model=ImageOut,
    openapi_extra=upload_body(RAW[0]),
    responses=problems(400, 403, 409, 413, 415, 422, 503, 507, also={201: {"headers": LOCATION}}),
)
async def upload_image(request: Request, app: App, idempotency_key: Key = None) -> Response:
    """A PNG, JPEG, WebP, GIF, BMP or AVIF image, identified by content; stored as an RGB PNG without metadata."""
    async with app.spool.receive(request, RAW, "unsupported_image", REFUSAL) as upload:
        with app.idempotency.hold("POST /v1/images", idempotency_key, upload.digest) as claim:
            answer, replayed = await app.image_intake.run(_store, app, upload.path, claim)
    headers = {"Location": answer["url"]} | ({"Idempotent-Replayed": "true"} if replayed else {})
    return JSONResponse(answer, 201, headers)


def _store(app: Services, path: Path, claim: Claim) -> tuple[dict[str, Any], bool]:
    replay: Replay | None = app.idempotency.replay(claim)
    stored = app.image_intake.store_file(path)  # also on a replay: it restores and refreshes the image
    answer = stored.as_json()
    if replay is None and claim.key is not None:
        with app.db.write() as connection:
            claim.store(connection, stored.image_id, answer)
    return (replay.response, True) if replay else (answer, False)


@router.get("/{image_id}", response_class=FileResponse, responses=problems(404, 503, also={200: PNG}))
async def get_image(image_id: str, app: App) -> Response:
    """The PNG; its id is the hash of its bytes, so it is immutable."""
    stored = await pools.reads.run(app.images.get, image_id)
    path = await pools.fetches.run(app.images.file, stored.image_id)
    return FileResponse(path, media_type="image/png", headers=FOREVER | {"ETag": f'"{stored.image_id}"'})


@router.get("/{image_id}/model-view", response_class=Response, responses=problems(404, 422, 503, also={200: PNG}))
async def get_model_view(
    image_id: str,
    app: App,
    checkpoint: CheckpointName = None,
    fit: Fit = "crop",
) -> Response:
    """The image as the model sees it, at its resolution."""
    info = await pools.intake.run(partial(app.checkpoints.usable, checkpoint, path="query.checkpoint"))
    assert info.config is not None
    view = await app.image_intake.run(app.image_intake.view, image_id, info.config.vq.resolution, fit)
    return Response(view, media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

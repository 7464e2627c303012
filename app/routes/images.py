"""`/v1/images`: pictures in, pictures out, and what a model gets of them."""

from __future__ import annotations

import hashlib
import io
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from PIL import Image

from app import pools
from app.artifacts import StoredImage
from app.deps import LOCATION, App, Key, Services, problems
from app.errors import Problem
from app.idempotency import Claim, Replay
from app.pools import in_pool
from app.schemas import ImageOut
from app.uploads import upload_body, uploaded
from app.words import Fit
from model.pictures import model_view, png_bytes

router = APIRouter(prefix="/v1/images", tags=["images"])

PNG: dict[str, Any] = {"description": "PNG", "content": {"image/png": {}}}
FOREVER = {"Cache-Control": "public, max-age=31536000, immutable"}
RAW = ("image/*",)
REFUSAL = "send multipart/form-data with a field `file`, or the picture as image/…"


@router.post(
    "",
    status_code=201,
    response_model=ImageOut,
    openapi_extra=upload_body(RAW[0]),
    responses=problems(400, 403, 409, 413, 415, 422, 503, 507, also={201: {"headers": LOCATION}}),
)
async def upload_image(request: Request, app: App, idempotency_key: Key = None) -> Response:
    """A PNG, JPEG, WebP, GIF or BMP picture, known by its content; stored as an RGB PNG without metadata."""
    data = await uploaded(request, RAW, "unsupported_image", REFUSAL)
    digest = await pools.intake.run(lambda: hashlib.sha256(data).digest())
    with app.idempotency.hold("POST /v1/images", idempotency_key, digest) as claim:
        answer, replayed = await pools.intake.run(_store, app, data, claim)
    headers = {"Location": answer["url"]} | ({"Idempotent-Replayed": "true"} if replayed else {})
    return JSONResponse(answer, 201, headers)


def _store(app: Services, data: bytes, claim: Claim) -> tuple[dict[str, Any], bool]:
    replay: Replay | None = app.idempotency.replay(claim)
    stored: StoredImage = app.images.put_upload(data)  # also on a replay: the picture is there again and young
    answer = stored.as_json()
    if replay is None and claim.key is not None:
        with app.db.write() as connection:
            claim.store(connection, stored.image_id, answer)
    return (replay.response, True) if replay else (answer, False)


@router.get("/{image_id}", response_class=FileResponse, responses=problems(404, 503, also={200: PNG}))
@in_pool(pools.reads)
def get_image(image_id: str, app: App) -> Response:
    """The PNG; its id is the hash of its bytes, so it never changes."""
    stored = app.images.get(image_id)
    path = app.images.path(stored.image_id)
    if not path.is_file():
        raise Problem("image_not_found", "the picture's file is gone; upload it again")
    return FileResponse(path, media_type="image/png", headers=FOREVER | {"ETag": f'"{stored.image_id}"'})


@router.get("/{image_id}/model-view", response_class=Response, responses=problems(404, 422, 503, also={200: PNG}))
@in_pool(pools.intake)
def get_model_view(
    image_id: str,
    app: App,
    checkpoint: Annotated[str | None, Query(max_length=200)] = None,
    fit: Fit = "crop",
) -> Response:
    """What the model gets of the picture, at its resolution."""
    info = app.checkpoints.usable(checkpoint, path="query.checkpoint")
    assert info.config is not None
    app.images.get(image_id)
    with Image.open(io.BytesIO(app.images.read(image_id))) as picture:
        view = model_view(picture, info.config.vq.resolution, fit)
    return Response(png_bytes(view), media_type="image/png", headers={"Cache-Control": "private, max-age=3600"})

"""Uploads: accepted formats, rejections, storage, sweep."""

from __future__ import annotations

import io
import struct
import zlib
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from PIL import Image

from app.contract.problems import Problem
from app.storage import tables
from app.storage.images import MAX_UPLOAD_BYTES
from model.images.reader import ImageError, read_image
from tests.app.conftest import Server, both_databases, is_problem
from tests.fakes import png

PNG = {"content-type": "image/png"}


def encoded(picture: Image.Image, kind: str, **options: Any) -> bytes:
    """The image in some format."""
    out = io.BytesIO()
    picture.save(out, kind, **options)
    return out.getvalue()


def decoded(data: bytes) -> Image.Image:
    """A PNG, whole."""
    picture = Image.open(io.BytesIO(data))
    picture.load()
    return picture


def bomb(width: int, height: int) -> bytes:
    """A PNG header that claims that many pixels, with hardly any data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "AVIF"])
async def test_formats_are_detected_by_content(server: Server, kind: str) -> None:
    data = encoded(Image.new("RGB", (30, 20), (200, 30, 40)), kind)
    raw = await server.client.post("/v1/images", content=data, headers={"content-type": "image/x-anything"})
    form = await server.client.post("/v1/images", files={"file": ("evil.exe", data, "text/html")})
    assert raw.status_code == form.status_code == 201
    assert raw.json() == form.json()
    assert (raw.json()["width"], raw.json()["height"]) == (30, 20)
    assert raw.headers["location"] == raw.json()["url"]
    got = await server.client.get(raw.json()["url"])
    assert got.headers["content-type"] == "image/png"
    assert "immutable" in got.headers["cache-control"]
    picture = decoded(got.content)
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (30, 20))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"hello",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        b"%PDF-1.4",
        encoded(Image.new("RGB", (4, 4)), "TIFF"),
        encoded(Image.new("RGB", (4, 4)), "ICO"),
    ],
)
async def test_other_files_are_rejected(server: Server, data: bytes) -> None:
    is_problem(await server.client.post("/v1/images", content=data, headers=PNG), 415, "unsupported_image")


async def test_truncated_image_is_rejected(server: Server) -> None:
    noise = Image.effect_noise((200, 200), 90).convert("RGB")
    for kind in ("PNG", "JPEG", "WEBP", "BMP"):
        data = encoded(noise, kind)
        answer = await server.client.post("/v1/images", content=data[: len(data) // 2], headers=PNG)
        assert answer.status_code in (415, 422), kind
        assert answer.json()["code"] in ("image_broken", "unsupported_image")


@pytest.mark.parametrize("size", [(6325, 6325), (9600, 9600), (60_000, 60_000), (2**31 - 1, 1)])
def test_decompression_bomb_is_rejected_by_its_header(size: tuple[int, int]) -> None:
    with pytest.raises(ImageError) as refusal:
        read_image(bomb(*size))
    assert refusal.value.code == "image_too_large"


async def test_oversized_body_is_rejected_before_reading(server: Server) -> None:
    big = png() + b"\0" * MAX_UPLOAD_BYTES
    is_problem(await server.client.post("/v1/images", content=big, headers=PNG), 413, "body_too_large")

    async def chunks() -> Any:
        for _ in range(22):
            yield b"\0" * 1_000_000

    is_problem(await server.client.post("/v1/images", content=chunks(), headers=PNG), 413, "body_too_large")
    form = {"file": ("a.png", b"\0" * (MAX_UPLOAD_BYTES + 70_000), "image/png")}
    is_problem(await server.client.post("/v1/images", files=form), 413, "body_too_large")
    body = {"question": "x" * 21_000_000}
    is_problem(await server.client.post("/v1/traces", json=body), 413, "body_too_large")
    assert (await server.client.get("/livez")).status_code == 200


async def test_form_without_a_file_is_rejected(server: Server) -> None:
    is_problem(await server.client.post("/v1/images", files={"other": b"x"}), 422, "invalid", "body.file")
    is_problem(await server.client.post("/v1/images", json={"file": "x"}), 415, "unsupported_image")
    answer = await server.client.post(
        "/v1/images", content=b"no form", headers={"content-type": "multipart/form-data; boundary=x"}
    )
    assert answer.status_code in (400, 422)


async def test_same_image_is_stored_once(server: Server) -> None:
    assert await server.image(png((5, 6, 7))) == await server.image(
        encoded(Image.new("RGB", (64, 64), (5, 6, 7)), "BMP")
    )
    files = [path for path in (server.home / "images").rglob("*") if path.is_file()]
    assert len(files) == 1
    assert files[0].parent.name == files[0].name[:2]


@both_databases
async def test_sweep_deletes_only_unused_images(server: Server) -> None:
    images = server.services.images
    shown = await server.finished((await server.create())["id"])
    loose, requested = await server.image(png((1, 1, 1))), await server.image(png((2, 2, 2)))
    tomorrow = datetime.now(UTC) + timedelta(hours=25, minutes=5)
    assert images.sweep(at=datetime.now(UTC) + timedelta(hours=24)) == 0
    with server.services.db.write() as connection:  # `requested` was stored long ago and is used now
        rows = tables.images
        connection.execute(sa.update(rows).where(rows.c.id == requested).values(last_used_at="2020-01-01"))
    assert (await server.client.get(f"/v1/images/{requested}")).status_code == 200
    assert images.sweep() == 0
    assert images.sweep(at=tomorrow) == 2
    assert (await server.client.get(f"/v1/images/{loose}")).status_code == 404
    kept = [image["url"] for image in shown["images"]] + [step["image"]["url"] for step in shown["steps"]]
    for url in kept:
        assert (await server.client.get(url)).status_code == 200
    await server.client.delete(f"/v1/traces/{shown['id']}")
    assert images.sweep(at=tomorrow) == 3


@both_databases
async def test_sweep_keeps_images_of_pending_events(server: Server) -> None:
    images, old = server.services.images, png((3, 3, 3))
    image_id = await server.image(old)
    tomorrow = datetime.now(UTC) + timedelta(hours=25, minutes=5)
    twice = images.bring(images.read(image_id)), images.bring(images.read(image_id))
    assert twice[0].image_id == image_id
    assert images.sweep(at=tomorrow) == 0
    images.settle(twice[0])
    assert images.sweep(at=tomorrow) == 0
    images.settle(twice[1])
    assert images.sweep(at=tomorrow) == 1
    with pytest.raises(Problem):
        images.read(image_id)


async def test_model_view_shows_the_models_input(server: Server) -> None:
    wide = Image.new("RGB", (200, 100), (255, 0, 0))
    image = await server.image(encoded(wide, "PNG"))
    url = f"/v1/images/{image}/model-view"
    crop = decoded((await server.client.get(url)).content)
    assert (crop.size, crop.getpixel((32, 0))) == ((64, 64), (255, 0, 0))
    pad = decoded((await server.client.get(url, params={"fit": "pad", "checkpoint": "nano-omni-r1"})).content)
    assert (pad.size, pad.getpixel((32, 0))) == ((64, 64), (255, 255, 255))
    is_problem(await server.client.get(url, params={"checkpoint": "x"}), 422, "unknown_checkpoint", "query.checkpoint")
    is_problem(await server.client.get(url, params={"fit": "x"}), 422, "invalid", "query.fit")


async def test_upload_with_a_key_is_replayed(server: Server) -> None:
    async def send(colour: int, key: str) -> httpx.Response:
        files = {"file": ("a.png", png((colour, 0, 0)), "image/png")}
        return await server.client.post("/v1/images", files=files, headers={"Idempotency-Key": key})

    first, again = await send(1, "k"), await send(1, "k")
    assert again.json() == first.json()
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    is_problem(await send(2, "k"), 422, "idempotency_mismatch")

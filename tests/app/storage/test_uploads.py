"""Uploads in progress: their files, memory use and cleanup."""

from __future__ import annotations

import asyncio
import base64
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from app.contract.problems import Problem
from app.storage import image_intake
from app.storage.image_intake import SMALL_PIXELS
from model.images.reader import read_image
from tests.app.conftest import Server, is_problem
from tests.image_files import FORMATS, bomb, encoded, gradient, noise

pytestmark = pytest.mark.slow

PNG = {"content-type": "image/png"}
JSONL = {"content-type": "application/x-ndjson"}
FORM = "multipart/form-data; boundary=b"
MB = 1_000_000


def rss() -> int:
    """Resident bytes of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def until(condition: Any) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def left(server: Server) -> list[str]:
    return [path.name for path in (server.home / "tmp").iterdir() if path.name.startswith("upload-")]


class Unfinished:
    """A request whose body stops before its end."""

    def __init__(self, server: Server) -> None:
        self._port = server.port
        self._writer: asyncio.StreamWriter

    async def send(self, path: str, kind: str, body: bytes) -> None:
        _, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        head = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Type: {kind}", f"Content-Length: {len(body) + 9}"]
        self._writer.write("\r\n".join([*head, "", ""]).encode() + body)
        await self._writer.drain()

    async def leave(self) -> None:
        self._writer.close()
        await self._writer.wait_closed()


def part(data: bytes, name: str = "file", more: str = '; filename="a.png"') -> bytes:
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + data + b"\r\n"


async def test_concurrent_bombs_use_little_memory(server: Server) -> None:
    await server.image(encoded(gradient(), "PNG"))
    before, peak = rss(), rss()
    data = bomb(6324, 6324)
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"

    async def send(number: int) -> None:
        nonlocal peak
        if number % 2:
            answer = await server.client.post("/v1/images", content=data, headers=PNG, timeout=300)
        else:
            body = {"question": "What?", "images": [{"data_url": url}]}
            answer = await server.client.post("/v1/traces", json=body, timeout=300)
        assert answer.status_code == 201, answer.text

    uploads = [asyncio.create_task(send(number)) for number in range(6)]
    while not all(upload.done() for upload in uploads):
        assert (await server.client.get("/livez")).status_code == 200
        peak = max(peak, rss())
        await asyncio.sleep(0.02)
    await asyncio.gather(*uploads)
    assert peak - before < 250 * MB
    assert rss() - before < 100 * MB
    assert left(server) == []


@pytest.mark.parametrize("kind", FORMATS)
async def test_concurrent_small_images_use_little_memory(server: Server, kind: str) -> None:
    side = int(SMALL_PIXELS**0.5) - 1
    data = encoded(gradient(side, side).quantize() if kind == "GIF" else gradient(side, side), kind)
    await server.image(data)
    before = rss()
    await asyncio.gather(*(server.image(data) for _ in range(20)))
    assert rss() - before < 100 * MB


async def test_unfinished_bodies_are_on_disk(server: Server) -> None:
    body = b"\x89PNG\r\n\x1a\n" + bytes(6 * MB)
    kinds = [
        ("/v1/images", "image/png", body),
        ("/v1/images", FORM, part(body)[:-2]),
        ("/v1/datasets", "application/x-ndjson", body),
        ("/v1/traces", "application/json", b'{"question": "' + b"x" * 6 * MB),
        ("/v1/jobs", "text/plain", body),
    ]
    before = rss()
    requests = [Unfinished(server) for _ in range(30)]
    for number, request in enumerate(requests):
        await request.send(*kinds[number % len(kinds)])
    folder = server.home / "tmp"
    await until(lambda: sum((folder / name).stat().st_size for name in left(server)) > 30 * 5.5 * MB)
    assert len(left(server)) == 30
    assert rss() - before < 90 * MB
    for request in requests:
        await request.leave()
    await until(lambda: not left(server))


async def test_concurrent_large_json_uses_little_memory(server: Server) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield b'{"question": "'
        for _ in range(18 * MB // 100_000):
            yield b"x" * 100_000
        yield b'"}'

    headers = {"content-type": "application/json"}
    peak = before = rss()
    requests = [
        asyncio.create_task(server.client.post("/v1/traces", content=body(), headers=headers, timeout=300))
        for _ in range(24)
    ]
    while not all(request.done() for request in requests):
        peak = max(peak, rss())
        await asyncio.sleep(0.01)
    for request in requests:
        is_problem(request.result(), 422, "invalid", "body.question")
    assert peak - before < 150 * MB
    assert left(server) == []


async def test_no_other_temporary_folder_is_used(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    data = encoded(noise(800, 800), "BMP")
    assert len(data) > MB
    monkeypatch.setattr(tempfile, "tempdir", "/proc/nowhere")
    raw = await server.client.post("/v1/images", content=data, headers=PNG)
    form = await server.client.post("/v1/images", files={"file": ("a.bmp", data)})
    assert raw.status_code == form.status_code == 201
    rows = b'{"a": 1}\n' * 200_000
    raw = await server.client.post("/v1/datasets", content=rows, headers=JSONL)
    form = await server.client.post("/v1/datasets", files={"file": ("a.jsonl", rows)})
    assert raw.status_code == form.status_code == 201
    assert raw.json() == form.json()
    assert (server.home / raw.json()["path"]).read_bytes() == rows
    assert left(server) == []


async def test_malformed_forms_are_rejected(server: Server) -> None:
    async def post(body: bytes, kind: str = FORM) -> Any:
        return await server.client.post("/v1/images", content=body, headers={"content-type": kind})

    png = encoded(gradient(), "PNG")
    for kind in (
        "multipart/form-data",
        "multipart/form-data; boundary=",
        f"multipart/form-data; boundary={'x' * 5000}",
    ):
        is_problem(await post(part(png), kind), 400, "malformed")
    for body in (b"no form", b"--b", b"--b\r\n\r\n\r\n--c", b"--b\r\n" + b"A" * 100_000, part(png)[:-40]):
        answer = await post(body)
        assert answer.status_code in (400, 422), answer.text
    is_problem(await post(b"".join(part(b"x", f"a{i}") for i in range(2000)) + b"--b--"), 400, "malformed")
    is_problem(await post(b"--b--\r\n"), 422, "invalid", "body.file")
    is_problem(await post(part(png, more="") + b"--b--"), 422, "invalid", "body.file")
    is_problem(await post(part(png, "other") + b"--b--"), 422, "invalid", "body.file")
    answer = await post(part(b"text", "note", "") + part(png) + part(b"junk", "file") + b"--b--\r\n")
    assert answer.status_code == 201
    assert left(server) == []


async def test_every_upload_route_names_the_problem(server: Server) -> None:
    for data, status, code, words in (
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", 415, "unsupported_image", "HEIC image"),
        (encoded(gradient(), "EPS"), 415, "unsupported_image", "EPS"),
        (encoded(gradient(6600, 200), "PNG"), 422, "image_too_narrow", "33 : 1"),
        (encoded(noise(64, 64), "PNG")[:6000], 422, "image_broken", "cut off"),
        (bomb(9000, 9000), 422, "image_too_large", "9000 × 9000"),
    ):
        url = f"data:image/jpeg;base64,{base64.b64encode(data).decode()}"
        body = {"question": "What?", "images": [{"data_url": url}]}
        for answer in (
            await server.client.post("/v1/images", content=data, headers={"content-type": "image/jpeg"}),
            await server.client.post("/v1/images", files={"file": ("photo.jpg", data, "image/jpeg")}),
            await server.client.post("/v1/traces", json=body),
        ):
            assert words in is_problem(answer, status, code)["detail"]


async def test_large_images_are_shown_and_fitted(server: Server) -> None:
    answer = await server.client.post("/v1/images", content=encoded(gradient(5000, 2000), "JPEG"), headers=PNG)
    assert (answer.json()["width"], answer.json()["height"]) == (2500, 1000)
    for fit, white in (("crop", False), ("pad", True)):
        view = await server.client.get(f"{answer.json()['url']}/model-view", params={"fit": fit})
        image = read_image(view.content)
        assert image.size == (64, 64)
        assert (image.getpixel((0, 0)) == (255, 255, 255)) is white


async def test_slow_decoding_is_aborted(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_intake, "DECODE_S", 0.0)
    answer = await server.client.post("/v1/images", content=bomb(3000, 3000), headers=PNG)
    assert "too long" in is_problem(answer, 422, "image_broken")["detail"]
    assert left(server) == []


async def test_stop_waits_for_no_decoder(server: Server) -> None:
    intake = server.services.image_intake
    work = [asyncio.create_task(intake.run(intake.store, bomb(6300, 6300))) for _ in range(6)]
    await until(lambda: intake._child is not None)
    intake.close()
    for outcome in await asyncio.gather(*work, return_exceptions=True):
        assert isinstance(outcome, Problem)
        assert outcome.code == "stopping"
    is_problem(await server.client.post("/v1/images", content=encoded(gradient(), "PNG"), headers=PNG), 503, "stopping")
    assert left(server) == []

"""Large JSON bodies: one at a time, and none waits for a slow response."""

from __future__ import annotations

import asyncio
import errno
from pathlib import Path
from typing import Any

import pytest
from starlette.types import Message, Receive, Scope, Send

from app.http import bodies
from app.http.bodies import BodyMiddleware
from app.storage.uploads import BUFFER_BYTES, Spool
from tests.patience import PATIENCE_S

BODY = b"x" * (BUFFER_BYTES + 1)


async def post(middleware: BodyMiddleware) -> list[Message]:
    """The messages sent in response to a large body."""
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": BODY, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    async with asyncio.timeout(PATIENCE_S):
        await middleware({"type": "http", "method": "POST", "path": "/v1/traces"}, receive, send)
    return sent


class Slow:
    """An app that reads its body and responds once `go` is set."""

    def __init__(self) -> None:
        self.go = asyncio.Event()
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.bodies.append((await receive())["body"])
        await self.go.wait()
        await send({"type": "http.response.start", "status": 204, "headers": []})


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


async def test_large_bodies_take_turns(tmp_path: Path) -> None:
    app = Slow()
    middleware = BodyMiddleware(app, spool=Spool(tmp_path))
    requests = [asyncio.create_task(post(middleware)) for _ in range(2)]
    await until(lambda: app.bodies)
    await asyncio.sleep(0.1)
    assert app.bodies == [BODY]
    app.go.set()
    assert [sent[0]["status"] for sent in await asyncio.gather(*requests)] == [204, 204]
    assert app.bodies == [BODY, BODY]


async def test_slow_response_does_not_hold_up_the_next_body(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bodies, "TURN_S", 0.05)
    app = Slow()
    middleware = BodyMiddleware(app, spool=Spool(tmp_path))
    requests = [asyncio.create_task(post(middleware)) for _ in range(3)]
    await until(lambda: len(app.bodies) == 3)
    app.go.set()
    await asyncio.gather(*requests)


@pytest.mark.parametrize("failing", ["open", "read_bytes"])
async def test_full_disk_returns_507(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failing: str) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    app = Slow()
    app.go.set()
    middleware = BodyMiddleware(app, spool=Spool(tmp_path))
    with monkeypatch.context() as patch:
        patch.setattr(Path, failing, full)
        assert (await post(middleware))[0]["status"] == 507
    assert list(tmp_path.iterdir()) == []
    assert (await post(middleware))[0]["status"] == 204, "the turn has ended"

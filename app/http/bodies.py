"""Buffering of JSON bodies: large ones are spooled to disk until complete, then processed one at a time.

Unfinished bodies thus take little memory, and only one large body is in memory at a time. Routes that accept files
spool them themselves (app/storage/uploads.py).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.common import pools
from app.common.prefix import below
from app.http.errors import refused
from app.storage.faults import from_storage
from app.storage.uploads import BUFFER_BYTES, Spool

METHODS = ("POST", "PUT", "PATCH", "DELETE")
STREAMED = ("/v1/images", "/v1/datasets")  # routes that spool their files themselves
TURN_S = 10.0  # a request that takes longer to respond lets the next large body in


class BodyMiddleware:
    """Runs inside all middlewares that reject requests, so that only permitted bodies are stored."""

    def __init__(self, app: ASGIApp, *, spool: Spool) -> None:
        self._app = app
        self._spool = spool
        self._turn = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Read the body before the app runs: into memory if it is small, else into a file."""
        if scope["type"] != "http" or scope["method"] not in METHODS or below(scope).rstrip("/") in STREAMED:
            await self._app(scope, receive, send)
            return
        held, more = bytearray(), True
        while more and len(held) <= BUFFER_BYTES:
            message = await receive()
            if message["type"] != "http.request":
                return  # the client disconnected
            held += message.get("body", b"")
            more = message.get("more_body", False)
        if len(held) <= BUFFER_BYTES:
            await self._app(scope, replayed(bytes(held), receive), send)
            return
        with self._spool.file() as path:
            try:
                if not await self._write(path, held, receive if more else None):
                    return
                await self._turn.acquire()
                end_turn = self._limited_turn()
                try:
                    body = await pools.files.run(path.read_bytes)
                except BaseException:
                    end_turn()
                    raise
            except (OSError, pools.TooSlow) as error:
                problem = from_storage(error)
                if problem is None:
                    raise
                await refused(problem, scope)(scope, receive, send)
                return
        await self._hand_over(body, end_turn, scope, receive, send)

    async def _write(self, path: Path, held: bytearray, receive: Receive | None) -> bool:
        """Write the whole body to `path`; False if the client disconnects."""
        with path.open("wb") as file:
            writing = self._spool.writing(file)
            writing.add(held)
            while receive is not None:
                message = await receive()
                if message["type"] != "http.request":
                    return False
                writing.add(message.get("body", b""))
                await writing.flush(BUFFER_BYTES)
                if not message.get("more_body", False):
                    break
            await writing.flush(1)
        return True

    def _limited_turn(self) -> Callable[[], None]:
        """Ends the turn just acquired when called, or after `TURN_S`; further calls do nothing."""
        done = False

        def end() -> None:
            nonlocal done
            if not done:
                done = True
                timer.cancel()
                self._turn.release()

        timer = asyncio.get_running_loop().call_later(TURN_S, end)
        return end

    async def _hand_over(
        self, body: bytes, end_turn: Callable[[], None], scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Pass the body to the app; its turn ends when its response starts."""

        async def watched_send(message: Message) -> None:
            end_turn()
            await send(message)

        try:
            await self._app(scope, replayed(body, receive), watched_send)
        finally:
            end_turn()


def replayed(body: bytes, receive: Receive) -> Receive:
    """A `receive` that returns `body` first, then messages of the connection."""
    left: bytes | None = body

    async def once() -> Message:
        nonlocal left
        if left is None:
            return await receive()
        given, left = left, None
        return {"type": "http.request", "body": given, "more_body": False}

    return once

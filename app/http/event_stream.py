"""An ASGI response for server-sent events that detects disconnects immediately."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from app.http.conditional import HEAD_ONLY
from app.http.connections import STATE, Connection, too_many
from app.http.errors import refused

# Prevents caching, buffering and compression by proxies.
_UNBUFFERED = {"Cache-Control": "no-store, no-transform", "X-Accel-Buffering": "no"}


class EventStream(Response):
    """Sends what `frames` yields until it ends or the client disconnects, then closes it immediately."""

    media_type = "text/event-stream"

    def __init__(
        self,
        frames: AsyncIterator[bytes],
        *,
        status_code: int = 200,
        headers: Mapping[str, str] | None = None,
        limited: bool = True,
    ) -> None:
        """`limited`: answer 503 when too many streams are open."""
        super().__init__(None, status_code)
        self._limited = limited
        self._frames = frames
        self.headers.update(_UNBUFFERED)
        self.headers.update(headers or {})
        del self.headers["content-length"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the frames; only the head to `HEAD`, and 503 if too many streams are open."""
        if HEAD_ONLY in scope:
            async with contextlib.aclosing(self._frames):  # type: ignore[type-var]
                await self._head(send)
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        connection: Connection | None = scope.get("state", {}).get(STATE)
        with connection.stream() if connection is not None else contextlib.nullcontext(True) as admitted:
            if admitted or not self._limited:
                await self._stream(receive, send)
                return
        await refused(too_many(), scope)(scope, receive, send)

    async def _stream(self, receive: Receive, send: Send) -> None:
        sender = asyncio.create_task(self._send(send))
        watcher = asyncio.create_task(gone(receive))
        try:
            await asyncio.wait((sender, watcher), return_when=asyncio.FIRST_COMPLETED)
        finally:
            watcher.cancel()
            sender.cancel()
            with contextlib.suppress(asyncio.CancelledError, OSError):
                await sender
            with contextlib.suppress(asyncio.CancelledError):
                await watcher

    async def _head(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        # Send the head immediately, even before the first event.
        await send({"type": "http.response.body", "body": b"", "more_body": True})

    async def _send(self, send: Send) -> None:
        await self._head(send)
        async with contextlib.aclosing(self._frames) as frames:  # type: ignore[type-var]
            async for frame in frames:
                await send({"type": "http.response.body", "body": frame, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def gone(receive: Receive) -> None:
    """Return when the client has disconnected; call it after the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass

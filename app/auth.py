"""Who may call: one ASGI middleware in front of everything, Gradio's mount included.

`Host` must be a name of this machine (DNS rebinding), unsafe methods must not come from another site, bodies are
limited before they are read, and every answer says `nosniff`. There is no key: the server binds loopback only
(:mod:`app.settings`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import Problem, response_for

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
# A refused body is still read (and dropped) this far, so that the client sees the answer instead of a broken pipe.
_DRAIN_BYTES = 200_000_000
_DRAIN_S = 10.0


class _TooLarge(Exception):
    pass


class GuardMiddleware:
    """Checks every request before anything else sees it."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        hosts: Iterable[str],
        cors_origins: Iterable[str],
        max_body: int,
    ) -> None:
        self._app = app
        self._hosts = LOOPBACK | {_bare(host) for host in hosts}
        self._origins = frozenset(origin.rstrip("/").lower() for origin in cors_origins)
        self._max_body = max_body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        problem = self._refusal(scope, headers)
        if scope["type"] == "websocket":
            if problem is not None:
                await send({"type": "websocket.close", "code": 1008})
            else:
                await self._app(scope, receive, send)
            return

        started = False

        async def guarded_send(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                MutableHeaders(scope=message)["X-Content-Type-Options"] = "nosniff"
            await send(message)

        length = headers.get("content-length", "")
        if problem is None and length.isdecimal() and int(length) > self._max_body:
            problem = self._too_large()
        if problem is not None:
            await self._drain(receive, int(length) if length.isdecimal() else None)
            await response_for(problem, scope["path"])(scope, receive, guarded_send)
            return

        read = 0

        async def limited_receive() -> Message:
            nonlocal read
            message = await receive()
            if message["type"] == "http.request":
                read += len(message.get("body", b""))
                if read > self._max_body:
                    raise _TooLarge
            return message

        try:
            await self._app(scope, limited_receive, guarded_send)
        except _TooLarge:
            if not started:
                await self._drain(receive, None)
                await response_for(self._too_large(), scope["path"])(scope, receive, guarded_send)

    def _refusal(self, scope: Scope, headers: Headers) -> Problem | None:
        host = headers.get("host", "")
        if _bare(host) not in self._hosts:
            return Problem(
                "wrong_host", "use http://127.0.0.1 or http://localhost, or name the host in OMNI_R1_ALLOWED_HOSTS"
            )
        if scope.get("method", "GET") in SAFE and scope["type"] == "http":
            return None
        origin = headers.get("origin")
        if origin is not None and origin.lower() in self._origins:
            return None
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            return Problem("forbidden_origin", "the request comes from a page of another site")
        if headers.get("sec-fetch-site", "none") == "cross-site":
            return Problem("forbidden_origin", "the request comes from a page of another site")
        return None

    def _too_large(self) -> Problem:
        return Problem("body_too_large", f"a body may have {self._max_body} bytes; send a smaller picture")

    async def _drain(self, receive: Receive, expected: int | None) -> None:
        if expected == 0 or (expected is not None and expected > _DRAIN_BYTES):
            return
        read = 0
        try:
            async with asyncio.timeout(_DRAIN_S):
                while read <= _DRAIN_BYTES:
                    message = await receive()
                    if message["type"] != "http.request":
                        return
                    read += len(message.get("body", b""))
                    if not message.get("more_body", False):
                        return
        except TimeoutError:
            return


def _bare(host: str) -> str:
    """The name without its port, IPv6 in brackets, lower case."""
    host = host.strip().lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    if host.count(":") > 1:
        return f"[{host}]"
    return host.partition(":")[0]

"""What a proxy says about a request: scheme and client (uvicorn), and the path prefix that it shows to browsers."""

from __future__ import annotations

from typing import Any, cast

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from app.common.prefix import SCOPE_KEY, checked_prefix

HEADER = "X-Forwarded-Prefix"


class Forwarded:
    """The outermost layer. `root_path` is the prefix of every request; without one, trusted proxies may name theirs.

    A proxy may pass the prefix on or strip it; either way the app sees the full path. The app's own redirects and other
    `Location` headers are paths below the prefix, and get it here.
    """

    def __init__(self, app: ASGIApp, *, root_path: str, trusted: list[str] | str) -> None:
        self._app = app
        self._root_path = root_path
        # uvicorn's types are narrower than Starlette's, though the calls are the same
        self._proxy = ProxyHeadersMiddleware(cast(Any, self._serve), trusted)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Add the prefix to the scope, then let uvicorn read the other headers of the proxy."""
        if scope["type"] in ("http", "websocket"):
            scope[SCOPE_KEY] = self._root_path or self._named(scope)
        await self._proxy(cast(Any, scope), cast(Any, receive), cast(Any, send))

    def _named(self, scope: Scope) -> str:
        """The prefix that a trusted proxy names; "" for any other value."""
        peer = (scope.get("client") or (None, 0))[0]
        if peer not in self._proxy.trusted_hosts:
            return ""
        try:
            return checked_prefix(Headers(scope=scope).get(HEADER, "").rstrip("/"))
        except ValueError:
            return ""

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        prefix = scope.get(SCOPE_KEY, "")
        if not self._root_path and scope["type"] == "http":
            send = _varying(send)
        if not prefix:
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        if path == prefix and scope["type"] == "http":
            query = scope["query_string"].decode("latin-1")
            await RedirectResponse(f"{prefix}/" + (f"?{query}" if query else ""))(scope, receive, send)
            return
        scope["root_path"] = prefix
        scope["path"] = path if path.startswith(f"{prefix}/") else prefix + path

        async def located(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                where = headers.get("location", "")
                if where.startswith("/") and not where.startswith("//"):
                    headers["location"] = prefix + where
            await send(message)

        await self._app(scope, receive, located)


def _varying(send: Send) -> Send:
    """Let caches keep one answer per prefix: pages, documents and problems contain it."""

    async def varied(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).add_vary_header(HEADER)
        await send(message)

    return varied

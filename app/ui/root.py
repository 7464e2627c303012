"""Puts the path prefix of a request into the pages, which Gradio builds once for all of them."""

from __future__ import annotations

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.common.prefix import ROOT, prefix_of

_WRITTEN = ("text/html", "application/json")  # what holds our markup: pages and their configuration
_MANIFEST = b'href="/manifest.json"'  # the one address in Gradio's page that ignores its root path


class RootMiddleware:
    """Replaces `ROOT` by the prefix, in every page and configuration."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold back a page until it is complete, since its length changes."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        prefix = prefix_of(scope).encode()
        start: Message | None = None
        body = bytearray()

        async def rooted(message: Message) -> None:
            nonlocal start
            if message["type"] == "http.response.start":
                kind = MutableHeaders(scope=message).get("content-type", "")
                if kind.startswith(_WRITTEN):
                    start = message
                    return
            elif message["type"] == "http.response.body" and start is not None:
                body.extend(message.get("body", b""))
                if message.get("more_body", False):
                    return
                whole = bytes(body).replace(ROOT.encode(), prefix)
                whole = whole.replace(_MANIFEST, _MANIFEST.replace(b"/", prefix + b"/"))
                MutableHeaders(scope=start)["content-length"] = str(len(whole))
                await send(start)
                message = {"type": "http.response.body", "body": whole}
            await send(message)

        await self._app(scope, receive, rooted)

"""Generic GET semantics: `HEAD` without a body, and 304 for a matching `If-None-Match`."""

from __future__ import annotations

import re

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEAD_ONLY = "omni_r1.head_only"  # scope key of requests whose body is dropped
_TAG = re.compile(r'(?:W/)?("[^"]*")')
_OF_A_BODY = ("content-length", "content-type", "content-encoding", "content-range")


class ConditionalMiddleware:
    """Answers `HEAD` like `GET`, and 304 if the client has the current version (RFC 9110, 13.1.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Drop the body of a response to `HEAD`, or of one that the client has."""
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        head = scope["method"] == "HEAD"
        known = Headers(scope=scope).getlist("if-none-match")
        without_body = head

        async def conditional_send(message: Message) -> None:
            nonlocal without_body
            if message["type"] == "http.response.start" and message["status"] == 200:
                headers = MutableHeaders(scope=message)
                if known and matches(", ".join(known), headers.get("etag")):
                    without_body = True
                    message["status"] = 304
                    for name in _OF_A_BODY:
                        del headers[name]
            elif message["type"] == "http.response.body" and without_body:
                if message.get("more_body", False):
                    return
                message = {"type": "http.response.body", "body": b""}
            await send(message)

        await self._app({**scope, "method": "GET", HEAD_ONLY: True} if head else scope, receive, conditional_send)


def matches(if_none_match: str, etag: str | None) -> bool:
    """Whether the header's value contains `etag`; weak and strong tags compare equal."""
    if etag is None:
        return False
    if if_none_match.strip() == "*":
        return True
    own = _TAG.fullmatch(etag)
    return own is not None and own[1] in _TAG.findall(if_none_match)

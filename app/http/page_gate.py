"""Guards the Gradio pages: only requests that the pages need get through, and none ends in a 500.

Gradio has some forty routes (uploads, files, proxies, icons, its own API). The pages use a handful. Unknown addresses
get a problem document or, in a browser, a page with a link back.
"""

from __future__ import annotations

import html
import json
import logging
import re
from collections.abc import Sequence

from fastapi.routing import APIRoute
from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, Response
from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.common.prefix import below, prefix_of
from app.contract.problems import Problem
from app.contract.words import PAGES
from app.http.bodies import replayed
from app.http.errors import refused

log = logging.getLogger("omni_r1.page")

MAX_EVENT_BYTES = 1_000_000  # far more than the pages send to Gradio
_GET = re.compile(
    rf"/|/(?:{'|'.join(PAGES)})/?|/(?:assets|svelte)/.+|/(?:config|theme\.css|favicon\.ico|manifest\.json)"
    r"|/gradio_api/(?:info|app_id|startup-events|heartbeat/[0-9A-Za-z_-]+)"
)
_POST = re.compile(r"/gradio_api/(?:run/predict|reset)/?")  # the pages' events are never queued
_GONE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Not found · Omni-R1 Studio</title>
<link rel="icon" type="image/svg+xml" href="{prefix}/static/logo.svg">
<style>
  :root { color-scheme: light dark; font-family: system-ui, sans-serif }
  main { max-width: 32rem; margin: 20vh auto 0; padding: 0 1.5rem; line-height: 1.5 }
  code { overflow-wrap: anywhere }
</style></head>
<body><main><h1>This page does not exist</h1>
<p>The studio has nothing at <code>{path}</code>.</p>
<p><a href="{prefix}/">Go to the studio</a></p></main></body></html>
"""


class PageGate:
    """An ASGI app that passes allowed requests to `page` and answers all others.

    It is mounted after the API's routes `api`, so that a wrong method on one of them gets a 405.
    """

    def __init__(self, page: ASGIApp, api: Sequence[BaseRoute] = ()) -> None:
        self._page = page
        self._api = api

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Forward what the pages need, and reject everything else."""
        if scope["type"] != "http":
            await self._page(scope, receive, send)
            return
        method, path = scope["method"], below(scope)
        if method in ("GET", "HEAD") and _GET.fullmatch(path):
            await self._guarded(scope, receive, send)
        elif method == "POST" and _POST.fullmatch(path):
            body = await _json_body(receive)
            if body is None:
                await refused(Problem("malformed", "the body is not a JSON object"), scope)(scope, receive, send)
            else:
                await self._guarded(scope, replayed(body, receive), send)
        elif allowed := self._methods(scope):
            allow = ", ".join(sorted(allowed))
            problem = Problem("method_not_allowed", f"use {allow} here", headers={"Allow": allow})
            await refused(problem, scope)(scope, receive, send)
        else:
            await not_found(scope)(scope, receive, send)

    def _methods(self, scope: Scope) -> set[str]:
        """The methods allowed on a path; empty for an unknown path."""
        found: set[str] = set()
        for route in self._api:
            if isinstance(route, APIRoute) and route.matches(dict(scope))[0] is Match.PARTIAL:
                found |= route.methods or set()
        if _GET.fullmatch(below(scope)):
            found.add("GET")
        if _POST.fullmatch(below(scope)):
            found.add("POST")
        return found | {"HEAD"} if "GET" in found else found

    async def _guarded(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Gradio answers 500 or raises for unknown functions and sessions."""
        started = rejected = False

        async def watched_send(message: Message) -> None:
            nonlocal started, rejected
            if message["type"] == "http.response.start":
                started, rejected = True, message["status"] >= 500
            if not rejected:
                await send(message)

        try:
            await self._page(scope, receive, watched_send)
        except Exception as error:
            if started and not rejected:
                raise
            rejected = True
            log.warning("the page rejected %s %s: %r", scope["method"], below(scope), error)
        if rejected:
            problem = Problem("malformed", "the page cannot handle this request; reload it")
            await refused(problem, scope)(scope, receive, send)


def not_found(scope: Scope) -> Response:
    """The 404 outside the API: a page for browsers, a problem document otherwise."""
    api = below(scope) == "/v1" or below(scope).startswith("/v1/")
    if not api and "text/html" in Headers(scope=scope).get("accept", "") and scope["method"] in ("GET", "HEAD"):
        page = _GONE.replace("{prefix}", prefix_of(scope)).replace("{path}", html.escape(scope["path"]))
        return HTMLResponse(page, 404, {"Cache-Control": "no-store"})
    return refused(Problem("not_found", "unknown path; see /docs"), scope)


async def _json_body(receive: Receive) -> bytes | None:
    """The body if it is a JSON object of acceptable size; always read to the end."""
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            return None
        if len(body) <= MAX_EVENT_BYTES:
            body += message.get("body", b"")
        more = message.get("more_body", False)
    try:
        return body if len(body) <= MAX_EVENT_BYTES and isinstance(json.loads(body), dict) else None
    except (ValueError, RecursionError):
        return None

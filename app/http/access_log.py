"""Request ids in responses and log records, and one log line per answered request."""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.common.prefix import below
from model.log_lines import request_id

log = logging.getLogger("omni_r1.access")

HEADER = "X-Request-ID"
_SANE = re.compile(r"[A-Za-z0-9._:/+=@-]{1,128}")
# Frequent automatic requests: logged at DEBUG.
_QUIET = frozenset({"/livez", "/readyz", "/metrics", "/theme.css", "/favicon.ico", "/manifest.json"})
_QUIET_FOLDERS = ("/static/", "/assets/", "/gradio_api/", "/svelte/")
CLIENT_LEFT = 499  # nginx's code for a client that disconnected


class AccessLog:
    """The outermost middleware; assigns request ids and, with `write`, logs requests."""

    def __init__(self, app: ASGIApp, *, write: bool, tell: Callable[[str], None]) -> None:
        """`tell` gets each request's id in the context of the request."""
        self._app = app
        self._tell = tell
        self._write = write

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Give the request an id, the client's own if it is sane, and log its end."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        id_ = given if _SANE.fullmatch(given) else secrets.token_hex(8)
        self._tell(id_)
        request_id.set(id_)  # each request has its own task and context
        started = time.perf_counter()
        status, sent = CLIENT_LEFT, 0

        async def counting_send(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = id_
            elif message["type"] == "http.response.body":
                sent += len(message.get("body", b""))
            await send(message)

        try:
            await self._app(scope, receive, counting_send)
        except Exception:
            status = 500
            raise
        finally:
            self._log(scope, status, time.perf_counter() - started, sent)

    def _log(self, scope: Scope, status: int, seconds: float, sent: int) -> None:
        method, path = scope["method"], below(scope)
        level = logging.DEBUG if path in _QUIET or path.startswith(_QUIET_FOLDERS) else logging.INFO
        if not self._write or not log.isEnabledFor(level):
            return
        milliseconds = round(1000 * seconds, 1)
        fields = {"method": method, "path": path, "status": status, "duration_ms": milliseconds, "bytes": sent}
        words = "%s %s %d %.1f ms %d bytes"
        log.log(level, words, method, path, status, milliseconds, sent, extra={"fields": fields})

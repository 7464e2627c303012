"""Who may call: two ASGI middlewares in front of everything, Gradio's mount included.

The guard: `Host` must be a name of this machine (DNS rebinding), unsafe methods must not come from another site, bodies
are limited before they are read, and every answer says `nosniff`. The key, where OMNI_R1_API_KEY is set: only who has
it, or the signed cookie that :mod:`app.http.routes.login` gives for it, gets past `OPEN`. Without a key the server
binds loopback only (:mod:`app.common.settings`). The key itself is never logged and never stands in a URL.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Callable, Iterable
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.contract.problems import Problem, response_for
from app.http.brake import Brake

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
# A refused body is still read (and dropped) this far, so that the client sees the answer instead of a broken pipe.
_DRAIN_BYTES = 200_000_000
_DRAIN_S = 10.0
# What answers without the key: is it up, and where the key is given.
OPEN = frozenset({"/livez", "/readyz", "/login"})
COOKIE_S = 7 * 24 * 3600


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
                _protect(MutableHeaders(scope=message))
            await send(message)

        length = headers.get("content-length", "")
        if problem is None and length.isdecimal() and int(length) > self._max_body:
            problem = self._too_large()
        if problem is not None:
            await _drain(receive, int(length) if length.isdecimal() else None)
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
                await _drain(receive, None)
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
        if origin is not None and _authority(origin) != host.lower():
            return Problem("forbidden_origin", "the request comes from a page of another site")
        if headers.get("sec-fetch-site", "none") == "cross-site":
            return Problem("forbidden_origin", "the request comes from a page of another site")
        return None

    def _too_large(self) -> Problem:
        return Problem("body_too_large", f"a body may have {self._max_body} bytes; send a smaller file")


def _protect(headers: MutableHeaders) -> None:
    """No page of this server is shown inside another one, guessed to be something else, or named to other sites."""
    headers["X-Content-Type-Options"] = "nosniff"
    headers["X-Frame-Options"] = "DENY"
    headers.setdefault("Referrer-Policy", "same-origin")
    headers.setdefault("Content-Security-Policy", "frame-ancestors 'none'")


class ApiKey:
    """The server's key: tells the right one, makes and checks the cookies that stand for it.

    A cookie is its end (seconds since the epoch) and an HMAC over it; other servers' keys give other cookie names, so
    that two servers on one host do not log each other out.
    """

    def __init__(self, key: str, *, clock: Callable[[], float] = time.time) -> None:
        self._digest = hashlib.sha256(key.encode()).digest()
        # Slow on purpose, once a start: a stolen cookie is no shortcut to a weak key.
        self._secret = hashlib.scrypt(key.encode(), salt=b"omni-r1 login cookie", n=2**14, r=8, p=1)
        self._clock = clock
        self.brake = Brake()
        self.cookie_name = f"omni_r1_{self._sign('name')[:12]}"

    def is_key(self, given: bytes) -> bool:
        """Whether `given` is the key; takes as long for any other."""
        return hmac.compare_digest(hashlib.sha256(given).digest(), self._digest)

    def new_cookie(self) -> str:
        """A value that `is_cookie` takes for 7 days."""
        end = str(int(self._clock()) + COOKIE_S)
        return f"{end}.{self._sign(end)}"

    def is_cookie(self, value: str) -> bool:
        """Whether `value` was given by a server with this key and has not run out."""
        end, _, signature = value.partition(".")
        right = hmac.compare_digest(self._sign(end).encode(), signature.encode("utf-8", "replace"))
        return right and int(end) > self._clock()

    def admits(self, headers: Headers) -> bool:
        """Whether a request with these headers comes from somebody who has the key."""
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self.is_key(given.strip().encode("latin-1")):
            return True
        cookies = (cookie_parser(header).get(self.cookie_name) for header in headers.getlist("cookie"))
        return any(cookie is not None and self.is_cookie(cookie) for cookie in cookies)

    def _sign(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()


class KeyMiddleware:
    """Lets nobody past `OPEN` without the key."""

    def __init__(self, app: ASGIApp, *, key: ApiKey) -> None:
        self._app = app
        self._key = key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or scope["path"] in OPEN:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        if self._key.admits(headers):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _drain(receive, None)
            await _refusal(scope, headers)(scope, receive, send)


def too_many_tries(wait_s: int) -> Problem:
    """429: too many wrong keys from one address."""
    return Problem(
        "too_many_tries",
        f"too many wrong keys; try again in {wait_s} s",
        headers={"Retry-After": str(wait_s), "Cache-Control": "no-store"},
    )


def _refusal(scope: Scope, headers: Headers) -> Response:
    """401; a browser that wants to show a page is sent to the login instead."""
    wants_page = scope["method"] in ("GET", "HEAD") and "text/html" in headers.get("accept", "")
    if wants_page and headers.get("sec-fetch-mode", "navigate") == "navigate":
        wanted = quote(scope["path"])
        if scope["query_string"]:
            wanted += "?" + scope["query_string"].decode("latin-1")
        where = "/login" if wanted == "/" else f"/login?next={quote(wanted, safe='/')}"
        return RedirectResponse(where, 303, {"Cache-Control": "no-store"})
    given = "authorization" in headers
    problem = Problem(
        "wrong_key" if given else "key_required",
        "this is not the server's key"
        if given
        else "sign in at /login, or send the server's key as Authorization: Bearer KEY (OMNI_R1_API_KEY)",
        headers={
            "WWW-Authenticate": 'Bearer realm="omni-r1"' + (', error="invalid_token"' if given else ""),
            "Cache-Control": "no-store",
        },
    )
    return response_for(problem, scope["path"])


async def _drain(receive: Receive, expected: int | None) -> None:
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


def _authority(origin: str) -> str | None:
    """Host and port of an origin; None for what is no URL."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _bare(host: str) -> str:
    """The name without its port, IPv6 in brackets, lower case."""
    host = host.strip().lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    if host.count(":") > 1:
        return f"[{host}]"
    return host.partition(":")[0]

"""Access control: two ASGI middlewares in front of everything, Gradio's mount included.

The guard rejects unknown `Host` names (DNS rebinding) and unsafe cross-site requests, limits bodies before they are
read, and adds security headers. With OMNI_R1_API_KEY set, every path except `OPEN` requires it, a named key
(:mod:`app.http.keys`), or the signed cookie of a login. Without a key the server binds loopback only
(:mod:`app.common.settings`). Keys never appear in logs or URLs.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import time
from collections.abc import Awaitable, Callable, Iterable
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.common.prefix import below
from app.contract.problems import Problem
from app.http.brake import Brake
from app.http.errors import refused
from app.storage.keys import Caller, caller

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
LOOPBACK = frozenset({"127.0.0.1", "localhost", "[::1]"})
# Bodies of rejected requests are read and dropped up to here, so that clients see the response, not a broken pipe.
_DRAIN_BYTES = 200_000_000
_DRAIN_S = 10.0
# Paths that need no key: health checks and the login.
OPEN = frozenset({"/livez", "/readyz", "/login"})
COOKIE_S = 7 * 24 * 3600


class _TooLarge(Exception):
    pass


class GuardMiddleware:
    """Validates every request before any other component."""

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
        """Reject requests for other hosts, from other origins, and with bodies above the limit."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        problem = self._rejection(scope, headers)
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
            await refused(problem, scope)(scope, receive, guarded_send)
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
                await refused(self._too_large(), scope)(scope, receive, guarded_send)

    def _rejection(self, scope: Scope, headers: Headers) -> Problem | None:
        host = headers.get("host", "")
        if _bare(host) not in self._hosts:
            return Problem(
                "wrong_host", "use http://127.0.0.1 or http://localhost, or add the host to OMNI_R1_ALLOWED_HOSTS"
            )
        if scope.get("method", "GET") in SAFE and scope["type"] == "http":
            return None
        origin = headers.get("origin")
        if origin is not None and origin.lower() in self._origins:
            return None
        if origin is not None and _authority(origin) != host.lower():
            return Problem("forbidden_origin", "cross-site requests are not allowed")
        if headers.get("sec-fetch-site", "none") == "cross-site":
            return Problem("forbidden_origin", "cross-site requests are not allowed")
        return None

    def _too_large(self) -> Problem:
        return Problem("body_too_large", f"bodies are limited to {self._max_body} bytes; send a smaller file")


def _protect(headers: MutableHeaders) -> None:
    """Add headers against framing, content sniffing and referrer leaks."""
    headers["X-Content-Type-Options"] = "nosniff"
    headers["X-Frame-Options"] = "DENY"
    headers.setdefault("Referrer-Policy", "same-origin")
    headers.setdefault("Content-Security-Policy", "frame-ancestors 'none'")


class ApiKey:
    """The server's key: verifies it, and creates and verifies the cookies that replace it.

    A cookie is its expiry (seconds since the epoch) and an HMAC of it. Cookie names depend on the key, so that two
    servers on one host do not log each other out.
    """

    def __init__(self, key: str, *, clock: Callable[[], float] = time.time) -> None:
        self._digest = hashlib.sha256(key.encode()).digest()
        # Slow on purpose, once per start: a stolen cookie must not make a weak key easy to guess.
        self._secret = hashlib.scrypt(key.encode(), salt=b"omni-r1 login cookie", n=2**14, r=8, p=1)
        self._clock = clock
        self.brake = Brake()
        self.cookie_name = f"omni_r1_{self._sign('name')[:12]}"

    def is_key(self, given: bytes) -> bool:
        """Whether `given` is the key, in constant time."""
        return hmac.compare_digest(hashlib.sha256(given).digest(), self._digest)

    def new_cookie(self, owner: str = "") -> str:
        """A cookie value that is valid for 7 days, for this key or another one with that id."""
        signed = str(int(self._clock()) + COOKIE_S) + (f".{owner}" if owner else "")
        return f"{signed}.{self._sign(signed)}"

    def is_cookie(self, value: str) -> bool:
        """Whether `value` was issued by a server with this key and has not expired."""
        return self.cookie_owner(value) is not None

    def cookie_owner(self, value: str) -> str | None:
        """The id of the key that a valid cookie was issued for, "" for this one; None for any other value."""
        signed, _, signature = value.rpartition(".")
        right = hmac.compare_digest(self._sign(signed).encode(), signature.encode("utf-8", "replace"))
        end, _, owner = signed.partition(".")
        return owner if right and int(end) > self._clock() else None

    def _sign(self, text: str) -> str:
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()


class KeyMiddleware:
    """Requires a key for every path outside `OPEN`, and names the caller to the parts that serve the request."""

    def __init__(self, app: ASGIApp, *, find: Callable[[Headers], Awaitable[Caller | None]]) -> None:
        self._app = app
        self._find = find

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Reject requests without a key, after reading their body."""
        if scope["type"] not in ("http", "websocket") or below(scope) in OPEN:
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        who = await self._find(headers)
        if who is not None:
            token = caller.set(who)
            try:
                await self._app(scope, receive, send)
            finally:
                caller.reset(token)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await _drain(receive, None)
            await _rejection(scope, headers)(scope, receive, send)


def too_many_tries(wait_s: int) -> Problem:
    """429: too many wrong keys from one address."""
    return Problem(
        "too_many_tries",
        f"too many wrong keys; retry in {wait_s} s",
        headers={"Retry-After": str(wait_s), "Cache-Control": "no-store"},
    )


def _rejection(scope: Scope, headers: Headers) -> Response:
    """401, or a redirect to the login for browser page loads."""
    wants_page = scope["method"] in ("GET", "HEAD") and "text/html" in headers.get("accept", "")
    if wants_page and headers.get("sec-fetch-mode", "navigate") == "navigate":
        wanted = quote(below(scope))
        if scope["query_string"]:
            wanted += "?" + scope["query_string"].decode("latin-1")
        where = "/login" if wanted == "/" else f"/login?next={quote(wanted, safe='/')}"
        return RedirectResponse(where, 303, {"Cache-Control": "no-store"})
    given = "authorization" in headers
    problem = Problem(
        "wrong_key" if given else "key_required",
        "the key is wrong"
        if given
        else "sign in at /login, or send the key (OMNI_R1_API_KEY) as Authorization: Bearer KEY",
        headers={
            "WWW-Authenticate": 'Bearer realm="omni-r1"' + (', error="invalid_token"' if given else ""),
            "Cache-Control": "no-store",
        },
    )
    return refused(problem, scope)


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
    """Host and port of an origin; None for invalid URLs."""
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return None


def _bare(host: str) -> str:
    """The host name without port, lower case, IPv6 in brackets."""
    host = host.strip().lower()
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    if host.count(":") > 1:
        return f"[{host}]"
    return host.partition(":")[0]

"""A small reverse proxy that shows a server below a path prefix, as nginx or Caddy would."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator

import httpx
import uvicorn
from starlette.types import ASGIApp, Receive, Scope, Send

_HOP = (b"connection", b"keep-alive", b"transfer-encoding", b"upgrade")


def proxy(upstream: str, prefix: str, *, strip: bool, named: bool) -> ASGIApp:
    """An ASGI app that passes requests below `prefix` on to `upstream`, and answers all others with 418.

    With `strip` the server sees paths without the prefix; with `named` the proxy sends `X-Forwarded-Prefix`.
    """
    # a connection for each request: the server may close a kept one just when the next request is sent
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
    client = httpx.AsyncClient(base_url=upstream, timeout=None, limits=limits)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await client.aclose()
            await send({"type": "lifespan.shutdown.complete"})
            return
        path: str = scope["raw_path"].decode().partition("?")[0]
        if path != prefix and not path.startswith(f"{prefix}/"):
            await send({"type": "http.response.start", "status": 418, "headers": []})
            await send({"type": "http.response.body", "body": f"{path} is not below {prefix}".encode()})
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        headers = [(name, value) for name, value in scope["headers"] if name not in _HOP]
        if named:
            headers.append((b"x-forwarded-prefix", prefix.encode()))
        passed = (path.removeprefix(prefix) or "/") if strip else path
        query = b"?" + scope["query_string"] if scope["query_string"] else b""
        url = httpx.URL(upstream).copy_with(raw_path=passed.encode() + query)
        request = client.build_request(scope["method"], url, headers=headers, content=body)
        answer = await client.send(request, stream=True)
        try:
            kept = [(name.lower(), value) for name, value in answer.headers.raw if name.lower() not in _HOP]
            await send({"type": "http.response.start", "status": answer.status_code, "headers": kept})
            async for piece in answer.aiter_raw():
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
        finally:
            await answer.aclose()

    return app


@contextlib.contextmanager
def running_proxy(upstream: str, prefix: str = "/studio", *, strip: bool, named: bool = False) -> Iterator[str]:
    """Run the proxy in a thread; yields the address of the studio behind it, without a slash at its end."""
    sock = socket.create_server(("127.0.0.1", 0))
    app = proxy(upstream, prefix, strip=strip, named=named)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [sock]}, name="proxy")
    thread.start()
    try:
        yield f"http://127.0.0.1:{sock.getsockname()[1]}{prefix}"
    finally:
        server.should_exit = True
        thread.join()
        sock.close()

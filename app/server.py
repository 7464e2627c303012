"""The HTTP server: listening socket, uvicorn configuration, and shutdown by signals within 10 s."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import signal
import socket
import time
from collections.abc import Callable
from types import FrameType

import uvicorn
from fastapi import FastAPI

from app.common import logs
from app.exit_watch import ExitWatch
from app.forwarded import Forwarded
from app.http.connections import ConnectionGuard, Listener, connection_limit, raise_descriptor_limit
from app.http.deps import Services
from app.runtime import Runtime

GRACEFUL_S = 2
DRAIN_S = 8.0  # of the 10 s for a shutdown
SAME_REQUEST_S = 0.5
BAD_START = 2


class StudioServer(uvicorn.Server):
    """uvicorn that ends traces before closing connections; exits 0 on the first signal, immediately on the second."""

    def __init__(self, config: uvicorn.Config, runtime: Runtime, watch: ExitWatch) -> None:
        super().__init__(config)
        self._runtime = runtime
        self._watch = watch
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Task[None] | None = None
        self._signalled_at: float | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start listening; `stop` needs the loop from here on."""
        self._loop = asyncio.get_running_loop()
        await super().startup(sockets)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the shutdown; another signal ends the process at once."""
        now = time.monotonic()
        if self._signalled_at is None:
            self._signalled_at = now
            self._watch.start()
        elif sig == signal.SIGTERM and now - self._signalled_at < SAME_REQUEST_S:
            return  # make forwards a SIGTERM that its process group already got
        else:
            self._watch.end_now(128 + sig)
        self.stop()

    def stop(self) -> None:
        """Start the shutdown; callable from a signal handler."""
        if self._loop is None or not self.started:
            self.should_exit = True
        else:
            # A context of its own: a signal interrupts any task, and the shutdown is not part of that task's request.
            self._loop.call_soon_threadsafe(self._begin, context=contextvars.Context())

    def _begin(self) -> None:
        self._stopping = asyncio.ensure_future(self._stop())

    async def _stop(self) -> None:
        try:
            await self._runtime.stop_traces()
        finally:
            self.should_exit = True


def server_config(app: FastAPI, guard: ConnectionGuard) -> uvicorn.Config:
    """The uvicorn configuration for connections of `guard`."""
    config = uvicorn.Config(
        app,
        loop="asyncio",  # its listening socket may be ours
        http=guard.protocol(),
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=GRACEFUL_S,
        ws="none",
        lifespan="on",
        proxy_headers=False,  # `Forwarded` does that
    )
    services: Services = app.state.services
    config.app = Forwarded(app, root_path=services.settings.root_path, trusted=config.forwarded_allow_ips)
    return config


def run_app(app: FastAPI, sock: Listener, *, kill_engine: Callable[[], None] | None = None) -> int:
    """Serve `app` on a bound socket until a signal; returns the exit code. `kill_engine` must not block."""
    runtime: Runtime = app.state.runtime
    services: Services = app.state.services
    host, port = sock.getsockname()[:2]
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    runtime.base_url = f"http://{f'[{reached}]' if ':' in reached else reached}:{port}"
    guard = ConnectionGuard(connection_limit(raise_descriptor_limit()), timeout_s=services.settings.client_timeout_s)
    services.metrics.watch("omni_r1_connections", "Open connections of clients.", lambda: len(guard.open))

    def kill_children() -> None:
        if kill_engine is not None:
            kill_engine()
        services.hub.kill()

    watch = ExitWatch(DRAIN_S, kill_children)
    watch.arm()
    server = StudioServer(server_config(app, guard), runtime, watch)
    runtime.on_failure = server.stop
    sock.guard = guard
    server.run(sockets=[sock])
    gc.freeze()  # the final collection would walk all of Gradio, which takes seconds
    if runtime.failure is not None:
        logs.fatal(runtime.failure)
        return BAD_START
    return 0


def bind(host: str, port: int) -> Listener:
    """Bind the listening socket before anything else starts; raises OSError with one line."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = Listener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)  # explicit, so that asyncio sets TCP_NODELAY
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host.strip("[]"), port))
        sock.listen(2048)
    except OSError as error:
        sock.close()
        raise OSError(f"cannot listen on {host}:{port}: {error.strerror}; choose another port with PORT=") from None
    sock.set_inheritable(False)
    return sock

"""Client connections: a limit on their number, and deadlines for slow clients.

File descriptors are limited, and the engine, the database and running work need some at any time, so clients get only
a share. When it is used up, the longest-waiting connection is evicted; if all are processing requests, a new one gets
a 503. Deadlines close connections that send nothing, or too slowly.

``ConnectionGuard``  counts and evicts; its protocol class goes to uvicorn (`http=`)
``Listener``         the listening socket: asks the guard before a connection is accepted
``PatienceMiddleware``  reports start and end of requests to the guard; 408 for a body that does not arrive in time
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import resource
import socket
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from h11 import LocalProtocolError
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from app.contract.problems import Problem, response_for
from app.http.errors import refused

log = logging.getLogger("omni_r1.server")

# Descriptors never given to clients: engine, databases, workers, files, imports.
RESERVED = 128
# A connection takes a socket and at times an open file.
EACH = 2
MOST, LEAST = 4096, 16
WANTED_DESCRIPTORS = 65_536
# Accepted per turn of the event loop, before evicted connections have freed their descriptors.
BURST = 16
# A body that is still arriving is not cut off for a new connection.
STALLED_S = 1.0
LINGER_S = 1.0
# Minimum rate of a body after the first `timeout_s`.
LEAST_BYTES_PER_S = 1024
# Readers get this many times the deadline of senders.
READER_PATIENCE = 3
MOST_STREAMS = 0.75  # of all connections
STATE = "connection"  # key of the Connection in a request's scope


def raise_descriptor_limit() -> int:
    """Raise the soft limit of open files to the hard limit; returns the limit in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, WANTED_DESCRIPTORS)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return WANTED_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def connection_limit(descriptors: int) -> int:
    """The number of connections that a process with that many descriptors may have."""
    return max(LEAST, min(MOST, (descriptors - RESERVED) // EACH))


class Connection:
    """One client connection: processing a request or waiting for its client. On the event loop."""

    def __init__(self, guard: ConnectionGuard, transport: asyncio.Transport) -> None:
        self._guard = guard
        self._transport = transport
        self._requests = 0
        self._unsent = 0
        self._timer: asyncio.TimerHandle | None = None
        self._reader_timer: asyncio.TimerHandle | None = None

    @contextlib.contextmanager
    def request(self) -> Iterator[None]:
        """Processing while the block runs."""
        self._requests += 1
        self._stop_waiting()
        try:
            yield
        finally:
            self._requests -= 1
            if not self._requests:
                self.wait()

    @contextlib.contextmanager
    def body(self) -> Iterator[None]:
        """Waiting for a request body; the receiver enforces its own deadline."""
        self._guard.waiting[self] = time.monotonic() + STALLED_S
        try:
            yield
        finally:
            self._guard.waiting.pop(self, None)

    def wait(self) -> None:
        """Wait for the next request head, for at most `timeout_s`."""
        if self in self._guard.open:
            self._guard.waiting[self] = time.monotonic()
            self._unsent = self._transport.get_write_buffer_size()
            self._timer = asyncio.get_running_loop().call_later(self._guard.timeout_s, self._expired)

    def _expired(self) -> None:
        unsent = self._transport.get_write_buffer_size()
        if 0 < unsent < self._unsent:  # a slow reader is still reading
            self._unsent = unsent
            self._timer = asyncio.get_running_loop().call_later(self._guard.timeout_s, self._expired)
        elif unsent:
            self._transport.abort()
        else:
            self._transport.close()

    def pause(self) -> None:
        """The client reads too slowly."""
        patience = READER_PATIENCE * self._guard.timeout_s
        self._reader_timer = asyncio.get_running_loop().call_later(patience, self._transport.abort)

    def resume(self) -> None:
        """The client has caught up."""
        if self._reader_timer is not None:
            self._reader_timer.cancel()
            self._reader_timer = None

    def abort(self) -> None:
        """Evict the connection; its descriptor is free in the next turn of the event loop."""
        self._transport.abort()
        self.closed()

    def closed(self) -> None:
        """The connection is closed or closing."""
        self._stop_waiting()
        self.resume()
        self._guard.open.discard(self)

    def _stop_waiting(self) -> None:
        self._guard.waiting.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @contextlib.contextmanager
    def stream(self) -> Iterator[bool]:
        """Count an event stream while the block runs; yields whether it leaves enough other connections."""
        self._guard.streams += 1
        try:
            yield self._guard.streams <= self._guard.most * MOST_STREAMS
        finally:
            self._guard.streams -= 1


class ConnectionGuard:
    """All connections of one server."""

    def __init__(self, most: int, *, timeout_s: float) -> None:
        """`timeout_s` is the deadline for a request head."""
        self.most = most
        self.timeout_s = timeout_s
        self.open: set[Connection] = set()
        self.waiting: dict[Connection, float] = {}  # evictable, longest-waiting first, with the time from which
        self.streams = 0
        self.arriving = 0  # accepted, without a protocol yet

    def admit(self) -> bool:
        """Whether another connection may be accepted, evicting one if necessary."""
        if len(self.open) + self.arriving < self.most:
            return True
        now = time.monotonic()
        victim = next((one for one, since in self.waiting.items() if since <= now), None)
        if victim is None:
            return False
        victim.abort()
        return True

    def protocol(self) -> Any:
        """The factory for uvicorn's `http` protocol."""
        return functools.partial(GuardedProtocol, self)


class GuardedProtocol(H11Protocol):
    """uvicorn's protocol with its connection registered at a guard and in the requests' `scope["state"]`."""

    def __init__(self, guard: ConnectionGuard, *, app_state: dict[str, Any], **options: Any) -> None:
        self._guard = guard
        self._connection: Connection | None = None
        self._own_state = dict(app_state)
        super().__init__(app_state=self._own_state, **options)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Register the connection and start the deadline of its first request head."""
        assert isinstance(transport, asyncio.Transport)
        self._guard.arriving = max(0, self._guard.arriving - 1)
        connection = self._connection = Connection(self._guard, transport)
        self._own_state[STATE] = connection
        self._guard.open.add(connection)
        connection.wait()
        super().connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Unregister the connection."""
        if self._connection is not None:
            self._connection.closed()
            self._own_state.pop(STATE, None)
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the deadline for a client that does not read."""
        if self._connection is not None:
            self._connection.pause()
        super().pause_writing()

    def resume_writing(self) -> None:
        """End that deadline."""
        if self._connection is not None:
            self._connection.resume()
        super().resume_writing()


class Listener(socket.socket):
    """A listening socket that accepts only what its guard admits."""

    guard: ConnectionGuard | None = None  # None: accept everything
    _burst = 0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.rejected: deque[socket.socket] = deque()

    def accept(self) -> tuple[socket.socket, Any]:
        """Non-blocking accept: BlockingIOError makes the event loop come back later."""
        if self._burst >= BURST:
            raise BlockingIOError
        connection, address = super().accept()
        if self._burst == 0:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._burst += 1
        if self.guard is not None:
            if not self.guard.admit():
                self._reject(connection)
                raise BlockingIOError
            self.guard.arriving += 1
        return connection, address

    def _next_turn(self) -> None:
        self._burst = 0

    def _reject(self, connection: socket.socket) -> None:
        answer = response_for(too_many(), "/")
        head = "".join(f"{name.decode()}: {value.decode()}\r\n" for name, value in answer.raw_headers)
        with contextlib.suppress(OSError):
            connection.setblocking(False)
            connection.send(f"HTTP/1.1 503 Service Unavailable\r\n{head}\r\n".encode() + bytes(answer.body))
            connection.shutdown(socket.SHUT_WR)
        # Closed later: a request that arrives after the close would cause a reset and lose the response.
        self.rejected.append(connection)
        asyncio.get_running_loop().call_later(LINGER_S, connection.close)
        if len(self.rejected) > BURST:
            self.rejected.popleft().close()

    def close(self) -> None:
        """Close the socket and the rejected connections that still linger."""
        for connection in self.rejected:
            connection.close()
        super().close()


def too_many() -> Problem:
    """503 for too many connections or streams."""
    detail = "the connection limit is reached; close some, or raise the limit of open files (ulimit -n)"
    return Problem("too_many_connections", detail, headers={"Retry-After": "2", "Connection": "close"})


class PatienceMiddleware:
    """Reports requests to the guard and aborts stalled bodies; runs outside all body readers."""

    def __init__(self, app: ASGIApp, *, timeout_s: float) -> None:
        """`timeout_s` is the maximum pause within a body."""
        self._app = app
        self._timeout_s = timeout_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Count the connection as busy during the request, and put a deadline on its body."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        connection: Connection | None = scope.get("state", {}).get(STATE)
        request = _Request(scope, receive, send, connection, self._timeout_s)
        with connection.request() if connection is not None else contextlib.nullcontext():
            await self._app(scope, request.receive, request.send)


class _Request:
    """One request whose body has a deadline. After it the client gets a 408 and the app sees a disconnect."""

    def __init__(
        self, scope: Scope, receive: Receive, send: Send, connection: Connection | None, timeout_s: float
    ) -> None:
        self._scope = scope
        self._receive = receive
        self._send = send
        self._connection = connection
        self._timeout_s = timeout_s
        self._began = time.monotonic()
        self._bytes = 0
        self._whole = False  # the body is complete or will never be
        self._started = False
        self._given_up = False
        self._rejected = False

    async def receive(self) -> Message:
        if self._given_up:
            return {"type": "http.disconnect"}
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout(self._patience()) as deadline:
                with self._connection.body() if self._connection is not None else contextlib.nullcontext():
                    message = await self._receive()
        except TimeoutError:
            if not deadline.expired():
                raise
            await self._give_up()
            return {"type": "http.disconnect"}
        self._bytes += len(message.get("body", b""))
        self._whole = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    def _patience(self) -> float:
        slowest = self._began + self._timeout_s + self._bytes / LEAST_BYTES_PER_S
        return max(0.0, min(self._timeout_s, slowest - time.monotonic()))

    async def _give_up(self) -> None:
        self._whole = True
        if not self._started:
            detail = f"the body stalled for {self._timeout_s:g} s or was too slow; send the request again"
            refusal = Problem("request_timeout", detail, headers={"Connection": "close"})
            await refused(refusal, self._scope)(self._scope, self._receive, self._send)
        self._given_up = True

    async def send(self, message: Message) -> None:
        if self._rejected or (self._given_up and not self._started):
            return  # the 408 or uvicorn's own 400 has been sent
        self._started = True
        try:
            await self._send(message)
        except LocalProtocolError:  # invalid body: uvicorn has answered and closes the connection
            self._rejected = self._given_up = True

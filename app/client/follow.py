"""Follows an event stream across broken connections and server restarts. Knows no routes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import httpx

from app.client.errors import MalformedAnswer, NotReady, ServerUnreachable, api_error
from app.client.sse import Cursor, Event, EventParser, MalformedStream

PING_S = 15.0  # interval of keep-alive comments; after three missing ones the connection is dead
GIVE_UP_S = 30.0  # how long to retry an unavailable server


def follow(
    http: httpx.Client,
    url: str,
    cursor: Cursor,
    *,
    give_up_s: float = GIVE_UP_S,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Event]:
    """Yields the events after the cursor, live, each once and in order, until the cursor has seen the last one.

    Reconnects after broken connections; raises ServerUnreachable after `give_up_s` seconds without events, and ApiError
    for error responses.
    """
    last_sign, pause_s = clock(), 0.1
    while not cursor.done:
        try:
            with http.stream("GET", url, headers=cursor.headers(), timeout=_timeout()) as response:
                if response.status_code == 204:
                    return
                _raise_for_stream(response)
                for event in _read(response, cursor):
                    last_sign, pause_s = clock(), 0.1
                    yield event
                cursor.closed()
        except (httpx.TransportError, MalformedStream, NotReady) as error:
            if clock() - last_sign > give_up_s:
                raise unreachable(http, error) from error
        if not cursor.done:
            if clock() - last_sign > give_up_s:
                raise ServerUnreachable(f"the stream {url} keeps ending early")
            sleep(pause_s)
            pause_s = min(2 * pause_s, 2.0)


def unreachable(http: httpx.Client, error: Exception) -> ServerUnreachable:
    """The exception for a missing response."""
    reason = str(error) or type(error).__name__
    return ServerUnreachable(f"no answer from {str(http.base_url).rstrip('/')} ({reason})")


def _timeout() -> httpx.Timeout:
    return httpx.Timeout(5.0, read=3 * PING_S)


def _raise_for_stream(response: httpx.Response) -> None:
    if response.is_error:
        response.read()
        raise api_error(response)
    if not response.headers.get("content-type", "").startswith("text/event-stream"):
        raise MalformedAnswer(f"{response.request.url} did not return an event stream")


def _read(response: httpx.Response, cursor: Cursor) -> Iterator[Event]:
    parser = EventParser()
    for chunk in response.iter_bytes():
        for event in parser.feed(chunk):
            if cursor.accept(event):
                yield event
                if cursor.done:
                    return

"""Five hundred rude connections to a real server with 256 open files: traces continue, other clients are served."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest

from tests.e2e.real_server import Server
from tests.e2e.server.test_server import ask
from tests.e2e.server.test_server_life import start_many

pytestmark = pytest.mark.timeout(600)
COUNT = 500
POST = b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 9000\r\n\r\n"
KINDS = {"idle": b"", "half a head": POST[:30], "half a body": POST + b"half"}


class FewFiles(Server):
    """A server under `ulimit -n 256`."""

    def command(self) -> list[str]:
        return ["sh", "-c", 'ulimit -n 256; exec "$@"', "sh", *super().command()]


@contextlib.contextmanager
def rude(server: Server, sent: bytes) -> Iterator[None]:
    """They connect one after another, and stay."""
    address = ("127.0.0.1", int(server.url.rsplit(":", 1)[1]))
    taken: list[socket.socket] = []

    def connect() -> None:
        for _ in range(COUNT):
            with contextlib.suppress(OSError):
                taken.append(socket.create_connection(address, timeout=60))
                taken[-1].sendall(sent)

    thread = threading.Thread(target=connect)
    thread.start()
    try:
        yield
        thread.join()
    finally:
        for connection in taken:
            connection.close()


def answered(client: httpx.Client, path: str) -> int:
    """The status for a new connection. Slow connections may be evicted; a 503 is repeated after its Retry-After."""
    for _ in range(20):
        with contextlib.suppress(httpx.RemoteProtocolError, httpx.ReadError, httpx.WriteError):
            answer = client.get(path, headers={"Connection": "close"})
            if answer.status_code != 503:
                return answer.status_code
            assert answer.json()["code"] == "too_many_connections", answer.text
            time.sleep(float(answer.headers["retry-after"]))
    return client.get(path, headers={"Connection": "close"}).status_code


@pytest.mark.parametrize("sent", KINDS.values(), ids=KINDS.keys())
def test_five_hundred_rude_connections_fail_no_trace(fresh_server: Server, sent: bytes) -> None:
    server = FewFiles(fresh_server.home, fresh_server.environment)
    try:
        server.start()
        with server.client() as client:
            ids = start_many(client, 8)
            with rude(server, sent):
                for trace_id in ids:
                    events = list(client.events(trace_id))
                    assert events[-1].type == "trace.completed", events[-1].data
            with rude(server, sent), httpx.Client(base_url=server.url, timeout=60) as fresh:
                for _ in range(20):
                    assert answered(fresh, "/livez") == answered(fresh, "/v1/traces") == 200
                assert list(client.events(ask(client)["id"]))[-1].type == "trace.completed"
        assert server.stop() == 0
        assert "out of system resource" not in server.log.read_text()
    finally:
        server.kill()

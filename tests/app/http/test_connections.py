"""Rude clients (idle, slow, incomplete, numerous) must not affect others."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator

import pytest

from app.http import connections
from app.http.connections import LEAST, MOST, connection_limit
from tests.app.conftest import Serve, Server
from tests.fakes import FakeGeneration, held

pytestmark = pytest.mark.slow

Pair = tuple[asyncio.StreamReader, asyncio.StreamWriter]
HEAD = b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\nContent-Length: 90000\r\n\r\n"
KINDS = {
    "nothing": b"",
    "half a head": b"GET /livez HTTP/1.1\r\nHost: loc",
    "a head without its body": HEAD,
    "half a body": HEAD + b"x" * 100,
    "half a chunk": b"POST /v1/traces HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    b'Transfer-Encoding: chunked\r\n\r\n40\r\n{"que',
    "half a form": b"POST /v1/images HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n"
    b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n",
    "a body for a route that wants none": b"GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 90\r\n\r\n",
    "a body for another host": b"POST /v1/traces HTTP/1.1\r\nHost: elsewhere\r\nContent-Length: 90\r\n\r\n",
}
kinds = pytest.mark.parametrize("sent", KINDS.values(), ids=KINDS.keys())


@contextlib.asynccontextmanager
async def connected(server: Server, count: int, sent: bytes) -> AsyncIterator[list[Pair]]:
    """That many connections, each having sent these bytes."""
    pairs: list[Pair] = []
    try:
        for _ in range(count):
            pairs.append(await asyncio.open_connection("127.0.0.1", server.port))
            with contextlib.suppress(ConnectionError):
                pairs[-1][1].write(sent)
        yield pairs
    finally:
        for _, writer in pairs:
            writer.close()


async def rest(reader: asyncio.StreamReader) -> bytes:
    """All further data until the server closes."""
    with contextlib.suppress(ConnectionError):
        async with asyncio.timeout(60):
            return await reader.read()
    return b""


@kinds
async def test_slow_clients_are_disconnected(serve: Serve, sent: bytes) -> None:
    async with serve(client_timeout_s=0.5) as server:
        async with connected(server, 3, sent) as pairs:
            answers = [await rest(reader) for reader, _ in pairs]
        for answer in answers:
            if b"POST /v1/" in sent and b"elsewhere" not in sent:
                assert answer.startswith(b"HTTP/1.1 408 "), answer
                assert b'"code": "request_timeout"' in answer
                assert b"connection: close" in answer.lower()
        while server.guard.open:  # none but the client's own, which may be idle
            if len(server.guard.open) <= 1:
                break
            await asyncio.sleep(0.01)


async def test_dripping_body_is_disconnected(serve: Serve) -> None:
    async with serve(client_timeout_s=1.0) as server, connected(server, 1, HEAD) as [(reader, writer)]:

        async def drip() -> None:
            with contextlib.suppress(ConnectionError):
                while True:
                    writer.write(b"x")
                    await writer.drain()
                    await asyncio.sleep(0.05)

        task = asyncio.create_task(drip())
        answer = await asyncio.wait_for(reader.read(12), 60)
        task.cancel()
        assert answer == b"HTTP/1.1 408"


async def test_slow_but_steady_body_is_read(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes longer than the deadline in total, without a pause of that length."""
    body = b'{"question": "Where?", "images": 0}'
    head = b"POST /v1/limits HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += b"Content-Length: %d\r\n\r\n" % len(body)
    monkeypatch.setattr(connections, "LEAST_BYTES_PER_S", 1)
    async with serve(client_timeout_s=5.0) as server, connected(server, 1, head) as [(reader, writer)]:
        for at in range(0, len(body), 4):
            writer.write(body[at : at + 4])
            await asyncio.sleep(1)
        assert (await reader.readline()).startswith(b"HTTP/1.1 200 ")


@kinds
async def test_idle_connections_are_evicted_for_new_requests(
    serve: Serve, engine: FakeGeneration, sent: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A hundred rude connections with twenty allowed: requests are answered and streams stay complete."""
    monkeypatch.setattr(connections, "STALLED_S", 0.0)
    engine.script = held
    async with serve(most_connections=20, client_timeout_s=600) as server:
        trace = await server.create()
        stream = asyncio.create_task(server.stream(trace["id"]))
        while server.services.events.open_streams < 1:
            await asyncio.sleep(0.005)
        async with connected(server, 100, sent):
            assert len(server.guard.open) <= 20
            for _ in range(5):
                assert (await server.client.get("/livez")).status_code == 200
            engine.go("end")
            assert (await stream)[-1].type == "trace.completed"
            assert (await server.get((await server.create())["id"]))["question"]


async def test_full_server_limits_streams_to_their_share(serve: Serve, engine: FakeGeneration) -> None:
    engine.script = held
    async with serve(most_connections=20) as server:
        trace = await server.create()
        request = f"GET /v1/traces/{trace['id']}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        async with connected(server, 15, request):
            while server.services.events.open_streams < 15:
                await asyncio.sleep(0.005)
            async with connected(server, 1, request) as [(reader, _)]:
                rejected = await reader.readuntil(b"}")
                assert rejected.startswith(b"HTTP/1.1 503 ")
                assert b'"code": "too_many_connections"' in rejected
            assert (await server.client.get("/livez")).status_code == 200
            assert server.services.events.open_streams == 15
        while server.guard.streams:
            await asyncio.sleep(0.005)
        engine.go("end")
        await server.finished(trace["id"])


async def test_busy_server_rejects_new_connections_with_503(
    serve: Serve, engine: FakeGeneration, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "MOST_STREAMS", 1.0)
    engine.script = held
    async with serve(most_connections=20) as server:
        trace = await server.create()
        await server.client.aclose()
        request = f"GET /v1/traces/{trace['id']}/events HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        async with connected(server, 20, request):
            while server.services.events.open_streams < 20:
                await asyncio.sleep(0.005)
            async with connected(server, 30, b"") as pairs:
                answers = [await rest(reader) for reader, _ in pairs]
            assert all(answer.startswith(b"HTTP/1.1 503 ") for answer in answers)
            assert all(b'"code": "too_many_connections"' in answer for answer in answers)
            assert server.services.events.open_streams == 20
        engine.go("end")


async def test_stalled_reader_is_disconnected(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither its connection nor its pending data stays in memory."""
    async with serve(client_timeout_s=0.3) as server:
        request = b"GET /openapi.json HTTP/1.1\r\nHost: localhost\r\n\r\n"
        _, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        before = len(server.guard.open)
        for _ in range(400):  # more than the system's buffers hold
            writer.write(request)
        while len(server.guard.open) >= max(1, before):
            await asyncio.sleep(0.01)
        writer.transport.abort()


async def test_keep_alive_connection_serves_many_requests(server: Server) -> None:
    before = len(server.guard.open)
    for _ in range(50):
        assert (await server.client.get("/livez")).status_code == 200
    assert len(server.guard.open) == before


@pytest.mark.parametrize("descriptors", [0, 64, 200, 256, 1024, 20_000, 10**6])
def test_clients_get_a_share_of_the_descriptors(descriptors: int) -> None:
    limit = connection_limit(descriptors)
    assert LEAST <= limit <= MOST
    if descriptors >= 200:
        assert limit <= descriptors - 128


def test_open_file_limit_is_raised() -> None:
    code = (
        "import resource; soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (min(300, hard), hard))\n"
        "from app.http.connections import raise_descriptor_limit\n"
        "got = raise_descriptor_limit()\n"
        "assert got == resource.getrlimit(resource.RLIMIT_NOFILE)[0]\n"
        "assert got == min(hard, 65536) or hard == resource.RLIM_INFINITY, (got, hard)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", ["/v1/images", "/v1/traces", "/v1/jobs", "/login", "/livez", "/nowhere"])
@pytest.mark.parametrize("body", [b"zz\r\n", b"5\r\nabc", b"-1\r\n\r\n", b"\x00\x00\r\n"])
async def test_invalid_chunk_gets_one_response(
    serve: Serve, caplog: pytest.LogCaptureFixture, path: str, body: bytes
) -> None:
    head = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
    head += "Transfer-Encoding: chunked\r\n\r\n"
    async with serve() as server:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        writer.write(head.encode() + body)
        writer.write_eof()
        answer = await rest(reader)
        writer.close()
        assert answer == b"" or answer.startswith(b"HTTP/1.1 4"), answer
        assert (await server.client.get("/livez")).status_code == 200
    assert not [record for record in caplog.records if record.exc_info]

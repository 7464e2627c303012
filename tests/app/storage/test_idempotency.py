"""`Idempotency-Key`: one resource, one response."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx

from tests.app.conftest import Serve, Server, both_databases, is_problem, parse_sse, running
from tests.fakes import FakeGeneration


async def post(server: Server, body: Any, key: str, **headers: str) -> httpx.Response:
    """Create a trace under a key."""
    return await server.client.post("/v1/traces", json=body, headers={"Idempotency-Key": key, **headers})


@both_databases
async def test_same_key_replays_after_a_restart(tmp_path: Path, package: Path) -> None:
    async with running(tmp_path / "home", package, FakeGeneration()) as server:
        body = await server.body()
        first = await post(server, body, "one")
        assert first.status_code == 201
        assert "idempotent-replayed" not in first.headers
        await server.finished(first.json()["id"])
    async with running(tmp_path / "home", package, FakeGeneration()) as server:
        again = await post(server, body, "one")
        assert (again.status_code, again.json()) == (201, first.json())
        assert again.headers["idempotent-replayed"] == "true"
        assert again.headers["location"] == first.headers["location"]
        stream = await post(server, body, "one", accept="text/event-stream")
        events = parse_sse(stream.content)
        assert (events[0].id, events[-1].type) == (1, "trace.completed")
        is_problem(await post(server, {**body, "mode": "step"}, "one"), 422, "idempotency_mismatch")
        assert len((await server.client.get("/v1/traces")).json()["data"]) == 1


@both_databases
async def test_concurrent_request_with_the_key_gets_409(serve: Serve, engine: FakeGeneration) -> None:
    gate = asyncio.Event()
    load = engine.load

    async def slow_load(name: str, folder: str, version: int) -> None:
        await gate.wait()
        await load(name, folder, version)

    async with serve() as server:
        body = await server.body()
        engine.loaded.clear()
        engine.load = slow_load  # type: ignore[method-assign]
        first = asyncio.create_task(post(server, body, "k"))
        while not server.services.idempotency._in_flight:
            await asyncio.sleep(0.002)
        second = await post(server, body, "k")
        is_problem(second, 409, "request_in_progress")
        assert second.headers["retry-after"] == "1"
        gate.set()
        assert (await first).status_code == 201
        assert (await post(server, body, "k")).json() == (await first).json()


async def test_rejected_request_frees_its_key(server: Server) -> None:
    body = await server.body()
    is_problem(await post(server, {**body, "checkpoint": "x"}, "k"), 422, "unknown_checkpoint")
    assert (await post(server, body, "k")).status_code == 201


async def test_key_is_1_to_128_visible_characters(server: Server) -> None:
    body = await server.body()
    for key in ("", "a b", "x" * 129):
        is_problem(await post(server, body, key), 422, "invalid", "header.Idempotency-Key")
    assert (await post(server, body, "x" * 128)).status_code == 201

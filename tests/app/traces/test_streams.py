"""Event streams: commit before show, byte-identical replay, resume, many disconnecting readers."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.storage import tables
from app.storage.database import Database, now
from app.traces.event_log import EventLog
from app.traces.event_writer import num_batches
from app.traces.records import store
from model.engine.messages import GenerationRequest
from tests.app.conftest import Serve, Server, Sse, both_databases, parse_sse, running
from tests.fakes import FakeGeneration, Item, Wait, answer_items, emitted, held, png, step_items
from tests.patience import PATIENCE_S


def bytes_of(events: list[Sse]) -> bytes:
    """The received bytes."""
    return b"".join(event.raw for event in events)


# ---- the log alone


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    """A migrated database."""
    database = Database(database_url)
    database.migrate()
    yield database
    database.close()


def insert_trace(db: Database, trace_id: str) -> None:
    """A trace row for events."""
    row = {
        "id": trace_id,
        "server_id": "s",
        "status": "running",
        "question": "?",
        "images": [],
        "mode": "auto",
        "checkpoint": "c",
        "weight_version": 1,
        "sampling": {},
        "partial_images": 0,
        "background": True,
        "metadata": {},
        "timings": {},
        "created_at": now(),
    }
    with db.write() as connection:
        store.insert(connection, row, ("trace.queued", "{}"))


@both_databases
async def test_event_is_committed_before_readers_see_it(db: Database) -> None:
    insert_trace(db, "t")
    seen_uncommitted = []
    log = EventLog(db)
    log.start()
    log.open("t", 1)

    async def reader() -> None:
        async for chunk in log.read("t", 0):
            for event in parse_sse(chunk):
                with db.read() as connection:
                    if store.last_seq(connection, "t") < event.id:
                        seen_uncommitted.append(event.id)

    task = asyncio.create_task(reader())
    for number in range(200):
        log.append("t", "text.delta", {"step": 1, "text": str(number)})
        if number % 20 == 0:
            await asyncio.sleep(0.001)
    await log.append("t", "trace.completed", {}, urgent=True)
    await task
    await log.close()
    assert seen_uncommitted == []


async def test_one_writer_batches_all_traces(db: Database) -> None:
    for number in range(20):
        insert_trace(db, f"t{number}")
    log = EventLog(db)
    log.start()
    for number in range(20):
        log.open(f"t{number}", 1)
    start = time.monotonic()
    for _ in range(40):
        for number in range(20):
            log.append(f"t{number}", "text.delta", {"step": 1, "text": "x"})
        await asyncio.sleep(0.005)
    await log.append("t0", "trace.completed", {}, urgent=True)
    elapsed = time.monotonic() - start
    assert log.committed_events == 801
    assert log.commits <= elapsed / 0.02 + 3
    await log.close()


def test_commit_spacing_with_many_readers_is_bounded() -> None:
    assert [num_batches(readers) for readers in (0, 1, 16, 24, 50, 1000)] == [1, 1, 1, 1.5, 3, 3]


async def test_urgent_event_skips_the_batch(db: Database) -> None:
    insert_trace(db, "t")
    log = EventLog(db, batch_s=30)
    log.start()
    log.open("t", 1)
    await log.append("t", "step.started", {"step": 1})
    slow = log.append("t", "text.delta", {"step": 1, "text": "a"})
    await asyncio.sleep(0.05)
    assert not slow.done()
    await log.append("t", "trace.paused", {"step": 1}, urgent=True)
    assert slow.done()
    await log.close()


@both_databases
async def test_terminal_event_and_row_share_a_transaction(db: Database) -> None:
    insert_trace(db, "t")

    def broken(connection: Any) -> None:
        store.finish(connection, "t", status="completed")
        if not calls:
            calls.append(1)
            raise OSError("the disk has gone")

    calls: list[int] = []
    log = EventLog(db)
    log.start()
    log.open("t", 1)
    done = log.append("t", "trace.completed", {}, urgent=True, update=broken)
    while not calls:
        await asyncio.sleep(0.001)
    with db.read() as connection:
        half = (store.last_seq(connection, "t"), store.get_row(connection, "t").status)  # type: ignore[union-attr]
    await done
    with db.read() as connection:
        whole = (store.last_seq(connection, "t"), store.get_row(connection, "t").status)  # type: ignore[union-attr]
    assert half == (1, "running")
    assert whole == (2, "completed")
    await log.close()


async def test_failed_commits_are_retried_without_loss(db: Database) -> None:
    insert_trace(db, "t")
    failures = [sa.exc.OperationalError("x", None, Exception("database is locked"))] * 2

    def flaky(_connection: Any) -> None:
        if failures:
            raise failures.pop()

    log = EventLog(db)
    log.start()
    log.open("t", 1)
    first = log.append("t", "text.delta", {"step": 1, "text": "a"}, update=flaky)
    while log.trouble is None:
        await asyncio.sleep(0.001)
    await log.append("t", "trace.completed", {}, urgent=True)
    assert first.done()
    assert log.trouble is None
    assert [seq for seq, _type, _data in log.stored("t")] == [1, 2, 3]
    await log.close()


# ---- over HTTP


async def test_replay_is_byte_identical_to_the_live_stream(server: Server, engine: FakeGeneration) -> None:
    odd = 'Grün \u2028 \x85 שלום 🟥 "quoted" \\n \r\n tab\t'
    engine.script = lambda _request: [
        emitted("step.started", step=1),
        emitted("text.delta", step=1, text=odd),
        emitted("step.completed", step=1),
        Wait("end"),
        *answer_items("red"),
    ]
    created = await server.create()
    live = asyncio.create_task(server.stream(created["id"]))
    await server.until(created["id"], "step.completed")
    engine.go("end")
    streamed = bytes_of(await live)
    assert bytes_of(await server.stream(created["id"])) == streamed
    assert (await server.get(created["id"]))["steps"][0]["text"] == odd
    assert b"\r" not in streamed
    for block in streamed.split(b"\n\n")[:-1]:
        assert len(block.split(b"\n")) == 3


async def test_header_position_takes_precedence(server: Server) -> None:
    created = await server.create()
    everything = await server.stream(created["id"])
    for position in (0, 1, 5, len(everything) - 1):
        assert await server.stream(created["id"], after=position) == everything[position:]
    with_both = await server.stream(created["id"], after=1, **{"Last-Event-ID": "6"})
    assert with_both == everything[6:]
    for position in (len(everything), len(everything) + 10):
        answer = await server.client.get(f"/v1/traces/{created['id']}/events", params={"after": position})
        assert (answer.status_code, answer.content) == (204, b"")


@pytest.mark.parametrize("junk", ["-1", "1.5", "abc", "", " 1", "1e3", "٣", "9" * 30, "0x1"])
async def test_invalid_position_is_rejected(server: Server, junk: str) -> None:
    url = f"/v1/traces/{(await server.create())['id']}/events"
    for header in ({}, {"Last-Event-ID": "1"}):
        by_query = await server.client.get(url, params={"after": junk}, headers=header)
        assert (by_query.status_code, by_query.json()["code"]) == (400, "bad_position")
    if junk.isascii() and junk == junk.strip():
        by_header = await server.client.get(url, params={"after": "0"}, headers={"Last-Event-ID": junk})
        assert (by_header.status_code, by_header.json()["code"]) == (400, "bad_position")


async def test_silent_stream_sends_keep_alive_comments(serve: Serve, engine: FakeGeneration) -> None:
    engine.script = held
    async with serve(ping_s=0.05) as server:
        created = await server.create()
        async with server.client.stream("GET", f"/v1/traces/{created['id']}/events") as answer:
            async for chunk in answer.aiter_raw():
                if chunk == b": ping\n\n":
                    return
        pytest.fail("the stream ended without a comment")


async def test_stream_stays_open_across_a_pause(server: Server, engine: FakeGeneration) -> None:
    engine.script = held
    engine.go("end")
    created = await server.create(mode="step")
    reader = asyncio.create_task(server.stream(created["id"]))
    await server.until(created["id"], "trace.paused")
    await server.client.post(f"/v1/traces/{created['id']}/continue", json={"mode": "auto"})
    events = await reader
    assert [event.id for event in events] == list(range(1, len(events) + 1))
    assert events[-1].type == "trace.completed"
    assert server.services.events.traces_in_memory == 0


@both_databases
async def test_invariant_13_reconnect_loses_and_repeats_no_event(tmp_path: Path, package: Path) -> None:
    first = FakeGeneration(held)
    async with running(tmp_path / "home", package, first) as server:
        ended = await server.create(mode="auto")
        paused = await server.create(mode="step")
        got = await server.until(paused["id"], "trace.paused")
        live = await server.until(ended["id"], "step.completed")
        first.go("end")
        whole = bytes_of(await server.stream(ended["id"]))
    second = FakeGeneration(held)
    second.go("end")
    async with running(tmp_path / "home", package, second) as server:
        assert bytes_of(await server.stream(ended["id"])) == whole
        assert bytes_of(live) + bytes_of(await server.stream(ended["id"], after=live[-1].id)) == whole
        reader = asyncio.create_task(server.stream(paused["id"], after=got[-1].id))
        answer = await server.client.post(f"/v1/traces/{paused['id']}/continue", json={"mode": "auto"})
        assert answer.status_code == 200
        assert second.requests[-1].resume is not None
        events = got + await reader
        assert [event.id for event in events] == list(range(1, len(events) + 1))
        assert bytes_of(await server.stream(paused["id"])) == bytes_of(events)
        trace = await server.get(paused["id"])
        assert (trace["status"], trace["answer"], len(trace["steps"])) == ("completed", "red", 1)


async def test_fifty_dropping_readers_get_every_event_once(server: Server, engine: FakeGeneration) -> None:
    def long_script(_request: GenerationRequest) -> list[Item]:
        items: list[Item] = []
        for step in range(1, 9):
            items += step_items(step, "one two three four five six seven eight nine ten " * 2, png(box=step))
        return [*items, *answer_items("red")]

    engine.script = long_script
    engine.pace_s = 0.004
    rng = random.Random(5)

    async def dropping(server: Server, trace_id: str) -> bytes:
        got: list[Sse] = []
        while not got or got[-1].type != "trace.completed":
            last = got[-1].id if got else 0
            stop = last + rng.randrange(1, 40)
            header = {"Last-Event-ID": str(last)} if rng.random() < 0.5 else {}
            got += await server.stream(trace_id, after=last, until=lambda e, stop=stop: e.id >= stop, **header)
        return bytes_of(got)

    traces = [(await server.create())["id"] for _ in range(5)]
    readers = [dropping(server, traces[n % 5]) if n % 2 else server.stream(traces[n % 5]) for n in range(50)]
    results = await asyncio.gather(*readers)
    for number, result in enumerate(results):
        whole = bytes_of(await server.stream(traces[number % 5]))
        assert (result if isinstance(result, bytes) else bytes_of(result)) == whole
    async with asyncio.timeout(PATIENCE_S):  # the server notices disconnects with a delay
        while server.services.events.open_streams or server.services.events.traces_in_memory:
            await asyncio.sleep(0.01)


async def test_stalled_reader_blocks_nothing(server: Server, engine: FakeGeneration) -> None:
    big = "x" * 2000
    engine.script = lambda _request: [
        emitted("step.started", step=1),
        *(emitted("text.delta", step=1, text=big) for _ in range(800)),
        *answer_items("red"),
    ]
    created = await server.create()
    _reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
    writer.write(f"GET /v1/traces/{created['id']}/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    await writer.drain()
    ended = await server.finished(created["id"])
    assert ended["status"] == "completed"
    writer.close()
    while server.services.events.open_streams:
        await asyncio.sleep(0.01)
    assert server.services.events.traces_in_memory == 0


@both_databases
async def test_deleted_trace_leaves_no_rows(server: Server) -> None:
    created = await server.create()
    await server.finished(created["id"])
    await server.client.delete(f"/v1/traces/{created['id']}")
    with server.services.db.read() as connection:
        for table in (tables.traces, tables.events, tables.trace_images):
            assert connection.execute(sa.select(sa.func.count()).select_from(table)).scalar() == 0

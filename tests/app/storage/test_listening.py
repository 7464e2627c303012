"""Readers of another server's traces: PostgreSQL announces the events; without that they are looked for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.storage.database import Database
from app.storage.dialects import announce
from app.traces import reader
from app.traces.records import group_store, several
from tests.app.conftest import Server, both_databases, running
from tests.fakes import FakeGeneration, held
from tests.patience import PATIENCE_S
from tests.postgres import Cluster

pytestmark = pytest.mark.slow
NEVER = 3600.0


@contextlib.asynccontextmanager
async def pair(folder: Path, package: Path, url: str, engine: FakeGeneration) -> AsyncIterator[tuple[Server, Server]]:
    """Two servers on one database; traces run on the first one, which has `engine`."""
    shared: dict[str, Any] = {"database_url": url}
    async with (
        running(folder / "one", package, engine, **shared) as one,
        running(folder / "two", package, FakeGeneration(), **shared) as two,
    ):
        yield one, two


async def listening(url: str, servers: int = 2) -> None:
    """Wait until that many connections have sent LISTEN."""
    query = sa.text("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
    database = Database(url)
    async with asyncio.timeout(PATIENCE_S):
        while True:
            with database.read() as connection:
                if connection.execute(query).scalar() == servers:
                    break
            await asyncio.sleep(0.01)
    database.close()


@pytest.fixture
def no_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers look for nothing that is not announced."""
    monkeypatch.setattr(reader, "LOOK_EVERY_S", NEVER)


@pytest.mark.parametrize("what", ["completed", "cancelled", "dead server", "group"])
async def test_every_end_is_announced(
    tmp_path: Path, package: Path, postgres_url: str, no_looking: None, what: str
) -> None:
    engine = FakeGeneration(held)
    async with pair(tmp_path, package, postgres_url, engine) as (one, two):
        await listening(postgres_url)
        trace = await one.create(**({"n": 2} if what == "group" else {}))
        kind, log_id = ("groups", trace["group_id"]) if what == "group" else ("traces", trace["id"])
        started = asyncio.Event()

        def begun(event: Any) -> bool:
            if event.type == "step.completed":
                started.set()
            return False

        following = asyncio.create_task(two.stream(log_id, until=begun, kind=kind))
        await started.wait()
        if what == "cancelled":
            await one.client.post(f"/v1/traces/{log_id}/cancel")
        elif what == "dead server":
            with two.services.db.write() as connection:
                group_store.end_left_over(
                    connection, [one.services.traces._launcher.server_id()], {"code": "interrupted", "detail": "x"}
                )
        else:
            engine.go("end")
        async with asyncio.timeout(PATIENCE_S):
            seen = await following
        assert [event.raw for event in seen] == [event.raw for event in await one.stream(log_id, kind=kind)]
        assert two.services.events.traces_in_memory == 0


async def test_many_readers_cost_one_look(
    tmp_path: Path, package: Path, postgres_url: str, no_looking: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    real = several.events_after

    def counted(connection: Any, positions: Any, limit: int) -> Any:
        found = real(connection, positions, limit)
        looks.append(len(found))
        return found

    monkeypatch.setattr(several, "events_after", counted)
    engine = FakeGeneration(held)
    async with pair(tmp_path, package, postgres_url, engine) as (one, two):
        await listening(postgres_url)
        trace = await one.create()
        readers = [asyncio.create_task(two.stream(trace["id"])) for _ in range(20)]
        while two.services.events.readers(trace["id"]) < 20:
            await asyncio.sleep(0.005)
        engine.go("end")
        logs = [await one_reader for one_reader in readers]
        stored = [event.raw for event in await one.stream(trace["id"])]
    assert [[event.raw for event in log] for log in logs] == [stored] * 20
    assert sum(looks) <= len(stored)  # no event is read twice, whatever the number of readers
    assert len(looks) <= len(stored) + 1


@pytest.mark.parametrize("after", [0, 2, 10_000])
async def test_readers_at_any_position_get_the_rest(
    tmp_path: Path, package: Path, postgres_url: str, after: int
) -> None:
    engine = FakeGeneration(held)
    async with pair(tmp_path, package, postgres_url, engine) as (one, two):
        trace = await one.create()
        await one.until(trace["id"], "step.completed")
        readers = [asyncio.create_task(two.stream(trace["id"], position)) for position in (after, 1, 0)]
        while two.services.events.readers(trace["id"]) < 3:
            await asyncio.sleep(0.005)
        engine.go("end")
        stored = [event.raw for event in await one.stream(trace["id"])]
        for position, following in zip((after, 1, 0), readers, strict=True):
            if position <= len(stored):
                assert [event.raw for event in await following] == stored[position:]
            else:
                following.cancel()


async def test_without_announcements_events_are_looked_for(
    tmp_path: Path, package: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError("no LISTEN here")

    monkeypatch.setattr(Database, "listen", refuse)
    monkeypatch.setattr(reader, "LISTEN_AGAIN_S", 0.001)
    monkeypatch.setattr(reader, "LOOK_EVERY_S", 0.01)
    engine = FakeGeneration(held)
    async with pair(tmp_path, package, postgres_url, engine) as (one, two):
        trace = await one.create()
        following = asyncio.create_task(two.stream(trace["id"]))
        while not two.services.events.readers(trace["id"]):
            await asyncio.sleep(0.005)
        engine.go("end")
        stored = [event.raw for event in await one.stream(trace["id"])]
        assert [event.raw for event in await following] == stored
    assert caplog.text.count("listening to other servers failed, retrying: no LISTEN here") == 2  # once per server


async def test_readers_elsewhere_end_with_a_deleted_trace(
    tmp_path: Path, package: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "LOOK_EVERY_S", 0.05)
    async with pair(tmp_path, package, postgres_url, FakeGeneration(held)) as (one, two):
        trace = await one.create(mode="step")
        following = asyncio.create_task(two.stream(trace["id"]))
        await one.until(trace["id"], "trace.paused")
        while not two.services.events.readers(trace["id"]):
            await asyncio.sleep(0.005)
        assert (await one.client.delete(f"/v1/traces/{trace['id']}")).status_code == 204
        async with asyncio.timeout(PATIENCE_S):
            assert [event.type for event in await following][-1] in ("trace.paused", "trace.cancelled")


async def test_listening_resumes_after_a_restart_of_the_database(
    tmp_path: Path, package: Path, own_cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "LISTEN_AGAIN_S", 0.01)
    url = own_cluster.new()
    async with pair(tmp_path, package, url, FakeGeneration()):
        await listening(url)
        await asyncio.to_thread(own_cluster.stop)
        await asyncio.to_thread(own_cluster.start)
        await listening(url)


@both_databases
def test_announcements_of_any_number_arrive(database_url: str) -> None:
    """One notice holds at most 8,000 bytes; SQLite has nobody to notify."""
    database = Database(database_url)
    database.migrate()
    heard: set[str] = set()
    closing, whole = threading.Event(), threading.Event()
    wanted = {f"tr_{n:020}" for n in range(1000)}

    def hear(log_ids: list[str]) -> None:
        heard.update(log_ids)
        if heard >= wanted:
            whole.set()

    thread = threading.Thread(target=database.listen, args=(hear, closing), daemon=True)
    thread.start()
    if database_url.startswith("sqlite"):
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    else:
        while not whole.wait(0.05):  # until LISTEN has been sent
            with database.write() as connection:
                announce(connection, wanted)
        closing.set()
        thread.join(PATIENCE_S)
        assert heard == wanted
    database.close()

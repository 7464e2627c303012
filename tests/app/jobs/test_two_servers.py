"""Two servers on one database: one dies, seems dead or returns; readers during a database restart."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from app.client import Client
from app.contract.words import JOB_TERMINAL
from app.jobs.servers import DIED
from app.storage import tables
from app.traces.records import group_store
from tests.app.conftest import Server, both_databases, is_problem, parse_sse, running
from tests.app.job_helpers import FakeCheckpoints, code, events, get, of_type, post, statuses, worker
from tests.app.jobs.test_faults import Killable
from tests.e2e.real_server import wait_until
from tests.fakes import FakeGeneration, Wait, emitted, held, png
from tests.postgres import Cluster

pytestmark = pytest.mark.slow


# ---- servers in this process


async def fall_silent(server: Server) -> None:
    """Stop this server's heartbeat and backdate the last one."""
    await server.services.servers.close()
    with server.services.db.write() as connection:
        mine = tables.servers.c.id == server.services.traces._launcher.server_id()
        connection.execute(sa.update(tables.servers).where(mine).values(heartbeat_at=0.0))


async def look(server: Server) -> None:
    """Check as often as it takes to find a server dead."""
    for _ in range(3):
        await asyncio.to_thread(server.services.servers.beat)


@both_databases
async def test_dead_servers_traces_end_elsewhere(tmp_path: Path, package: Path, database_url: str) -> None:
    engine = FakeGeneration(held, num_slots=1)
    async with (
        running(tmp_path / "one", package, engine, database_url=database_url) as one,
        running(tmp_path / "two", package, FakeGeneration(held), database_url=database_url) as two,
    ):
        paused = await one.create(mode="step")
        await one.until(paused["id"], "trace.paused")
        trace, queued = await one.create(), await one.create()
        seen = await one.until(trace["id"], "step.completed")
        own = await two.create()
        readers = [asyncio.create_task(server.stream(trace["id"])) for server in (one, two)]
        while one.services.events.open_streams < 1:
            await asyncio.sleep(0.002)
        for call in ("cancel", "continue"):
            is_problem(await two.client.post(f"/v1/traces/{paused['id']}/{call}"), 409, "trace_elsewhere")

        await fall_silent(one)
        await look(two)
        for id_ in (trace["id"], queued["id"]):
            ended = await two.get(id_)
            assert (ended["status"], ended["error"]["code"]) == ("interrupted", "interrupted")
        statuses = {paused["id"]: "paused", own["id"]: "running"}
        assert {id_: (await two.get(id_))["status"] for id_ in statuses} == statuses

        engine.go("end")  # the server returns: its events are dropped
        logs = [await reader for reader in readers]
        for log in logs:
            assert [event.raw for event in log] == [event.raw for event in await two.stream(trace["id"])]
            assert [event.raw for event in log[:-1]] == [event.raw for event in seen]
            assert (log[-1].type, log[-1].data["error"]["code"]) == ("trace.failed", "interrupted")
        while one.services.traces.active_ids:
            await asyncio.sleep(0.002)
        assert {trace["id"], queued["id"]} & set(engine.aborts)
        assert engine.running == 0
        assert (await one.client.post(f"/v1/traces/{trace['id']}/cancel")).json()["status"] == "interrupted"

        # Its paused trace cannot resume here, but can be ended.
        is_problem(await two.client.post(f"/v1/traces/{paused['id']}/continue"), 409, "trace_elsewhere")
        assert (await two.client.post(f"/v1/traces/{paused['id']}/cancel")).json()["status"] == "cancelled"
        is_problem(await one.client.post(f"/v1/traces/{paused['id']}/continue"), 409, "not_paused")
        assert [event.type for event in await one.stream(paused["id"])][-1] == "trace.cancelled"


async def test_silent_trace_stops_at_the_next_heartbeat(tmp_path: Path, package: Path, postgres_url: str) -> None:
    engine = FakeGeneration(held)
    settings: dict[str, Any] = {"database_url": postgres_url, "dead_after_s": 0.6}
    async with running(tmp_path / "one", package, engine, **settings) as one:
        trace = await one.create()
        await one.until(trace["id"], "step.completed")  # from here on the engine is silent
        reader = asyncio.create_task(one.stream(trace["id"]))
        with one.services.db.write() as connection:
            group_store.end_left_over(connection, [one.services.traces._launcher.server_id()], DIED)
        assert (await reader)[-1].type == "trace.failed"
        while one.services.traces.active_ids:
            await asyncio.sleep(0.002)
        assert engine.aborts == [trace["id"]]


async def test_image_drawn_after_the_end_is_swept(tmp_path: Path, package: Path, engine: FakeGeneration) -> None:
    late = png((1, 2, 3))
    engine.script = lambda _request: [
        emitted("step.started", step=1),
        Wait("end"),
        emitted("image.completed", step=1, png=late),
        Wait("never"),
    ]
    async with running(tmp_path / "home", package, engine) as server:
        trace = await server.create()
        await server.until(trace["id"], "step.started")
        with server.services.db.write() as connection:
            group_store.end_left_over(connection, [server.services.traces._launcher.server_id()], DIED)
        engine.go("end")
        image_id = hashlib.sha256(late).hexdigest()
        while (await server.client.get(f"/v1/images/{image_id}")).status_code != 200:
            await asyncio.sleep(0.01)
        assert [event.type for event in await server.stream(trace["id"])][-2:] == ["step.started", "trace.failed"]
        with server.services.db.read() as connection:
            links = connection.execute(sa.select(tables.trace_images.c.image_id)).scalars().all()
        assert image_id not in links
        assert server.services.traces.active_ids == []


@both_databases
@pytest.mark.parametrize("what", ["wait", "obey"])
async def test_returning_server_continues_its_job(tmp_path: Path, package: Path, database_url: str, what: str) -> None:
    shared = {"database_url": database_url, "job_command": worker(what)}
    async with (
        running(tmp_path / "one", package, FakeGeneration(), **shared) as one,
        running(tmp_path / "two", package, FakeGeneration(), **shared) as two,
    ):
        one.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(one)
        url = f"/v1/jobs/{job['id']}"
        await events(one, job["id"], until=of_type("metrics"))
        reader = asyncio.create_task(events(two, job["id"]))
        runner = one.services.jobs._runner
        beat = runner._store.beat
        runner._store.beat = lambda _job_id: False  # type: ignore[method-assign]  # the process is stopped
        await fall_silent(one)
        await look(two)
        assert statuses(await reader) == ["queued", "running", "interrupted"]
        assert (await get(two, job["id"]))["status"] == "interrupted"
        assert code(await two.client.post(f"{url}/resume")) == "job_elsewhere"
        assert code(await one.client.post(f"{url}/resume")) == "not_resumable"
        assert code(await one.client.delete(url)) == "job_live"

        runner._store.beat = beat  # type: ignore[method-assign]  # it is back, and its worker has not stopped
        while (await get(one, job["id"]))["status"] == "interrupted":
            await asyncio.sleep(0.01)
        assert ((await get(two, job["id"]))["attempt"], (await get(two, job["id"]))["error"]) == (2, None)
        if what == "wait":
            (tmp_path / "one" / "jobs" / job["id"] / "go").touch()
        else:
            assert (await two.client.post(f"{url}/cancel")).status_code == 200
        end = "succeeded" if what == "wait" else "cancelled"
        found = await events(one, job["id"])
        assert statuses(found) == ["queued", "running", "interrupted", "running", end]


# ---- readers during a PostgreSQL restart


async def follow_raw(server: Server, kind: str, id_: str, started: asyncio.Event) -> bytes:
    """The whole body of one stream over one connection."""
    got = b""
    async with server.client.stream("GET", f"/v1/{kind}/{id_}/events") as answer:
        assert answer.status_code == 200
        async for chunk in answer.aiter_raw():
            got += chunk
            started.set()
    return got


async def test_streams_survive_a_database_restart(tmp_path: Path, package: Path, own_cluster: Cluster) -> None:
    engine = FakeGeneration(held)
    shared = {"database_url": own_cluster.new(), "job_command": worker("wait")}
    async with (
        running(tmp_path / "one", package, engine, **shared) as one,
        running(tmp_path / "two", package, FakeGeneration(), **shared) as two,
    ):
        one.services.jobs._checkpoints = FakeCheckpoints()
        trace, job = await one.create(), await post(one)
        await one.until(trace["id"], "step.completed")
        await events(one, job["id"], until=of_type("metrics"))
        begun = [asyncio.Event() for _ in range(4)]
        wanted = [
            (server, kind, id_) for server in (one, two) for kind, id_ in (("traces", trace["id"]), ("jobs", job["id"]))
        ]
        readers = [asyncio.create_task(follow_raw(*which, event)) for which, event in zip(wanted, begun, strict=True)]
        for event in begun:
            await event.wait()

        await asyncio.to_thread(own_cluster.stop)
        for server in (one, two):
            while (await server.client.get("/readyz")).status_code != 503:
                await asyncio.sleep(0.01)
            for path in (f"/v1/traces/{trace['id']}", f"/v1/jobs/{job['id']}/events", "/v1/jobs"):
                answer = await server.client.get(path)
                is_problem(answer, 503, "database_unavailable")
                assert answer.headers["retry-after"]
        assert not any(reader.done() for reader in readers)
        await asyncio.to_thread(own_cluster.start)
        engine.go("end")
        (tmp_path / "one" / "jobs" / job["id"] / "go").touch()
        bodies = [parse_sse(await reader) for reader in readers]
        for (server, kind, id_), body in zip(wanted, bodies, strict=True):
            assert [event.id for event in body] == list(range(1, len(body) + 1))
            assert [event.raw for event in body] == [event.raw for event in await server.stream(id_, kind=kind)]
        assert bodies[0][-1].type == bodies[2][-1].type == "trace.completed"
        assert statuses(bodies[1])[-1] == statuses(bodies[3])[-1] == "succeeded"
        for server in (one, two):
            assert (await server.client.get("/readyz")).status_code == 200
            assert (await server.finished((await server.create())["id"]))["status"] == "completed"


# ---- real processes


@pytest.mark.parametrize("fate", ["killed", "stopped"])
def test_killed_process_leaves_no_running_trace(
    tmp_path: Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch, fate: str
) -> None:
    environment = {"OMNI_R1_DATABASE_URL": postgres_url, "OMNI_R1_DEAD_AFTER_S": "4"}
    one, two = (Killable(tmp_path / name, "wait", environment) for name in ("one", "two"))
    one.command += ["--pace", "0.5"]
    try:
        with one.start() as first, two.start() as second:
            for client in (first, second):
                wait_until(lambda client=client: client.readiness()["phase"] == "ready", "a ready server", 120)
            trace = ask(first)
            job = first.create_job(
                {"method": "pesft", "base_checkpoint": "nano-omni-r1", "data": {"source": "unitasks"}}
            )
            for event in first.events(trace["id"]):
                if event.type == "text.delta":
                    break
            wait_until(lambda: second.job(job["id"])["status"] == "running", "the job's start", 60)
            assert one.process is not None
            os.kill(one.process.pid, signal.SIGKILL if fate == "killed" else signal.SIGSTOP)
            log = list(second.events(trace["id"]))
            assert (log[-1].type, log[-1].data["error"]["code"]) == ("trace.failed", "interrupted")
            assert second.trace(trace["id"])["status"] == "interrupted"
            assert [e.data["status"] for e in second.job_events(job["id"]) if e.type == "job.status"][
                -1
            ] == "interrupted"
            if fate == "stopped":
                os.kill(one.process.pid, signal.SIGCONT)
                assert [event.seq for event in first.events(trace["id"])] == [event.seq for event in log]
            else:
                one.kill()
                one.start().close()
            folder = tmp_path / "one" / "jobs" / job["id"]
            (folder / "go").touch()
            wait_until(lambda: settled(second, job["id"], fate), "the job's end", 60)
            ends = [data["attempt"] for data in reported(second, job["id"]) if data["status"] in JOB_TERMINAL]
            assert len(set(ends)) == len(ends)
            assert second.trace(trace["id"])["status"] == "interrupted"
            assert [event.seq for event in second.events(trace["id"])] == [event.seq for event in log]
    finally:
        for server in (one, two):
            if server.process is not None and server.process.poll() is None:
                server.kill()


def settled(client: Client, job_id: str, fate: str) -> bool:
    return client.job(job_id)["status"] in (("succeeded",) if fate == "stopped" else ("succeeded", "interrupted"))


def reported(client: Client, job_id: str) -> list[dict[str, Any]]:
    return [event.data for event in client.job_events(job_id) if event.type == "job.status"]


def ask(client: Client) -> dict[str, Any]:
    task = client.task(slice="natural")
    return client.create_trace(task["question"], [task["image_id"]])

"""Jobs when server, worker, both or the database fail; and two servers on one database."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
import sqlalchemy as sa

from app.client import Client
from app.storage import tables
from tests.app.conftest import Serve, Server, both_databases, running
from tests.app.job_helpers import FakeCheckpoints, code, events, get, of_type, post, statuses, worker
from tests.e2e.real_server import ROOT, runs, wait_until
from tests.fakes import FakeGeneration
from tests.patience import PATIENCE_S

pytestmark = pytest.mark.slow


def worker_pid(server: Server, job_id: str) -> int:
    with server.services.db.read() as connection:
        kept = connection.execute(sa.select(tables.jobs.c.worker).where(tables.jobs.c.id == job_id)).scalar()
    assert kept is not None
    return int(kept["pid"])


def gone(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


async def started(server: Server, job_id: str) -> int:
    """The job's worker, once its row names it."""
    await events(server, job_id, until=of_type("metrics"))
    pid = worker_pid(server, job_id)
    assert not gone(pid)
    return pid


@both_databases
async def test_stopped_server_lets_workers_save(tmp_path: Path, package: Path, engine: FakeGeneration) -> None:
    async with running(tmp_path / "home", package, engine, job_command=worker("obey")) as server:
        registry = server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server)
        pid = await started(server, job["id"])
        reading = asyncio.create_task(events(server, job["id"]))
        await events(server, job["id"], until=of_type("metrics"))
        await server.stop()
        assert gone(pid)
        assert [made["step"] for made in registry.registered] == [2]
        assert statuses(await reading) == ["queued", "running", "interrupted"]

        await server.start()
        server.services.jobs._checkpoints = FakeCheckpoints()
        found = await get(server, job["id"])
        assert (found["status"], found["error"]["code"]) == ("interrupted", "interrupted")
        assert (await server.client.post(f"/v1/jobs/{job['id']}/resume")).status_code == 202
        assert statuses(await events(server, job["id"]))[-3:] == ["queued", "running", "succeeded"]


async def test_stubborn_worker_is_killed_by_the_next_server(
    tmp_path: Path, package: Path, engine: FakeGeneration
) -> None:
    settings = {"job_command": worker("stubborn"), "job_patience_s": 0.2}
    async with running(tmp_path / "home", package, engine, **settings) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()
        server.services.jobs._runner._patience_s = 600.0
        job = await post(server)
        pid = await started(server, job["id"])
        stop = server.services.jobs._runner.stop
        server.services.jobs._runner.stop = lambda: stop(timeout_s=0.1)  # type: ignore[method-assign]
        await server.stop()
        assert not gone(pid)
        await server.start()
        found = await events(server, job["id"])
        assert statuses(found) == ["queued", "running", "interrupted"]
        wait_until(lambda: gone(pid), "the end of the worker")
        os.waitpid(pid, 0)


async def test_killed_worker_fails_the_job(serve: Serve) -> None:
    async with serve(job_command=worker("stubborn"), job_patience_s=0.2) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server)
        os.kill(await started(server, job["id"]), signal.SIGKILL)
        error = (await events(server, job["id"]))[-1].data["error"]
        assert error["code"] == "worker_died"
        assert "signal 9" in error["detail"]
        resumed = await server.client.post(f"/v1/jobs/{job['id']}/resume")
        assert resumed.status_code == 202  # a checkpoint was saved
        await events(server, job["id"], after=8, until=of_type("metrics"))


async def test_worker_stopped_by_hand_is_interrupted(serve: Serve) -> None:
    async with serve(job_command=worker("obey")) as server:
        server.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(server)
        os.kill(await started(server, job["id"]), signal.SIGTERM)
        assert statuses(await events(server, job["id"]))[-1] == "interrupted"


async def test_database_outage_ends_no_job(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    async with serve(job_command=worker("succeed")) as server:
        service = server.services.jobs
        service._checkpoints = FakeCheckpoints()
        monkeypatch.setattr("app.jobs.runner.RETRY_S", 0.01)
        rejected: list[str] = []

        def refusing(name: str, times: int) -> None:
            real = getattr(service._table, name)

            def method(*args: Any, **kwargs: Any) -> Any:
                if rejected.count(name) < times:
                    rejected.append(name)
                    raise sa.exc.OperationalError("COMMIT", None, OSError("disk is full"))
                return real(*args, **kwargs)

            monkeypatch.setattr(service._table, name, method)

        for name in ("claim", "started", "record", "finish"):
            refusing(name, 2)
        job = await post(server)
        found = await events(server, job["id"])
        assert sorted(set(rejected)) == ["claim", "finish", "record", "started"]
        assert statuses(found) == ["queued", "running", "succeeded"]
        assert [event.data["step"] for event in found if event.type == "metrics"] == [3, 4]


@both_databases
async def test_servers_keep_to_their_own_jobs(
    tmp_path: Path, package: Path, engine: FakeGeneration, database_url: str
) -> None:
    shared = {"database_url": database_url, "job_command": worker("obey")}
    async with running(tmp_path / "one", package, engine, **shared) as one:
        one.services.jobs._checkpoints = FakeCheckpoints()
        job = await post(one)
        await started(one, job["id"])
        async with running(tmp_path / "two", package, FakeGeneration(), **shared) as two:
            url = f"/v1/jobs/{job['id']}"
            assert (await get(two, job["id"]))["status"] == "running"  # the other server's start has not ended it
            following = asyncio.create_task(events(two, job["id"]))
            assert code(await two.client.delete(url)) == "job_elsewhere"
            assert (await two.client.post(f"{url}/cancel")).json()["cancel_requested"] is True
            assert statuses(await following) == ["queued", "running", "cancelled"]
            assert code(await two.client.post(f"{url}/resume")) == "job_elsewhere"
            assert (await two.client.get(f"{url}/files/log.txt")).status_code == 404
            assert (await one.client.get(f"{url}/files/log.txt")).status_code == 200
        assert (await one.client.post(f"{url}/resume")).status_code == 202
        assert statuses(await events(one, job["id"]))[-1] == "succeeded"


# ---- a real server that is killed


class Killable:
    """The real server on a scripted engine, as a process."""

    def __init__(self, home: Path, what: str, environment: Mapping[str, str] | None = None) -> None:
        self.home = home
        self.environment = {"OMNI_R1_JOB_PATIENCE_S": "1", **(environment or {})}
        self.command = [sys.executable, "-m", "tests.fake_server", "--port", "0", "--home", str(home), "--no-page"]
        self.command += ["--worker", shlex.join(worker(what))]
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> Client:
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OMNI_R1_")}
        environment |= self.environment
        self.process = subprocess.Popen(
            self.command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        assert self.process.stdout is not None
        url = next(word for word in self.process.stdout.readline().split() if word.startswith("http://"))
        client = Client(url)
        wait_until(client.alive, "the server")
        return client

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait(PATIENCE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def workers(self) -> list[psutil.Process]:
        assert self.process is not None
        return [child for child in psutil.Process(self.process.pid).children() if runs(child, "fake_worker")]


@pytest.fixture
def killable(tmp_path: Path) -> Iterator[Callable[[str], Killable]]:
    made: list[Killable] = []

    def make(what: str) -> Killable:
        made.append(Killable(tmp_path / "home", what))
        return made[-1]

    yield make
    for one in made:
        if one.process is not None and one.process.poll() is None:
            one.kill()


@pytest.mark.parametrize("what", ["obey", "stubborn"])
def test_invariant_14_killed_server_resumes_its_job(killable: Callable[[str], Killable], what: str) -> None:
    """`stubborn` outlives its server and is found by the next one."""
    server = killable(what)
    client = server.start()
    spec = {"method": "pesft", "base_checkpoint": "nano-omni-r1", "data": {"source": "unitasks"}}
    job = client.create_job(spec)
    for event in client.job_events(job["id"]):
        if event.type == ("metrics" if what == "obey" else "checkpoint"):
            break
    (process,) = server.workers()
    server.kill()
    if what == "obey":
        process.wait(PATIENCE_S)  # it has noticed by itself, and saved
    else:
        assert process.is_running()
    client.close()

    server.command += ["--worker", shlex.join(worker("obey"))]
    with server.start() as client:
        events = list(client.job_events(job["id"]))
        found = client.job(job["id"])
        assert (found["status"], found["attempt"]) == ("interrupted", 1)
        assert found["error"] is not None
        assert found["error"]["code"] == "interrupted"
        assert [made["step"] for made in found["checkpoints"]] == [
            2 if what == "obey" else 1
        ]  # reported after the death
        assert not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
        client.resume_job(job["id"])
        rest = list(client.job_events(job["id"], after=len(events)))
        assert [event.seq for event in [*events, *rest]] == list(range(1, len(events) + len(rest) + 1))
        assert rest[-1].data["status"] == "succeeded"
        assert client.job(job["id"])["attempt"] == 2
    server.kill()

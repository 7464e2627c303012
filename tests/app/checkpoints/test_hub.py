"""Hub downloads in processes that end with an unresponsive hub and with the server."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
from pathlib import Path

import pytest

from app.checkpoints.hub import MOST, HubFetcher
from app.contract.problems import Problem
from model.checkpoint.shards import CheckpointError
from tests.app.conftest import Serve, Server, is_problem, running
from tests.fakes import FakeGeneration


def command(script: str) -> list[str]:
    """A child that runs this script instead of a download; `say` writes one line."""
    say = "import json, sys, time\ndef say(**line): print(json.dumps(line), flush=True)\n"
    return [sys.executable, "-c", say + script]


FOLDER = "say(bytes=0); say(folder='/some/folder')"
UNKNOWN = "say(error={'code': 'download_failed', 'detail': 'no such repository'})"
SILENT = "time.sleep(600)"
TIMED_OUT = "say(error={'code': 'hub_silent', 'detail': 'timed out'})"
STALLED = "say(bytes=0); time.sleep(600)"
DEAD = "sys.exit(9)"
NOISE = "print('a warning', flush=True); print('[1]', flush=True); say(folder='/some/folder')"


async def fetch(script: str, timeout_s: float = 60.0) -> Path:
    return await HubFetcher(timeout_s=timeout_s, command=command(script)).fetch("owner/name")


@pytest.mark.parametrize("script", [FOLDER, NOISE])
async def test_fetch_returns_the_folder(script: str) -> None:
    assert await fetch(script) == Path("/some/folder")


@pytest.mark.parametrize("script", [UNKNOWN, DEAD])
async def test_failed_fetch_reports_the_reason(script: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        await fetch(script)
    assert caught.value.code == "download_failed"


@pytest.mark.parametrize("script", [SILENT, TIMED_OUT])
async def test_silent_hub_is_unavailable(script: str) -> None:
    with pytest.raises(Problem) as caught:
        await fetch(script, 3.0)
    assert (caught.value.code, caught.value.status) == ("hub_unavailable", 504)
    assert caught.value.headers["Retry-After"]


async def test_stalled_hub_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.checkpoints.hub.DATA_PATIENCE", 1)
    with pytest.raises(Problem) as caught:
        await fetch(STALLED, 3.0)
    assert caught.value.code == "hub_unavailable"


async def test_too_many_fetches_are_rejected() -> None:
    hub = HubFetcher(timeout_s=3.0, command=command(SILENT))
    tasks = [asyncio.create_task(hub.fetch(f"owner/n{number}")) for number in range(MOST + 4)]
    while len(hub._running) < MOST:
        await asyncio.sleep(0.01)
    assert len(hub._running) == MOST
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert {error.code for error in errors if isinstance(error, Problem)} == {"hub_unavailable"}
    assert len(errors) == MOST + 4
    assert not hub._running


async def test_disconnected_caller_ends_the_fetch() -> None:
    hub = HubFetcher(timeout_s=600, command=command(SILENT))
    task = asyncio.create_task(hub.fetch("owner/name"))
    while not hub._running:
        await asyncio.sleep(0.01)
    (process,) = hub._running
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert process.returncode is not None


async def test_stop_ends_fetches_and_answers_callers(tmp_path: Path, package: Path) -> None:
    async with running(tmp_path / "home", package, FakeGeneration()) as server:
        hub = server.services.hub
        hub._command = tuple(command(SILENT))
        waiting = asyncio.create_task(server.client.post("/v1/checkpoints", json={"source": "owner/name"}))
        while not hub._running:
            await asyncio.sleep(0.01)
        await server.runtime.stop_traces()
        is_problem(await waiting, 503, "stopping")
        assert not hub._running


async def test_hanging_fetches_use_no_thread(serve: Serve) -> None:
    async with serve(hub_timeout_s=30) as server:
        hub = server.services.hub
        hub._command = tuple(command(SILENT))
        assert (await server.client.post("/v1/checkpoints", json={"source": "nowhere"})).status_code == 422
        before = threading.active_count()
        tasks = [
            asyncio.create_task(server.client.post("/v1/checkpoints", json={"source": f"owner/n{number}"}))
            for number in range(12)
        ]
        while len(hub._running) < MOST:
            await asyncio.sleep(0.01)
        # asyncio waits for each process in a thread, which ends with it
        assert threading.active_count() <= before + MOST + 4
        assert (await server.client.get("/readyz")).status_code == 200
        assert (await server.finished((await server.create())["id"]))["status"] == "completed"
        hub.kill()
        for answer in await asyncio.gather(*tasks):
            assert answer.status_code in (503, 504)


@pytest.mark.parametrize("script", [UNKNOWN, SILENT])
async def test_start_with_unreachable_hub_id_ends(
    tmp_path: Path, package: Path, script: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.parts.HubFetcher", functools.partial(HubFetcher, command=command(script)))
    server = Server(tmp_path / "home", package, FakeGeneration(), checkpoint="owner/name", hub_timeout_s=3)
    await server.start(ready=False)
    while server.runtime.failure is None:
        await asyncio.sleep(0.01)
    assert server.runtime.failure.startswith("OMNI_R1_CHECKPOINT: ")
    await server.stop()

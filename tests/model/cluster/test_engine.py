"""The engine on Ray, without Ray."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import queue
import sys
from logging.handlers import QueueHandler

import pytest

from app.common.settings import SettingsError, read_settings
from app.engine import engine_of
from model.cluster.engine import RayEngine, RayLink
from model.cluster.frames import Connect, Connected, Died, Refused
from model.engine.client import EngineProcess
from model.engine.messages import EngineError
from tests.patience import PATIENCE_S


async def test_missing_ray_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    engine = RayEngine(num_replicas=2)
    engine.spawn()
    with pytest.raises(EngineError) as refused:
        await engine.start()
    assert "omni-r1-studio[ray]" in refused.value.detail
    await engine.close()


async def test_replica_that_starts_while_the_driver_dies_notices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The driver's socket is closed, but its end has not been handled yet."""
    link = RayLink(Connect(1, None, "cpu", {}))
    link._connected.set()
    items = await link.create(0)

    async def ends(_begin: object, _take: object) -> int:
        return 1

    monkeypatch.setattr(link._child, "read", ends)
    monkeypatch.setattr(link, "spawn", lambda: None)
    connected: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    connected.set_result(None)
    link._supervisor = asyncio.create_task(link._supervise(connected))
    async with asyncio.timeout(PATIENCE_S):
        assert "driver ended with exit code 1" in str(await items.get())
    await link.close()


async def test_status_says_why_there_is_no_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = RayEngine(num_replicas=2)
    assert engine.status().detail == "starting Ray"
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.5:6379")
    assert engine.status().detail == "connecting to Ray at 10.0.0.5:6379"
    engine.link._take(Refused("no route"))
    refusal = "Ray at 10.0.0.5:6379 cannot be reached: no route"
    assert engine.status().detail == f"{refusal}; connecting to Ray at 10.0.0.5:6379"
    engine.link._take(Connected("10.0.0.5:6379"))
    assert "Ray" not in engine.status().detail


async def test_death_of_a_replica_is_logged_with_its_cause(caplog: pytest.LogCaptureFixture) -> None:
    link = RayLink(Connect(3, None, "cpu", {}))
    link._take(Died(2, "the actor died because its node has died"))
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("WARNING", "replica 3: the actor died because its node has died")
    ]


async def test_what_ray_prints_is_logged_for_debugging_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level(logging.DEBUG, "omni_r1.ray")
    records: queue.Queue[logging.LogRecord] = queue.Queue()
    monkeypatch.setattr(logging.getLogger("omni_r1.ray"), "handlers", [QueueHandler(records)])
    link = RayLink(Connect(1, None, "cpu", {}))
    prints = "import os; os.write(2, b'[E] core_worker.cc')"
    monkeypatch.setattr(link._child, "_command", [sys.executable, "-c", prints])
    link._child.spawn()
    record = await asyncio.to_thread(records.get, timeout=PATIENCE_S)
    assert (record.levelname, record.getMessage()) == ("DEBUG", "[E] core_worker.cc")
    await link.close()
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("name", ["OMNI_R1_REPLICAS", "OMNI_R1_GPUS_PER_REPLICA", "OMNI_R1_RETRY"])
def test_settings_of_replicas_need_ray(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert isinstance(engine_of(read_settings()), EngineProcess)
    monkeypatch.setenv(name, "2" if name == "OMNI_R1_REPLICAS" else "1")
    with pytest.raises(SettingsError, match="OMNI_R1_ENGINE=ray"):
        read_settings()
    monkeypatch.setenv("OMNI_R1_ENGINE", "ray")
    assert isinstance(engine_of(read_settings()), RayEngine)

"""Replicas on a real Ray cluster of two nodes: deaths, moves, activation under load, and what is left behind."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest

from model.cluster.engine import RayEngine, RayReplica
from model.engine.messages import Emitted, Failed, Finished, GenerationRequest, Output, SamplingParams, Started
from tests.cluster.nodes import QUIET, ROOT, Nodes
from tests.e2e.real_server import Server, runs, wait_until
from tests.patience import PATIENCE_S
from tests.tiny import make_drawing_checkpoint

TOKENS = 400


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    """Two nodes with room for one replica each."""
    nodes = Nodes()
    yield nodes
    nodes.close()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two checkpoints of the same shapes."""
    root = tmp_path_factory.mktemp("checkpoints")
    return {name: make_drawing_checkpoint(root / name, seed=seed) for seed, name in enumerate(("one", "two"))}


@asynccontextmanager
async def engine_on(
    nodes: Nodes,
    folders: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    *,
    retry: bool,
    replicas: int = 2,
) -> AsyncIterator[RayEngine]:
    """An engine that serves "one", with as many whole replicas as there is room for."""
    for name, value in nodes.variables.items():
        monkeypatch.setenv(name, value)
    engine = RayEngine(num_replicas=replicas, device="cpu", retry=retry)
    await engine.start()
    try:
        await until(lambda: engine.status().phase == "ready")
        await engine.load("one", str(folders["one"]), 1)
        await until(lambda: sum(not engine._lack(each) for each in engine._engines) == min(replicas, 2))
        yield engine
    finally:
        await engine.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


def replica_of(engine: RayEngine, request_id: str) -> RayReplica:
    found = engine._runs[request_id].engine
    assert isinstance(found, RayReplica)
    return found


def ask(name: str, seed: int, checkpoint: str = "one") -> GenerationRequest:
    sampling = SamplingParams(temperature=1.0, seed=seed, max_new_tokens=TOKENS, max_images=6)
    return GenerationRequest(name, checkpoint, "Where is the red star?", sampling=sampling)


class Trace:
    """A running request."""

    def __init__(self, engine: RayEngine, request: GenerationRequest) -> None:
        self.outputs: list[Output] = []
        self.task = asyncio.create_task(self._read(engine, request))

    async def _read(self, engine: RayEngine, request: GenerationRequest) -> list[Output]:
        async for output in engine.generate(request):
            self.outputs.append(output)
        return self.outputs

    async def last(self) -> Output:
        async with asyncio.timeout(PATIENCE_S):
            return (await self.task)[-1]

    @property
    def tokens(self) -> list[int]:
        parts = [o.tokens for o in self.outputs if isinstance(o, Emitted | Finished) and o.tokens is not None]
        return [token for part in parts for token in part.ids]

    @property
    def events(self) -> list[tuple[str, object]]:
        emitted = [o.event for o in self.outputs if isinstance(o, Emitted)]
        return [(event.type, event.data.get("text", event.data.get("step"))) for event in emitted]


async def traces_on_both(engine: RayEngine, seeds: range) -> list[Trace]:
    """Running traces, spread over both replicas, each with some outputs."""
    traces = [Trace(engine, ask(f"trace {seed}", seed)) for seed in seeds]
    await until(lambda: all(len(trace.outputs) > 15 for trace in traces))
    return traces


async def undisturbed(engine: RayEngine, seeds: range) -> list[Trace]:
    traces = [Trace(engine, ask(f"alone {seed}", seed)) for seed in seeds]
    for trace in traces:
        assert isinstance(await trace.last(), Finished)
    return traces


async def test_killed_actor_fails_only_its_own_traces(
    nodes: Nodes, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine_on(nodes, folders, monkeypatch, retry=False) as engine:
        assert len({replica.host.memory for replica in engine._engines}) == 2, "a replica on each node"
        traces = await traces_on_both(engine, range(4))
        victim = replica_of(engine, "trace 0")
        own = [replica_of(engine, f"trace {seed}") is victim for seed in range(4)]
        assert sorted(own) == [False, False, True, True]
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        for trace, died in zip(traces, own, strict=True):
            last = await trace.last()
            assert isinstance(last, Failed if died else Finished), last
            assert not died or (isinstance(last, Failed) and last.code == "engine_died")
        assert engine.status().phase == "ready"
        await until(lambda: engine.is_whole)
        after = await undisturbed(engine, range(4))
        for trace, again, died in zip(traces, after, own, strict=True):
            assert died or trace.tokens == again.tokens


@pytest.mark.parametrize("what", ["actor", "node", "driver"])
async def test_traces_go_on_with_the_same_tokens(
    nodes: Nodes, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Near ties aside: of four traces, one may meet one."""
    async with engine_on(nodes, folders, monkeypatch, retry=True) as engine:
        alone = await undisturbed(engine, range(4))
        traces = await traces_on_both(engine, range(4))
        if what == "node":
            await asyncio.to_thread(nodes.order, "kill")
        else:
            pid = engine.link.pid if what == "driver" else replica_of(engine, "trace 0").pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)
        for trace in traces:
            last = await trace.last()
            assert isinstance(last, Finished), last
            assert sum(isinstance(output, Started) for output in trace.outputs) == 1
        if what == "node":
            assert engine.status().phase == "ready"
            assert not engine.is_whole
            await asyncio.to_thread(nodes.order, "add")
        await until(lambda: engine.is_whole)
        same = [trace.tokens == other.tokens for trace, other in zip(traces, alone, strict=True)]
        assert sum(same) >= 3
        for trace, other, equal in zip(traces, alone, same, strict=True):
            assert not equal or trace.events == other.events


async def test_activation_under_load_mixes_no_versions(
    nodes: Nodes, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """New weights under the same name, while both replicas run traces of the old ones."""
    async with engine_on(nodes, folders, monkeypatch, retry=False) as engine:
        old = await undisturbed(engine, range(4))
        running = await traces_on_both(engine, range(4))
        await engine.load("one", str(folders["two"]), 2)
        assert engine.status().loaded == {"one": 2}
        assert not any(trace.task.done() for trace in running), "they run on"
        new = await undisturbed(engine, range(4))
        for trace in running:
            assert isinstance(await trace.last(), Finished)
        for traces, version in ((old, 1), (running, 1), (new, 2)):
            for trace in traces:
                assert [o.weight_version for o in trace.outputs if isinstance(o, Started)] == [version]
        assert sum(a.tokens == b.tokens for a, b in zip(old, running, strict=True)) >= 3
        assert all(a.tokens != b.tokens for a, b in zip(old, new, strict=True))
        await until(lambda: engine.is_whole)
        assert (await engine.memory())["retired"] == 0


async def test_replica_without_room_says_what_it_needs(
    nodes: Nodes, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with engine_on(nodes, folders, monkeypatch, retry=False, replicas=3) as engine:
        await until(lambda: "it needs 1 CPU (0 free)" in engine.status().detail)
        assert engine.status().phase == "ready"
        await asyncio.to_thread(nodes.order, "add")
        await until(lambda: engine.is_whole)
    await asyncio.to_thread(nodes.order, "kill")


OWN = {"RAY_ADDRESS": "", "OMNI_R1_JOBS": "local"}  # a cluster of the server's, which takes no jobs


def belongings(server: Server, nodes: Nodes) -> list[psutil.Process]:
    """The server's processes, and its actors on the given cluster."""
    on_nodes = psutil.Process(nodes.pid).children(recursive=True)
    return [*server.children(), *(process for process in on_nodes if runs(process, "ray::EngineActor"))]


def is_alive(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize("cluster", ["given", "own"])
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_ended_server_leaves_nothing_behind(
    nodes: Nodes, folders: dict[str, Path], tmp_path: Path, cluster: str, how: signal.Signals
) -> None:
    settings = {"OMNI_R1_ENGINE": "ray", "OMNI_R1_REPLICAS": "2", "OMNI_R1_DEVICE": "cpu", "OMNI_R1_PAGES": "0"}
    settings |= {"OMNI_R1_CHECKPOINT": str(folders["one"]), "OMNI_R1_ALLOWED_ROOTS": str(folders["one"])}
    settings |= nodes.variables if cluster == "given" else OWN
    server = Server(tmp_path / "home", settings).start()
    try:

        def replicas() -> list[psutil.Process]:
            return [process for process in belongings(server, nodes) if runs(process, "ray::EngineActor")]

        wait_until(lambda: len(replicas()) == 2, "both replicas: a server is ready with one")
        watched = belongings(server, nodes)
        assert any(runs(process, "raylet") for process in watched) == (cluster == "own")
        began = time.monotonic()
        code = server.stop(how)
        assert code == (0 if how == signal.SIGTERM else -how)
        assert time.monotonic() - began < 10
        wait_until(lambda: not any(map(is_alive, watched)), "the end of what the server started")
        assert any(runs(process, "raylet") for process in psutil.Process(nodes.pid).children()), "theirs goes on"
    finally:
        server.kill()


def test_log_is_json_throughout_and_names_a_dead_replica(folders: dict[str, Path], tmp_path: Path) -> None:
    settings = {"OMNI_R1_ENGINE": "ray", "OMNI_R1_REPLICAS": "1", "OMNI_R1_DEVICE": "cpu", "OMNI_R1_PAGES": "0"}
    settings |= {"OMNI_R1_CHECKPOINT": str(folders["one"]), "OMNI_R1_ALLOWED_ROOTS": str(folders["one"])}
    settings |= OWN | {"OMNI_R1_LOG_FORMAT": "json", "OMNI_R1_LOG_LEVEL": "debug"}
    server = Server(tmp_path / "home", settings).start()
    try:
        next(process for process in server.children() if runs(process, "ray::EngineActor")).kill()
        wait_until(lambda: "replica 1" in server.log.read_text(), "the death in the log")
        server.wait_ready()
        assert server.stop() == 0
    finally:
        server.kill()
    records = [json.loads(line) for line in server.log.read_text().splitlines()]
    deaths = [record["message"] for record in records if record["level"] == "warning"]
    assert deaths == ["replica 1: the actor is dead because its worker process has died (system error)"]


def test_unreachable_cluster_ends_the_start_in_one_line(tmp_path: Path) -> None:
    environment = os.environ | QUIET | {"RAY_ADDRESS": "127.0.0.1:9", "OMNI_R1_ENGINE": "ray", "OMNI_R1_PAGES": "0"}
    environment |= {"OMNI_R1_HOME": str(tmp_path / "home"), "OMNI_R1_REPLICAS": "2"}
    command = [sys.executable, "-m", "app.cli", "serve", "--port", "0"]
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False
    )
    assert done.returncode == 2
    assert "Ray at 127.0.0.1:9 cannot be reached" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    assert done.stderr.count("127.0.0.1:9") == 1

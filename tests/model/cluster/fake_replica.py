"""Replicas whose workers a test plays, and readers of their requests."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from model.cluster.replicas import Replicas
from model.engine import commands
from model.engine.hosted import EngineClient, Host
from model.engine.messages import (
    Cancelled,
    Emitted,
    EngineStatus,
    GenerationRequest,
    Mark,
    Output,
    SamplingParams,
    Started,
    TraceEvent,
)
from model.worker.requests import ResumeState
from tests.patience import PATIENCE_S

STATE = ResumeState(1, "", [1, 2], [], 0, 0, None, {}).to_bytes()


class FakeReplica(EngineClient):
    """A replica whose worker the test plays."""

    def __init__(self, host: Host, free: int = 1000) -> None:
        super().__init__()
        self.host, self.free = host, free
        self.folders: dict[str, str] = {}
        self.versions: dict[str, int] = {}
        self.requests: dict[str, GenerationRequest] = {}
        self.pauses: list[str] = []
        self.bad_folder = ""  # cannot be loaded
        self.fatal_folder = ""  # kills the worker that loads it
        self.gone: set[int] = set()  # versions whose weights are gone
        self.holds_seen = False
        self.held: list[Any] | None = None  # loads that wait for the test

    async def start(self) -> None:
        self.be_ready()

    async def close(self) -> None:
        self._set_status(EngineStatus("stopping"))
        self._fail_all("interrupted", "stopped")

    def be_ready(self) -> None:
        self._set_status(EngineStatus("ready", loaded=dict(self.versions)))

    def die(self) -> None:
        self._set_status(EngineStatus("starting", "it died"))
        self._fail_all("engine_died", "it died; ask again")
        self.requests.clear()

    def say(self, request_id: str, *outputs: Output | Mark) -> None:
        self._receive(commands.Outputs([(request_id, output) for output in outputs]))

    def _send(self, message: commands.Command) -> None:
        match message:
            case commands.Generate(request):
                self.requests[request.request_id] = request
            case commands.SetMode(request_id):
                self.pauses.append(request_id)
            case commands.Call(ticket, command):
                asyncio.get_running_loop().call_soon(self._reply, ticket, command)

    def _reply(self, ticket: int, command: commands.Replied) -> None:
        value: Any = None
        error: tuple[str, str] | None = None
        match command:
            case commands.Load(_, folder) if folder == self.bad_folder:
                error = ("insufficient_memory", "too large")
            case commands.Load(_, folder) if folder == self.fatal_folder:
                self.die()
                return
            case commands.Load() if self.held is not None:
                self.held.append((ticket, command))
                return
            case commands.Load(name, folder, version):
                self.folders[name], self.versions[name] = folder, version
            case commands.Rename(name, to):
                self.folders[to], self.versions[to] = self.folders.pop(name), self.versions.pop(name)
            case commands.Unload(name):
                del self.folders[name], self.versions[name]
            case commands.Abort(request_id):
                self.say(request_id, Cancelled())
            case commands.Memory():
                value = {"free": self.free, "total": 2000, "models": {"m": self.free // 10}, "retired": 0, "rss": 5}
            case commands.Seen():
                if self.holds_seen:
                    return
                value = self.host.memory.encode()
            case commands.Alternatives(query) if query.weight_version in self.gone:
                error = ("weights_gone", "gone")
            case commands.Alternatives():
                value = [self.host.memory]
        self._receive(commands.Reply(ticket, value, error))


class Reader:
    """Follows one request."""

    def __init__(self, replicas: Replicas, request: GenerationRequest) -> None:
        self.outputs: list[Output] = []
        self._task = asyncio.create_task(self._read(replicas, request))

    async def _read(self, replicas: Replicas, request: GenerationRequest) -> None:
        async for output in replicas.generate(request):
            self.outputs.append(output)

    async def last(self) -> Output:
        async with asyncio.timeout(PATIENCE_S):
            await self._task
        return self.outputs[-1]


def ask(name: str, **more: Any) -> GenerationRequest:
    return GenerationRequest(name, "m", "Where?", sampling=SamplingParams(seed=3), **more)


def started(version: int = 1) -> Started:
    return Started(2, 100, 90, 1, 0.0, 1.0, version)


def text(words: str) -> Emitted:
    return Emitted(TraceEvent("text.delta", {"step": 1, "text": words}))


async def until(condition: Any) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0)


@asynccontextmanager
async def replicas_of(*engines: FakeReplica, retry: bool = False) -> AsyncIterator[Replicas]:
    replicas = Replicas(engines, retry=retry)
    await replicas.start()
    await replicas.load("m", "/m", 1)
    yield replicas
    await replicas.close()


async def begin(replicas: Replicas, *engines: FakeReplica, request: GenerationRequest) -> tuple[Reader, FakeReplica]:
    """A request that has been placed, and where."""
    reader, name = Reader(replicas, request), request.request_id
    await until(lambda: any(name in engine.requests for engine in engines))
    return reader, next(engine for engine in engines if name in engine.requests)

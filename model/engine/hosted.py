"""The server's side of a worker, independent of transport: requests, replies, status, and a worker's replacement.

`model/engine/client.py` runs the worker in a child process, `model/worker/inprocess.py` in a thread, `model/cluster/`
in actors of a Ray cluster. This module imports no torch.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from model.engine.commands import (
    Abort,
    Alternatives,
    Call,
    Check,
    Command,
    Configure,
    Generate,
    InitialLoadsSent,
    Load,
    MeasureAttention,
    MeasureReliance,
    Memory,
    Outputs,
    Rename,
    Replied,
    Reply,
    Report,
    Seen,
    SetMode,
    Unload,
)
from model.engine.messages import (
    Alternative,
    AlternativesQuery,
    EngineError,
    EngineStatus,
    Failed,
    Footprint,
    GenerationRequest,
    ImageAttention,
    Mark,
    Output,
    Reliance,
    Terminal,
    WholeResponse,
)

MOST_EARLY_DEATHS = 3  # consecutive deaths before the worker was ready


@dataclass(frozen=True, slots=True)
class Host:
    """Where a worker runs: workers with the same `memory` share it, those of the same `kind` compute alike."""

    memory: str = ""
    kind: str = ""


class EngineClient(abc.ABC):
    """Transport-independent part: requests, replies and the status. Subclasses implement `_send` and `_receive`.

    Belongs to the event loop that called `start`; only that loop may call it.
    """

    def __init__(self) -> None:
        self._status = EngineStatus("starting")
        self.on_status: Callable[[], None] = lambda: None  # called after each change of `status`
        self.host = Host()
        self.on_mark: Callable[[str, Mark], None] = lambda _request_id, _mark: None
        self._queues: dict[str, asyncio.Queue[Output]] = {}
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._next_ticket = 0

    @abc.abstractmethod
    async def start(self) -> None:
        """Start the worker; return before it is ready."""

    @abc.abstractmethod
    async def close(self) -> None:
        """Stop the worker; live requests end with Failed(code="interrupted")."""

    def status(self) -> EngineStatus:
        """The latest report of the worker, kept on this side."""
        return self._status

    async def generate(self, request: GenerationRequest) -> AsyncIterator[Output]:
        """Yield outputs in order, the last one Paused, Finished, Cancelled or Failed. Closing the iterator aborts."""
        if request.request_id in self._queues:
            raise ValueError(f"request {request.request_id} is already running")
        if self._status.phase in ("stopping", "failed"):
            yield Failed("not_ready", f"the engine is {self._status.phase}: {self._status.detail}")
            return
        queue = self._queues[request.request_id] = asyncio.Queue()
        self._send(Generate(request))
        ended = False
        try:
            while not ended:
                output = await queue.get()
                ended = isinstance(output, Terminal)
                yield output
        finally:
            self._queues.pop(request.request_id, None)
            if not ended:
                self._send(Abort(request.request_id))

    async def pause(self, request_id: str) -> None:
        """Switch to step mode: the request pauses at the end of its running step."""
        self._send(SetMode(request_id, step_mode=True))

    async def abort(self, request_id: str) -> None:
        """Abort a request; returns once it holds no slot. Unknown requests have already ended."""
        with contextlib.suppress(EngineError):  # the engine died and holds nothing
            await self._ask(Abort(request_id))

    async def load(self, name: str, folder: str, weight_version: int) -> None:
        """Load a checkpoint next to the others. An older one of the same name is freed once its requests have ended.

        Raises:
            EngineError: the checkpoint is invalid or does not fit; nothing has changed.
        """
        await self._ask(Load(name, str(folder), weight_version))
        self._loaded({**self._status.loaded, name: weight_version})

    async def unload(self, name: str) -> None:
        """Free a checkpoint once its requests have ended."""
        await self._ask(Unload(name))
        self._loaded({known: version for known, version in self._status.loaded.items() if known != name})

    async def rename(self, name: str, to: str) -> None:
        """Serve a loaded checkpoint under another name; one that had it is freed once its requests have ended.

        Raises:
            EngineError: `unknown_checkpoint`; nothing has changed.
        """
        await self._ask(Rename(name, to))
        loaded = dict(self._status.loaded)
        self._loaded(loaded | {to: loaded.pop(name)} if name in loaded else loaded)

    async def check(self, folder: str) -> Footprint:
        """Validate a checkpoint folder completely and return its footprint.

        Raises:
            EngineError: the checkpoint is invalid.
        """
        footprint: Footprint = await self._ask(Check(str(folder)))
        return footprint

    async def memory(self) -> dict[str, Any]:
        """Bytes held by the engine, its device, free memory and number of threads (see the protocol)."""
        return dict(await self._ask(Memory()))

    async def seen(self, request_id: str) -> bytes:
        """The last image of a live request's question as the model sees it, a PNG.

        Raises:
            EngineError: the request is not live, or its question has no image.
        """
        png: bytes = await self._ask(Seen(request_id))
        return png

    async def alternatives(self, query: AlternativesQuery) -> list[Alternative]:
        """The likeliest legal tokens after a beginning of a response.

        Raises:
            EngineError: `weights_gone`, or the tokens do not fit this checkpoint.
        """
        found: list[Alternative] = await self._ask(Alternatives(query))
        return found

    async def reliance(self, response: WholeResponse) -> Reliance:
        """How much an answer relies on each image before it.

        Raises:
            EngineError: `weights_gone`, `no_answer`, or the tokens do not fit this checkpoint.
        """
        found: Reliance = await self._ask(MeasureReliance(response))
        return found

    async def attention(self, response: WholeResponse, step: int | None) -> tuple[ImageAttention, ...]:
        """How much the tokens of a step, or of the answer (None), attend to each image.

        Raises:
            EngineError: as `reliance`.
        """
        found: tuple[ImageAttention, ...] = await self._ask(MeasureAttention(response, step))
        return found

    async def wait_ready(self) -> EngineStatus:
        """Wait until the engine is ready or has failed. For scripts; servers poll `status`."""
        while self._status.phase == "starting":
            await asyncio.sleep(0.01)
        return self._status

    async def _ask(self, command: Replied) -> Any:
        ticket, self._next_ticket = self._next_ticket, self._next_ticket + 1
        if self._status.phase in ("stopping", "failed"):
            raise EngineError("not_ready", f"the engine is {self._status.phase}: {self._status.detail}")
        future = self._replies[ticket] = asyncio.get_running_loop().create_future()
        self._send(Call(ticket, command))
        try:
            return await future
        finally:
            self._replies.pop(ticket, None)

    @abc.abstractmethod
    def _send(self, message: Command) -> None:
        """Send one message to the worker."""

    def _receive(self, message: Report) -> None:
        """Handle one message from the worker."""
        match message:
            case Outputs(items):
                for request_id, output in items:
                    if isinstance(output, Mark):
                        self.on_mark(request_id, output)
                    elif (queue := self._queues.get(request_id)) is not None:
                        queue.put_nowait(output)
            case EngineStatus():
                if self._status.phase != "stopping":
                    self._set_status(message)
            case Reply(ticket, value, error):
                future = self._replies.get(ticket)
                if future is not None and not future.done():
                    if error is None:
                        future.set_result(value)
                    else:
                        future.set_exception(EngineError(*error))

    def _loaded(self, loaded: Mapping[str, int]) -> None:
        """Note a change of what is loaded; the worker's own status arrives later."""
        self._set_status(replace(self._status, loaded=loaded))

    def _set_status(self, status: EngineStatus) -> None:
        self._status = status
        self.on_status()

    def _fail_all(self, code: str, detail: str) -> None:
        for queue in self._queues.values():
            queue.put_nowait(Failed(code, detail))
        for future in self._replies.values():
            if not future.done():
                future.set_exception(EngineError(code, detail))


class HostedEngine(EngineClient):
    """An `EngineClient` whose worker runs elsewhere: when it dies, another one gets the same checkpoints.

    Subclasses implement `_run`, `_send` and `_reap`.
    """

    def __init__(
        self,
        checkpoints: Mapping[str, str | os.PathLike[str]],
        weight_versions: Mapping[str, int] | None,
        settings: Configure,
    ) -> None:
        """`checkpoints` maps names to folders in order of priority; versions default to 1."""
        super().__init__()
        versions = weight_versions or {}
        self._checkpoints = {name: (str(path), versions.get(name, 1)) for name, path in checkpoints.items()}
        self._settings = settings
        self._unsent: list[Command] = []  # until a worker takes messages
        self._supervisor: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the worker; return before it is ready."""
        if self._supervisor is None:
            self._supervisor = asyncio.create_task(self._supervise(), name="engine")

    async def close(self) -> None:
        """Stop the worker and wait for its end; live requests end with Failed(code="interrupted")."""
        self._set_status(EngineStatus("stopping"))
        self._fail_all("interrupted", "the engine was stopped")
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        await self._reap()

    async def load(self, name: str, folder: str, weight_version: int) -> None:
        """Load, and remember the checkpoint for the next worker."""
        await super().load(name, folder, weight_version)
        self._checkpoints[name] = (str(folder), weight_version)

    async def unload(self, name: str) -> None:
        """Unload, also for the next worker."""
        await super().unload(name)
        self._checkpoints.pop(name, None)

    async def rename(self, name: str, to: str) -> None:
        """Rename, also for the next worker."""
        await super().rename(name, to)
        if name in self._checkpoints:
            self._checkpoints[to] = self._checkpoints.pop(name)

    def _opening(self) -> list[Command]:
        """The first messages to a new worker: how to serve what, then what waits."""
        loads = [Load(name, folder, version) for name, (folder, version) in self._checkpoints.items()]
        unsent, self._unsent = self._unsent, []
        return [self._settings, *loads, InitialLoadsSent(), *unsent]

    async def _supervise(self) -> None:
        """Follow workers, one after the other."""
        early_deaths = 0
        while True:
            detail = await self._run()
            early_deaths = early_deaths + 1 if self._status.phase == "starting" else 0
            failed = self._status.phase == "failed"
            if early_deaths >= MOST_EARLY_DEATHS or failed:
                self._set_status(EngineStatus("failed", self._status.detail if failed else f"{detail} while starting"))
                self._fail_all("engine_died", detail)
                return
            self._unsent = []  # sent in the meantime; they fail now
            self._set_status(EngineStatus("starting", f"{detail}; a new one is starting"))
            self._fail_all("engine_died", f"{detail}; ask again, a new one is starting")

    @abc.abstractmethod
    async def _run(self) -> str:
        """Start a worker and receive its messages until it has died; returns what ended, and how."""

    @abc.abstractmethod
    async def _reap(self) -> None:
        """End the worker, if there is one, and wait for that."""

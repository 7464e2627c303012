"""Server-side client of the engine: a child process that implements the `Generation` protocol.

The child (`model/worker/child.py`) is started with a plain command line, so nothing of the parent's `__main__` runs in
it, and they exchange pickled frames over a socket pair. When the child dies, its requests end with
`Failed(code="engine_died")` and a new child starts; when the parent dies, the socket closes and the child exits. This
module imports no torch.

    engine = EngineProcess({"nano-omni-r1": folder})
    await engine.start()
    async for output in engine.generate(GenerationRequest("r1", "nano-omni-r1", "Where is the star?")):
        ...
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import os
import pickle
import socket
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
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
    Output,
    Reliance,
    Terminal,
    WholeResponse,
)
from model.quantisation import QuantKind
from model.speculation import WINDOW

CLOSE_S = 2.0  # grace period for the child to exit
HEADER = struct.Struct("!I")
_KILL_S = 5.0  # for a killed process to exit
_MOST_EARLY_DEATHS = 3  # consecutive deaths before the child was ready


class EngineClient(abc.ABC):
    """Transport-independent part: requests, replies and the status. Subclasses implement `_send` and `_receive`.

    Belongs to the event loop that called `start`; only that loop may call it.
    """

    def __init__(self) -> None:
        self._status = EngineStatus("starting")
        self._queues: dict[str, asyncio.Queue[Output]] = {}
        self._replies: dict[int, asyncio.Future[Any]] = {}
        self._next_ticket = 0

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
        loaded = {**self._status.loaded, name: weight_version}  # the worker's own status arrives later
        self._status = replace(self._status, loaded=loaded)

    async def unload(self, name: str) -> None:
        """Free a checkpoint once its requests have ended."""
        await self._ask(Unload(name))

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
                    if (queue := self._queues.get(request_id)) is not None:
                        queue.put_nowait(output)
            case EngineStatus():
                if self._status.phase != "stopping":
                    self._status = message
            case Reply(ticket, value, error):
                future = self._replies.get(ticket)
                if future is not None and not future.done():
                    if error is None:
                        future.set_result(value)
                    else:
                        future.set_exception(EngineError(*error))

    def _fail_all(self, code: str, detail: str) -> None:
        for queue in self._queues.values():
            queue.put_nowait(Failed(code, detail))
        for future in self._replies.values():
            if not future.done():
                future.set_exception(EngineError(code, detail))


class EngineProcess(EngineClient):
    """A `Generation` whose engine lives in a child process."""

    def __init__(
        self,
        checkpoints: Mapping[str, str | os.PathLike[str]],
        *,
        weight_versions: Mapping[str, int] | None = None,
        device: str = "auto",
        num_slots: int = 16,
        num_threads: int = 1,
        speculation: int = WINDOW,
        dtype: str = "auto",
        kv_mb: int | None = None,
        context: int | None = None,
        quant: QuantKind | None = None,
        command: Sequence[str] | None = None,
    ) -> None:
        """`checkpoints` maps names to folders in order of priority; versions default to 1.

        The settings are those of :class:`model.engine.commands.Configure`. `command` replaces the child's command
        line in tests; the socket's number is appended.
        """
        super().__init__()
        versions = weight_versions or {}
        self._checkpoints = {name: (str(path), versions.get(name, 1)) for name, path in checkpoints.items()}
        self._settings = Configure(device, num_slots, num_threads, speculation, dtype, kv_mb, context, quant)
        self._command = list(command or (sys.executable, "-m", "model.worker.child"))
        self._process: subprocess.Popen[bytes] | None = None
        self._socket: socket.socket | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._unsent: list[Command] = []
        self._supervisor: asyncio.Task[None] | None = None

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return None if self._process is None else self._process.pid

    def spawn(self) -> None:
        """Start the child from any thread, without an event loop, so that it loads while the parent still imports.

        Optional: `start` spawns it otherwise.
        """
        if self._process is not None:
            return
        ours, theirs = socket.socketpair()
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        threads = str(self._settings.num_threads)
        root = str(Path(__file__).resolve().parents[2])
        path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
        environment = os.environ | {
            "PYTHONPATH": path,
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "MALLOC_ARENA_MAX": "2",
            # Keep freed memory in the process: faulting it back in takes a quarter of the image decoding time.
            "MALLOC_MMAP_THRESHOLD_": str(8 << 20),
            "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
        }
        with theirs:
            self._process = subprocess.Popen(
                [*self._command, str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                env=environment,
            )
        self._socket = ours
        loads = [Load(name, folder, version) for name, (folder, version) in self._checkpoints.items()]
        self._unsent = [self._settings, *loads, InitialLoadsSent(), *self._unsent]

    async def start(self) -> None:
        """Start the child; return before it is ready."""
        if self._supervisor is None:
            self.spawn()
            self._supervisor = asyncio.create_task(self._supervise(), name="engine-process")

    async def close(self) -> None:
        """Stop the child and wait for its exit; live requests end with Failed(code="interrupted")."""
        self._status = EngineStatus("stopping")
        self._fail_all("interrupted", "the engine was stopped")
        if self._supervisor is not None:
            self._supervisor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._supervisor
            self._supervisor = None
        await self._reap(patience=CLOSE_S)

    async def load(self, name: str, folder: str, weight_version: int) -> None:
        """Load, and remember the checkpoint for the next child."""
        await super().load(name, folder, weight_version)
        self._checkpoints[name] = (str(folder), weight_version)

    async def unload(self, name: str) -> None:
        """Unload, also for the next child."""
        await super().unload(name)
        self._checkpoints.pop(name, None)

    async def _supervise(self) -> None:
        """Read from the child until it dies, reap it, start the next one."""
        early_deaths = 0
        while True:
            self.spawn()
            code = await self._read_until_death()
            early_deaths = early_deaths + 1 if self._status.phase == "starting" else 0
            failed = self._status.phase == "failed"
            detail = f"the engine process ended with exit code {code}"
            if early_deaths >= _MOST_EARLY_DEATHS or failed:
                self._status = EngineStatus("failed", self._status.detail if failed else f"{detail} while starting")
                self._fail_all("engine_died", detail)
                return
            self._status = EngineStatus("starting", f"{detail}; a new one is starting")
            self._fail_all("engine_died", f"{detail}; ask again, a new one is starting")
            self._unsent = []  # sent in the meantime; just failed

    async def _read_until_death(self) -> int:
        assert self._socket is not None
        reader, self._writer = await asyncio.open_connection(sock=self._socket, limit=1 << 22)
        unsent, self._unsent = self._unsent, []
        for message in unsent:
            self._send(message)
        try:
            while True:
                (size,) = HEADER.unpack(await reader.readexactly(HEADER.size))
                self._receive(pickle.loads(await reader.readexactly(size)))
        except (asyncio.IncompleteReadError, ConnectionError):
            return await self._reap(patience=1.0)

    async def _reap(self, *, patience: float) -> int:
        """Close the socket, which makes the child exit, and wait; kill the child after `patience`."""
        process = self._process
        if self._writer is not None:
            self._writer.transport.abort()  # `close` would wait for a child that does not read
        elif self._socket is not None:
            self._socket.close()
        self._writer = self._socket = None
        if process is None:
            return 0
        try:
            return await _ended(process, patience)
        except TimeoutError:
            process.kill()
            return await _ended(process, _KILL_S)
        except asyncio.CancelledError:
            process.kill()
            raise
        finally:
            self._process = None

    def kill(self) -> None:
        """Kill the child immediately; used when the parent exits."""
        if self._process is not None:
            self._process.kill()

    def _send(self, message: Command) -> None:
        if self._writer is None:
            self._unsent.append(message)
            return
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        with contextlib.suppress(ConnectionError):
            self._writer.write(HEADER.pack(len(data)) + data)


async def _ended(process: subprocess.Popen[bytes], patience: float) -> int:
    """Wait for the exit code; raise TimeoutError when the process is still running."""
    async with asyncio.timeout(patience):
        while (code := process.poll()) is None:
            await asyncio.sleep(0.01)
    return code

"""The engine in a child process, which implements the `Generation` protocol.

When the child (`model/worker/child.py`) dies, its requests end with `Failed(code="engine_died")` and a new child
starts. This module imports no torch.

    engine = EngineProcess({"nano-omni-r1": folder})
    await engine.start()
    async for output in engine.generate(GenerationRequest("r1", "nano-omni-r1", "Where is the star?")):
        ...
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence

from model.engine.commands import Command, Configure
from model.engine.hosted import HostedEngine
from model.engine.link import ChildLink
from model.quantisation import QuantKind
from model.speculation import WINDOW

CLOSE_S = 2.0  # grace period for the child to exit


class EngineProcess(HostedEngine):
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
        marks: bool = False,
        command: Sequence[str] | None = None,
    ) -> None:
        """`checkpoints` maps names to folders in order of priority; versions default to 1.

        The settings are those of :class:`model.engine.commands.Configure`. `command` replaces the child's command
        line in tests; the socket's number is appended.
        """
        settings = Configure(device, num_slots, num_threads, speculation, dtype, kv_mb, context, quant, marks)
        super().__init__(checkpoints, weight_versions, settings)
        self._link = ChildLink(command or (sys.executable, "-m", "model.worker.child"), worker_environment(num_threads))

    @property
    def pid(self) -> int | None:
        """The child's process id."""
        return self._link.pid

    def spawn(self) -> None:
        """Start the child from any thread, without an event loop, so that it loads while the parent still imports.

        Optional: `start` spawns it otherwise.
        """
        if self._link.pid is None:
            self._link.spawn()
            self._unsent = self._opening()

    async def start(self) -> None:
        """Start the child; return before it is ready."""
        if self._supervisor is None:
            self.spawn()
        await super().start()

    async def _run(self) -> str:
        self.spawn()
        return f"the engine process ended with exit code {await self._link.read(self._send_unsent, self._receive)}"

    def _send_unsent(self) -> None:
        unsent, self._unsent = self._unsent, []
        for message in unsent:
            self._send(message)

    async def _reap(self) -> None:
        await self._link.end(patience=CLOSE_S)

    def kill(self) -> None:
        """Kill the child immediately; used when the parent exits."""
        self._link.kill()

    def _send(self, message: Command) -> None:
        if self._link.is_open:
            self._link.send(message)
        else:
            self._unsent.append(message)


def worker_environment(num_threads: int) -> dict[str, str]:
    """The environment variables that a worker's process starts with."""
    return {
        "OMP_NUM_THREADS": str(num_threads),
        "MKL_NUM_THREADS": str(num_threads),
        "MALLOC_ARENA_MAX": "2",
        # Keep freed memory in the process: faulting it back in takes a quarter of the image decoding time.
        "MALLOC_MMAP_THRESHOLD_": str(8 << 20),
        "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
    }

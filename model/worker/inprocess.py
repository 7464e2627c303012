"""The engine in a thread of this process, with the same protocol: for tests, benchmarks and notebooks."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Mapping
from pathlib import Path

from model.engine.commands import Close, Command, Configure, InitialLoadsSent, Load, Report
from model.engine.hosted import EngineClient
from model.engine.messages import EngineStatus
from model.quantisation import QuantKind
from model.worker.worker import Worker


class InProcess(EngineClient):
    """A `Generation` whose worker is a thread of this process."""

    def __init__(
        self,
        checkpoints: Mapping[str, str | os.PathLike[str]],
        *,
        weight_versions: Mapping[str, int] | None = None,
        device: str = "cpu",
        num_slots: int = 16,
        dtype: str = "auto",
        kv_mb: int | None = None,
        context: int | None = None,
        quant: QuantKind | None = None,
        marks: bool = False,
    ) -> None:
        super().__init__()
        versions = weight_versions or {}
        self._checkpoints = {name: (str(Path(path)), versions.get(name, 1)) for name, path in checkpoints.items()}
        settings = Configure(
            device, num_slots, None, dtype=dtype, kv_mb=kv_mb, context=context, quant=quant, marks=marks
        )
        self.worker = Worker(self._from_thread, settings)
        self._thread = threading.Thread(target=self.worker.run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    async def start(self) -> None:
        """Start the thread; return before it is ready."""
        self._loop = asyncio.get_running_loop()
        for name, (folder, version) in self._checkpoints.items():
            self._send(Load(name, folder, version))
        self._send(InitialLoadsSent())
        self._thread.start()

    async def close(self) -> None:
        """Stop the thread; live requests end with Failed(code="interrupted")."""
        self._status = EngineStatus("stopping")
        self._fail_all("interrupted", "the engine was stopped")
        self._send(Close())
        if self._thread.is_alive():
            await asyncio.to_thread(self._thread.join)

    def _send(self, message: Command) -> None:
        self.worker.post(message)

    def _from_thread(self, message: Report) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._receive, message)

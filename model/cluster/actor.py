"""The engine in an actor of a Ray cluster: what `model/worker/child.py` is in a child process.

The actor exchanges the same messages, pickled in batches: `post` takes them, and one stream, `reports`, brings back
whatever has come together since its last item, so that a token costs no call of its own. Its methods are async, since
Ray cannot cancel those of a sync actor; the step loop has a thread.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import pickle
import platform
import re
import threading
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from model import log_lines
from model.engine.commands import Report
from model.engine.hosted import Host

if TYPE_CHECKING:
    from model.worker.worker import Worker


@dataclass(frozen=True, slots=True)
class Hello:
    """The first report of an actor: where it runs."""

    host: Host
    pid: int


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the log of an actor, or of the driver."""

    text: str


Item = Report | Hello | Line


class EngineActor:
    """Runs a `Worker` in a thread."""

    def __init__(self) -> None:
        self._items: list[Item] = []
        self._lock = threading.Lock()
        self._wake: Callable[[], object] = lambda: None
        self._early: dict[int, bytes] = {}
        self._next = 0
        self._worker: Worker | None = None  # it makes one as it begins to report
        log_lines.configure_from_environment(Relay(self._put))

    async def post(self, number: int, messages: bytes) -> None:
        """Take batch `number` of pickled messages; calls may overtake each other."""
        self._early[number] = messages
        self._deliver()

    async def reports(self) -> AsyncIterator[bytes]:
        """Yield pickled batches of items for as long as the worker lives, first an empty one; call once."""
        loop, arrived = asyncio.get_running_loop(), asyncio.Event()
        self._wake = lambda: loop.call_soon_threadsafe(arrived.set)
        yield pickle.dumps([])  # it has its place in the cluster; importing torch takes seconds
        from model.worker.worker import Worker

        gc.freeze()  # as in the child process
        self._worker = Worker(self._put)
        self._deliver()
        self._put(Hello(_host(), os.getpid()))
        done = loop.run_in_executor(None, self._worker.run)
        done.add_done_callback(lambda _: arrived.set())
        while True:
            arrived.clear()
            with self._lock:
                batch, self._items = self._items, []
            if batch:
                yield pickle.dumps(batch, pickle.HIGHEST_PROTOCOL)
            elif done.done():
                done.result()
                return
            else:
                await arrived.wait()

    def _deliver(self) -> None:
        """Give the worker what has come in order."""
        while self._worker is not None and (data := self._early.pop(self._next, None)) is not None:
            self._next += 1
            for message in pickle.loads(data):
                self._worker.post(message)

    def _put(self, item: Item) -> None:
        with self._lock:
            self._items.append(item)
            first = len(self._items) == 1
        if first:
            self._wake()


class Relay(logging.Handler):
    """Sends log lines to the server."""

    def __init__(self, put: Callable[[Line], None]) -> None:
        super().__init__()
        self._put = put

    def emit(self, record: logging.LogRecord) -> None:
        """Send one."""
        self._put(Line(self.format(record)))


def _host() -> Host:
    """This actor's memory and kind of processor."""
    import ray
    import torch

    context: Any = ray.get_runtime_context()
    gpus = ",".join(context.get_accelerator_ids().get("GPU", []))
    kind = torch.cuda.get_device_name() if gpus and torch.cuda.is_available() else _cpu()
    return Host(f"{context.get_node_id()} {gpus}", f"{kind}, {torch.backends.cpu.get_cpu_capability()}")


def _cpu() -> str:
    """The model of the processor."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    except OSError:
        found = None
    return found[1] if found else platform.processor() or platform.machine()

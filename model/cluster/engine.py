"""The engine on a Ray cluster: replicas in actors, reached through a driver process of ours.

This module imports neither Ray nor torch. When an actor dies, its replica gets another one; when the driver or the
cluster's head dies, all of them do, once a new driver has connected.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import os
import pickle
import sys
from dataclasses import replace
from typing import Any

from model.cluster.actor import Hello, Line
from model.cluster.frames import Batch, Connect, Connected, Create, Died, Kill, Post, Refused
from model.cluster.replicas import Replicas
from model.cluster.words import STARTING
from model.engine.client import worker_environment
from model.engine.commands import Command, Configure
from model.engine.hosted import HostedEngine
from model.engine.link import ChildLink
from model.engine.messages import EngineError, EngineStatus
from model.speculation import WINDOW

log = logging.getLogger("omni_r1.engine")
printed = logging.getLogger("omni_r1.ray")  # what Ray's own code writes past any log

CLOSE_S = 2.5  # grace period for the driver, which stops a cluster of its own
LOGGED = ("OMNI_R1_LOG_FORMAT", "OMNI_R1_LOG_LEVEL")  # how actors log, too
AGAIN_S = 2.0  # between attempts to reach a cluster that is gone


class RayEngine(Replicas):
    """Replicas on a Ray cluster."""

    def __init__(
        self,
        *,
        num_replicas: int,
        gpus_per_replica: float | None = None,
        retry: bool = False,
        num_slots: int = 16,
        num_threads: int = 1,
        speculation: int = WINDOW,
        device: str = "auto",
        **serving: Any,
    ) -> None:
        """Settings as :class:`model.engine.commands.Configure`; None GPUs: 1 where there are any."""
        settings = Configure(device, num_slots, num_threads, speculation, marks=retry, **serving)
        logged = {name: os.environ[name] for name in LOGGED if name in os.environ}
        order = Connect(num_replicas, gpus_per_replica, device, worker_environment(num_threads) | logged)
        self.link = RayLink(order)
        super().__init__([RayReplica(settings, self.link, number) for number in range(num_replicas)], retry=retry)

    def spawn(self) -> None:
        """Start the driver from any thread, so that it connects while the parent still imports."""
        self.link.spawn()

    def kill(self) -> None:
        """Kill the driver immediately; used when the parent exits."""
        self.link.kill()

    async def start(self) -> None:
        """Connect and start the actors.

        Raises:
            EngineError: Ray is not installed, or cannot be reached or started; `detail` is one line.
        """
        await self.link.start()
        await super().start()

    def status(self) -> EngineStatus:
        """As of all replicas; without a cluster, why there is none."""
        status = super().status()
        return replace(status, detail=self.link.lack) if status.phase == "starting" and self.link.lack else status

    async def close(self) -> None:
        """End the actors, and a cluster of our own."""
        await super().close()
        await self.link.close()


class RayLink:
    """The driver process, and a new one whenever it has died. Belongs to one event loop."""

    def __init__(self, order: Connect) -> None:
        self._order = order
        command = (sys.executable, "-m", "model.cluster.driver")
        self._child = ChildLink(command, {}, take_line=lambda line: printed.debug("%s", line))
        self._replicas: dict[int, asyncio.Queue[bytes | str]] = {}
        self._connected = asyncio.Event()
        self._first: asyncio.Future[None] | None = None
        self._supervisor: asyncio.Task[None] | None = None
        self._trouble = ""  # what ended the last connection, or attempt
        self.kill = self._child.kill

    @property
    def pid(self) -> int | None:
        """The driver's process id."""
        return self._child.pid

    @property
    def lack(self) -> str:
        """Why there is no cluster; "" if it is connected."""
        if self._connected.is_set():
            return ""
        address = os.environ.get("RAY_ADDRESS")
        doing = f"connecting to Ray at {address}" if address else "starting Ray"
        return f"{self._trouble}; {doing}" if self._trouble else doing

    def spawn(self) -> None:
        """Start the driver, from any thread."""
        if self._child.pid is None and importlib.util.find_spec("ray") is not None:
            self._child.spawn()

    async def start(self) -> None:
        """Return once the driver is connected.

        Raises:
            EngineError: it cannot connect.
        """
        if importlib.util.find_spec("ray") is None:
            raise EngineError("not_ready", "OMNI_R1_ENGINE=ray needs Ray: pip install 'omni-r1-studio[ray]'")
        if self._supervisor is None:
            self._first = asyncio.get_running_loop().create_future()
            self._supervisor = asyncio.create_task(self._supervise(self._first), name="ray")
            await self._first

    async def close(self) -> None:
        """Stop the driver, and with it a cluster of its own."""
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
        await self._child.end(patience=CLOSE_S)

    async def create(self, replica: int) -> asyncio.Queue[bytes | str]:
        """Start an actor once the driver is connected; its items, in batches, and at last a line on its end."""
        await self._connected.wait()
        queue = self._replicas[replica] = asyncio.Queue()
        self.send(Create(replica))  # if the driver is just dying, the line on its end follows
        return queue

    def send(self, order: Create | Post | Kill) -> None:
        """Send to an actor; without a driver there is none."""
        if self._child.is_open:
            self._child.send(order)

    async def _supervise(self, first: asyncio.Future[None]) -> None:
        while True:
            self.spawn()
            code = await self._child.read(lambda: self._child.send(self._order), self._take)
            was_connected = self._connected.is_set()
            self._connected.clear()
            if was_connected:
                self._trouble = f"the Ray driver ended with exit code {code}"
            elif not self._trouble:
                self._trouble = f"the Ray driver ended with exit code {code}; OMNI_R1_LOG_LEVEL=debug shows its output"
            if not first.done():
                first.set_exception(EngineError("not_ready", self._trouble))
                return
            log.error("%s", self.lack)
            for queue in self._replicas.values():
                queue.put_nowait(self._trouble)
            self._replicas.clear()
            if not was_connected:
                await asyncio.sleep(AGAIN_S)

    def _take(self, message: object) -> None:
        match message:
            case Connected(address):
                log.info("connected to Ray at %s", address)
                self._trouble = ""
                self._connected.set()
                if self._first is not None and not self._first.done():
                    self._first.set_result(None)
            case Refused(detail):
                given = os.environ.get("RAY_ADDRESS")
                what = f"Ray at {given} cannot be reached" if given else "Ray cannot be started"
                self._trouble = f"{what}: {detail}"
            case Batch(replica, items):
                if replica in self._replicas:
                    self._replicas[replica].put_nowait(items)
            case Died(replica, detail):
                log.warning("replica %d: %s", replica + 1, detail)
                if replica in self._replicas:
                    self._replicas.pop(replica).put_nowait(detail)
            case Line(text):
                sys.stderr.write(f"{text}\n")


class RayReplica(HostedEngine):
    """An engine in an actor."""

    def __init__(self, settings: Configure, link: RayLink, number: int) -> None:
        super().__init__({}, None, settings)
        self.pid: int | None = None
        self._link, self._number = link, number
        self._num_posted: int | None = None  # None: there is no actor

    async def _run(self) -> str:
        if not self._status.detail:
            self._set_status(EngineStatus("starting", STARTING))
        items = await self._link.create(self._number)
        self._num_posted = 0
        self._post(self._opening())
        while not isinstance(batch := await items.get(), str):
            for item in pickle.loads(batch):
                self._take(item)
        self._num_posted = self.pid = None
        return batch

    def _take(self, item: Any) -> None:
        match item:
            case Hello(host, pid):
                self.host, self.pid = host, pid
            case Line(text):
                sys.stderr.write(f"{text}\n")
            case _:
                self._receive(item)

    async def _reap(self) -> None:
        self._num_posted = self.pid = None
        self._link.send(Kill(self._number))

    def _send(self, message: Command) -> None:
        if self._num_posted is None:
            self._unsent.append(message)
        else:
            self._post([message])

    def _post(self, commands: list[Command]) -> None:
        assert self._num_posted is not None
        self._link.send(Post(self._number, self._num_posted, pickle.dumps(commands, pickle.HIGHEST_PROTOCOL)))
        self._num_posted += 1

"""The Ray driver of a server: `python -m model.cluster.driver SOCKET_FD`, started by `model/cluster/engine.py`.

Ray lives in a process of its own because it ends its process when it loses the cluster's head. The driver starts and
ends actors and passes batches on, unread. With `RAY_ADDRESS`, the cluster is that one and only our actors end with the
driver. Otherwise the driver starts a cluster on this machine, which ends with it, even if it is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import sys
from typing import Any

from model import log_lines
from model.cluster.actor import EngineActor, Line, Relay
from model.cluster.connect import RAY, ROOM_S, connect
from model.cluster.frames import Batch, Connect, Connected, Create, Died, Kill, Post, Refused
from model.cluster.words import STARTING, want_of_room, why_died, why_refused
from model.engine.link import ParentLink
from model.engine.messages import EngineStatus


class Driver:
    """Carries out the server's orders. On the event loop."""

    def __init__(self, parent: ParentLink) -> None:
        self._parent = parent
        self._actors: dict[int, Any] = {}
        self._streams: dict[int, asyncio.Task[None]] = {}
        self._make: Any = None
        self._needs: dict[str, float] = {}

    def take(self, message: object) -> None:
        """Carry out an order."""
        match message:
            case Connect():
                self._connect(message)
            case Create(replica):
                self._actors[replica] = actor = self._make.remote()
                self._streams[replica] = asyncio.create_task(self._follow(replica, actor, actor.reports.remote()))
            case Post(replica, number, commands):
                if (actor := self._actors.get(replica)) is not None:  # else it has just died
                    actor.post.remote(number, commands)
            case Kill(replica):
                self._kill(replica)

    def _connect(self, order: Connect) -> None:
        try:
            import ray

            address = connect(own_cpus=order.replicas)
        except Exception as error:  # Ray has no class of its own for what goes wrong here
            self._parent.send(Refused(why_refused(error)))
            os._exit(0)
        gpus = order.gpus
        if gpus is None:
            gpus = 1 if order.device in ("auto", "cuda") and ray.cluster_resources().get("GPU") else 0
        self._needs = {"CPU": 1, "GPU": gpus}
        self._make = ray.remote(EngineActor).options(
            num_cpus=1,
            num_gpus=gpus,
            max_restarts=0,  # the server asks for another one
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": order.environment},
        )
        self._parent.send(Connected(address))

    async def _follow(self, replica: int, actor: Any, stream: Any) -> None:
        """Pass on what an actor reports until it ends."""
        from ray.exceptions import RayError

        how = "the actor ended"
        room = asyncio.create_task(self._watch_room(replica))
        try:
            async for item in stream:
                room.cancel()
                self._parent.send(Batch(replica, await item))
        except RayError as error:
            how = why_died(str(error))
        finally:
            room.cancel()
        if self._actors.get(replica) is actor:
            self._kill(replica)
            self._parent.send(Died(replica, how))

    async def _watch_room(self, replica: int) -> None:
        """Report whether a replica waits for room, until its actor has started."""
        import ray

        said = STARTING
        try:
            while True:
                await asyncio.sleep(ROOM_S)
                with contextlib.suppress(Exception):  # the head is away, which ends this process
                    found = want_of_room(self._needs, await asyncio.to_thread(ray.available_resources))
                    if found != said:
                        said = found
                        self._report(replica, said)
        finally:
            if said != STARTING:
                self._report(replica, STARTING)

    def _report(self, replica: int, detail: str) -> None:
        """Send the status of a replica whose actor cannot speak yet."""
        self._parent.send(Batch(replica, pickle.dumps([EngineStatus("starting", detail)])))

    def _kill(self, replica: int) -> None:
        import ray

        actor = self._actors.pop(replica, None)
        if actor is not None:
            ray.kill(actor)


async def main(fd: int) -> None:
    """Serve the parent over an inherited socket until it closes."""
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    parent = ParentLink(fd)

    def relay(line: Line) -> None:
        with contextlib.suppress(OSError):  # the server has exited, and so do we
            parent.send(line)

    log_lines.configure_from_environment(Relay(relay))
    driver = Driver(parent)
    parent.receive(
        lambda message: loop.call_soon_threadsafe(driver.take, message),
        lambda: loop.call_soon_threadsafe(over.set),
    )
    await over.wait()


if __name__ == "__main__":
    for name, value in RAY.items():
        os.environ.setdefault(name, value)
    asyncio.run(main(int(sys.argv[1])))
    if "ray" in sys.modules:
        sys.modules["ray"].shutdown()
    os._exit(0)

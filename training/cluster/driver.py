"""The Ray driver of a pool of actors, a child process of a job's worker; `training/cluster/pool.py` starts it.

Ray lives in a process of its own because it ends its process when it loses the cluster's head, and a worker has a state
to save. When the worker ends for any reason, the pipe closes, the driver exits, and Ray ends its actors.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from multiprocessing.connection import Connection
from typing import Any

from model.cluster.connect import ADDRESS, RAY, ROOM_S, connect
from model.cluster.words import why_died, why_refused
from model.engine.client import worker_environment
from training.cluster.orders import Failed, Plan, Round, Weight, Weights
from training.cluster.places import ActorDiedError, Places
from training.cluster.pool_actor import PoolActor
from training.cluster.room import lack_of
from training.jobs.context import JobError


def drive(pipe: Connection, plan: Plan) -> None:
    """Connect to the cluster of `RAY_ADDRESS` and carry out the worker's orders until it closes the pipe."""
    _leave_signals_to_the_worker()
    for name, value in RAY.items():
        os.environ.setdefault(name, value)
    asyncio.run(_Driver(pipe, plan).run())


class _Driver:
    def __init__(self, pipe: Connection, plan: Plan) -> None:
        self._pipe, self._plan = pipe, plan
        self._early: list[Any] = []  # orders that came before the cluster
        self._places: Places | None = None
        self._actors: Any = None
        self._tensors: dict[str, Any] = {}  # of weights that are not complete
        self._fixed: Any = {}
        self._changing: Any = {}
        self._version = 0

    async def run(self) -> None:
        """Serve until the process ends."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._receive, args=(loop,), name="orders", daemon=True).start()
        try:
            await self._serve()
        except* JobError as errors:
            error = errors.exceptions[0]
            assert isinstance(error, JobError)
            self._pipe.send(Failed(error.code, error.detail))
        await loop.create_future()  # the worker ends this process

    async def _serve(self) -> None:
        address = os.environ.get(ADDRESS)
        if not address:
            raise JobError("cluster_unreachable", f"rollout_actors needs {ADDRESS}, the host:port of a cluster's head")
        try:
            import ray

            connect(own_cpus=0)
            _leave_signals_to_the_worker()  # again: Ray has set its own
        except Exception as error:  # Ray has no class of its own for what goes wrong here
            detail = f"Ray at {address} cannot be reached: {why_refused(error)}"
            raise JobError("cluster_unreachable", detail) from error
        needs = {"CPU": 1.0} | ({"GPU": float(self._plan.gpus)} if self._plan.gpus else {})
        self._actors = ray.remote(PoolActor).options(
            num_cpus=1,
            num_gpus=self._plan.gpus,
            max_restarts=0,  # another one takes its place
            scheduling_strategy="SPREAD",
            runtime_env={"env_vars": worker_environment(num_threads=1)},
        )
        self._places = Places(
            lambda: _RayActor(self),
            self._plan.count,
            tell=self._pipe.send,
            lack=lambda: lack_of(needs),
            look_s=min(ROOM_S, self._plan.place_s),
            place_s=self._plan.place_s,
        )
        for order in self._early:
            self._take(order)
        await self._places.serve()

    def _receive(self, loop: asyncio.AbstractEventLoop) -> None:
        try:
            while True:
                loop.call_soon_threadsafe(self._take, self._pipe.recv())
        except (EOFError, OSError):
            os._exit(0)

    def _take(self, order: object) -> None:
        if self._places is None:
            self._early.append(order)
            return
        match order:
            case Weight(name, data):
                self._tensors[name] = data
            case Weights(fixed):
                self._put(fixed=fixed)
            case Round(number, shares):
                self._places.give(number, shares)

    def _put(self, *, fixed: bool) -> None:
        """Put the weights into the object store, once for all actors."""
        import ray

        try:
            put, self._tensors = ray.put(self._tensors), {}
        except Exception as error:  # no room, or the head is away
            self._pipe.send(Failed("cluster_unreachable", f"the cluster takes no weights: {why_refused(error)}"))
            return
        if fixed:
            self._fixed = put
        else:
            self._changing, self._version = put, self._version + 1

    def start(self) -> Any:
        """Ask the cluster for an actor."""
        return self._actors.remote(self._plan.make)

    def work(self, actor: Any, share: bytes) -> Any:
        """Have an actor do a share with the last weights."""
        return actor.work.remote(self._version, self._fixed, self._changing, share)


class _RayActor:
    """An `Actor` of Ray."""

    def __init__(self, driver: _Driver) -> None:
        self._driver, self._actor = driver, driver.start()

    async def ready(self) -> None:
        await self._result(self._actor.__ray_ready__.remote())

    async def work(self, share: bytes) -> bytes:
        found: bytes = await self._result(self._driver.work(self._actor, share))
        return found

    async def _result(self, reference: Any) -> Any:
        import ray
        from ray.exceptions import RayError

        try:
            return await reference
        except RayError as error:
            ray.kill(self._actor)
            raise ActorDiedError(why_died(str(error))) from error


def _leave_signals_to_the_worker() -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)

"""Pools of actors without Ray: in a process of their own, or in this one."""

from __future__ import annotations

import os
import pickle
import signal
from collections.abc import Callable, Collection, Iterable, Sequence
from multiprocessing.connection import Connection
from typing import Any, ClassVar

import numpy as np

from training.cluster.orders import Done, Failed, Lost, Plan, Round, Waiting, Weight, Weights
from training.cluster.pool_actor import PoolActor, Raised


class Adder:
    """Work: adds its weights to a share, or raises."""

    def __init__(self) -> None:
        self.weights: dict[str, Any] = {}

    def load(self, weights: Any) -> None:
        self.weights |= dict(weights)

    def __call__(self, share: Any) -> Any:
        if isinstance(share, str):
            raise ValueError(share)
        return share + sum(int(array.sum()) for array in self.weights.values())


def drive(pipe: Connection, plan: Plan) -> None:
    """In place of `training.cluster.driver.drive`: does shares as the number of actors says."""
    weights: dict[bool, dict[str, Any]] = {True: {}, False: {}}
    pending: dict[str, Any] = {}
    actor, version = PoolActor(plan.make), 0
    if plan.count == 64:
        pipe.send(Failed("cluster_unreachable", "Ray at nowhere cannot be reached"))
    while True:
        try:
            order = pipe.recv()
        except EOFError:
            return
        match order:
            case Weight(name, data):
                pending[name] = data
            case Weights(fixed):
                weights[fixed], pending, version = pending, {}, version + 1
            case Round() if plan.count == 13:
                os.kill(os.getpid(), signal.SIGKILL)
            case Round() if plan.count == 7:
                pipe.send(Waiting("needs 1 CPU, 0 CPU free"))  # and never anything else
            case Round(number, shares):
                pipe.send(Lost("its node died"))
                pipe.send(Done(number - 1, 0, b"of another round"))
                for index in reversed(range(len(shares))):
                    pipe.send(Done(number, index, actor.work(version, weights[True], weights[False], shares[index])))


class InProcessPool:
    """In place of `ActorPool`: each share goes to the next actor, through pickles. `dead` actors only lose shares."""

    made: ClassVar[list[InProcessPool]] = []

    def __init__(self, make: Callable[[], Any], count: int, **_: Any) -> None:
        self.count, self._version, self._next = count, 0, 0
        self._actors = [PoolActor(pickle.dumps(make)) for _ in range(count)]
        self._weights: dict[bool, dict[str, Any]] = {True: {}, False: {}}
        self.sent: list[dict[str, Any]] = []
        self.shares: list[Any] = []
        self.dead: set[int] = set()
        self.is_open = True
        InProcessPool.made.append(self)

    def send(self, weights: Iterable[tuple[str, Any]], *, fixed: bool = False) -> None:
        copied = {name: np.array(data) for name, data in weights}
        for array in copied.values():
            array.flags.writeable = False  # as Ray's are
        self._weights[fixed] = copied
        self._version += not fixed
        self.sent.append(copied)

    def work(self, shares: Sequence[Any], poll: Callable[[Collection[int]], None]) -> list[Any]:
        done: dict[int, Any] = {}
        for index, share in enumerate(shares):
            poll(done)
            while (number := self._next % self.count) in self.dead:
                self._next += 1
            self._next += 1
            data = self._actors[number].work(
                self._version, self._weights[True], self._weights[False], pickle.dumps(share)
            )
            value = pickle.loads(data)
            if isinstance(value, Raised):
                raise value.error
            done[index] = value
        poll(done)
        self.shares += shares
        return [done[index] for index in range(len(shares))]

    def close(self) -> None:
        self.is_open = False

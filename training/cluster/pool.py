"""A pool of actors on a Ray cluster that share a job's work, from the worker's side. Imports no Ray."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

from model.cluster.connect import ADDRESS
from training.cluster.driver import drive
from training.cluster.orders import Done, Failed, Lost, Plan, Round, Waiting, Weight, Weights
from training.cluster.pool_actor import Raised
from training.jobs.context import JobError

POLL_S = 0.2  # between looks at whether the job is to stop
PLACE_S = 600.0  # without any actor
CLOSE_S = 5.0  # for the driver to end
RESUMES = "the job resumes from its last saved state"


class PoolError(JobError):
    """The pool cannot go on; the job's earlier steps can be saved."""


class ActorPool:
    """The actors, and the driver process that has them. They end with it."""

    def __init__(
        self,
        make: Callable[[], Any],
        count: int,
        *,
        gpus: int = 0,
        note: Callable[[Mapping[str, Any] | None], None] = lambda waiting: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        """Start connecting to the cluster of `RAY_ADDRESS`.

        Args:
            make: makes an actor's `training.cluster.pool_actor.Work`; can be pickled.
            count: number of actors, each with one CPU.
            gpus: of each.
            note: takes what the job waits for, or None.
            say: takes a line for the log.
        """
        self.count = count
        self._note, self._say = note, say
        self._number = 0
        context = multiprocessing.get_context("spawn")  # a copy of this process would have its locks and threads
        self._pipe, theirs = context.Pipe()
        plan = Plan(pickle.dumps(make), count, gpus, PLACE_S)
        with theirs:
            self._driver = context.Process(target=drive, args=(theirs, plan), name="pool driver", daemon=True)
            self._driver.start()

    def send(self, weights: Iterable[tuple[str, Any]], *, fixed: bool = False) -> None:
        """Give all actors weights for the next rounds, as names and arrays of bytes.

        ``fixed`` ones, sent once, stay beside those of each later call.

        Raises:
            PoolError: ``cluster_unreachable``.
        """
        for name, data in weights:
            self._send(Weight(name, data))
        self._send(Weights(fixed))

    def work(self, shares: Sequence[Any], poll: Callable[[Collection[int]], None] = lambda done: None) -> list[Any]:
        """Have the actors do shares of work; return their results in the shares' order.

        Args:
            shares: can be pickled.
            poll: called all the time with the finished shares' indices; may raise, and the round is dropped.

        Raises:
            PoolError: ``cluster_unreachable``, ``node_died`` or ``bad_node``.
            Exception: what a share raised.
        """
        self._number += 1
        self._send(Round(self._number, [pickle.dumps(share, pickle.HIGHEST_PROTOCOL) for share in shares]))
        done: dict[int, Any] = {}
        try:
            while len(done) < len(shares):
                try:
                    message = self._pipe.recv() if self._pipe.poll(POLL_S) else None
                except (EOFError, OSError):
                    poll(done)  # a job that is to stop has not failed
                    raise self._gone() from None
                self._take(message, done)
                poll(done)
        finally:
            self._note(None)
        return [done[index] for index in range(len(shares))]

    def close(self) -> None:
        """End the driver, and with it the actors."""
        self._pipe.close()
        self._driver.join(CLOSE_S)
        if self._driver.is_alive():
            self._driver.kill()
        self._driver.join()

    def _take(self, message: object, done: dict[int, Any]) -> None:
        match message:
            case Done(number, share, result) if number == self._number:
                value = pickle.loads(result)
                if isinstance(value, Raised):
                    raise value.error
                done[share] = value
            case Waiting(detail):
                self._note(None if detail is None else {"for": "cluster", "detail": detail})
            case Lost(detail):
                self._say(f"a rollout actor is lost, and another one takes its place: {detail}")
            case Failed(code, detail):
                raise PoolError(code, f"{detail}; {RESUMES}")

    def _send(self, message: object) -> None:
        try:
            self._pipe.send(message)
        except OSError:
            with contextlib.suppress(EOFError, OSError):  # it may have said why
                while self._pipe.poll():
                    self._take(self._pipe.recv(), {})
            raise self._gone() from None

    def _gone(self) -> PoolError:
        where = f"Ray at {os.environ.get(ADDRESS)}"
        return PoolError("cluster_unreachable", f"the connection to {where} is lost; {RESUMES}")

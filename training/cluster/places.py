"""Places of a pool of actors, and the shares of work that they take from one queue. Imports no Ray.

A share does not depend on the actor that does it, so that of a dead one goes back into the queue: to the next actor
that is free, or to the one that takes the dead one's place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from training.cluster.orders import Done, Lost, Waiting
from training.jobs.context import JobError

MOST_DEATHS = 3  # of the actors of one place in a row: the work itself may be what kills them


class ActorDiedError(Exception):
    """An actor, or its node, has ended; the message is one clause."""


class Actor(Protocol):
    """An actor of the pool."""

    async def ready(self) -> None:
        """Return once it has a place and has started; raises `ActorDiedError`."""
        ...

    async def work(self, share: bytes) -> bytes:
        """Do a share with the last weights; raises `ActorDiedError`."""
        ...


@dataclass(frozen=True, slots=True)
class Share:
    """A share of a round."""

    round: int
    index: int
    work: bytes


class Places:
    """So many actors, and others for those that die. On an event loop."""

    def __init__(
        self,
        create: Callable[[], Actor],
        count: int,
        *,
        tell: Callable[[object], None],
        lack: Callable[[], Awaitable[str | None]],
        look_s: float,
        place_s: float,
    ) -> None:
        """Create no actor yet, see `serve`.

        Args:
            create: asks for an actor; it may wait for room.
            count: number of places.
            tell: takes `Done`, `Lost` and `Waiting`.
            lack: says what an actor lacks, None if there is room.
            look_s: seconds between two looks for room.
            place_s: seconds without any actor after which `serve` gives up.
        """
        self._create, self._count = create, count
        self._tell, self._lack, self._look_s, self._place_s = tell, lack, look_s, place_s
        self._shares: asyncio.Queue[Share] = asyncio.Queue()
        self._round = 0
        self._working = 0  # actors that have a place
        self._has_worked = False

    def give(self, number: int, shares: Sequence[bytes]) -> None:
        """Begin a round; shares of earlier ones are dropped."""
        self._round = number
        while not self._shares.empty():
            self._shares.get_nowait()
        for index, share in enumerate(shares):
            self._shares.put_nowait(Share(number, index, share))

    async def serve(self) -> None:
        """Keep the places filled, for as long as the pool lives.

        Raises:
            JobError: ``node_died`` or ``bad_node``, if the actors of a place die again and again;
                ``cluster_unreachable`` or ``node_died``, if there is no room for any for too long.
        """
        async with asyncio.TaskGroup() as group:
            for _ in range(self._count):
                group.create_task(self._fill())
            group.create_task(self._watch())

    async def _fill(self) -> None:
        deaths = 0
        while True:
            actor, share, has_begun = self._create(), None, False
            try:
                await actor.ready()
                has_begun = self._has_worked = True
                self._working += 1
                try:
                    while True:
                        share = await self._shares.get()
                        result = await actor.work(share.work)
                        deaths = 0
                        if share.round == self._round:
                            self._tell(Done(share.round, share.index, result))
                finally:
                    self._working -= 1
            except ActorDiedError as error:
                deaths += 1
                if deaths == MOST_DEATHS:
                    detail = f"{deaths} rollout actors died one after the other, the last one as follows: {error}"
                    raise JobError("node_died" if has_begun else "bad_node", detail) from error
                self._tell(Lost(str(error)))
            if share is not None and share.round == self._round:
                self._shares.put_nowait(share)

    async def _watch(self) -> None:
        """Tell what there is no room for while there is no actor at all, and give up at last."""
        loop = asyncio.get_running_loop()
        since, said = loop.time(), None
        while True:
            await asyncio.sleep(self._look_s)
            found = None if self._working else await self._lack()
            if self._working:
                since, found = loop.time(), None
            if found != said:
                said = found
                self._tell(Waiting(found))
            if loop.time() - since > self._place_s:
                code = "node_died" if self._has_worked else "cluster_unreachable"
                why = found or "none has started"
                raise JobError(code, f"no rollout actor for {self._place_s:g} s: {why}")

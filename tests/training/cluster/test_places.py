"""Which actor does which share, and what happens when actors die or find no room. Without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests.patience import PATIENCE_S
from training.cluster.orders import Done, Lost, Waiting
from training.cluster.places import MOST_DEATHS, ActorDiedError, Places
from training.jobs.context import JobError


class Actor:
    """Does a share when the test says so."""

    def __init__(self) -> None:
        self.placed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.share: bytes | None = None
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def ready(self) -> None:
        await self.placed

    async def work(self, share: bytes) -> bytes:
        self.share, self.answer = share, asyncio.get_running_loop().create_future()
        try:
            return await self.answer
        finally:
            self.share = None

    def die(self) -> None:
        (self.answer if self.placed.done() else self.placed).set_exception(ActorDiedError("its node died"))


class Pool:
    """Places, the actors that they have asked for, and what they have told."""

    def __init__(self, count: int, *, place_s: float = PATIENCE_S) -> None:
        self.actors: list[Actor] = []
        self.told: list[object] = []
        self.lacks: str | None = None
        self.places = Places(self._create, count, tell=self.told.append, lack=self._lack, look_s=0.01, place_s=place_s)
        self.serving = asyncio.create_task(self.places.serve())

    def _create(self) -> Actor:
        self.actors.append(Actor())
        return self.actors[-1]

    async def _lack(self) -> str | None:
        return self.lacks

    def place(self, *numbers: int) -> None:
        for number in numbers:
            self.actors[number].placed.set_result(None)

    def working(self) -> dict[int, bytes]:
        return {number: actor.share for number, actor in enumerate(self.actors) if actor.share is not None}

    def finish(self, number: int) -> None:
        actor = self.actors[number]
        assert actor.share is not None
        actor.answer.set_result(actor.share.upper())

    def results(self, round_: int = 1) -> dict[int, bytes]:
        done = [one for one in self.told if isinstance(one, Done) and one.number == round_]
        assert len({one.share for one in done}) == len(done), "no share is told twice"
        return {one.share: one.result for one in done}

    async def failure(self) -> JobError:
        with pytest.raises(ExceptionGroup) as caught:
            async with asyncio.timeout(PATIENCE_S):
                await self.serving
        (error,) = caught.value.exceptions
        assert isinstance(error, JobError)
        return error


@asynccontextmanager
async def pool_of(count: int, *, place_s: float = PATIENCE_S) -> AsyncIterator[Pool]:
    pool = Pool(count, place_s=place_s)
    await settled()
    yield pool
    pool.serving.cancel()
    await asyncio.gather(pool.serving, return_exceptions=True)


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def test_actors_take_shares_as_they_get_free() -> None:
    async with pool_of(3) as pool:
        pool.places.give(1, [b"a", b"b", b"c"])
        pool.place(1, 0)  # the third finds no room
        await settled()
        assert pool.working() == {1: b"a", 0: b"b"}
        pool.finish(0)
        await settled()
        assert pool.working() == {1: b"a", 0: b"c"}
        pool.finish(1)
        pool.finish(0)
        await settled()
        assert pool.results() == {0: b"A", 1: b"B", 2: b"C"}


@pytest.mark.parametrize("has_room", [True, False])
async def test_share_of_a_dead_actor_is_done_by_another(has_room: bool) -> None:
    """By the one that takes its place, or by one that is free."""
    async with pool_of(2) as pool:
        pool.place(0, 1)
        await settled()
        pool.places.give(1, [b"a", b"b"])
        await settled()
        pool.actors[0].die()
        await settled()
        assert pool.told == [Lost("its node died")]
        assert len(pool.actors) == 3
        if has_room:
            pool.place(2)
        else:
            pool.finish(1)
        await settled()
        assert pool.working()[2 if has_room else 1] == b"a"
        for number in pool.working():
            pool.finish(number)
        await settled()
        assert pool.results() == {0: b"A", 1: b"B"}


async def test_new_round_replaces_what_is_left_of_the_last() -> None:
    async with pool_of(1) as pool:
        pool.place(0)
        pool.places.give(1, [b"a", b"b"])
        await settled()
        pool.places.give(2, [b"c"])
        pool.finish(0)
        await settled()
        assert pool.working() == {0: b"c"}
        pool.actors[0].die()
        await settled()
        pool.place(1)
        await settled()
        pool.finish(1)
        await settled()
        assert (pool.results(1), pool.results(2)) == ({}, {0: b"C"})
        pool.places.give(3, [b"d"])
        await settled()
        pool.places.give(4, [])
        pool.actors[1].die()
        await settled()
        pool.place(2)
        await settled()
        assert pool.working() == {}, "a share of a round that is over is not done again"


@pytest.mark.parametrize(("begun", "code"), [(True, "node_died"), (False, "bad_node")])
async def test_actors_that_die_again_and_again_end_the_pool(begun: bool, code: str) -> None:
    async with pool_of(1) as pool:
        pool.places.give(1, [b"a"])
        for number in range(MOST_DEATHS):
            assert not pool.serving.done()
            if begun:
                pool.place(number)
                await settled()
            pool.actors[number].die()
            await settled()
        error = await pool.failure()
        assert error.code == code
        assert "its node died" in error.detail


async def test_deaths_with_work_in_between_do_not_end_the_pool() -> None:
    async with pool_of(1) as pool:
        for number in range(2 * MOST_DEATHS):
            pool.place(number)
            pool.places.give(number, [b"a"])
            await settled()
            pool.finish(number)
            await settled()
            assert pool.results(number) == {0: b"A"}
            pool.places.give(-1, [b"b"])
            await settled()
            pool.actors[number].die()
            await settled()
        assert not pool.serving.done()


async def test_wait_for_room_is_told_until_there_is_an_actor() -> None:
    async with pool_of(2) as pool:
        pool.lacks = "needs 1 CPU, 0 CPU free"
        while not pool.told:
            await asyncio.sleep(0.01)
        assert pool.told == [Waiting("needs 1 CPU, 0 CPU free")]
        pool.place(0)
        while len(pool.told) == 1:
            await asyncio.sleep(0.01)
        assert pool.told[1:] == [Waiting(None)]


async def test_no_room_for_too_long_ends_the_pool() -> None:
    async with pool_of(1, place_s=0.05) as pool:
        pool.lacks = "needs 1 CPU, 0 CPU free"
        error = await pool.failure()
        assert (error.code, "needs 1 CPU, 0 CPU free" in error.detail) == ("cluster_unreachable", True)
    async with pool_of(1, place_s=0.05) as pool:
        pool.place(0)
        await settled()
        pool.places.give(1, [b"a"])
        await settled()
        pool.actors[0].die()
        assert (await pool.failure()).code == "node_died"

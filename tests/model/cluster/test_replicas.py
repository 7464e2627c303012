"""Replicas as one engine: placement, and loads that change all or nothing. Scripted replicas, no Ray."""

from __future__ import annotations

import asyncio

import pytest

from model.cluster.replicas import SLACK
from model.engine.hosted import Host
from model.engine.messages import (
    AlternativesQuery,
    Cancelled,
    EngineError,
    Finished,
    GenerationRequest,
    ImageInput,
    Paused,
    SamplingParams,
)
from tests.model.cluster.fake_replica import STATE, FakeReplica, ask, begin, replicas_of, started, until

DONE = Finished("stop", "red", {})


# ---- placement


async def test_requests_go_to_the_emptiest_replica(two: tuple[FakeReplica, FakeReplica]) -> None:
    async with replicas_of(*two) as replicas:
        places = [(await begin(replicas, *two, request=ask(f"r{n}")))[1] for n in range(6)]
        assert [places.count(engine) for engine in two] == [3, 3]
        for name in [*two[1].requests]:
            two[1].say(name, DONE)
        await until(lambda: len(replicas._runs) == 3)
        assert (await begin(replicas, *two, request=ask("next")))[1] is two[1]


async def test_group_stays_together_until_its_replica_is_overloaded(two: tuple[FakeReplica, FakeReplica]) -> None:
    async with replicas_of(*two) as replicas:
        places = [(await begin(replicas, *two, request=ask(f"r{n}", group="g")))[1] for n in range(SLACK + 4)]
        first = places[0]
        assert places[: SLACK + 1] == [first] * (SLACK + 1)
        assert places[SLACK + 1] is not first
        other = (await begin(replicas, *two, request=ask("other", group="h")))[1]
        assert other is not first


async def test_paused_request_returns_to_its_rows(two: tuple[FakeReplica, FakeReplica]) -> None:
    async with replicas_of(*two) as replicas:
        _, first = await begin(replicas, *two, request=ask("busy"))
        reader, second = await begin(replicas, *two, request=ask("a"))
        assert second is not first
        second.say("a", started(), Paused(1, STATE))
        await reader.last()
        second.requests.pop("a")
        await begin(replicas, *two, request=ask("more"))
        await begin(replicas, *two, request=ask("and more"))
        assert (await begin(replicas, *two, request=ask("a", resume=STATE)))[1] is second


async def test_messages_reach_the_replica_of_the_request(two: tuple[FakeReplica, FakeReplica]) -> None:
    async with replicas_of(*two) as replicas:
        reader, engine = await begin(replicas, *two, request=ask("a", images=(ImageInput(b"x"),)))
        other = two[engine is two[0]]
        await replicas.pause("a")
        assert (engine.pauses, other.pauses) == (["a"], [])
        assert await replicas.seen("a") == engine.host.memory.encode()
        await replicas.abort("a")
        assert isinstance(await reader.last(), Cancelled)
        await replicas.abort("a")
        with pytest.raises(EngineError) as refused:
            await replicas.seen("a")
        assert refused.value.code == "not_live"


async def test_questions_go_where_the_weights_are(two: tuple[FakeReplica, FakeReplica]) -> None:
    async with replicas_of(*two) as replicas:
        two[0].gone = {7}
        query = AlternativesQuery("m", 7, "", (), (), SamplingParams())
        assert await replicas.alternatives(query) == ["b"]
        two[1].gone = {7}
        with pytest.raises(EngineError) as gone:
            await replicas.alternatives(query)
        assert gone.value.code == "weights_gone"


# ---- checkpoints


async def test_load_reaches_every_replica(two: tuple[FakeReplica, FakeReplica]) -> None:
    async with replicas_of(*two) as replicas:
        await replicas.load("n", "/n", 4)
        assert [engine.folders for engine in two] == [{"m": "/m", "n": "/n"}] * 2
        assert replicas.status().loaded == {"m": 1, "n": 4}
        await replicas.unload("n")
        assert [engine.folders for engine in two] == [{"m": "/m"}] * 2
        assert replicas.status().loaded == {"m": 1}


@pytest.mark.parametrize("name", ["m", "n"])
async def test_failed_load_changes_nothing_anywhere(two: tuple[FakeReplica, FakeReplica], name: str) -> None:
    """A new checkpoint, and new weights for a loaded one."""
    async with replicas_of(*two) as replicas:
        two[1].bad_folder = "/big"
        with pytest.raises(EngineError) as refused:
            await replicas.load(name, "/big", 2)
        assert refused.value.code == "insufficient_memory"
        assert [engine.folders for engine in two] == [{"m": "/m"}] * 2
        assert [engine.versions for engine in two] == [{"m": 1}] * 2
        assert replicas.status().loaded == {"m": 1}


async def test_cancelled_load_is_freed_when_it_ends(two: tuple[FakeReplica, FakeReplica]) -> None:
    async with replicas_of(*two) as replicas:
        two[1].held = held = []
        loading = asyncio.create_task(replicas.load("n", "/n", 1))
        await until(lambda: held)
        loading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loading
        assert two[0].folders == {"m": "/m"}
        two[1].held = None
        two[1]._reply(*held[0])  # the worker cannot be interrupted
        two[1].be_ready()
        await until(lambda: two[1].folders == {"m": "/m"})
        await replicas.load("n", "/n", 1)
        assert replicas.status().loaded == {"m": 1, "n": 1}


async def test_replica_that_dies_loading_gets_what_it_missed_before_requests(
    two: tuple[FakeReplica, FakeReplica],
) -> None:
    async with replicas_of(*two) as replicas:
        two[1].fatal_folder = "/n"
        await replicas.load("n", "/n", 1)
        assert replicas.status().loaded == {"m": 1, "n": 1}
        assert not replicas.is_whole
        two[1].fatal_folder = ""
        two[1].held = held = []
        two[1].be_ready()  # with "m" alone
        await until(lambda: held)
        for n in range(3):
            request = GenerationRequest(f"r{n}", "n", "Where?")
            assert (await begin(replicas, *two, request=request))[1] is two[0]
        two[1].held = None
        two[1]._reply(*held[0])
        await until(lambda: replicas.is_whole)
        assert (await begin(replicas, *two, request=GenerationRequest("late", "n", "Where?")))[1] is two[1]


async def test_load_fails_if_no_replica_survives_it(two: tuple[FakeReplica, FakeReplica]) -> None:
    async with replicas_of(*two) as replicas:
        two[0].fatal_folder = two[1].fatal_folder = "/n"
        with pytest.raises(EngineError) as refused:
            await replicas.load("n", "/n", 1)
        assert refused.value.code == "engine_died"
        assert replicas.status().phase == "starting"


async def test_memory_is_what_the_fullest_replica_has(two: tuple[FakeReplica, FakeReplica]) -> None:
    """Two on one machine share its memory, which a load takes twice."""
    two[1].free = 400
    third = FakeReplica(two[0].host)
    async with replicas_of(*two, third) as replicas:
        memory = await replicas.memory()
        assert (memory["free"], memory["total"]) == (400, 1000)
        assert memory["models"] == {"m": 100}
        assert memory["rss"] == 15
        two[1].die()
        assert (await replicas.memory())["free"] == 500


async def test_second_death_while_another_replica_catches_up_is_noticed(
    two: tuple[FakeReplica, FakeReplica],
) -> None:
    """Both come back without what was loaded meanwhile; one of them does so twice."""
    third = FakeReplica(Host("c", "cpu"))
    async with replicas_of(*two, third) as replicas:
        for engine in two:
            engine.die()
        await replicas.load("n", "/n", 1)
        two[0].be_ready()
        two[1].held = held = []
        two[1].be_ready()
        await until(lambda: held)
        two[0].die()
        del two[0].versions["n"], two[0].folders["n"]
        two[0].be_ready()
        two[1].held = None
        two[1]._reply(*held[0])
        await until(lambda: replicas.is_whole)
        assert [engine.versions for engine in two] == [{"m": 1, "n": 1}] * 2

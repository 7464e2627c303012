"""Replicas that die: whose requests fail, and which go on elsewhere. Scripted replicas, no Ray."""

from __future__ import annotations

import asyncio

from model.cluster import run as cluster_run
from model.engine.hosted import Host
from model.engine.messages import (
    Cancelled,
    EngineStatus,
    Failed,
    Finished,
    ImageInput,
    Mark,
    QueuePosition,
    Tokens,
)
from model.worker.requests import ResumeState
from tests.model.cluster.fake_replica import STATE, FakeReplica, Reader, ask, begin, replicas_of, started, text, until
from tests.patience import PATIENCE_S

DONE = Finished("stop", "red", {})


async def test_death_fails_only_the_requests_of_that_replica(two: tuple[FakeReplica, FakeReplica]) -> None:
    async with replicas_of(*two) as replicas:
        readers = [await begin(replicas, *two, request=ask(f"r{n}")) for n in range(4)]
        two[0].die()
        assert "1 of 2 replicas are whole; replica 1: it died" in replicas.status().detail
        assert replicas.status().phase == "ready"
        for reader, engine in readers:
            if engine is two[0]:
                last = await reader.last()
                assert isinstance(last, Failed)
                assert last.code == "engine_died"
        for name in [*two[1].requests]:
            two[1].say(name, DONE)
        assert [await reader.last() for reader, engine in readers if engine is two[1]] == [DONE] * 2
        two[0].be_ready()
        await until(lambda: replicas.is_whole)
        assert replicas.status().detail == ""


async def test_all_failed_means_failed(two: tuple[FakeReplica, FakeReplica]) -> None:
    async with replicas_of(*two) as replicas:
        for engine in two:
            engine._set_status(EngineStatus("failed", "no device"))
        assert replicas.status().phase == "failed"
        assert "replica 2: no device" in replicas.status().detail
        (output,) = [output async for output in replicas.generate(ask("a"))]
        assert isinstance(output, Failed)
        assert output.code == "not_ready"


async def test_request_goes_on_after_its_last_output(two: tuple[FakeReplica, FakeReplica]) -> None:
    async with replicas_of(*two, retry=True) as replicas:
        reader, first = await begin(replicas, *two, request=ask("a"))
        second = two[first is two[0]]
        first.say("a", QueuePosition(1), started(), text("one"), Mark(STATE, Tokens((7,), (-0.5,)), 3, 1))
        first.say("a", text("two"), Mark(b"", Tokens((8, 9), (-0.1, -0.2)), 9, 2, (5,)))
        await until(lambda: len(reader.outputs) == 4)
        await replicas.pause("a")
        first.die()
        await until(lambda: "a" in second.requests)
        request = second.requests["a"]
        assert request.mode == "step", "a pause is not forgotten"
        assert request.resume is not None
        state = ResumeState.from_bytes(request.resume)
        assert (state.prompt, state.tokens, state.logprobs) == ([1, 2], [7, 8, 9], [-0.5, -0.1, -0.2])
        assert (state.num_draws, state.num_parsed, state.passes) == (9, 2, [5])
        second.say("a", QueuePosition(0), started(), text("three"), DONE)
        assert await reader.last() == DONE
        assert reader.outputs == [QueuePosition(1), started(), text("one"), text("two"), text("three"), DONE]


async def test_request_without_outputs_starts_again_elsewhere(two: tuple[FakeReplica, FakeReplica]) -> None:
    async with replicas_of(*two, retry=True) as replicas:
        _, first = await begin(replicas, *two, request=ask("a"))
        second = two[first is two[0]]
        first.die()
        await until(lambda: "a" in second.requests)
        assert second.requests["a"] == ask("a")


async def test_request_with_outputs_but_no_mark_fails(two: tuple[FakeReplica, FakeReplica]) -> None:
    """Among given steps whose images are not encoded yet there is nothing to go on from."""
    async with replicas_of(*two, retry=True) as replicas:
        reader, first = await begin(replicas, *two, request=ask("a"))
        first.say("a", started(), text("one"))
        await until(lambda: len(reader.outputs) == 2)
        first.die()
        assert isinstance(await reader.last(), Failed)


async def test_request_waits_for_the_same_kind_of_processor() -> None:
    engines = FakeReplica(Host("a", "avx512")), FakeReplica(Host("b", "avx2"))
    async with replicas_of(*engines, retry=True) as replicas:
        reader, first = await begin(replicas, *engines, request=ask("a"))
        second = engines[first is engines[0]]
        first.say("a", started(), text("one"), Mark(STATE, Tokens((7,), (-0.5,)), 3, 1))
        await until(lambda: len(reader.outputs) == 2)
        first.die()
        await begin(replicas, second, request=ask("b"))
        assert "a" not in second.requests
        first.be_ready()
        await until(lambda: "a" in first.requests)
        first.say("a", DONE)
        assert await reader.last() == DONE


async def test_request_that_kills_its_replicas_ends(two: tuple[FakeReplica, FakeReplica]) -> None:
    async with replicas_of(*two, retry=True) as replicas:
        reader = Reader(replicas, ask("poison"))
        deaths = 0
        while not reader._task.done():
            await asyncio.sleep(0)
            for engine in two:
                if "poison" in engine.requests:
                    engine.die()
                    engine.be_ready()
                    deaths += 1
        last = await reader.last()
        assert isinstance(last, Failed)
        assert last.code == "engine_died"
        assert deaths == cluster_run.MOST_MOVES + 1


async def test_request_whose_weights_are_gone_elsewhere_fails_as_it_died(
    two: tuple[FakeReplica, FakeReplica],
) -> None:
    async with replicas_of(*two, retry=True) as replicas:
        reader, first = await begin(replicas, *two, request=ask("a"))
        second = two[first is two[0]]
        first.say("a", started(), text("one"), Mark(STATE, Tokens((7,), (-0.5,)), 3, 1))
        await until(lambda: len(reader.outputs) == 2)
        first.die()
        await until(lambda: "a" in second.requests)
        second.say("a", Failed("weights_gone", "version 1 is gone"))
        last = await reader.last()
        assert isinstance(last, Failed)
        assert last.code == "engine_died"


async def test_aborted_request_does_not_move() -> None:
    engine = FakeReplica(Host("a"))
    async with replicas_of(engine, retry=True) as replicas:
        reader, _ = await begin(replicas, engine, request=ask("a"))
        engine.die()
        await until(lambda: replicas._runs["a"].engine is None)
        await replicas.abort("a")
        assert isinstance(await reader.last(), Cancelled)


async def test_seen_image_comes_from_the_next_replica(two: tuple[FakeReplica, FakeReplica]) -> None:
    async with replicas_of(*two, retry=True) as replicas:
        _, first = await begin(replicas, *two, request=ask("a", images=(ImageInput(b"x"),)))
        second = two[first is two[0]]
        first.holds_seen = True
        seen = asyncio.create_task(replicas.seen("a"))
        await until(lambda: first._replies)
        first.die()
        async with asyncio.timeout(PATIENCE_S):
            assert await seen == second.host.memory.encode()


async def test_close_ends_waiting_requests() -> None:
    engine = FakeReplica(Host("a"))
    async with replicas_of(engine, retry=True) as replicas:
        reader, _ = await begin(replicas, engine, request=ask("a"))
        engine.die()
        await until(lambda: replicas._runs["a"].engine is None)
    assert isinstance(await reader.last(), Failed)
    assert replicas.status().phase == "stopping"

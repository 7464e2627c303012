"""Too little memory: traces wait for a place, and one that does not fit into a step ends alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint.memory import needs_of
from model.engine.candidates import Candidates
from model.engine.engine import Engine
from model.engine.messages import EngineError, Failed, Finished, Output, QueuePosition
from model.engine.scheduler import Scheduler
from model.engine.sequence import Sequence
from model.nets.kv_cache import PrefillAttention
from model.worker.inprocess import InProcess
from tests.model.worker.traces import Recorder, ask, collect, engine_of

FULL = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 23.68 GiB\nsee the docs"
ON_CPU = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 2147483648 bytes."


def code_of(outputs: list[Output]) -> str:
    return outputs[-1].code if isinstance(outputs[-1], Failed) else type(outputs[-1]).__name__


async def test_of_thirty_traces_the_newest_wait_and_none_fails(drawing_checkpoint: Path, recorder: Recorder) -> None:
    """A budget for a few contexts: the others wait, and get a place in order of arrival."""
    kv_mb = -(-2 * 512 * needs_of(drawing_checkpoint, width=4, device="cpu").kv_per_token // (1 << 20))
    async with engine_of(drawing_checkpoint, slots=16, kv_mb=kv_mb) as engine:
        (model,) = engine.worker.models
        assert model.engine.cache.num_slots < 16
        requests = [ask(str(number), tokens=12, images=False) for number in range(30)]
        outputs = await asyncio.gather(*(collect(engine, request) for request in requests))
    assert {code_of(one) for one in outputs} == {"Finished"}
    waited = [any(isinstance(output, QueuePosition) for output in one) for one in outputs]
    assert waited[-1]
    assert waited == sorted(waited)
    admissions = [recorder.sequences[str(number)].admission for number in range(30)]
    assert admissions == sorted(admissions)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(FULL), RuntimeError(ON_CPU)])
async def test_newest_trace_ends_when_a_step_has_too_little_memory(
    engine: InProcess, drawing_checkpoint: Path, recorder: Recorder, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Three do not fit: the third ends with the figures, the others go on with the same tokens."""
    alone = [await collect(engine, ask(f"alone {n}", seed=n)) for n in range(2)]
    draw = Engine._draw

    def short_of_memory(self: Engine, running: list[Sequence], *more: Any) -> Any:
        if len({sequence.request_id for sequence in running}) > 2:
            raise error
        return draw(self, running, *more)

    monkeypatch.setattr(Engine, "_draw", short_of_memory)
    first, second, third = await asyncio.gather(*(collect(engine, ask(str(n), seed=n)) for n in range(3)))
    assert code_of(third) == "engine_error"
    detail = third[-1].detail  # type: ignore[union-attr]
    assert "ran out of memory in a step of 3 traces" in detail
    assert "OMNI_R1_KV_MB" in detail
    assert detail.count("\n") == 0
    for number, (one, other) in enumerate(zip(alone, (first, second), strict=True)):
        assert isinstance(other[-1], Finished)
        recorder.assert_same_trace(drawing_checkpoint, f"alone {number}", one, str(number), other)


async def test_a_prompt_too_long_for_memory_ends_alone(engine: InProcess, monkeypatch: pytest.MonkeyPatch) -> None:
    attend = PrefillAttention.__call__

    def short_of_memory(self: PrefillAttention, layer: int, q: torch.Tensor, *more: torch.Tensor) -> torch.Tensor:
        if len(q) > 150:
            raise torch.OutOfMemoryError(FULL)
        return attend(self, layer, q, *more)

    monkeypatch.setattr(PrefillAttention, "__call__", short_of_memory)
    long = replace(ask("long", tokens=5, images=False), question="ж" * 100)
    short, failed, after = await asyncio.gather(
        collect(engine, ask("short")), collect(engine, long), collect(engine, ask("after"))
    )
    assert [code_of(outputs) for outputs in (short, failed, after)] == ["Finished", "engine_error", "Finished"]
    assert "Tried to allocate 2.00 GiB" in failed[-1].detail  # type: ignore[union-attr]


async def test_shortage_after_tokens_were_drawn_ends_the_batch_and_not_the_engine(
    engine: InProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their tokens are lost, so none of them can go on."""

    def short_of_memory(*_: object) -> Any:
        raise torch.OutOfMemoryError(FULL)

    with monkeypatch.context() as patched:
        patched.setattr(Candidates, "take", short_of_memory)
        both = await asyncio.gather(*(collect(engine, ask(str(n))) for n in range(2)))
    assert {code_of(outputs) for outputs in both} == {"engine_error"}
    assert isinstance((await collect(engine, ask("next")))[-1], Finished)


async def test_shortage_while_loading_is_named(engine: InProcess, drawing_checkpoint: Path) -> None:
    """Not an invalid checkpoint; the loaded one goes on serving."""
    with pytest.MonkeyPatch.context() as patched:

        def short_of_memory(*_: object, **__: object) -> Any:
            raise torch.OutOfMemoryError(FULL)

        patched.setattr("model.worker.models.load_checkpoint", short_of_memory)
        with pytest.raises(EngineError) as error:
            await engine.load("other", str(drawing_checkpoint), 2)
    assert error.value.code == "insufficient_memory"
    assert isinstance((await collect(engine, ask("next")))[-1], Finished)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError(FULL), ZeroDivisionError("a fault")])
async def test_step_that_fails_before_any_trace_runs_does_not_repeat_for_ever(
    engine: InProcess, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Nothing runs that could end for it: the traces that wait end, one a step."""

    def fails(*_: object) -> Any:
        raise error

    with monkeypatch.context() as patched:
        patched.setattr(Scheduler, "admit", fails)
        waiting = await asyncio.gather(*(collect(engine, ask(str(n))) for n in range(3)))
    assert [code_of(outputs) for outputs in waiting] == ["engine_error"] * 3
    assert isinstance((await collect(engine, ask("next")))[-1], Finished)

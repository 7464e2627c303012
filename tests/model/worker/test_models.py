"""Checkpoints in one engine process: checked without loading, distinguished by version, freed when unused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from model.engine.messages import EngineError, Failed, Finished, GenerationRequest, Paused, SamplingParams, Started
from model.worker.inprocess import InProcess
from model.worker.requests import ResumeState
from tests.model.worker.traces import Recorder, Steps, ask, assert_same_events, collect, events, parts_of
from tests.tiny import make_drawing_checkpoint


@pytest.fixture(scope="session")
def other_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Other weights of the same shapes."""
    return make_drawing_checkpoint(tmp_path_factory.mktemp("checkpoints") / "other", seed=1)


async def test_check_reports_footprint_and_keeps_nothing(engine: InProcess, other_checkpoint: Path) -> None:
    before = await engine.memory()
    footprint = await engine.check(str(other_checkpoint))
    after = await engine.memory()
    assert after["models"] == before["models"]
    assert engine.status().loaded == {"drawing": 1}
    assert footprint.resident == pytest.approx(after["models"]["drawing"], rel=0.05)
    assert footprint.loading >= footprint.resident
    assert 0 < after["free"] <= after["total"]


async def test_check_reads_everything_while_traces_run(engine: InProcess, tmp_path: Path) -> None:
    running = asyncio.create_task(collect(engine, ask("a")))
    spoilt = make_drawing_checkpoint(tmp_path / "spoilt")
    path = spoilt / "model-vq.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(EngineError) as caught:
        await engine.check(str(spoilt))
    assert caught.value.code == "hash_mismatch"
    assert "model-vq.safetensors" in caught.value.detail
    assert isinstance((await running)[-1], Finished)


async def test_checkpoint_is_freed_after_its_last_request(
    engine: InProcess, other_checkpoint: Path, steps: Steps
) -> None:
    await engine.load("other", str(other_checkpoint), 2)
    with steps.held():
        stream = engine.generate(ask("a", tokens=300))
        assert isinstance(await anext(stream), Started)
        await engine.unload("drawing")
        memory = await engine.memory()
        assert memory["models"].keys() == {"other"}
        assert memory["retired"] == memory["models"]["other"]
        (rejected,) = await collect(engine, ask("b"))
    assert isinstance(rejected, Failed)
    assert rejected.code == "unknown_checkpoint"
    outputs = [output async for output in stream]
    assert isinstance(outputs[-1], Finished)
    assert (await engine.memory())["retired"] == 0


async def test_paused_request_resumes_only_with_its_version(
    engine: InProcess, drawing_checkpoint: Path, other_checkpoint: Path, recorder: Recorder, steps: Steps
) -> None:
    whole = await collect(engine, ask("whole"))
    first = await collect(engine, ask("a", mode="step"))
    paused = first[-1]
    assert isinstance(paused, Paused)
    assert ResumeState.from_bytes(paused.resume).version == 1

    keeper = engine.generate(ask("keeper", tokens=400))
    with steps.held():
        assert isinstance(await anext(keeper), Started)
        await engine.load("drawing", str(other_checkpoint), 2)  # other weights under the same name
    rest = await collect(engine, ask("b", resume=paused.resume))
    assert isinstance(rest[0], Started)
    assert rest[0].weight_version == 1, "the replaced ones are there as long as somebody uses them"
    recorder.assert_same_trace(drawing_checkpoint, "whole", whole, "b", first + rest)

    await keeper.aclose()
    await engine.memory()  # handled after the abort
    (rejected,) = await collect(engine, ask("c", resume=paused.resume))
    assert isinstance(rejected, Failed)
    assert rejected.code == "weights_gone"

    await engine.load("drawing", str(drawing_checkpoint), 1)  # read back with its old number
    rest = await collect(engine, ask("d", resume=paused.resume))
    recorder.assert_same_trace(drawing_checkpoint, "whole", whole, "d", first + rest)


async def test_two_checkpoints_answer_independently(
    engine: InProcess, drawing_checkpoint: Path, other_checkpoint: Path, recorder: Recorder
) -> None:
    def request(name: str, checkpoint: str) -> GenerationRequest:
        sampling = SamplingParams(temperature=1.0, seed=1, max_new_tokens=80, max_images=3)
        return GenerationRequest(name, checkpoint, "Where is the red star?", (), sampling)

    await engine.load("other", str(other_checkpoint), 2)
    alone = [await collect(engine, request(f"{name} alone", name)) for name in ("drawing", "other")]
    together = await asyncio.gather(*(collect(engine, request(name, name)) for name in ("drawing", "other")))
    for name, folder, one, other in zip(
        ("drawing", "other"), (drawing_checkpoint, other_checkpoint), alone, together, strict=True
    ):
        recorder.assert_same_trace(folder, f"{name} alone", one, name, other)
    assert events(alone[0]) != events(alone[1])
    assert [outputs[0].weight_version for outputs in together] == [1, 2]  # type: ignore[union-attr]


async def test_renamed_checkpoint_takes_over_a_name(engine: InProcess, steps: Steps, other_checkpoint: Path) -> None:
    """Running requests keep their weights; an unknown name changes nothing."""
    with pytest.raises(EngineError) as refused:
        await engine.rename("nothing", "drawing")
    assert refused.value.code == "unknown_checkpoint"
    before = await collect(engine, ask("before"))
    await engine.load("other", str(other_checkpoint), 2)
    with steps.held():
        running = asyncio.create_task(collect(engine, ask("running")))
        await asyncio.sleep(0)
        await engine.rename("other", "drawing")
        assert engine.status().loaded == {"drawing": 2}
        assert (await engine.memory())["retired"] > 0
    assert_same_events(before, await running)
    after = await collect(engine, ask("after"))
    assert [part.ids for part in parts_of(after)] != [part.ids for part in parts_of(before)]
    assert [o.weight_version for o in (*before, *after) if isinstance(o, Started)] == [1, 2]
    assert (await engine.memory())["retired"] == 0

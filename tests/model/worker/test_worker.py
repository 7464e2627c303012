"""The worker in a thread: streams, step mode, aborts, failing steps, loading and unloading checkpoints."""

from __future__ import annotations

import asyncio
import io
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from model.checkpoint.checkpoint import load_checkpoint
from model.engine.messages import (
    Cancelled,
    Emitted,
    EngineError,
    Failed,
    Finished,
    GenerationRequest,
    ImageInput,
    Output,
    Paused,
    QueuePosition,
    Started,
)
from model.images.codes import decode_codes, encode_images
from model.images.view import png_bytes
from model.worker import image_thread
from model.worker.inprocess import InProcess
from model.worker.models import Model
from model.worker.narrator import ImageResult
from tests.model.worker.traces import (
    Recorder,
    Steps,
    an_image,
    ask,
    collect,
    engine_of,
    events,
    first_codes,
    kinds,
    without_logprobs,
)
from tests.near_ties import assert_same_image


async def test_trace_streams_steps_images_and_end(engine: InProcess) -> None:
    outputs = await collect(engine, ask("a", partial_images=2))
    started, finished = outputs[0], outputs[-1]
    assert isinstance(started, Started)
    assert (started.weight_version, started.max_new_tokens, started.room_images) == (1, 120, 3)
    assert isinstance(finished, Finished)
    assert finished.usage["images"] == 3
    assert finished.usage["prompt_tokens"] == started.prompt_tokens
    names = kinds(outputs)
    assert names.count("image.completed") == 3
    assert names.count("step.started") == names.count("step.completed")
    done = next(o for o in outputs if isinstance(o, Emitted) and o.event.type == "image.completed")
    assert done.png is not None
    assert Image.open(io.BytesIO(done.png)).size == (16, 16)
    assert set(done.event.data["stats"]) == {"codes", "flatness", "tv", "perception_reward", "copied", "passes"}
    assert 1 <= done.event.data["stats"]["passes"] <= 4
    partials = [o for o in outputs if isinstance(o, Emitted) and o.event.type == "image.partial"]
    seen = {(o.event.data["index"], o.event.data["codes_done"]) for o in partials}
    assert (2, 4) in seen, "all codes are reported even if the decoder was busy"
    assert seen <= {(0, 1), (1, 3), (2, 4)}


async def test_events_are_independent_of_other_requests(
    engine: InProcess, drawing_checkpoint: Path, recorder: Recorder
) -> None:
    alone = await collect(engine, ask("alone"))
    many = await asyncio.gather(
        *(collect(engine, ask(f"r{i}", seed=i, tokens=60 + 20 * i)) for i in range(6)),
        collect(engine, ask("again")),
    )
    recorder.assert_same_trace(drawing_checkpoint, "alone", alone, "again", many[-1])
    assert events(many[0]) != events(many[2])


async def test_seen_is_the_decoded_question_even_after_a_pause(
    engine: InProcess, drawing_checkpoint: Path, steps: Steps
) -> None:
    loaded = load_checkpoint(drawing_checkpoint)
    assert loaded.vq is not None
    codes = encode_images(loaded.vq, [an_image().png])
    wanted = png_bytes(decode_codes(loaded.vq, codes)[0])
    resume: bytes | None = None
    for _ in range(2):
        with steps.held():
            asked = asyncio.create_task(collect(engine, ask("a", mode="step", resume=resume)))
            await asyncio.sleep(0)
            assert_same_image(await engine.seen("a"), wanted)
        last = (await asked)[-1]
        assert isinstance(last, Paused)
        resume = last.resume
    asked_early = asyncio.create_task(collect(engine, ask("b")))
    await asyncio.sleep(0)  # the image is not encoded yet
    assert_same_image(await engine.seen("b"), wanted)
    await asked_early
    for gone in ("a", "b", "nobody"):
        with pytest.raises(EngineError):
            await engine.seen(gone)


@pytest.mark.parametrize("fresh_engine", [False, True])
async def test_stepping_equals_running_through(
    drawing_checkpoint: Path, fresh_engine: bool, recorder: Recorder
) -> None:
    parts: list[Output] = []
    resume: list[bytes] = []

    async def step(engine: InProcess) -> None:
        if fresh_engine:  # only the bytes survive
            engine.worker._stash.budget = 0
        outputs = await collect(engine, ask("a", mode="step", resume=resume[-1] if resume else None))
        parts.extend(outputs)
        if isinstance(outputs[-1], Paused):
            assert outputs[-1].step == len(resume) + 1
            resume.append(outputs[-1].resume)
            assert kinds(outputs)[-2:] == ["step.completed", "Paused"]
            await engine.memory()  # answered after the status
            assert engine.status().running == 0

    async with engine_of(drawing_checkpoint) as engine:
        whole = await collect(engine, ask("whole"))
    if fresh_engine:
        while not (parts and isinstance(parts[-1], Finished)):
            async with engine_of(drawing_checkpoint) as engine:
                await step(engine)
    else:
        async with engine_of(drawing_checkpoint) as engine:
            while not (parts and isinstance(parts[-1], Finished)):
                await step(engine)
    assert len(resume) >= 3
    if recorder.assert_same_trace(drawing_checkpoint, "whole", whole, "a", parts):
        assert without_logprobs(parts[-1]) == without_logprobs(whole[-1])


async def test_pause_takes_effect_at_step_end(engine: InProcess, steps: Steps) -> None:
    outputs = []
    with steps.held():
        stream = engine.generate(ask("a", tokens=300))
        outputs.append(await anext(stream))
        await engine.pause("a")
    outputs += [output async for output in stream]
    assert isinstance(outputs[-1], Paused)
    rest = await collect(engine, ask("a", tokens=300, resume=outputs[-1].resume))
    assert isinstance(rest[-1], Finished)


async def test_abort_answers_once_slot_is_free(engine: InProcess, steps: Steps) -> None:
    core = engine.worker.models["drawing"].engine
    with steps.held():
        stream = engine.generate(ask("a", tokens=480, images=False))
        await anext(stream)
        await engine.abort("a")
        assert core.scheduler.is_idle
    taken = core.num_steps
    outputs = [output async for output in stream]
    assert isinstance(outputs[-1], Cancelled)
    await engine.memory()
    assert core.num_steps == taken, "no token after the abort"
    await engine.abort("a")  # already ended: answers immediately


async def test_leaving_the_stream_aborts_the_request(engine: InProcess) -> None:
    async with aclosing(engine.generate(ask("a", tokens=480))) as stream:
        async for output in stream:
            if isinstance(output, Started):
                break
    await engine.memory()  # handled after the abort
    assert engine.worker.models["drawing"].engine.scheduler.is_idle
    assert not engine.worker._live


async def test_undecodable_image_ends_only_its_trace(
    drawing_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, recorder: Recorder
) -> None:
    """Independent of the images decoded with it."""
    loaded = load_checkpoint(drawing_checkpoint)
    first: list[tuple[int, ...]] = []
    monkeypatch.setattr(image_thread, "OVERDUE_S", -1.0)  # every complete image is overdue
    async with engine_of(drawing_checkpoint) as engine:
        alone = await collect(engine, ask("alone", seed=2))
        marked = await collect(engine, ask("marked", seed=1))
        first.append(next(first_codes(o.tokens, loaded.vocab) for o in marked if isinstance(o, Emitted) and o.tokens))
        real = Model.draw

        def draw(model: Model, images: list[tuple[int, ...]], *before: Any) -> list[ImageResult]:
            if first[0] in images:
                raise RuntimeError("no decoder for this one")
            return real(model, images, *before)

        monkeypatch.setattr(Model, "draw", draw)
        bad, *good = await asyncio.gather(
            collect(engine, ask("bad", seed=1)), *(collect(engine, ask(f"good-{i}", seed=2)) for i in range(3))
        )
        assert isinstance(bad[-1], Failed)
        assert "no decoder for this one" in bad[-1].detail
        for number, outputs in enumerate(good):
            assert isinstance(outputs[-1], Finished)
            recorder.assert_same_trace(drawing_checkpoint, "alone", alone, f"good-{number}", outputs)


async def test_waiting_request_reports_its_position(drawing_checkpoint: Path) -> None:
    async with engine_of(drawing_checkpoint, slots=1) as engine:
        runs = await asyncio.gather(*(collect(engine, ask(f"r{i}", images=False)) for i in range(4)))
        positions = [[o.position for o in outputs if isinstance(o, QueuePosition)] for outputs in runs]
        assert positions == [[], [0], [1, 0], [2, 1, 0]]


async def test_failing_step_fails_only_its_requests(
    engine: InProcess, drawing_checkpoint: Path, recorder: Recorder
) -> None:
    core = engine.worker.models["drawing"].engine
    real, calls = core.cache.decode, []

    def fail(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("out of memory, say")
        return real(*arguments)

    reference = await collect(engine, ask("r", images=False))
    core.cache.decode = fail
    outputs = await collect(engine, ask("a", images=False))
    assert isinstance(outputs[-1], Failed)
    assert outputs[-1].code == "engine_error"
    assert "out of memory, say" in outputs[-1].detail
    again = await collect(engine, ask("b", images=False))
    recorder.assert_same_trace(drawing_checkpoint, "r", reference, "b", again)


async def test_bad_requests_fail_with_their_own_code(engine: InProcess) -> None:
    bad = [
        (GenerationRequest("1", "nobody", "?"), "unknown_checkpoint"),
        (GenerationRequest("2", "drawing", "why " * 5000), "prompt_too_long"),
        (GenerationRequest("3", "drawing", "?", (ImageInput(b"no picture"),)), "bad_image"),
        (GenerationRequest("4", "drawing", "?", resume=b"rubbish"), "bad_resume"),
    ]
    for request, code in bad:
        (output,) = await collect(engine, request)
        assert isinstance(output, Failed), request
        assert output.code == code, output
    assert isinstance((await collect(engine, ask("good")))[-1], Finished)


async def test_replacement_applies_to_new_requests_only(
    engine: InProcess, drawing_checkpoint: Path, tmp_path: Path, recorder: Recorder
) -> None:
    outputs: list[Output] = []
    async for output in engine.generate(ask("old", tokens=200)):
        outputs.append(output)
        if isinstance(output, Started):
            await engine.load("drawing", str(drawing_checkpoint), 2)
            new = asyncio.create_task(collect(engine, ask("new", tokens=200)))
    assert isinstance(outputs[-1], Finished)
    recorder.assert_same_trace(drawing_checkpoint, "old", outputs, "new", await new)
    assert new.result()[0].weight_version == 2  # type: ignore[union-attr]
    assert engine.status().loaded == {"drawing": 2}
    assert engine.worker.models.num_retired == 0
    with pytest.raises(EngineError) as caught:
        await engine.load("broken", str(tmp_path), 3)
    assert caught.value.code in ("missing_file", "not_found")
    await engine.unload("drawing")
    assert (await collect(engine, ask("gone")))[-1].code == "unknown_checkpoint"  # type: ignore[union-attr]

"""Marks: from each one, another engine goes on with the same tokens and events, as if nothing had happened."""

from __future__ import annotations

import math
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.engine.messages import Emitted, Finished, GenerationRequest, KeptStep, Mark, Output, Paused, Prefix, Tokens
from model.worker.inprocess import InProcess
from model.worker.requests import ResumeState
from tests.model.worker.traces import Recorder, an_image, ask
from tests.near_ties import assert_equal_up_to_near_tie, assert_same_image

CUTS = 12  # of a trace's marks, evenly spaced


@pytest.fixture(scope="module")
async def engines(drawing_checkpoint: Path) -> AsyncIterator[tuple[InProcess, InProcess]]:
    """The engine that is lost, and the one that goes on."""
    pair = InProcess({"drawing": drawing_checkpoint}, marks=True), InProcess({"drawing": drawing_checkpoint})
    for engine in pair:
        await engine.start()
        assert (await engine.wait_ready()).phase == "ready"
    yield pair
    for engine in pair:
        await engine.close()


@pytest.fixture(scope="module")
def loaded(drawing_checkpoint: Path) -> LoadedCheckpoint:
    return load_checkpoint(drawing_checkpoint)


async def follow(engine: InProcess, request: GenerationRequest) -> list[Output | Mark]:
    """Outputs and marks in the order in which they were sent."""
    received: list[Output | Mark] = []
    take = engine._receive

    def receive(message: object) -> None:
        received.extend(output for _, output in getattr(message, "items", ()))
        take(message)  # type: ignore[arg-type]

    engine._receive = receive  # type: ignore[method-assign,assignment]
    try:
        async for _ in engine.generate(request):
            pass
    finally:
        engine._receive = take  # type: ignore[method-assign]
    return received


def told(outputs: list[Output | Mark]) -> list[tuple[str, str]]:
    """Everything that a reader sees: runs of deltas are one, partial images may be dropped."""
    seen: list[tuple[str, str]] = []
    for output in outputs:
        if not isinstance(output, Emitted) or output.event.type == "image.partial":
            continue
        kind, data = output.event.type, dict(output.event.data)
        if kind in ("text.delta", "answer.delta") and seen and seen[-1][0] == kind:
            seen[-1] = (kind, seen[-1][1] + data["text"])
            continue
        stats = data.pop("stats", None) or {}
        data |= {"drawn": "passes" in stats}
        tokens = output.tokens and output.tokens.ids
        seen.append((kind, data["text"] if kind.endswith(".delta") else f"{sorted(data.items())} {tokens}"))
    return seen


def images(outputs: list[Output | Mark]) -> list[bytes]:
    drawn = [o for o in outputs if isinstance(o, Emitted) and o.event.type == "image.completed"]
    return [output.png for output in drawn if output.png is not None]


def parts(outputs: list[Output | Mark]) -> Tokens:
    """All tokens of the complete steps and the end."""
    found = [o.tokens for o in outputs if isinstance(o, Emitted | Finished) and o.tokens is not None]
    return Tokens(
        tuple(token for one in found for token in one.ids), tuple(logprob for one in found for logprob in one.logprobs)
    )


REQUESTS = {
    "plain": ask("plain", tokens=200, partial_images=3),
    "without images": ask("without images", images=False, tokens=90),
    "candidates": replace(
        ask("candidates", tokens=160, seed=4),
        sampling=replace(ask("x", tokens=160, seed=4).sampling, candidates=3, temperature=2.5),
        verifier="drawing",
    ),
    "kept": ask(
        "kept",
        prefix=Prefix((KeptStep("I look.", image=an_image()), KeptStep("I zoom in.")), then_text="It is", num_draws=30),
    ),
}


@pytest.mark.parametrize("name", REQUESTS)
async def test_another_engine_goes_on_from_every_mark(
    engines: tuple[InProcess, InProcess], loaded: LoadedCheckpoint, recorder: Recorder, name: str
) -> None:
    first, second = engines
    request = REQUESTS[name]
    whole = await follow(first, request)
    assert isinstance(whole[-1], Finished)
    original = recorder.sequences[name]
    marks = [place for place, output in enumerate(whole) if isinstance(output, Mark)]
    assert len(marks) > 5
    ties = 0
    for place in marks[:: max(1, len(marks) // CUTS)]:
        before = whole[: place + 1]
        state = ResumeState.marked([output for output in before if isinstance(output, Mark)])
        after = await follow(second, replace(request, resume=state.to_bytes(), prefix=Prefix()))
        assert isinstance(after[-1], Finished), after[-1]
        again = recorder.sequences[name]
        if name != "candidates":  # whose images are drawn otherwise
            assert_equal_up_to_near_tie(loaded, original.prompt, original.params, original, again)
        if again.response != original.response:
            ties += 1
            continue
        joined = [*before, *after]
        assert told(joined) == told(whole), f"after {len(state.tokens)} tokens"
        assert after[-1].usage == whole[-1].usage
        for mine, theirs in zip(parts(joined).logprobs, parts(whole).logprobs, strict=True):
            assert math.isnan(mine) == math.isnan(theirs)
            assert math.isnan(mine) or abs(mine - theirs) < 1e-4
        for png, other in zip(images(joined), images(whole), strict=True):
            assert_same_image(png, other)
    assert ties <= 2, "near ties are rare"


async def test_moved_trace_can_pause(engines: tuple[InProcess, InProcess]) -> None:
    """Step mode after a move: what is left of the step, then a pause."""
    first, second = engines
    request = ask("pausing", tokens=200)
    whole = await follow(first, request)
    ends = [n for n, o in enumerate(whole) if isinstance(o, Emitted) and o.event.type == "step.completed"]
    place = max(n for n, output in enumerate(whole[: ends[-1]]) if isinstance(output, Mark))
    state = ResumeState.marked([output for output in whole[: place + 1] if isinstance(output, Mark)])
    after = await follow(second, replace(request, mode="step", resume=state.to_bytes()))
    assert isinstance(after[-1], Paused)
    seen = told([*whole[: place + 1], *after])
    assert seen == told(whole)[: len(seen)]
    assert seen[-1][0] == "step.completed"


async def test_marks_are_only_sent_where_they_are_wanted(engines: tuple[InProcess, InProcess]) -> None:
    assert not [output for output in await follow(engines[1], ask("a", tokens=30)) if isinstance(output, Mark)]

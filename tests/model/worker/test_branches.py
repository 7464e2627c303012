"""Given beginnings of responses, groups that share a prefill, tokens and their alternatives."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path

import pytest

from model.checkpoint.checkpoint import load_checkpoint
from model.engine.messages import (
    AlternativesQuery,
    Cancelled,
    Emitted,
    EngineError,
    Finished,
    KeptStep,
    Output,
    Paused,
    Prefix,
    Tokens,
)
from model.engine.sequence import DRAWS_PER_TOKEN
from model.images.codes import decode_codes, encode_images
from model.images.view import png_bytes
from model.worker.inprocess import InProcess
from model.worker.models import Model
from tests.model.worker.traces import (
    Recorder,
    Steps,
    an_image,
    ask,
    collect,
    engine_of,
    first_codes,
    kinds,
    parts_of,
)
from tests.near_ties import assert_same_image


async def test_tokens_are_reported_once_with_their_log_probabilities(engine: InProcess, recorder: Recorder) -> None:
    outputs: list[Output] = []
    resume: bytes | None = None
    while not (outputs and isinstance(outputs[-1], Finished)):
        outputs += await collect(engine, ask("a", mode="step", resume=resume))
        resume = outputs[-1].resume if isinstance(outputs[-1], Paused) else None
    whole = await collect(engine, ask("whole"))
    for run_of in (outputs, whole):
        parts = parts_of(run_of)
        ids = [token for part in parts for token in part.ids]
        assert len(parts) > 3
        assert all(len(part.ids) == len(part.logprobs) for part in parts)
        assert all(logprob <= 0 for part in parts for logprob in part.logprobs)
        assert isinstance(run_of[-1], Finished)
        assert len(ids) == run_of[-1].usage["completion_tokens"]
    assert recorder.sequences["whole"].response == [token for part in parts_of(whole) for token in part.ids]


@pytest.mark.parametrize("after", [0, 1, 2])
async def test_branch_without_edit_continues_like_its_parent(
    engine: InProcess, drawing_checkpoint: Path, after: int, recorder: Recorder
) -> None:
    parent = await collect(engine, ask("parent"))
    parts = parts_of(parent)
    kept = tuple(KeptStep(tokens=part.ids) for part in parts[:after])
    images = sum(o.event.type == "image.completed" for o in parent[: ends(parent)[after]] if isinstance(o, Emitted))
    num_kept = sum(len(part.ids) for part in parts[:after])
    draws = DRAWS_PER_TOKEN * (num_kept - images)
    branch = await collect(engine, ask("branch", prefix=Prefix(kept, num_draws=draws)))
    assert kinds(branch)[: 1 + (after > 0)] == ["Started", "step.kept"][: 1 + (after > 0)]
    same = recorder.assert_same_trace(drawing_checkpoint, "parent", parent[-1:], "branch", parent[-1:])
    if same:
        new = [o.event for o in branch if isinstance(o, Emitted) and o.event.type != "step.kept"]
        assert new == [o.event for o in parent[ends(parent)[after] :] if isinstance(o, Emitted)]
        assert isinstance(branch[-1], Finished)
        assert isinstance(parent[-1], Finished)
        assert branch[-1].usage == {
            "prompt_tokens": parent[-1].usage["prompt_tokens"],
            "kept_tokens": num_kept,
            "completion_tokens": parent[-1].usage["completion_tokens"] - num_kept,
            "images": parent[-1].usage["images"] - images,
        }
    given = parts_of(branch)[:after]
    assert all(math.isnan(logprob) for part in given for logprob in part.logprobs)


def ends(outputs: list[Output]) -> list[int]:
    """Where step k of a trace ends: the number of outputs up to then; 0 for k = 0."""
    return [0, *(i + 1 for i, o in enumerate(outputs) if isinstance(o, Emitted) and o.event.type == "step.completed")]


async def test_edited_image_is_encoded_and_shown_as_the_model_sees_it(drawing_checkpoint: Path) -> None:
    loaded = load_checkpoint(drawing_checkpoint)
    assert loaded.vq is not None
    codes = encode_images(loaded.vq, [an_image((20, 60)).png])
    wanted = png_bytes(decode_codes(loaded.vq, codes)[0])
    async with engine_of(drawing_checkpoint) as engine:
        steps = (KeptStep("look", image=an_image((20, 60))), KeptStep("look again", codes=codes[0]))
        branch = await collect(engine, ask("a", prefix=Prefix(steps, then_text="now I zoom in"), mode="step"))
        kept = [o for o in branch if isinstance(o, Emitted) and o.event.type == "step.kept"]
        assert [o.event.data["step"] for o in kept] == [1, 2]
        assert kept[0].png is not None
        assert_same_image(kept[0].png, wanted)
        assert kept[1].png is None, "codes are known already"
        assert first_codes(kept[0].tokens or Tokens(), loaded.vocab) == codes[0]
        texts = [o.event.data for o in branch if isinstance(o, Emitted) and o.event.type == "text.delta"]
        assert texts[0] == {"step": 3, "text": "now I zoom in"}
        assert isinstance(branch[-1], Paused), "kept steps do not pause, the next one does"
        assert branch[-1].step == 3
        rest = await collect(engine, ask("a", resume=branch[-1].resume))
        assert isinstance(rest[-1], Finished)
        completion = sum(len(part.ids) for part in [*parts_of(branch)[2:], *parts_of(rest)])
        assert rest[-1].usage["completion_tokens"] + rest[-1].usage["kept_tokens"] == completion + sum(
            len(part.ids) for part in parts_of(branch)[:2]
        )


async def test_text_only_step_is_closed_before_the_model_goes_on(engine: InProcess) -> None:
    branch = await collect(engine, ask("a", prefix=Prefix((KeptStep("only words"),))))
    types = [(o.event.type, o.event.data.get("step")) for o in branch if isinstance(o, Emitted)]
    assert types[0] == ("step.kept", 1)
    assert all(step != 1 for _, step in types[1:])


async def test_forced_answer_ends_the_steps(engine: InProcess) -> None:
    branch = await collect(engine, ask("a", tokens=40, prefix=Prefix((KeptStep("look"),), then_answer=True)))
    assert set(kinds(branch)) <= {"Started", "step.kept", "answer.delta", "image.started", "Finished"}
    assert isinstance(branch[-1], Finished)
    assert branch[-1].answer


@pytest.mark.parametrize("slots", [4, 16])
async def test_group_shares_one_prefill_and_leaves_slots_to_others(
    drawing_checkpoint: Path, slots: int, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = []
    see = Model.see
    monkeypatch.setattr(Model, "see", lambda model, images: encoded.append(len(images)) or see(model, images))
    async with engine_of(drawing_checkpoint, slots=slots) as engine:
        core = engine.worker.models["drawing"].engine
        alone = [await collect(engine, ask(f"alone-{seed}", seed=seed)) for seed in (1, 5)]
        prefills, encodings = core.num_prefills, len(encoded)
        running: list[int] = []
        take = core.scheduler.admit
        monkeypatch.setattr(
            core.scheduler,
            "admit",
            lambda *how: (take(*how), running.append(sum(s.group == "g" for s in core.scheduler.running)))[0],
        )
        members = [collect(engine, ask(f"g{seed}", seed=seed, group="g")) for seed in range(16)]
        *group, other = await asyncio.gather(*members, collect(engine, ask("other", images=False)))
        assert core.num_prefills == prefills + 2, "one for the group, one for the other request"
        assert encoded[encodings:] == [1, 0], "the question is encoded once"
        assert max(running) == slots - 2
        assert isinstance(other[-1], Finished)
        for seed, single in zip((1, 5), alone, strict=True):
            recorder.assert_same_trace(drawing_checkpoint, f"alone-{seed}", single, f"g{seed}", group[seed])


async def test_aborted_leader_does_not_stop_its_group(engine: InProcess, steps: Steps) -> None:
    with steps.held():
        leader = asyncio.create_task(collect(engine, ask("leader", group="g")))
        second = asyncio.create_task(collect(engine, ask("second", group="g")))
        await asyncio.sleep(0)
        await engine.abort("leader")
    assert isinstance((await leader)[-1], Cancelled)
    assert isinstance((await second)[-1], Finished)


async def test_alternatives_agree_with_the_reported_log_probabilities(engine: InProcess) -> None:
    request = ask("a", prefix=Prefix())
    outputs = await collect(engine, request)
    parts = parts_of(outputs)
    ids = [token for part in parts for token in part.ids]
    logprobs = [logprob for part in parts for logprob in part.logprobs]
    checked = 0
    for position in range(0, len(ids), 7):
        query = AlternativesQuery(
            "drawing", 1, request.question, request.images, tuple(ids[:position]), request.sampling, count=5
        )
        found = await engine.alternatives(query)
        assert [a.logprob for a in found] == sorted((a.logprob for a in found), reverse=True)
        chosen = [a.logprob for a in found if a.id == ids[position]]
        checked += bool(chosen)
        assert chosen == [pytest.approx(logprobs[position], abs=1e-3)] or logprobs[position] <= found[-1].logprob + 1e-3
    assert checked > 3
    with pytest.raises(EngineError) as gone:
        await engine.alternatives(AlternativesQuery("drawing", 9, "?", (), (), request.sampling))
    assert gone.value.code == "weights_gone"

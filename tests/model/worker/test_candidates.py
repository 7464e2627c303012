"""Requests with candidates: what they report, pauses, aborts, and verifiers that cannot judge."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from model.engine.messages import Emitted, Failed, Finished, GenerationRequest, Output, Paused
from model.worker.inprocess import InProcess
from model.worker.models import Model
from tests.model.worker.traces import Recorder, ask, collect, kinds, without_logprobs
from tests.near_ties import assert_same_image
from tests.tiny import make_drawing_checkpoint


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, drawing_checkpoint: Path) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("judges")
    other = make_drawing_checkpoint(root / "other", seed=1, verifier="What was done?")
    return {"drawing": drawing_checkpoint, "silent": make_drawing_checkpoint(root / "silent"), "other": other}


@pytest.fixture
async def engine(folders: dict[str, Path]) -> AsyncIterator[InProcess]:
    engine = InProcess(folders, num_slots=3)
    await engine.start()
    await engine.wait_ready()
    yield engine
    await engine.close()


def verified(name: str, *, candidates: int = 3, verifier: str = "drawing", **more: object) -> GenerationRequest:
    request = ask(name, **more)  # type: ignore[arg-type]
    warm = replace(request.sampling, candidates=candidates, temperature=2.5)
    return replace(request, sampling=warm, verifier=verifier)


def of(outputs: list[Output], kind: str) -> list[Emitted]:
    return [o for o in outputs if isinstance(o, Emitted) and o.event.type == kind]


async def test_choice_is_reported_before_the_image_that_goes_on(engine: InProcess) -> None:
    outputs = await collect(engine, verified("a", partial_images=2))
    assert isinstance(outputs[-1], Finished)
    assert outputs[-1].usage["images"] == 3
    assert outputs[-1].usage["completion_tokens"] == 120, "only the chosen tokens count"
    names = kinds(outputs)
    chosen, images = of(outputs, "image.candidates"), of(outputs, "image.completed")
    assert "image.partial" not in names
    assert len(images) == 3
    assert len(chosen) >= 2, "an image without a text or an image before it has no candidates"
    drawn = {one.event.data["step"]: one for one in images}
    for one in chosen:
        data = one.event.data
        assert len(one.images) == len(data["scores"]) == 3
        assert data["scores"][data["chosen"]] == max(data["scores"])
        image = drawn[data["step"]]
        assert outputs.index(one) < outputs.index(image)
        assert image.png is not None
        assert_same_image(one.images[data["chosen"]], image.png)


async def test_paused_trace_keeps_its_candidates(engine: InProcess, recorder: Recorder) -> None:
    whole = await collect(engine, verified("a"))
    parts: list[Output] = []
    request = verified("b", mode="step")
    while True:
        outputs = await collect(engine, request)
        parts += outputs[:-1]
        if not isinstance(outputs[-1], Paused):
            break
        request = replace(request, resume=outputs[-1].resume)
    assert without_logprobs(outputs[-1]) == without_logprobs(whole[-1])
    one, two = ([o.event.data for o in of(some, "image.candidates")] for some in (whole, parts))
    assert [d["chosen"] for d in one] == [d["chosen"] for d in two]
    for a, b in zip(one, two, strict=True):
        assert a["scores"] == pytest.approx(b["scores"], abs=1e-3)


async def test_abort_in_the_middle_leaves_no_candidate(engine: InProcess) -> None:
    stream = engine.generate(verified("a", candidates=8))
    async for output in stream:
        if isinstance(output, Emitted) and output.event.type == "image.started":
            break
    await engine.abort("a")
    assert engine.worker.models["drawing"].engine.scheduler.is_idle
    assert isinstance((await collect(engine, ask("b")))[-1], Finished)


@pytest.mark.parametrize("verifier", ["nobody", "silent", "other"])
async def test_request_without_a_judge_fails(engine: InProcess, verifier: str) -> None:
    (failed,) = await collect(engine, verified("a", verifier=verifier))
    assert isinstance(failed, Failed)
    assert failed.code == "no_verifier"


async def test_judge_stays_until_its_last_request_has_ended(engine: InProcess, folders: dict[str, Path]) -> None:
    await engine.load("judge", str(folders["drawing"]), 2)
    retired: list[Model] = []
    stream = engine.generate(verified("a", verifier="judge"))
    async for output in stream:
        if isinstance(output, Emitted) and not retired:
            retired.append(engine.worker.models["judge"])
            await engine.unload("judge")
            assert retired[0] in list(engine.worker.models)
    assert isinstance(output, Finished)
    assert retired[0] not in list(engine.worker.models)

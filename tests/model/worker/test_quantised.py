"""A worker that serves quantised: traces, questions about them, and another checkpoint in its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.checkpoint.memory import needs_of
from model.engine.messages import AlternativesQuery, Finished, Prefix, Started, WholeResponse
from model.nets.quantised import is_quantised
from model.text.template import StepPart
from tests.model.worker.traces import ask, collect, engine_of, parts_of
from tests.tiny import make_drawing_checkpoint


async def test_quantised_worker_answers_is_asked_and_swaps(drawing_checkpoint: Path, tmp_path: Path) -> None:
    async with engine_of(drawing_checkpoint, quant="int8") as engine:
        (model,) = engine.worker.models
        assert is_quantised(model.loaded.transformer)
        counted = needs_of(drawing_checkpoint, width=4, device="cpu", quant="int8").weights
        assert model.num_bytes - model.engine.cache.num_bytes <= counted
        request = ask("a", prefix=Prefix())
        outputs = await collect(engine, request)
        assert isinstance(outputs[-1], Finished)
        parts = parts_of(outputs)
        ids = tuple(token for part in parts for token in part.ids)
        query = AlternativesQuery("drawing", 1, request.question, request.images, ids[:5], request.sampling, count=5)
        assert len(await engine.alternatives(query)) == 5

        template, steps = model.loaded.template, [StepPart("I look.", (1, 2, 3, 1))]
        first = template.step_ids(steps[0], 1, after_text=False)
        last = template.response_ids(steps, "red")[len(first) :]
        whole = (request.question, request.images, (tuple(first),), tuple(last), request.sampling)
        response = WholeResponse("drawing", 1, *whole)
        assert [image.step for image in (await engine.reliance(response)).images] == [0, 1]
        assert len(await engine.attention(response, None)) == 2

        other = make_drawing_checkpoint(tmp_path / "other", seed=5)
        footprint = await engine.check(str(other))
        assert footprint.resident < needs_of(other, width=4, device="cpu").weights + model.engine.cache.num_bytes
        await engine.load("drawing", str(other), 2)
        swapped = await collect(engine, ask("b"))
        assert isinstance(swapped[0], Started)
        assert swapped[0].weight_version == 2
        (model,) = engine.worker.models
        assert is_quantised(model.loaded.transformer)
        assert (await engine.memory())["weights"] == pytest.approx(model.engine.num_weight_bytes)

"""Image references in questions: accepted, counted, rejected."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from model.engine.messages import Finished
from tests.app.conftest import Serve, Server, is_problem
from tests.fakes import FakeGeneration, answer_items, step_items


async def room(server: Server, question: str, images: int) -> dict[str, Any]:
    answer = await server.client.post("/v1/limits", json={"question": question, "images": images})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


@pytest.mark.parametrize(
    "question", ["Is <image_2> it?", "<image_0>", "<image_99999999999>", "a <image_1> b <image_3>"]
)
async def test_reference_to_a_missing_image_is_rejected(server: Server, question: str) -> None:
    body = await server.body(question=question)
    is_problem(await server.client.post("/v1/traces", json=body), 422, "bad_place", "body.question")
    answer = await server.client.post("/v1/limits", json={"question": question, "images": 1})
    is_problem(answer, 422, "bad_place", "body.question")


async def test_limits_count_the_rendered_prompt(server: Server) -> None:
    info = server.services.checkpoints.usable(None)
    template = server.services.checkpoints.template(info)
    plain = await room(server, "Figure A:  Figure B: ", 2)
    for question in ("Figure A: <image_1> Figure B: <image_2>", "<image_1> or <image_1>?", "Which? <image>"):
        measured = await room(server, question, 2)
        assert measured["prompt_tokens"] == len(template.prompt_ids(question, [None, None]))
        assert measured["prompt_tokens"] + measured["room_tokens"] == info.context_len
    once, twice = await room(server, "Is it <image_1>?", 1), await room(server, "<image_1>Is it <image_1>?", 1)
    assert twice["prompt_tokens"] == once["prompt_tokens"] + info.tokens_per_image
    assert plain["prompt_tokens"] >= 2 * info.tokens_per_image


async def test_answer_without_a_mark_is_flagged(serve: Serve, engine: FakeGeneration) -> None:
    *items, end = answer_items("red")
    assert isinstance(end, Finished)
    engine.script = lambda _request: [*step_items(1, "I look.", None), *items, replace(end, unmarked=True)]
    async with serve() as server:
        events = await server.stream((await server.create())["id"])
        assert events[-1].type == "trace.completed"
        assert (events[-1].data["answer"], events[-1].data["unmarked"]) == ("red", True)


async def test_question_with_references_is_stored_verbatim(server: Server, engine: FakeGeneration) -> None:
    question = "Is <image_1> red? <image> is text."
    engine.script = lambda _request: [*step_items(1, "I look.", None), *answer_items("yes")]
    trace = await server.finished((await server.create(question=question))["id"])
    assert trace["question"] == question
    assert trace["status"] == "completed"
    assert engine.requests[-1].question == question

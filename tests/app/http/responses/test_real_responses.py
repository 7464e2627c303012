"""`/v1/responses` on the real engine with the embedded model."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Any

import pytest
from openai import OpenAI
from openai.types import responses as r
from openai.types.responses.response_output_item import ImageGenerationCall

from tests.app.http.responses.conftest import trace_id
from tests.app.traces.real import FIRST_TASK, MODEL, Studio
from tests.patience import PATIENCE_S


@pytest.fixture
def openai(studio: Studio) -> Iterator[OpenAI]:
    url = f"http://127.0.0.1:{studio.server.port}/v1"
    with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=PATIENCE_S) as client:
        yield client


def question_of(studio: Studio, seed: int, slice_: str = "operational") -> tuple[Any, list[Any]]:
    """A task and its `input`."""
    task = studio.client.task(slice=slice_, seed=FIRST_TASK + seed)
    parts = [
        {"type": "input_text", "text": task["question"]},
        {"type": "input_image", "file_id": task["image_id"], "detail": "auto"},
    ]
    return task, [{"role": "user", "content": parts}]


def test_response_is_the_trace_of_the_same_question(studio: Studio, openai: OpenAI) -> None:
    task, question = question_of(studio, 1)
    response = openai.responses.create(model=MODEL, input=question)
    trace = studio.client.trace(trace_id(response))
    sampling = {"seed": trace["sampling"]["seed"]}
    native = studio.client.create_trace(task["question"], [task["image_id"]], sampling=sampling)
    studio.assert_same(studio.ended(native["id"]), trace)
    assert response.output_text == trace["answer"] != ""
    texts = [item.summary[0].text for item in response.output if isinstance(item, r.ResponseReasoningItem)]
    assert texts == [step["text"] for step in trace["steps"] if step["text"]]
    drawn = [item for item in response.output if isinstance(item, ImageGenerationCall)]
    stored = [studio.client.image(step["image"]["image_id"]) for step in trace["steps"] if step.get("image")]
    assert drawn
    assert [base64.b64decode(item.result or "") for item in drawn] == stored
    assert response.usage is not None
    assert trace["usage"] is not None
    assert response.usage.output_tokens == trace["usage"]["completion_tokens"]
    answer = studio.client.tokens(trace["id"])["answer"]
    assert response.usage.output_tokens_details.reasoning_tokens == response.usage.output_tokens - len(answer)


def test_stream_accumulates_and_replays(studio: Studio, openai: OpenAI) -> None:
    _, question = question_of(studio, 2, "natural")
    with openai.responses.stream(model=MODEL, input=question, temperature=1.0) as stream:
        events = list(stream)
        final = stream.get_final_response()
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == final.output_text == studio.client.trace(trace_id(final))["answer"]
    path = f"/v1/responses/{final.id}"
    whole = studio.http.get(path, params={"stream": True}).content
    studio.restart()
    assert studio.http.get(path, params={"stream": True}).content == whole
    for after in (0, 7, len(events) - 1):
        rest = studio.http.get(path, params={"stream": True, "starting_after": after}).content
        assert whole.endswith(rest)
        assert rest.count(b"\n\n") == len(events) - 1 - after


def test_connection_cut_in_an_image_resumes(studio: Studio, openai: OpenAI) -> None:
    _, question = question_of(studio, 3)
    seen: list[Any] = []
    with studio.gate.in_an_image():
        stream = openai.responses.create(model=MODEL, input=question, stream=True, background=True)
        for event in stream:
            seen.append(event)
            if event.type == "response.image_generation_call.generating":
                stream.close()
                break
        resumed = openai.responses.retrieve(seen[0].response.id, stream=True, starting_after=seen[-1].sequence_number)
    rest = list(resumed)
    numbers = [event.sequence_number for event in [*seen, *rest]]
    assert numbers == list(range(len(numbers)))
    assert rest[-1].type == "response.completed"
    replayed = list(openai.responses.retrieve(seen[0].response.id, stream=True))
    assert [event.to_dict() for event in replayed] == [event.to_dict() for event in [*seen, *rest]]


def test_follow_up_asks_the_same_image(studio: Studio, openai: OpenAI) -> None:
    _, question = question_of(studio, 4, "natural")
    first = openai.responses.create(model=MODEL, input=question)
    second = openai.responses.create(input="What colour is the star?", previous_response_id=first.id, model=MODEL)
    assert second.status == "completed"
    trace = studio.client.trace(trace_id(second))
    assert trace["parent"] is not None
    assert (trace["parent"]["trace_id"], trace["parent"]["after_step"]) == (trace_id(first), None)
    prompt = studio.recorder.sequences[trace["id"]].prompt
    assert prompt != studio.recorder.sequences[trace_id(first)].prompt
    branch = studio.branched(trace["id"], 1)
    assert branch["question"] == "What colour is the star?"


def test_token_limit_ends_it_incomplete(studio: Studio, openai: OpenAI) -> None:
    _, question = question_of(studio, 5)
    response = openai.responses.create(model=MODEL, input=question, max_output_tokens=20)
    assert (response.status, response.output_text) == ("incomplete", "")
    assert response.usage is not None
    assert response.usage.output_tokens == response.usage.output_tokens_details.reasoning_tokens == 20


def test_cancel_in_the_middle_of_an_image(studio: Studio, openai: OpenAI) -> None:
    _, question = question_of(studio, 6)
    with studio.gate.in_an_image():
        response = openai.responses.create(model=MODEL, input=question, background=True)
        studio.until(trace_id(response), "image.started")
        cancelled = openai.responses.cancel(response.id)
    assert cancelled.status == "cancelled"
    assert [(item.type, getattr(item, "status", None)) for item in cancelled.output] == [
        ("reasoning", "completed"),
        ("image_generation_call", "failed"),
    ]

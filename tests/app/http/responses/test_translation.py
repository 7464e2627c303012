"""The translation of logs: contiguous numbers, deltas that add up, and the same events from every position."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from openai import omit
from openai._models import construct_type
from openai.lib.streaming.responses._responses import ResponseStreamState
from openai.types.responses import ResponseStreamEvent

from app.contract.frames import encode, frame
from app.http.responses.events import RESPONSE_EVENTS
from app.http.responses.stream import frames
from app.http.responses.translation import Ended, Picture, Translation, filled, pictures, translated
from tests.app.conftest import Sse, parse_sse
from tests.app.http.responses.logs import REQUEST, TRACE, Log, random_log

ENDED = Ended("2026-11-28T16:04:18.000Z", 150)
SEEDS = range(100)


def events_of(log: Log) -> list[dict[str, Any]]:
    """The events of the whole log, each checked against its model."""
    translation = Translation(TRACE, REQUEST)
    found = [event for type_, data in log for event in translation.take(type_, data, ENDED)]
    whole = [filled(event, dict.fromkeys(pictures(event), "AAAA")) for event in found]
    for event in whole:
        RESPONSE_EVENTS[event["type"]].model_validate_json(json.dumps(event), strict=True)
    return whole


def test_numbers_are_contiguous_and_one_event_ends() -> None:
    for seed in SEEDS:
        events = events_of(random_log(random.Random(seed)))
        assert [event["sequence_number"] for event in events] == list(range(len(events))), seed
        ends = [event["type"] for event in events if event["type"] in ENDS]
        assert ends == [events[-1]["type"]], seed
        assert not any(event.get("error") for event in events)


ENDS = {"response.completed", "response.incomplete", "response.failed"}


def test_deltas_add_up_to_the_final_response() -> None:
    for seed in SEEDS:
        log = random_log(random.Random(seed))
        events = events_of(log)
        final = events[-1]["response"]["output"]
        added = [event["item"]["id"] for event in events if event["type"] == "response.output_item.added"]
        done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
        assert added == [item["id"] for item in final], seed
        assert done == final, seed
        assert len(set(added)) == len(added)
        for item in final:
            mine = [event for event in events if event.get("item_id") == item["id"]]
            text = "".join(event.get("delta", "") for event in mine)
            if item["type"] == "reasoning":
                assert item["summary"] == [{"type": "summary_text", "text": text}], seed
            elif item["type"] == "message":
                assert item["content"][0]["text"] == text, seed
            else:
                assert (item["result"] is None) == (item["status"] == "failed")


def test_items_are_the_texts_images_and_answer_of_the_trace() -> None:
    for seed in SEEDS:
        log = random_log(random.Random(seed))
        final = events_of(log)[-1]["response"]
        (end, data) = log[-1]
        steps: dict[int, str] = {}
        for type_, fields in log:
            if type_ == "text.delta":
                steps[fields["step"]] = steps.get(fields["step"], "") + fields["text"]
        found = [item["summary"][0]["text"] for item in final["output"] if item["type"] == "reasoning"]
        assert found == list(steps.values()), seed
        drawn = [item for item in final["output"] if item["type"] == "image_generation_call" and item["result"]]
        assert len(drawn) == sum(type_ == "image.completed" for type_, _ in log)
        if end == "trace.completed":
            messages = [item["content"][0]["text"] for item in final["output"] if item["type"] == "message"]
            assert messages == ([data["answer"]] if data["answer"] else []), seed


def test_package_accumulates_the_same_response() -> None:
    for seed in SEEDS:
        events = events_of(random_log(random.Random(seed)))
        state: Any = ResponseStreamState(input_tools=omit, text_format=omit)
        for event in events:
            typed: Any = construct_type(value=event, type_=ResponseStreamEvent)
            assert typed.type == event["type"]
            state.handle_event(typed)
        if events[-1]["type"] == "response.completed":
            final, wanted = state._completed_response, events[-1]["response"]
            assert [(item.type, item.id, item.status) for item in final.output] == [
                (item["type"], item["id"], item["status"]) for item in wanted["output"]
            ], seed
            answer = [item["content"][0]["text"] for item in wanted["output"] if item["type"] == "message"]
            assert final.output_text == "".join(answer), seed


def test_retrieved_response_is_the_last_one_streamed() -> None:
    for seed in SEEDS:
        log = random_log(random.Random(seed))
        retrieved = translated(TRACE, REQUEST, log, ENDED)
        assert filled(retrieved, dict.fromkeys(pictures(retrieved), "AAAA")) == events_of(log)[-1]["response"]


def chunks(log: Log, rng: random.Random) -> Iterator[bytes]:
    """The log's frames as a reader gets them: several at once, with keep-alive comments in between."""
    whole = [frame(number, type_, encode(data)) for number, (type_, data) in enumerate(log, 1)]
    while whole:
        count = rng.randint(1, 5)
        yield b"".join(whole[:count])
        del whole[:count]
        if rng.random() < 0.3:
            yield b": ping\n\n"


async def stream(log: Log, rng: random.Random, after: int = -1) -> bytes:
    async def reader() -> AsyncIterator[bytes]:
        for chunk in chunks(log, rng):
            yield chunk

    async def load(picture: Picture) -> str:
        return str(picture.image_id or picture.preview)

    async def ended() -> Ended:
        return ENDED

    translation = Translation(TRACE, REQUEST)
    found = [chunk async for chunk in frames(reader(), translation, after=after, load=load, ended=ended)]
    return b"".join(chunk for chunk in found if not chunk.startswith(b":"))


async def test_stream_resumes_after_any_event() -> None:
    for seed in range(20):
        rng = random.Random(seed)
        log = random_log(rng)
        whole: list[Sse] = parse_sse(await stream(log, rng))
        assert [event.id for event in whole] == [event.data["sequence_number"] for event in whole]
        assert [event.type for event in whole] == [event.data["type"] for event in whole]
        for after in range(-1, len(whole) + 2):
            rest = b"".join(event.raw for event in whole[after + 1 :])
            assert await stream(log, rng, after) == rest, (seed, after)


@pytest.mark.parametrize(("end", "status"), [("trace.cancelled", "cancelled"), ("trace.failed", "failed")])
def test_interrupted_items_are_incomplete(end: str, status: str) -> None:
    log: Log = [
        ("trace.queued", {"position": 0}),
        ("trace.started", {}),
        ("text.delta", {"step": 1, "text": "I look"}),
        ("image.started", {"step": 1}),
        (end, {"reason": "user", "error": {"code": "interrupted", "detail": "the server stopped"}}),
    ]
    final = events_of(log)[-1]["response"]
    assert final["status"] == status
    assert [item["status"] for item in final["output"]] == ["completed", "failed"]
    assert (final["error"] is None) == (status == "cancelled")
    cut = events_of([*log[:3], log[-1]])
    assert cut[-1]["response"]["output"][0]["status"] == "incomplete"
    assert cut[-3]["status"] == "incomplete"

"""`/v1/responses` through the unchanged `openai` package, on the scripted engine."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import httpx2
from openai import AsyncOpenAI
from openai.types import responses as r
from openai.types.responses.response_output_item import ImageGenerationCall

from app.http.responses.shapes import InputItemList, ResponseOut
from model.engine.messages import GenerationRequest
from tests.app.conftest import Serve, Server, both_databases, parse_sse
from tests.app.http.responses.conftest import about, client_of, data_url, trace_id
from tests.fakes import Crash, FakeGeneration, Item, Wait, answer_items, held, png, step_items
from tests.patience import PATIENCE_S


async def test_response_is_the_whole_trace(server: Server, openai: AsyncOpenAI) -> None:
    question = await about(server)
    response = await openai.responses.create(
        model="nano-omni-r1", input=question, temperature=0.5, top_p=0.9, metadata={"a": "b"}, user="me"
    )
    assert (response.status, response.output_text, response.model) == ("completed", "red", "nano-omni-r1")
    assert [item.type for item in response.output] == ["reasoning", "image_generation_call"] * 2 + ["message"]
    assert (response.temperature, response.top_p, response.user) == (0.5, 0.9, "me")
    trace = await server.get(trace_id(response))
    assert response.metadata == {"a": "b", "trace_id": trace["id"]}
    assert (trace["metadata"], trace["parent"], trace["question"]) == ({"a": "b"}, None, "Where is the red star?")
    texts = [item.summary[0].text for item in response.output if isinstance(item, r.ResponseReasoningItem)]
    assert texts == [step["text"] for step in trace["steps"]]
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens, response.usage.total_tokens) == (80, 160, 240)
    assert [entry["id"] for entry in (await server.client.get("/v1/traces")).json()["data"]] == [trace["id"]]
    shown = (await server.client.get(f"/v1/responses/{response.id}")).json()
    ResponseOut.model_validate(shown)
    assert (await openai.responses.retrieve(response.id)).to_dict() == response.to_dict() == shown


async def test_images_are_the_bytes_of_stored_ones(server: Server, openai: AsyncOpenAI) -> None:
    response = await openai.responses.create(input=await about(server))
    trace = await server.get(trace_id(response))
    urls = [step["image"]["url"] for step in trace["steps"]]
    stored = [(await server.client.get(url)).content for url in urls]
    drawn = [item for item in response.output if isinstance(item, ImageGenerationCall)]
    assert [base64.b64decode(item.result or "") for item in drawn] == stored
    assert {(item.size, item.output_format) for item in drawn} == {("64x64", "png")}


async def test_question_is_made_of_messages(server: Server, openai: AsyncOpenAI, engine: FakeGeneration) -> None:
    image = png((9, 9, 9))
    question: Any = [
        {"role": "user", "content": [{"type": "input_image", "image_url": data_url(image), "detail": "auto"}]},
        {"role": "user", "content": "Where is"},
        {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "the star?"}]},
    ]
    response = await openai.responses.create(input=question)
    assert engine.requests[-1].question == "Where is\nthe star?"
    image_id = await server.image(image)
    assert [shown["image_id"] for shown in (await server.get(trace_id(response)))["images"]] == [image_id]
    items = (await openai.responses.input_items.list(response.id, order="asc")).data
    contents = [item.to_dict()["content"] for item in items]
    shown_image = {"type": "input_image", "file_id": image_id, "image_url": None, "detail": "auto"}
    assert contents == [
        [shown_image],
        [{"type": "input_text", "text": "Where is"}],
        [{"type": "input_text", "text": "the star?"}],
    ]
    again = await openai.responses.create(input=[item.to_dict() for item in items])  # type: ignore[misc]
    assert (await server.get(trace_id(again)))["question"] == "Where is\nthe star?"
    assert (await server.get(trace_id(again)))["images"][0]["image_id"] == image_id


async def test_input_items_are_paged(server: Server, openai: AsyncOpenAI) -> None:
    messages: Any = [{"role": "user", "content": text} for text in "abcd"]
    response = await openai.responses.create(input=[*await about(server), *messages])
    ids = [item.id async for item in openai.responses.input_items.list(response.id, limit=2)]
    assert ids == [f"msg_{trace_id(response)}_in{number}" for number in (4, 3, 2, 1, 0)]
    first = await openai.responses.input_items.list(response.id, order="asc", limit=2)
    assert [item.id for item in first.data] == ids[:2:-1]
    assert first.has_more
    page = (await server.client.get(f"/v1/responses/{response.id}/input_items", params={"after": ids[-1]})).json()
    InputItemList.model_validate(page)
    assert (page["data"], page["has_more"]) == ([], False)


# ---- streams


async def test_stream_has_typed_events_in_order(server: Server, openai: AsyncOpenAI) -> None:
    stream = await openai.responses.create(input=await about(server), stream=True)
    events = [event async for event in stream]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type for event in events]
    assert kinds[:3] == ["response.created", "response.queued", "response.in_progress"]
    assert kinds[-1] == "response.completed"
    one_step = [
        "response.output_item.added",
        "response.reasoning_summary_part.added",
        "response.reasoning_summary_text.delta",
        "response.reasoning_summary_text.done",
        "response.reasoning_summary_part.done",
        "response.output_item.done",
        "response.output_item.added",
        "response.image_generation_call.in_progress",
        "response.image_generation_call.generating",
        "response.image_generation_call.partial_image",
        "response.image_generation_call.completed",
        "response.output_item.done",
    ]
    answer = [
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
    ]
    unique = [kind for kind, before in zip(kinds[3:-1], kinds[2:], strict=False) if kind != before]
    assert unique == one_step * 2 + answer
    previews = [event for event in events if isinstance(event, r.ResponseImageGenCallPartialImageEvent)]
    assert [event.partial_image_index for event in previews] == [0, 1] * 2
    assert base64.b64decode(previews[0].partial_image_b64) == png(box=5)
    last = events[-1]
    assert isinstance(last, r.ResponseCompletedEvent)
    assert (await openai.responses.retrieve(last.response.id)).to_dict() == last.response.to_dict()


async def test_package_accumulates_the_stream(server: Server, openai: AsyncOpenAI) -> None:
    text = ""
    async with openai.responses.stream(model="nano-omni-r1", input=await about(server)) as stream:
        async for event in stream:
            if event.type == "response.output_text.delta":
                text += event.delta
        final = await stream.get_final_response()
    assert text == final.output_text == "red"
    async with openai.responses.stream(response_id=final.id, starting_after=10) as again:
        numbers = [event.sequence_number async for event in again]
    assert numbers[0] == 11


async def test_cut_stream_resumes_without_gaps(server: Server, openai: AsyncOpenAI, engine: FakeGeneration) -> None:
    engine.script = held
    stream = await openai.responses.create(input=await about(server), stream=True, background=True)
    seen = []
    async for event in stream:
        seen.append(event)
        if event.type == "response.image_generation_call.completed":
            await stream.close()
            break
    first: Any = seen[0]
    resumed = await openai.responses.retrieve(first.response.id, stream=True, starting_after=seen[-1].sequence_number)
    engine.go("end")
    rest = [event async for event in resumed]
    numbers = [event.sequence_number for event in [*seen, *rest]]
    assert numbers == list(range(len(numbers)))
    assert rest[-1].type == "response.completed"
    whole = [event.to_dict() async for event in await openai.responses.retrieve(first.response.id, stream=True)]
    assert whole == [event.to_dict() for event in [*seen, *rest]]
    for after in (len(whole) - 1, len(whole), 10**9):
        beyond = await openai.responses.retrieve(first.response.id, stream=True, starting_after=after)
        assert [event async for event in beyond] == []


@both_databases
async def test_replay_is_byte_equal_after_a_restart(serve: Serve, engine: FakeGeneration) -> None:
    async def replayed(server: Server, id_: str, **headers: str) -> bytes:
        answer = await server.client.get(f"/v1/responses/{id_}", params={"stream": "true"}, headers=headers)
        assert answer.status_code == 200
        return answer.content

    async with serve() as server:
        body = {"input": await about(server), "stream": True}
        live = await server.client.post("/v1/responses", json=body)
        events = parse_sse(live.content)
        id_ = events[0].data["response"]["id"]
        assert await replayed(server, id_) == live.content
        engine.script = held
        async with client_of(server) as client:
            running = await client.responses.create(input=await about(server), background=True)
            await server.until(trace_id(running), "image.completed")
            stream = await client.responses.retrieve(running.id, stream=True)
            before = []
            async for event in stream:
                before.append(event.to_dict())
                if event.type == "response.image_generation_call.completed":
                    break
            await stream.close()
        await server.crash()
        await server.start()
        assert await replayed(server, id_) == live.content
        assert parse_sse(await replayed(server, id_, **{"last-event-id": "7"})) == events[8:]
        after = [event.data for event in parse_sse(await replayed(server, running.id))]
        assert after[: len(before)] == before
        assert after[-1]["type"] == "response.failed"
        failed = after[-1]["response"]
        assert (failed["status"], failed["error"]["type"]) == ("failed", "interrupted")
        assert (await server.client.get(f"/v1/responses/{running.id}")).json() == failed


# ---- life


async def test_background_response_is_polled(server: Server, openai: AsyncOpenAI, engine: FakeGeneration) -> None:
    engine.script = held
    response = await openai.responses.create(input=await about(server), background=True)
    assert (response.status, response.output, response.background) == ("queued", [], True)
    await server.until(trace_id(response), "image.completed")
    now = await openai.responses.retrieve(response.id)
    assert (now.status, [item.type for item in now.output]) == ("in_progress", ["reasoning", "image_generation_call"])
    engine.go("end")
    await server.finished(trace_id(response))
    assert (await openai.responses.retrieve(response.id)).output_text == "red"


async def test_queued_response_says_so(serve: Serve, engine: FakeGeneration) -> None:
    engine.script, engine.num_slots = held, 1
    async with serve() as server, client_of(server) as openai:
        question = await about(server)
        first = await openai.responses.create(input=question, background=True)
        await server.until(trace_id(first), "trace.started")
        second = await openai.responses.create(input=question, background=True)
        assert (await openai.responses.retrieve(second.id)).status == "queued"
        engine.go("end")
        await server.finished(trace_id(second))


async def test_paused_trace_is_in_progress(server: Server, openai: AsyncOpenAI, engine: FakeGeneration) -> None:
    engine.script = lambda request: [Wait("begin"), *held(request)]
    response = await openai.responses.create(input=await about(server), background=True)
    await server.client.post(f"/v1/traces/{trace_id(response)}/pause")
    engine.go("begin")
    await server.until(trace_id(response), "trace.paused")
    assert (await openai.responses.retrieve(response.id)).status == "in_progress"
    engine.go("end")
    await server.client.post(f"/v1/traces/{trace_id(response)}/continue", json={"mode": "auto"})
    await server.finished(trace_id(response))
    assert (await openai.responses.retrieve(response.id)).status == "completed"


async def test_cancel_stops_the_engine(server: Server, openai: AsyncOpenAI, engine: FakeGeneration) -> None:
    engine.script = held
    response = await openai.responses.create(input=await about(server), background=True)
    stream = await openai.responses.retrieve(response.id, stream=True)
    await server.until(trace_id(response), "image.completed")
    cancelled = await openai.responses.cancel(response.id)
    assert (cancelled.status, engine.aborts) == ("cancelled", [trace_id(response)])
    last = [event async for event in stream][-1]
    assert isinstance(last, r.ResponseIncompleteEvent)
    assert last.response.to_dict() == cancelled.to_dict()
    assert (await openai.responses.cancel(response.id)).to_dict() == cancelled.to_dict()


async def test_client_that_leaves_cancels_its_response(serve: Serve, engine: FakeGeneration) -> None:
    engine.script = held
    async with serve(grace_s=0.01) as server, client_of(server) as openai:
        for stream in (False, True):
            asking = asyncio.create_task(openai.responses.create(input=await about(server), stream=stream))
            async with asyncio.timeout(PATIENCE_S):
                while not (traces := (await server.client.get("/v1/traces?status=running")).json()["data"]):
                    await asyncio.sleep(0.01)
            id_ = traces[0]["id"]
            await server.until(id_, "image.completed")
            if stream:
                await (await asking).response.aclose()
            else:
                asking.cancel()
            async with asyncio.timeout(PATIENCE_S):
                while (await server.get(id_))["status"] == "running":  # a reader would keep it alive
                    await asyncio.sleep(0.01)
            assert (await server.stream(id_))[-1].data == {"reason": "disconnected"}


async def test_delete_removes_response_and_trace(server: Server, openai: AsyncOpenAI) -> None:
    response = await openai.responses.create(input=await about(server))
    assert await openai.responses.delete(response.id) is None
    assert (await server.client.get(f"/v1/responses/{response.id}")).status_code == 404
    assert (await server.client.get(f"/v1/traces/{trace_id(response)}")).status_code == 404
    other = await openai.responses.create(input=await about(server))
    await server.client.delete(f"/v1/traces/{trace_id(other)}")
    assert (await server.client.get(f"/v1/responses/{other.id}")).status_code == 404


async def test_deleting_a_running_response_ends_its_readers(
    server: Server, openai: AsyncOpenAI, engine: FakeGeneration
) -> None:
    engine.script = held
    response = await openai.responses.create(input=await about(server), background=True)
    stream = await openai.responses.retrieve(response.id, stream=True)
    await server.until(trace_id(response), "image.completed")
    await openai.responses.delete(response.id)
    assert "response.completed" not in [event.type async for event in stream]


async def test_idempotency_key_gives_the_same_response(server: Server) -> None:
    body: dict[str, Any] = {"input": await about(server)}
    post = server.client.post
    for more in ({}, {"background": True}, {"stream": True}):
        headers = {"Idempotency-Key": f"k{more}".replace(" ", "")}
        first = await post("/v1/responses", json=body | more, headers=headers)
        again = await post("/v1/responses", json=body | more, headers=headers)
        assert (first.status_code, again.status_code) == (200, 200)
        assert first.content == again.content
        assert again.headers["idempotent-replayed"] == "true"
        assert first.headers["location"] == again.headers["location"]
        assert (await server.client.get(first.headers["location"])).status_code == 200
    assert len((await server.client.get("/v1/traces")).json()["data"]) == 3
    other = await post("/v1/responses", json=body | {"user": "me"}, headers=headers)
    assert (other.status_code, other.json()["error"]["code"]) == (400, "idempotency_mismatch")


# ---- ends


async def test_token_limit_makes_it_incomplete(server: Server, openai: AsyncOpenAI, engine: FakeGeneration) -> None:
    engine.script = lambda _request: [*step_items(1, "I look.", None), *answer_items(" the re", reason="length")]
    response = await openai.responses.create(input=await about(server), max_output_tokens=40)
    assert (response.status, response.max_output_tokens) == ("incomplete", 40)
    assert response.incomplete_details is not None
    assert response.incomplete_details.reason == "max_output_tokens"
    assert response.output_text == "the re"
    assert engine.requests[-1].sampling.max_new_tokens == 40


async def test_failure_is_an_answer_with_an_error(server: Server, openai: AsyncOpenAI, engine: FakeGeneration) -> None:
    engine.script = lambda _request: [*step_items(1, "I look.", None), Crash(RuntimeError("no"))]
    response = await openai.responses.create(input=await about(server))
    assert (response.status, response.output_text) == ("failed", "")
    assert response.error is not None
    assert (response.error.code, response.error.type) == ("server_error", "internal")
    events = [event async for event in await openai.responses.create(input=await about(server), stream=True)]
    assert events[-1].type == "response.failed"


async def test_answer_has_no_white_space_around_it(server: Server, openai: AsyncOpenAI, engine: FakeGeneration) -> None:
    def script(_request: GenerationRequest) -> list[Item]:
        return [*step_items(1, "I look.", None), *answer_items(" two  words \n")]

    engine.script = script
    stream = await openai.responses.create(input=await about(server), stream=True)
    events = [event async for event in stream]
    deltas = [event.delta for event in events if isinstance(event, r.ResponseTextDeltaEvent)]
    assert "".join(deltas) == "two  words"
    last: Any = events[-1]
    assert last.response.output_text == (await server.get(trace_id(last.response)))["answer"] == "two  words"


async def test_models_are_the_usable_checkpoints(server: Server, openai: AsyncOpenAI) -> None:
    models = [model.id async for model in openai.models.list()]
    assert models == ["nano-omni-r1"]
    model = await openai.models.retrieve("nano-omni-r1")
    assert (model.id, model.object, model.created) == ("nano-omni-r1", "model", 1767225600)


async def test_package_passes_with_the_servers_key(serve: Serve) -> None:
    key = "correct-horse-battery-staple"
    async with serve(api_key=key) as server, client_of(server, key) as openai:
        assert [model.id async for model in openai.models.list()] == ["nano-omni-r1"]


async def test_stream_is_never_compressed(server: Server) -> None:
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{server.port}") as client:
        body = {"input": await about(server), "stream": True}
        answer = await client.post("/v1/responses", json=body, headers={"Accept-Encoding": "gzip"})
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert "content-encoding" not in answer.headers

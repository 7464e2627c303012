"""`previous_response_id`: another question about the images of a response's question."""

from __future__ import annotations

from openai import AsyncOpenAI

from tests.app.conftest import Server
from tests.app.http.responses.conftest import about, data_url, trace_id
from tests.fakes import FakeGeneration, png


async def test_follow_up_asks_about_the_same_images(
    server: Server, openai: AsyncOpenAI, engine: FakeGeneration
) -> None:
    first = await openai.responses.create(input=await about(server))
    second = await openai.responses.create(input="What colour is it?", previous_response_id=first.id)
    assert (second.previous_response_id, second.status) == (first.id, "completed")
    trace = await server.get(trace_id(second))
    parent = {"trace_id": trace_id(first), "after_step": None, "edited_steps": [], "group_id": None}
    assert (trace["parent"], trace["question"]) == (parent, "What colour is it?")
    assert trace["images"] == (await server.get(trace_id(first)))["images"]
    assert engine.requests[-1].prefix.steps == ()
    items = [item.to_dict()["content"] async for item in openai.responses.input_items.list(second.id, order="asc")]
    assert [part["type"] for content in items for part in content] == ["input_image", "input_text"]
    third = await openai.responses.create(
        input=await about(server, "And here?", image_url=data_url(png((3, 3, 3)))), previous_response_id=second.id
    )
    mine = (await server.get(trace_id(third)))["images"]
    assert [image["image_id"] for image in mine] == [await server.image(png((3, 3, 3)))]
    tree = (await server.client.get(f"/v1/traces/{trace_id(first)}/tree")).json()
    assert tree["root"] == trace_id(first)
    assert [(node["id"], node["parent_id"], node["after_step"]) for node in tree["nodes"]] == [
        (trace_id(first), None, None),
        (trace_id(second), trace_id(first), None),
        (trace_id(third), trace_id(second), None),
    ]
    listed = (await server.client.get("/v1/traces", params={"parent": trace_id(first)})).json()["data"]
    assert [entry["parent"] for entry in listed] == [parent]


async def test_follow_up_outlives_its_parent(server: Server, openai: AsyncOpenAI) -> None:
    first = await openai.responses.create(input=await about(server))
    second = await openai.responses.create(input="What colour is it?", previous_response_id=first.id)
    await openai.responses.delete(first.id)
    assert (await openai.responses.retrieve(second.id)).to_dict() == second.to_dict()
    tree = (await server.client.get(f"/v1/traces/{trace_id(second)}/tree")).json()
    assert [(node["id"], node["status"]) for node in tree["nodes"]] == [
        (trace_id(first), "deleted"),
        (trace_id(second), "completed"),
    ]
    third = await openai.responses.create(input="Where?", previous_response_id=second.id)
    assert third.status == "completed"


async def test_branch_of_a_follow_up_is_an_ordinary_branch(server: Server, openai: AsyncOpenAI) -> None:
    first = await openai.responses.create(input=await about(server))
    second = await openai.responses.create(input="What colour is it?", previous_response_id=first.id)
    made = await server.client.post(f"/v1/traces/{trace_id(second)}/branches", json={"after_step": 1})
    (branch,) = made.json()["data"]
    assert branch["parent"]["after_step"] == 1
    assert (await server.finished(branch["id"]))["status"] == "completed"
    tree = (await server.client.get(f"/v1/traces/{branch['id']}/tree")).json()
    assert (tree["root"], len(tree["nodes"])) == (trace_id(first), 3)

"""Errors of `/v1/responses` and `/v1/models` have OpenAI's shape, whatever part of the server rejects the request."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable
from typing import Any

import openai as package
import pytest
from openai import AsyncOpenAI, omit
from openai.types.responses import ResponseCreateParams
from pydantic import BaseModel

from app.contract.problems import CODES, OpenAIErrorOut, Problem, response_for
from app.http.responses.request import ResponseCreate
from tests.app.conftest import Serve, Server, is_problem
from tests.app.http.responses.conftest import about, client_of, trace_id
from tests.fakes import FakeGeneration, held, png

JSON = {"content-type": "application/json"}
KEY = "correct-horse-battery-staple"


def is_error(answer: Any, status: int, code: str, param: str | None = None) -> None:
    """Assert that the response is that error, and nothing but it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error"}
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param), error
    assert error["message"]
    OpenAIErrorOut.model_validate(answer.json())


async def raised(kind: type[package.APIStatusError], call: Awaitable[Any], code: str, param: str | None = None) -> Any:
    """Assert that the package raises this class of error; returns it."""
    with pytest.raises(kind) as caught:
        await call
    assert (type(caught.value), caught.value.code, caught.value.param) == (kind, code, param)
    return caught.value


UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"tools": [{"type": "image_generation"}]}, "tools"),
    ({"tools": [{"type": "function", "name": "f", "parameters": {}, "strict": True}]}, "tools"),
    ({"tool_choice": "required"}, "tool_choice"),
    ({"tool_choice": {"type": "image_generation"}}, "tool_choice"),
    ({"include": ["reasoning.encrypted_content"]}, "include"),
    ({"store": False}, "store"),
    ({"truncation": "auto"}, "truncation"),
    ({"text": {"format": {"type": "json_object"}}}, "text.format"),
    ({"text": {"verbosity": "low"}}, "text.verbosity"),
    ({"reasoning": {"effort": "low"}}, "reasoning.effort"),
    ({"reasoning": {"summary": "detailed"}}, "reasoning.summary"),
    ({"stream_options": {"include_obfuscation": True}}, "stream_options.include_obfuscation"),
    ({"service_tier": "flex"}, "service_tier"),
    ({"top_logprobs": 5}, "top_logprobs"),
    ({"instructions": "Be brief."}, "instructions"),
    ({"max_tool_calls": 1}, "max_tool_calls"),
    ({"conversation": "conv_1"}, "conversation"),
    ({"prompt": {"id": "pmpt_1"}}, "prompt"),
    ({"prompt_cache_key": "k"}, "prompt_cache_key"),
    ({"prompt_cache_options": {"mode": "explicit"}}, "prompt_cache_options"),
    ({"prompt_cache_retention": "24h"}, "prompt_cache_retention"),
    ({"safety_identifier": "me"}, "safety_identifier"),
    ({"context_management": [{"type": "compaction"}]}, "context_management"),
    ({"moderation": {"model": "x"}}, "moderation"),
    ({"access_programs": {"cyber": "standard"}}, "access_programs"),
    ({"background_options": {"completion_window": "2h"}}, "background_options"),
    ({"image": {"context_compression": "enabled"}}, "image"),
    ({"input": [{"role": "system", "content": "Be brief."}]}, "input[0].role"),
    ({"input": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}, "input[1].role"),
    ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0].type"),
]


async def test_unsupported_parameters_are_named(server: Server, openai: AsyncOpenAI) -> None:
    question = await about(server)
    for more, param in UNSUPPORTED:
        call = openai.responses.create(**({"input": question} | more))
        await raised(package.BadRequestError, call, "unsupported_parameter", param)
    assert (await server.client.get("/v1/traces")).json()["data"] == []


def test_every_parameter_of_the_package_is_decided() -> None:
    known = {name for kind in ResponseCreateParams.__args__ for name in kind.__annotations__}  # type: ignore[attr-defined]
    for base in ResponseCreateParams.__args__:  # type: ignore[attr-defined]
        known |= {name for parent in base.__orig_bases__ for name in getattr(parent, "__annotations__", {})}
    assert len(known) > 30
    assert known == ResponseCreate.model_fields.keys()


DEFAULTS: dict[str, Any] = {
    "tools": [],
    "tool_choice": "auto",
    "truncation": "disabled",
    "store": True,
    "text": {"format": {"type": "text"}},
    "parallel_tool_calls": False,
    "user": "me",
    "include": [],
    "background": False,
    "stream": False,
    "temperature": None,
    "top_p": None,
    "max_output_tokens": None,
    "metadata": None,
    "previous_response_id": None,
    "instructions": None,
    "reasoning": {"effort": None, "summary": "auto"},
    "service_tier": "auto",
    "top_logprobs": 0,
    "stream_options": None,
    "conversation": None,
}


async def test_defaults_are_accepted_and_returned(server: Server, openai: AsyncOpenAI) -> None:
    response = await openai.responses.create(input=await about(server), **DEFAULTS)
    shown = response.to_dict()
    same = ("tools", "tool_choice", "truncation", "store", "parallel_tool_calls", "user", "background", "instructions")
    assert {name: shown[name] for name in same} == {name: DEFAULTS[name] for name in same}
    assert shown["reasoning"] == {"effort": None, "summary": "auto"}
    assert shown["text"] == {"format": {"type": "text"}, "verbosity": "medium"}


def image(**fields: Any) -> list[Any]:
    parts = [{"type": "input_text", "text": "Where?"}, {"type": "input_image", **fields}]
    return [{"role": "user", "content": "Look."}, {"role": "user", "content": parts}]


BROKEN = "data:image/png;base64," + base64.b64encode(png()[:60]).decode()
INVALID: list[tuple[dict[str, Any], str, str]] = [
    ({"input": ""}, "invalid", "input"),
    ({"input": []}, "invalid", "input"),
    ({"input": 5}, "invalid", "input"),
    ({"input": None}, "invalid", "input"),
    ({"input": "a\0b"}, "invalid", "input"),
    ({"input": "x" * 8_001}, "invalid", "input"),
    ({"input": [{"role": "user", "content": "x" * 5_000}] * 2}, "invalid", "input"),
    ({"input": [{"role": "user", "content": []}]}, "invalid", "input[0].content"),
    ({"input": [{"role": "user"}]}, "invalid", "input[0].content"),
    ({"input": ["Where?"]}, "invalid", "input[0]"),
    ({"input": [{"role": "user", "content": [{"type": "input_file"}]}]}, "invalid", "input[0].content[0].type"),
    ({"input": [{"role": "user", "content": [{"type": "input_text"}]}]}, "invalid", "input[0].content[0].text"),
    ({"input": image()}, "invalid", "input[1].content[1]"),
    ({"input": image(file_id="a", image_url="b")}, "invalid", "input[1].content[1]"),
    ({"input": image(file_id=5)}, "invalid", "input[1].content[1].file_id"),
    ({"input": image(file_id="0" * 64, detail="high")}, "unsupported_parameter", "input[1].content[1].detail"),
    ({"input": image(image_url="http://127.0.0.1:1/a.png")}, "unsupported_url", "input[1].content[1].image_url"),
    ({"input": image(image_url="file:///etc/passwd")}, "unsupported_url", "input[1].content[1].image_url"),
    ({"input": image(image_url="data:image/png;base64,!!")}, "image_broken", "input[1].content[1].image_url"),
    ({"input": image(image_url=BROKEN)}, "image_broken", "input[1].content[1].image_url"),
    ({"input": image(image_url="data:image/png;base64,AAAA")}, "unsupported_image", "input[1].content[1].image_url"),
    ({"input": "Where?"}, "image_required", "input"),
    ({"input": image(file_id="0" * 64) * 2}, "too_many_images", "input"),
    ({"input": "zq" * 1_500}, "image_required", "input"),
    ({"temperature": -1}, "invalid", "temperature"),
    ({"temperature": "1"}, "invalid", "temperature"),
    ({"top_p": 0}, "invalid", "top_p"),
    ({"max_output_tokens": 0}, "invalid", "max_output_tokens"),
    ({"max_output_tokens": 769}, "invalid", "max_output_tokens"),
    ({"background": "yes"}, "invalid", "background"),
    ({"stream": 1}, "invalid", "stream"),
    ({"metadata": {"a": 1}}, "invalid", "metadata.a"),
    ({"metadata": {"a": "x" * 513}}, "invalid", "metadata.a"),
    ({"metadata": {str(k): "x" for k in range(17)}}, "invalid", "metadata"),
    ({"user": "a\0b"}, "invalid", "user"),
    ({"unknown": 1}, "invalid", "unknown"),
    ({"seed": 5}, "invalid", "seed"),
]


async def test_bad_values_are_named(server: Server) -> None:
    good = {"input": await about(server)}
    for more, code, param in INVALID:
        is_error(await server.client.post("/v1/responses", json=good | more), 400, code, param)
    assert (await server.client.get("/v1/traces")).json()["data"] == []
    assert (await server.client.post("/v1/responses", json=good)).status_code == 200


async def test_question_must_fit(server: Server) -> None:
    body = {"input": await about(server, "zq" * 1_500)}
    is_error(await server.client.post("/v1/responses", json=body), 400, "prompt_too_long", "input")
    placed = {"input": await about(server, "Where is <image_3>?")}
    is_error(await server.client.post("/v1/responses", json=placed), 400, "bad_place", "input")


async def test_bodies_that_are_no_json_are_400(server: Server) -> None:
    post = server.client.post
    is_error(await post("/v1/responses", content=b"{", headers=JSON), 400, "malformed")
    is_error(await post("/v1/responses", content=b"[" * 100_000, headers=JSON), 400, "malformed")
    is_error(await post("/v1/responses", content=b"", headers=JSON), 400, "invalid")
    is_error(await post("/v1/responses", content=b"[]", headers=JSON), 400, "invalid")
    surrogate = await post("/v1/responses", content=b'{"input": "\\ud800"}', headers=JSON)
    is_error(surrogate, 400, "invalid", "input")
    is_error(await post("/v1/responses", content=b"{}", headers={"content-type": "text/plain"}), 415, "not_json")


async def test_http_images_are_refused_and_never_fetched(server: Server, openai: AsyncOpenAI) -> None:
    visits = 0

    def visited(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal visits
        visits += 1
        writer.close()

    listener = await asyncio.start_server(visited, "127.0.0.1", 0)
    async with listener:
        host, port = listener.sockets[0].getsockname()[:2]
        url = f"http://{host}:{port}/image.png"
        call = openai.responses.create(input=await about(server, image_url=url))
        await raised(package.BadRequestError, call, "unsupported_url", "input[0].content[1].image_url")
        await openai.responses.create(input=await about(server))
        assert visits == 0
        reader, writer = await asyncio.open_connection(host, port)
        assert await reader.read() == b""
        writer.close()
        assert visits == 1


async def test_unknown_ids_are_not_found(server: Server, openai: AsyncOpenAI) -> None:
    trace = await server.finished((await server.create())["id"])
    for id_ in ("resp_nothing", "nothing", trace["id"], f"resp_{trace['id']}", "resp_a%00b"):
        for method, path in (
            ("GET", f"/v1/responses/{id_}"),
            ("GET", f"/v1/responses/{id_}?stream=true"),
            ("GET", f"/v1/responses/{id_}/input_items"),
            ("POST", f"/v1/responses/{id_}/cancel"),
            ("DELETE", f"/v1/responses/{id_}"),
        ):
            is_error(await server.client.request(method, path), 404, "response_not_found")
    await raised(package.NotFoundError, openai.responses.retrieve("resp_x"), "response_not_found")
    await raised(package.NotFoundError, openai.models.retrieve("gpt-4o"), "model_not_found", "model_id")
    question = await about(server)
    call = openai.responses.create(input=question, model="gpt-4o")
    await raised(package.NotFoundError, call, "model_not_found", "model")
    call = openai.responses.create(input=question, previous_response_id="resp_x")
    await raised(package.NotFoundError, call, "response_not_found", "previous_response_id")
    call = openai.responses.create(input=await about(server, file_id="0" * 64))
    await raised(package.NotFoundError, call, "unknown_image", "input[0].content[1].file_id")
    call = openai.chat.completions.create(model="nano-omni-r1", messages=[{"role": "user", "content": "?"}])
    await raised(package.NotFoundError, call, "not_found")
    response = await openai.responses.create(input=question)
    after = await server.client.get(f"/v1/responses/{response.id}/input_items", params={"after": "msg_x"})
    is_error(after, 404, "not_found", "after")
    assert (await server.get(trace["id"]))["status"] == "completed"
    is_error(await server.client.get("/v1/responses/a/b"), 404, "not_found")
    is_error(await server.client.put("/v1/responses"), 405, "method_not_allowed")


async def test_bad_queries_are_named(server: Server, openai: AsyncOpenAI) -> None:
    response = await openai.responses.create(input=await about(server))
    path = f"/v1/responses/{response.id}"
    for query, param in (
        ("stream=true&starting_after=x", "starting_after"),
        ("stream=true&starting_after=-1", "starting_after"),
        ("starting_after=3", "starting_after"),
        ("stream=perhaps", "stream"),
        ("include_obfuscation=true", "include_obfuscation"),
        ("include[]=reasoning.encrypted_content", "include[]"),
        ("unknown=1", "unknown"),
    ):
        is_error(await server.client.get(f"{path}?{query}"), 400, "invalid", param)
    for query, param in (("limit=0", "limit"), ("limit=101", "limit"), ("order=up", "order")):
        is_error(await server.client.get(f"{path}/input_items?{query}"), 400, "invalid", param)
    is_error(await server.client.get("/v1/models?limit=5"), 400, "invalid", "limit")


async def test_wrong_keys_are_authentication_errors(serve: Serve) -> None:
    async with serve(api_key=KEY) as server, client_of(server, "wrong") as openai:
        await raised(package.AuthenticationError, openai.models.list(), "wrong_key")
        await raised(package.AuthenticationError, openai.responses.create(input="x"), "wrong_key")
        missing = await server.client.get("/v1/models")
        is_error(missing, 401, "key_required")
        assert missing.headers["www-authenticate"].startswith("Bearer")
        is_problem(await server.client.get("/v1/traces"), 401, "key_required")


async def test_other_sites_and_hosts_are_rejected(server: Server) -> None:
    body = {"input": await about(server)}
    foreign = await server.client.post("/v1/responses", json=body, headers={"origin": "http://evil.example"})
    is_error(foreign, 403, "forbidden_origin")
    is_error(await server.client.get("/v1/models", headers={"host": "evil.example"}), 421, "wrong_host")
    async with AsyncOpenAI(
        base_url=f"http://127.0.0.1:{server.port}/v1",
        api_key="dummy",
        max_retries=0,
        default_headers={"Origin": "http://evil.example"},
    ) as openai:
        await raised(package.PermissionDeniedError, openai.responses.create(**body), "forbidden_origin")


async def test_full_queue_is_a_rate_limit(serve: Serve, engine: FakeGeneration) -> None:
    engine.script, engine.num_slots = held, 1
    async with serve(max_queue=1) as server, client_of(server) as openai:
        question = await about(server)
        first = await openai.responses.create(input=question, background=True)
        await server.until(trace_id(first), "trace.started")
        await openai.responses.create(input=question, background=True)
        error = await raised(package.RateLimitError, openai.responses.create(input=question), "queue_full")
        assert error.response.headers["retry-after"] == "2"
        assert error.type == "rate_limit_error"
        engine.go("end")


async def test_engine_that_is_not_ready_is_a_server_error(
    server: Server, openai: AsyncOpenAI, engine: FakeGeneration
) -> None:
    question = await about(server)
    engine.phase = "starting"
    error = await raised(package.InternalServerError, openai.responses.create(input=question), "not_ready")
    assert (error.status_code, error.type) == (503, "server_error")
    engine.phase = "ready"


async def test_same_key_at_once_is_a_conflict(server: Server, openai: AsyncOpenAI) -> None:
    question = await about(server)
    with server.services.idempotency.hold("POST /v1/responses", "k", b""):
        call = openai.responses.create(input=question, extra_headers={"Idempotency-Key": "k"})
        await raised(package.ConflictError, call, "request_in_progress")
    bad = await server.client.post("/v1/responses", json={"input": question}, headers={"Idempotency-Key": "a b"})
    is_error(bad, 400, "invalid", "Idempotency-Key")


async def test_large_bodies_are_413(server: Server) -> None:
    body = b'{"input": "' + b"x" * 20_200_000 + b'"}'
    is_error(await server.client.post("/v1/responses", content=body, headers=JSON), 413, "body_too_large")


async def test_broken_database_is_503(server: Server, openai: AsyncOpenAI) -> None:
    response = await openai.responses.create(input=await about(server))
    (server.home / "omni-r1.db").rename(server.home / "moved.db")
    is_error(await server.client.get(f"/v1/responses/{response.id}"), 503, "database_unavailable")
    (server.home / "moved.db").rename(server.home / "omni-r1.db")
    assert (await openai.responses.retrieve(response.id)).to_dict() == response.to_dict()


async def test_structured_outputs_are_refused(server: Server, openai: AsyncOpenAI) -> None:
    class Answer(BaseModel):
        colour: str

    call = openai.responses.parse(input=await about(server), text_format=Answer, model=omit)
    await raised(package.BadRequestError, call, "unsupported_parameter", "text.format")


def test_every_code_has_the_shape() -> None:
    for code, (status, _title) in CODES.items():
        answer = response_for(Problem(code, "why", errors=[{"path": "body.a.0.b", "message": "no"}]), "/v1/responses/x")
        assert answer.status_code == (400 if status == 422 else status)
        error = OpenAIErrorOut.model_validate_json(bytes(answer.body)).error
        assert (error.code, error.param, error.message) == (code, "a[0].b", "a[0].b: no")
    assert response_for(Problem("not_found", "why"), "/v1/responsesx").media_type == "application/problem+json"

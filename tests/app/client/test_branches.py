"""Branches and groups through the client: what it sends, and where the stream of a group ends."""

from __future__ import annotations

import json

import httpx
import pytest

from app.client import BadInput, Conflict
from app.client.sse import Event, GroupCursor
from tests.app.client.test_client import client_for, frame, problem, seqs, stream

GROUP_LOG = [
    frame(1, "trace.queued", trace_id="t1", position=0),
    frame(2, "trace.queued", trace_id="t2", position=0),
    frame(3, "trace.completed", trace_id="t1", answer="red"),
    frame(4, "trace.failed", trace_id="t2", error={}),
    frame(5, "group.completed", status="completed", tally=[], agreement=None),
]


def test_group_stream_ends_with_the_group_and_not_with_a_member() -> None:
    positions = []

    def handler(request: httpx.Request) -> httpx.Response:
        assert request.url.path == "/v1/groups/g1/events"
        positions.append(int(request.headers.get("last-event-id", "0")))
        return stream(*GROUP_LOG[positions[-1] : positions[-1] + 3])  # breaks off after the first member's end

    with client_for(handler) as client:
        events = list(client.group_events("g1"))
    assert seqs(events) == [1, 2, 3, 4, 5]
    assert positions == [0, 3]
    assert [event.terminal for event in events] == [False, False, True, True, False]


def test_group_stream_resumes_in_the_middle_of_a_frame() -> None:
    answers = [
        stream(GROUP_LOG[0], GROUP_LOG[1][:7], error=httpx.ReadError("reset")),
        problem(503, "not_ready", "starting"),
        stream(GROUP_LOG[0], *GROUP_LOG[1:4]),
        stream(GROUP_LOG[4]),
    ]
    with client_for(lambda _: answers.pop(0)) as client:
        assert seqs(list(client.group_events("g1"))) == [1, 2, 3, 4, 5]
    assert answers == []


def test_group_read_after_its_end_yields_nothing() -> None:
    with client_for(lambda _: httpx.Response(204)) as client:
        assert list(client.group_events("g1", after=5)) == []


def test_group_cursor_goes_on_after_the_end_of_a_member() -> None:
    cursor = GroupCursor()
    assert cursor.accept(Event(1, "trace.cancelled", {}))
    assert not cursor.done
    assert cursor.accept(Event(2, "group.completed", {}))
    assert cursor.done
    assert not cursor.accept(Event(3, "trace.queued", {}))


def test_branch_sends_only_given_values() -> None:
    seen: list[httpx.Request] = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(201, json={"data": [{"id": "b1"}, {"id": "b2"}]})

    with client_for(handler) as client:
        assert [trace["id"] for trace in client.branch("a/b", 0)] == ["b1", "b2"]
        client.branch(
            "t",
            2,
            edits=[{"step": 1, "text": ""}, {"step": 2, "image": {"use": "blank"}}],
            then_text="I",
            n=2,
            checkpoint="c",
            mode="auto",
            sampling={"seed": 0},
            partial_images=0,
            background=False,
            metadata={},
            idempotency_key="k",
        )
        client.branch("t", 1, then_token={"step": "answer", "token": 0, "id": 7})
        client.branch("t", 1, then="answer")
    assert seen[0].url.raw_path == b"/v1/traces/a%2Fb/branches"
    assert [json.loads(request.content) for request in seen] == [
        {"after_step": 0},
        {
            "after_step": 2,
            "edits": [{"step": 1, "text": ""}, {"step": 2, "image": {"use": "blank"}}],
            "then_text": "I",
            "n": 2,
            "checkpoint": "c",
            "mode": "auto",
            "sampling": {"seed": 0},
            "partial_images": 0,
            "background": False,
            "metadata": {},
        },
        {"after_step": 1, "then_token": {"step": "answer", "token": 0, "id": 7}},
        {"after_step": 1, "then": "answer"},
    ]
    assert [request.headers.get("idempotency-key") for request in seen] == [None, "k", None, None]


def test_samples_are_requested_with_n() -> None:
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return httpx.Response(201, json={"id": "t1", "group_id": "g1"})

    with client_for(handler) as client:
        assert client.create_trace("Why?", n=4)["group_id"] == "g1"
        client.create_trace("Why?")
    assert seen[0]["n"] == 4
    assert "n" not in seen[1]


@pytest.mark.parametrize(("status", "kind"), [(409, Conflict), (422, BadInput)])
def test_rejected_branch_carries_its_code(status: int, kind: type[Exception]) -> None:
    with client_for(lambda _: problem(status, "some_code", "wait")) as client, pytest.raises(kind, match="wait"):
        client.branch("t", 1)


def test_calls_of_branches_and_groups_use_the_documented_routes() -> None:
    calls: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        calls.append(f"{request.method} {request.url.raw_path.decode()} {request.content.decode()}".strip())
        return httpx.Response(200, json={"data": []})

    with client_for(handler) as client:
        client.tree("a/b")
        client.tokens("t")
        client.alternatives("t", 2, 0)
        client.alternatives("t", "answer", 1)
        client.group("g/h")
        client.groups()
        client.groups(limit=5, after="g")
        client.cancel_group("g")
        client.delete_group("g")
        client.traces(parent="t", group="g")
    assert calls == [
        "GET /v1/traces/a%2Fb/tree",
        "GET /v1/traces/t/tokens",
        'POST /v1/traces/t/alternatives {"step":2,"token":0}',
        'POST /v1/traces/t/alternatives {"step":"answer","token":1}',
        "GET /v1/groups/g%2Fh",
        "GET /v1/groups?limit=20",
        "GET /v1/groups?limit=5&after=g",
        "POST /v1/groups/g/cancel",
        "DELETE /v1/groups/g",
        "GET /v1/traces?limit=20&parent=t&group=g",
    ]

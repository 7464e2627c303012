"""Curation and exports through the client: what it sends, and what it returns of a file."""

from __future__ import annotations

import json
from collections.abc import Iterator

import httpx
import pytest

from app.client import BadInput, Conflict, NotFound, ServerUnreachable
from tests.app.client.test_client import client_for, problem


class Broken(httpx.SyncByteStream):
    def __iter__(self) -> Iterator[bytes]:
        yield b"half "
        raise httpx.ReadError("reset")


def test_update_sends_only_given_values() -> None:
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append((request.method, request.url.raw_path.decode(), json.loads(request.content)))
        return httpx.Response(200, json={"id": "t", "rating": 1})

    with client_for(handler) as client:
        assert client.update_trace("a/b")["rating"] == 1
        client.update_trace("t", rating=None, tags=(), note=None)
        client.update_trace("t", rating=-1, tags=["x"], note="n")
    assert seen == [
        ("PATCH", "/v1/traces/a%2Fb", {}),
        ("PATCH", "/v1/traces/t", {"rating": None, "tags": [], "note": None}),
        ("PATCH", "/v1/traces/t", {"rating": -1, "tags": ["x"], "note": "n"}),
    ]


def test_export_returns_name_skipped_and_chunks() -> None:
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(f"{request.method} {request.url.raw_path.decode()} {request.content.decode()}".strip())
        headers = {"content-disposition": 'attachment; filename="traces.zip"', "x-skipped": "3"}
        return httpx.Response(200, headers=headers, content=b"bytes")

    with client_for(handler) as client:
        with client.export(format="zip") as file:
            assert (file.name, file.skipped, b"".join(file.chunks)) == ("traces.zip", 3, b"bytes")
        for selection in ("a/b", ["t1", "t2"], None):
            with client.export(selection, format="json", filter={"tag": "x"} if selection is None else None) as file:
                assert b"".join(file.chunks) == b"bytes"
    assert seen == [
        'POST /v1/exports {"format":"zip","filter":{}}',
        "GET /v1/traces/a%2Fb/export?format=json",
        'POST /v1/exports {"format":"json","trace_ids":["t1","t2"]}',
        'POST /v1/exports {"format":"json","filter":{"tag":"x"}}',
    ]


@pytest.mark.parametrize(("status", "kind"), [(404, NotFound), (409, Conflict), (422, BadInput)])
def test_rejected_export_raises_before_the_block(status: int, kind: type[Exception]) -> None:
    client = client_for(lambda _: problem(status, "some_code", "wait"))
    with client, pytest.raises(kind, match="wait"), client.export("t", format="json"):
        raise AssertionError("the block ran")


def test_export_that_breaks_off_raises() -> None:
    with client_for(lambda _: httpx.Response(200, stream=Broken())) as client, client.export(format="json") as file:
        assert next(file.chunks) == b"half "
        with pytest.raises(ServerUnreachable):
            next(file.chunks)


def test_lists_pass_rating_and_tag_on() -> None:
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request.url.query.decode())
        return httpx.Response(200, json={"data": [], "has_more": False})

    with client_for(handler) as client:
        client.traces(rating=0, tag="a b")
        client.traces()
    assert seen == ["limit=20&rating=0&tag=a+b", "limit=20"]

"""The gate in front of the Gradio pages."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from app.http.page_gate import PageGate


async def through_the_gate(page: Any, method: str, path: str, body: bytes = b"") -> tuple[int, dict[str, Any]]:
    """Status and JSON of a request through the gate to `page`."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": method, "path": path, "headers": [], "query_string": b"", "root_path": ""}
    await PageGate(page)(scope, receive, send)
    content = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], json.loads(content) if content.startswith(b"{") else {}


async def raises(scope: Scope, receive: Receive, send: Send) -> None:
    raise KeyError("no such function")


async def answers_500(scope: Scope, receive: Receive, send: Send) -> None:
    await PlainTextResponse("Internal Server Error", 500)(scope, receive, send)
    raise KeyError("as starlette does it")


@pytest.mark.parametrize("page", [raises, answers_500])
@pytest.mark.parametrize("path", ["/gradio_api/run/predict", "/gradio_api/reset"])
async def test_gradio_failures_become_client_errors(page: Any, path: str) -> None:
    assert (await through_the_gate(page, "POST", path, b'{"fn_index": 99}'))[0] == 400


@pytest.mark.parametrize("body", [b"", b"[]", b"\xff", b"[" * 2000, b"{", b"{" + b" " * 2_000_000 + b"}"])
async def test_page_event_must_be_a_json_object(body: bytes) -> None:
    assert (await through_the_gate(raises, "POST", "/gradio_api/run/predict", body))[1]["code"] == "malformed"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/pwa_icon/999", 404),
        ("GET", "/gradio_api/file=/etc/passwd", 404),
        ("POST", "/gradio_api/upload", 404),
        ("GET", "/gradio_api/proxy=http://x", 404),
        ("GET", "/gradio_api/run/predict", 405),
        ("POST", "/gradio_api/queue/join", 404),
        ("DELETE", "/gallery", 405),
        ("POST", "/", 405),
    ],
)
async def test_unneeded_gradio_routes_are_closed(method: str, path: str, status: int) -> None:
    assert (await through_the_gate(raises, method, path))[0] == status

"""The client and its stream parser against canned bytes: split frames, broken connections, error responses."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from app.cli.terminal import clean
from app.client import (
    ApiError,
    BadInput,
    Client,
    Conflict,
    MalformedAnswer,
    NotFound,
    NotReady,
    QueueFull,
    ServerFailed,
    ServerUnreachable,
    default_url,
)
from app.client.sse import Cursor, Event, EventParser, MalformedStream

URL = "http://127.0.0.1:9"
Handler = Callable[[httpx.Request], httpx.Response]


def client_for(handler: Handler, **options: object) -> Client:
    return Client(URL, transport=httpx.MockTransport(handler), sleep=lambda _: None, **options)  # type: ignore[arg-type]


def frame(seq: int, kind: str, **data: object) -> bytes:
    return f"event: {kind}\nid: {seq}\ndata: {json.dumps(data)}\n\n".encode()


LOG = [
    frame(1, "trace.queued", position=0),
    frame(2, "trace.started", seed=1),
    frame(3, "text.delta", step=1, text="naïve ↯ 🎨"),
    frame(4, "trace.completed", answer="red"),
]


def seqs(events: list[Event]) -> list[int]:
    return [event.seq for event in events]


class Chunks(httpx.SyncByteStream):
    """A body that arrives in the given pieces and may then break."""

    def __init__(self, pieces: list[bytes], error: Exception | None = None) -> None:
        self.pieces, self.error = pieces, error

    def __iter__(self) -> Iterator[bytes]:
        yield from self.pieces
        if self.error:
            raise self.error


def stream(*pieces: bytes, error: Exception | None = None) -> httpx.Response:
    return httpx.Response(
        200, headers={"content-type": "text/event-stream; charset=utf-8"}, stream=Chunks(list(pieces), error)
    )


def problem(status: int, code: str, detail: str, **headers: str) -> httpx.Response:
    body = {"type": "about:blank", "title": "No", "status": status, "code": code, "detail": detail, "instance": "/"}
    return httpx.Response(status, json=body, headers={"content-type": "application/problem+json", **headers})


# The parser


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 10_000])
def test_split_bytes_give_the_same_events(newline: str, size: int) -> None:
    wire = b"\xef\xbb\xbf: hello\n\n" + b"".join(LOG)
    wire = wire.replace(b"\n", newline.encode())
    parser = EventParser()
    events = [event for at in range(0, len(wire), size) for event in parser.feed(wire[at : at + size])]
    assert seqs(events) == [1, 2, 3, 4]
    assert events[2].data == {"step": 1, "text": "naïve ↯ 🎨"}
    assert events[3].terminal
    assert not events[2].terminal


def test_comments_and_unfinished_frames_are_skipped() -> None:
    parser = EventParser()
    wire = b": ping\n\nretry: 1000\nevent: x\n\n" + LOG[0] + b"event: text.delta\nid: 2\ndata: {}\n"
    assert seqs(parser.feed(wire)) == [1]


def test_event_keeps_its_data_line() -> None:
    line = '{"text": "a",   "step":1}'
    [event] = EventParser().feed(f"id: 1\nevent: text.delta\ndata: {line}\n\n".encode())
    assert event.raw == line


@pytest.mark.parametrize(
    "wire", [b"id: 1\ndata: {\n\n", b"id: x\ndata: {}\n\n", b"id: 1\ndata: [1]\n\n", b"data: {}\n\n"]
)
def test_invalid_events_are_rejected(wire: bytes) -> None:
    with pytest.raises(MalformedStream):
        EventParser().feed(wire)


def test_cursor_passes_each_event_once() -> None:
    cursor = Cursor(after=4)
    assert not cursor.accept(Event(3, "text.delta", {}))
    assert cursor.accept(Event(5, "text.delta", {}))
    assert not cursor.accept(Event(5, "text.delta", {}))
    with pytest.raises(MalformedStream):
        cursor.accept(Event(7, "text.delta", {}))
    assert cursor.seq == 5


# Streaming


def test_broken_stream_resumes_where_it_broke() -> None:
    positions = []

    def handler(request: httpx.Request) -> httpx.Response:
        position = int(request.headers.get("last-event-id", "0"))
        positions.append(position)
        if len(positions) == 3:
            raise httpx.ConnectError("refused")
        half = LOG[min(position + 1, 3)][:9]
        return stream(LOG[position], half, error=httpx.ReadError("reset") if position < 3 else None)

    with client_for(handler) as client:
        events = list(client.events("t1"))
    assert seqs(events) == [1, 2, 3, 4]
    assert positions == [0, 1, 2, 2, 3]


def test_stream_that_ends_early_resumes() -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        return stream(LOG[int(request.headers.get("last-event-id", "0"))])

    with client_for(handler) as client:
        assert seqs(list(client.events("t1"))) == [1, 2, 3, 4]


def test_repeated_or_missing_events_are_handled() -> None:
    answers = [stream(LOG[0], LOG[0], LOG[2]), stream(LOG[0], LOG[1], LOG[2]), stream(LOG[3])]
    with client_for(lambda _: answers.pop(0)) as client:
        assert seqs(list(client.events("t1"))) == [1, 2, 3, 4]


def test_reading_after_the_end_yields_nothing() -> None:
    with client_for(lambda _: httpx.Response(204)) as client:
        assert list(client.events("t1", after=4)) == []


def test_client_waits_for_a_restarting_server() -> None:
    answers = [problem(503, "not_ready", "starting"), stream(*LOG)]
    with client_for(lambda _: answers.pop(0)) as client:
        assert seqs(list(client.events("t1"))) == [1, 2, 3, 4]


def test_client_gives_up_after_the_timeout() -> None:
    now = iter(range(1000))

    def handler(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with client_for(handler, clock=lambda: float(next(now))) as client, pytest.raises(ServerUnreachable):
        list(client.events("t1", give_up_s=5))


def test_client_gives_up_on_endless_disconnects() -> None:
    now = iter(range(1000))
    with (
        client_for(lambda _: stream(), clock=lambda: float(next(now))) as client,
        pytest.raises(ServerUnreachable),
    ):
        list(client.events("t1", give_up_s=5))


def test_unknown_trace_is_not_retried() -> None:
    calls = []

    def handler(request: httpx.Request) -> httpx.Response:
        calls.append(request)
        return problem(404, "not_found", "no trace t1")

    with client_for(handler) as client, pytest.raises(NotFound, match="no trace t1"):
        list(client.events("t1"))
    assert len(calls) == 1


def test_page_instead_of_a_stream_is_reported() -> None:
    with client_for(lambda _: httpx.Response(200, text="<html>")) as client, pytest.raises(MalformedAnswer):
        list(client.events("t1"))


# Calls and error responses


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, BadInput),
        (404, NotFound),
        (409, Conflict),
        (413, BadInput),
        (415, BadInput),
        (422, BadInput),
        (429, QueueFull),
        (500, ServerFailed),
        (502, ServerFailed),
        (503, NotReady),
        (418, ApiError),
    ],
)
def test_error_carries_status_code_and_detail(status: int, kind: type[ApiError]) -> None:
    answer = problem(status, "some_code", "do this instead", **{"retry-after": "7"})
    with client_for(lambda _: answer) as client, pytest.raises(ApiError) as caught:
        client.trace("t1")
    assert type(caught.value) is kind
    assert (caught.value.status, caught.value.code) == (status, "some_code")
    assert str(caught.value) == "do this instead"
    assert caught.value.retry_after == 7


def test_error_without_problem_document_has_its_status() -> None:
    with client_for(lambda _: httpx.Response(502, text="<html>")) as client, pytest.raises(ServerFailed, match="502"):
        client.trace("t1")


def test_unreachable_server_has_its_own_error() -> None:
    def handler(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("[Errno 111] Connection refused")

    with client_for(handler) as client, pytest.raises(ServerUnreachable, match=r"no answer from http://127\.0\.0\.1:9"):
        client.limits()


def test_create_trace_sends_only_given_values() -> None:
    seen = []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(201, json={"id": "t1"})

    with client_for(handler) as client:
        client.create_trace("Why?", ["img-1", {"image_id": "img-2", "fit": "pad"}], sampling={"seed": 3})
        client.create_trace("Why?", [], mode="step", background=False, idempotency_key="k")
    assert json.loads(seen[0].content) == {
        "question": "Why?",
        "images": [{"image_id": "img-1"}, {"image_id": "img-2", "fit": "pad"}],
        "mode": "auto",
        "partial_images": 0,
        "sampling": {"seed": 3},
    }
    assert "idempotency-key" not in seen[0].headers
    assert json.loads(seen[1].content)["background"] is False
    assert seen[1].headers["idempotency-key"] == "k"


@pytest.mark.parametrize("question", ["\ud800", "a\udfff"])
def test_unencodable_text_is_rejected_before_sending(question: str) -> None:
    with client_for(lambda _: httpx.Response(500)) as client, pytest.raises(BadInput, match="JSON"):
        client.create_trace(question)


def test_nan_is_rejected_before_sending() -> None:
    with client_for(lambda _: httpx.Response(500)) as client, pytest.raises(BadInput, match="JSON"):
        client.create_trace("Why?", sampling={"temperature": float("nan")})


def test_calls_use_the_documented_routes(tmp_path: Path) -> None:
    calls: list[str] = []

    def handler(request: httpx.Request) -> httpx.Response:
        calls.append(f"{request.method} {request.url.raw_path.decode()}")
        return httpx.Response(200, json={"data": []})

    picture = tmp_path / "a.png"
    picture.write_bytes(b"x")
    with client_for(handler) as client:
        client.trace("a/b")
        client.traces(limit=5, status="running", q="")
        client.pause("t")
        client.continue_("t", "auto")
        client.cancel("t")
        client.delete("t")
        client.film("t")
        client.upload_image(picture)
        client.image("i")
        client.model_view("i", checkpoint="c", fit="pad")
        client.fetch("/v1/x")
        client.task(slice="natural", seed=3, level=5, reveal=True)
        client.limits()
        client.count("q", 1)
        client.checkpoints()
        client.checkpoint("c")
        client.register_checkpoint("/c")
        client.activate("c/d", drain="wait")
        client.delete_checkpoint("c", unload=True)
        client.models()
        client.readiness()
        assert client.alive()
    assert calls == [
        "GET /v1/traces/a%2Fb",
        "GET /v1/traces?limit=5&status=running",
        "POST /v1/traces/t/pause",
        "POST /v1/traces/t/continue",
        "POST /v1/traces/t/cancel",
        "DELETE /v1/traces/t",
        "GET /v1/traces/t/film",
        "POST /v1/images",
        "GET /v1/images/i",
        "GET /v1/images/i/model-view?fit=pad&checkpoint=c",
        "GET /v1/x",
        "GET /v1/tasks?slice=natural&seed=3&level=5&reveal=true",
        "GET /v1/limits",
        "POST /v1/limits",
        "GET /v1/checkpoints",
        "GET /v1/checkpoints/c",
        "POST /v1/checkpoints",
        "POST /v1/checkpoints/c%2Fd/activate",
        "DELETE /v1/checkpoints/c?unload=true",
        "GET /v1/models",
        "GET /readyz",
        "GET /livez",
    ]


@pytest.mark.parametrize("url", ["http://elsewhere/x.png", "//elsewhere/x.png", "x.png"])
def test_images_are_fetched_from_this_server_only(url: str) -> None:
    with client_for(lambda _: httpx.Response(200)) as client, pytest.raises(MalformedAnswer):
        client.fetch(url)


def test_readiness_is_returned_while_not_ready() -> None:
    answer = {"phase": "starting", "checkpoint": None, "weight_version": None, "detail": "loading"}
    with client_for(lambda _: httpx.Response(503, json=answer)) as client:
        assert client.readiness()["phase"] == "starting"


def test_url_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI_R1_URL", " http://studio:1234/ ")
    with Client() as client:
        assert client.base_url == "http://studio:1234"
    monkeypatch.delenv("OMNI_R1_URL")
    assert default_url() == "http://127.0.0.1:7860"


@pytest.mark.parametrize(
    "url", ["studio", "http://", "ftp://h", "http://h/?x=1", "http://h?", "http://h/#x", "http://["]
)
def test_invalid_url_is_rejected(url: str) -> None:
    with pytest.raises(BadInput, match="address"):
        Client(url)


AWKWARD = [
    "\u2028\u2029\x85",
    "a\x00b\x1b[31m",
    "\ufeffx",
    "a: b",
    " lead",
    "\r\n",
    "\r",
    "😀 é \u202e",
    "\x1c\x1d\x1e\x1f",
]


@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("escaped", [True, False])
def test_awkward_text_survives_the_stream(newline: str, escaped: bool) -> None:
    frames = [
        f"id: {n}\nevent: text.delta\ndata: {json.dumps({'text': text}, ensure_ascii=escaped)}\n\n"
        for n, text in enumerate(AWKWARD, 1)
    ]
    wire = "".join(frames).replace("\n", newline).encode()
    for size in (1, 2, 3, 10_000):
        parser = EventParser()
        events = [event for at in range(0, len(wire), size) for event in parser.feed(wire[at : at + size])]
        assert [event.data["text"] for event in events] == AWKWARD


def test_terminal_text_has_no_control_characters() -> None:
    for text in AWKWARD:
        shown = clean(text)
        assert all(char.isprintable() or char in "\n\t" or unicodedata.category(char) == "Zs" for char in shown), text
        assert "\x1b" not in shown

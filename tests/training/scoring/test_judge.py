"""The endpoint judge: requests, parsing of replies, and failures."""

from __future__ import annotations

import gzip
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest
from pydantic import ValidationError

from training.jobs.context import JobStopped
from training.scoring.judge import (
    GIVE_UP_AFTER,
    MAX_REPLY_BYTES,
    Case,
    EndpointJudge,
    JudgeError,
    Verdict,
    read_verdict,
)
from training.spec.hyperparameters import JudgeHyperparameters

CASE = Case("What colour?", "red", "It is red.")


def reply(text: str) -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"message": {"role": "assistant", "content": text}}]})


@contextmanager
def judge(
    handler: Callable[[httpx.Request], httpx.Response], *, waits: list[float] | None = None, **settings: object
) -> Iterator[EndpointJudge]:
    given = {"url": "http://judge.example/v1", "model": "m", "retries": 2, "concurrency": 1, **settings}
    sleeps = waits if waits is not None else []
    yield EndpointJudge(
        JudgeHyperparameters.model_validate(given),
        environment={"JUDGE_KEY": "secret"},
        transport=httpx.MockTransport(handler),
        sleep=sleeps.append,
    )


def test_request_carries_texts_as_data() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return reply('{"correct": true}')

    with judge(answer, api_key_env="JUDGE_KEY") as endpoint_judge:
        assert endpoint_judge.judge(CASE) == Verdict(True)
    assert str(seen[0].url) == "http://judge.example/v1/chat/completions"
    assert seen[0].headers["authorization"] == "Bearer secret"
    body = json.loads(seen[0].content)
    assert (body["model"], body["temperature"]) == ("m", 0)
    shown = json.loads(body["messages"][1]["content"])
    assert shown == {"question": "What colour?", "reference_answer": "red", "candidate_answer": "It is red."}
    assert b"secret" not in seen[0].content


def test_missing_answer_is_wrong_without_a_request() -> None:
    def never(request: httpx.Request) -> httpx.Response:
        raise AssertionError("asked")

    with judge(never) as endpoint_judge:
        assert endpoint_judge.judge(Case("q", "a", None)).right is False
        assert endpoint_judge.judge(Case("q", "a", "  ")).right is False


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ('{"correct": true}', True),
        ('```json\n{"correct": false}\n```', False),
        ("Correct.", True),
        ("incorrect", False),
        ('<think>it looks wrong, so {"correct": false}? no: the same</think>{"correct": true}', True),
        ("The values differ, so the answer is wrong.", False),
        ("I cannot say.", None),
        ("", None),
    ],
)
def test_a_reply_is_read(text: str, right: bool | None) -> None:
    assert read_verdict(text).right is right


def test_temporary_failures_back_off() -> None:
    answers = iter([httpx.Response(503), httpx.Response(429, headers={"retry-after": "7"}), reply('{"correct": true}')])
    waits: list[float] = []
    with judge(lambda request: next(answers), waits=waits) as endpoint_judge:
        assert endpoint_judge.judge(CASE).right is True
    assert waits == [0.5, 7.0]


def test_timeout_is_retried_then_undecided() -> None:
    calls = 0

    def slow(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        raise httpx.ReadTimeout("too slow", request=request)

    with judge(slow) as endpoint_judge:
        verdict = endpoint_judge.judge(CASE)
    assert verdict.right is None
    assert "ReadTimeout" in verdict.detail
    assert calls == 3  # one try and two retries


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": 3}}]}'])
def test_invalid_completion_is_no_verdict(body: bytes) -> None:
    with judge(lambda request: httpx.Response(200, content=body)) as endpoint_judge:
        assert endpoint_judge.judge(CASE).right is None


def test_wrong_key_fails_without_leaking_it() -> None:
    with (
        judge(lambda request: httpx.Response(401), api_key_env="JUDGE_KEY") as endpoint_judge,
        pytest.raises(JudgeError, match="401") as caught,
    ):
        endpoint_judge.judge_all([CASE])
    assert "secret" not in str(caught.value)


def test_redirect_is_not_followed() -> None:
    hosts: list[str] = []

    def move(request: httpx.Request) -> httpx.Response:
        hosts.append(request.url.host)
        return httpx.Response(302, headers={"location": "http://elsewhere.example/"})

    with judge(move, api_key_env="JUDGE_KEY") as endpoint_judge:
        assert endpoint_judge.judge(CASE).right is None
    assert hosts == ["judge.example"]


def test_unreachable_endpoint_is_given_up() -> None:
    calls = 0

    def gone(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        return httpx.Response(500)

    with judge(gone, retries=0) as endpoint_judge:
        verdicts = endpoint_judge.judge_all([CASE] * (GIVE_UP_AFTER + 5))
    assert calls == GIVE_UP_AFTER
    assert [v.right for v in verdicts] == [None] * (GIVE_UP_AFTER + 5)
    assert "given up" in verdicts[-1].detail


def test_only_judge_variables_are_read() -> None:
    for name in ("OMNI_R1_API_KEY", "HOME", "AWS_SECRET_ACCESS_KEY"):
        with pytest.raises(ValidationError):
            JudgeHyperparameters(url="http://judge.example", model="m", api_key_env=name)
    with pytest.raises(ValidationError):
        JudgeHyperparameters(url="file:///etc/passwd", model="m")
    missing = JudgeHyperparameters(url="http://judge.example", model="m", api_key_env="JUDGE_OTHER")
    with pytest.raises(JudgeError, match="JUDGE_OTHER"):
        EndpointJudge(missing, environment={})


Serve = Callable[[socket.socket], None]


def send_for_ever(connection: socket.socket, first: bytes, more: bytes, pause_s: float) -> None:
    connection.recv(65_536)
    connection.sendall(first)
    while True:
        connection.sendall(more)
        time.sleep(pause_s)


def never_answers(connection: socket.socket) -> None:
    threading.Event().wait(600)


def drips_its_head(connection: socket.socket) -> None:
    send_for_ever(connection, b"HTTP/1.1 200 OK\r\nX-Long: ", b"x", 0.02)


def drips_its_body(connection: socket.socket) -> None:
    send_for_ever(connection, b"HTTP/1.1 200 OK\r\nContent-Length: 9000000\r\n\r\n", b" ", 0.02)


def never_ends(connection: socket.socket) -> None:
    send_for_ever(connection, b"HTTP/1.1 200 OK\r\nContent-Length: 90000000000\r\n\r\n", b" " * 65_536, 0.0)


@contextmanager
def endpoint(serve: Serve) -> Iterator[tuple[str, threading.Event]]:
    """A raw socket endpoint: its URL, and an event set on its first request."""
    endpoint_judge = threading.Event()

    def one(connection: socket.socket) -> None:
        endpoint_judge.set()
        with connection, suppress(OSError):
            serve(connection)

    def accept(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                threading.Thread(target=one, args=(listener.accept()[0],), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, args=(listener,), daemon=True).start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/v1", endpoint_judge
        listener.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("serve", [never_answers, drips_its_head, drips_its_body, never_ends])
def test_endless_reply_is_abandoned(serve: Serve) -> None:
    with endpoint(serve) as (url, _):
        settings = JudgeHyperparameters(url=url, model="m", timeout_s=0.5, retries=1)
        verdict = EndpointJudge(settings, sleep=lambda _: None).judge(CASE)
    assert verdict.right is None
    assert "tries" in verdict.detail or "bytes" in verdict.detail


@pytest.mark.parametrize("serve", [never_answers, drips_its_body])
def test_stopping_job_does_not_wait_for_endpoint(serve: Serve) -> None:
    with endpoint(serve) as (url, endpoint_judge):

        class Stop:
            def __bool__(self) -> bool:
                return endpoint_judge.is_set()

        judge = EndpointJudge(JudgeHyperparameters(url=url, model="m", timeout_s=600), stop=Stop())
        with pytest.raises(JobStopped):
            judge.judge_all([CASE] * 3)


@pytest.mark.parametrize("body", [b"[" * 200_000, b" " * (MAX_REPLY_BYTES + 1)])
def test_an_odd_reply_is_no_verdict(body: bytes) -> None:
    with judge(lambda request: httpx.Response(200, content=body)) as endpoint_judge:
        assert endpoint_judge.judge(CASE).right is None


def test_a_compressed_reply_is_not_unpacked() -> None:
    packed = gzip.compress(reply('{"correct": true}').content)
    with judge(
        lambda request: httpx.Response(200, stream=httpx.ByteStream(packed), headers={"content-encoding": "gzip"})
    ) as endpoint_judge:
        assert endpoint_judge.judge(CASE).right is None

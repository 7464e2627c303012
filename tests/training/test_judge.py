"""The endpoint that judges: what it is sent, what is believed of it, and what happens when it fails."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest
from pydantic import ValidationError

from training.hyperparameters import JudgeHyperparameters
from training.judge import GIVE_UP_AFTER, Case, EndpointJudge, JudgeError, Verdict, read_verdict

CASE = Case("What colour?", "red", "It is red.")


def reply(text: str) -> httpx.Response:
    return httpx.Response(200, json={"choices": [{"message": {"role": "assistant", "content": text}}]})


@contextmanager
def judge(
    handler: Callable[[httpx.Request], httpx.Response], *, waits: list[float] | None = None, **settings: object
) -> Iterator[EndpointJudge]:
    given = {"url": "http://judge.example/v1", "model": "m", "retries": 2, "concurrency": 1, **settings}
    sleeps = waits if waits is not None else []
    with EndpointJudge(
        JudgeHyperparameters.model_validate(given),
        environment={"JUDGE_KEY": "secret"},
        transport=httpx.MockTransport(handler),
        sleep=sleeps.append,
    ) as made:
        yield made


def test_question_reference_and_answer_are_sent_as_data_with_the_key_in_the_header() -> None:
    seen: list[httpx.Request] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return reply('{"correct": true}')

    with judge(answer, api_key_env="JUDGE_KEY") as asked:
        assert asked.judge(CASE) == Verdict(True)
    assert str(seen[0].url) == "http://judge.example/v1/chat/completions"
    assert seen[0].headers["authorization"] == "Bearer secret"
    body = json.loads(seen[0].content)
    assert (body["model"], body["temperature"]) == ("m", 0)
    shown = json.loads(body["messages"][1]["content"])
    assert shown == {"question": "What colour?", "reference_answer": "red", "candidate_answer": "It is red."}
    assert b"secret" not in seen[0].content


def test_no_answer_is_wrong_without_asking() -> None:
    def never(request: httpx.Request) -> httpx.Response:
        raise AssertionError("asked")

    with judge(never) as asked:
        assert asked.judge(Case("q", "a", None)).right is False
        assert asked.judge(Case("q", "a", "  ")).right is False


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


def test_what_may_pass_is_tried_again_with_longer_waits() -> None:
    answers = iter([httpx.Response(503), httpx.Response(429, headers={"retry-after": "7"}), reply('{"correct": true}')])
    waits: list[float] = []
    with judge(lambda request: next(answers), waits=waits) as asked:
        assert asked.judge(CASE).right is True
    assert waits == [0.5, 7.0]


def test_a_timeout_is_tried_again_and_then_no_verdict() -> None:
    calls = 0

    def slow(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        raise httpx.ReadTimeout("too slow", request=request)

    with judge(slow) as asked:
        verdict = asked.judge(CASE)
    assert verdict.right is None
    assert "ReadTimeout" in verdict.detail
    assert calls == 3  # one try and two more


@pytest.mark.parametrize("body", [b"<html>", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": 3}}]}'])
def test_what_is_no_completion_is_no_verdict(body: bytes) -> None:
    with judge(lambda request: httpx.Response(200, content=body)) as asked:
        assert asked.judge(CASE).right is None


def test_a_wrong_key_or_address_ends_the_job_and_does_not_say_the_key() -> None:
    with (
        judge(lambda request: httpx.Response(401), api_key_env="JUDGE_KEY") as asked,
        pytest.raises(JudgeError, match="401") as caught,
    ):
        asked.judge_all([CASE])
    assert "secret" not in str(caught.value)


def test_a_redirect_is_not_followed_with_the_key() -> None:
    hosts: list[str] = []

    def move(request: httpx.Request) -> httpx.Response:
        hosts.append(request.url.host)
        return httpx.Response(302, headers={"location": "http://elsewhere.example/"})

    with judge(move, api_key_env="JUDGE_KEY") as asked:
        assert asked.judge(CASE).right is None
    assert hosts == ["judge.example"]


def test_an_endpoint_that_is_gone_is_given_up() -> None:
    calls = 0

    def gone(request: httpx.Request) -> httpx.Response:
        nonlocal calls
        calls += 1
        return httpx.Response(500)

    with judge(gone, retries=0) as asked:
        verdicts = asked.judge_all([CASE] * (GIVE_UP_AFTER + 5))
    assert calls == GIVE_UP_AFTER
    assert [v.right for v in verdicts] == [None] * (GIVE_UP_AFTER + 5)
    assert "given up" in verdicts[-1].detail


def test_only_variables_that_are_meant_for_a_judge_are_read() -> None:
    for name in ("OMNI_R1_API_KEY", "HOME", "AWS_SECRET_ACCESS_KEY"):
        with pytest.raises(ValidationError):
            JudgeHyperparameters(url="http://judge.example", model="m", api_key_env=name)
    with pytest.raises(ValidationError):
        JudgeHyperparameters(url="file:///etc/passwd", model="m")
    missing = JudgeHyperparameters(url="http://judge.example", model="m", api_key_env="JUDGE_OTHER")
    with pytest.raises(JudgeError, match="JUDGE_OTHER"):
        EndpointJudge(missing, environment={})

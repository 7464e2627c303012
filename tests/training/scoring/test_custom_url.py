"""Rewards of your own behind a URL: batches, retries, limits, and endpoints that are down or wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from training.jobs.context import JobStopped
from training.scoring.custom import Case, CustomValue, Response, RewardError, Sample
from training.scoring.custom_url import MAX_REPLY_BYTES, UrlReward
from training.spec.hyperparameters import CustomReward

CASES = [Case(Sample("?", "red"), Response(answer)) for answer in ("red", "blue", "green")]
Answer = Callable[[list[dict[str, Any]]], httpx.Response]


def values(cases: list[dict[str, Any]]) -> httpx.Response:
    return httpx.Response(200, json={"rewards": [float(len(case["response"]["answer"])) for case in cases]})


class Endpoint(httpx.MockTransport):
    """Answers the first, empty batch, then each request with the next of these answers, the last one for ever."""

    def __init__(self, *answers: Answer | Exception) -> None:
        super().__init__(self.answer)
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.sizes: list[int] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        cases = json.loads(request.content)["cases"]
        self.requests.append(request)
        self.sizes.append(len(cases))
        if not cases and len(self.requests) == 1:
            return values([])
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer(cases)


def reward(endpoint: httpx.MockTransport, **settings: Any) -> UrlReward:
    wanted = CustomReward.model_validate({"url": "http://reward.test/score", **settings})
    key = {"REWARD_KEY": "secret"}
    return UrlReward(wanted, transport=endpoint, environment=key)


def status(number: int, **headers: str) -> Answer:
    return lambda _: httpx.Response(number, headers=headers)


pauses: list[float] = []


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses between tries are noted and end at once."""
    pauses.clear()
    monkeypatch.setattr(UrlReward, "_pause", lambda _self, seconds: pauses.append(seconds))


def test_values_come_in_order_and_batches() -> None:
    endpoint = Endpoint(values)
    found = reward(endpoint, batch_size=2).score(CASES)
    assert found == [CustomValue(3.0), CustomValue(4.0), CustomValue(5.0)]
    assert endpoint.sizes == [0, 2, 1]


def test_request_holds_the_whole_case() -> None:
    endpoint = Endpoint(values)
    reward(endpoint, api_key_env="REWARD_KEY").score(CASES[:1])
    sent = endpoint.requests[-1]
    assert sent.headers["authorization"] == "Bearer secret"
    assert json.loads(sent.content) == {"cases": [CASES[0].to_json()]}


@pytest.mark.parametrize("failure", [httpx.ConnectError("refused"), status(500), status(503), status(429)])
def test_failed_request_is_repeated(failure: Answer | Exception) -> None:
    endpoint = Endpoint(failure, failure, values)
    assert reward(endpoint).score(CASES[:1]) == [CustomValue(3.0)]
    assert pauses == [0.5, 1.0]


def test_retry_after_is_honoured() -> None:
    reward(Endpoint(status(429, **{"retry-after": "7"}), values)).score(CASES[:1])
    assert pauses == [7.0]


@pytest.mark.parametrize("failure", [httpx.ConnectError("refused"), status(500), httpx.ReadTimeout("slow")])
def test_endpoint_that_stays_down_raises(failure: Answer | Exception) -> None:
    endpoint = Endpoint(failure)
    with pytest.raises(RewardError, match=r"cannot be reached: .* \(3 tries\)") as down:
        reward(endpoint, retries=2).score(CASES)
    assert down.value.code == "reward_unreachable"
    assert len(endpoint.requests) == 1 + 3


def test_endpoint_down_at_the_start_raises() -> None:
    def refuse(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(RewardError) as down:
        reward(httpx.MockTransport(refuse))
    assert down.value.code == "reward_unreachable"


@pytest.mark.parametrize(
    "answer",
    [
        *(status(number) for number in (302, 400, 401, 404)),
        lambda _: httpx.Response(200, text="hello"),
        lambda _: httpx.Response(200, json={"rewards": 1}),
        lambda _: httpx.Response(200, json={"rewards": [1.0]}),
        lambda _: httpx.Response(200, json=[1.0, 2.0, 3.0]),
        lambda _: httpx.Response(200, content=b"[" * 100_000),
        lambda _: httpx.Response(200, content=b" " * (MAX_REPLY_BYTES + 1)),
    ],
)
def test_wrong_reply_is_refused(answer: Answer) -> None:
    endpoint = Endpoint(answer)
    with pytest.raises(RewardError) as wrong:
        reward(endpoint).score(CASES)
    assert wrong.value.code == "reward_refused"
    assert len(endpoint.requests) == 2


@pytest.mark.parametrize("bad", ["NaN", "null", '"1"', "[]", "1e9", "{}", '{"a": "b"}'])
def test_value_that_is_no_number_is_one_error(bad: str) -> None:
    endpoint = Endpoint(lambda _: httpx.Response(200, text=f'{{"rewards": [0.5, {bad}, {{"a": 1, "b": 2}}]}}'))
    first, second, third = reward(endpoint).score(CASES)
    assert (first, third) == (CustomValue(0.5), CustomValue(3.0, {"a": 1.0, "b": 2.0}))
    assert isinstance(second, str)


def test_missing_key_is_refused() -> None:
    with pytest.raises(RewardError, match="REWARD_OTHER is empty"):
        reward(Endpoint(values), api_key_env="REWARD_OTHER")


def test_trickling_reply_is_bounded() -> None:
    def forever(_: httpx.Request) -> httpx.Response:
        def pieces() -> Any:
            while True:
                time.sleep(0.01)
                yield b" "

        return httpx.Response(200, content=pieces())

    with pytest.raises(RewardError, match="no reply within"):
        reward(httpx.MockTransport(forever), timeout_s=0.2, retries=1)


class Stopped:
    """A stop that was asked for."""

    def __bool__(self) -> bool:
        return True


def test_stopped_job_does_not_wait_for_the_endpoint() -> None:
    def slow(_: httpx.Request) -> httpx.Response:
        time.sleep(1.0)
        return values([])

    wanted = CustomReward(url="http://reward.test")
    with pytest.raises(JobStopped):
        UrlReward(wanted, transport=httpx.MockTransport(slow), stop=Stopped())

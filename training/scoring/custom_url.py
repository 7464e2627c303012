"""A reward of yours behind a URL: batches of responses go there as JSON, and values come back.

    POST URL  {"cases": [{"sample": {...}, "response": {...}}, ...]}  ->  {"rewards": [0.5, {"a": 0.1, "b": 0.2}, ...]}

A request that fails is repeated after pauses that double. An endpoint that still fails ends the job: learning from the
other rewards alone would be learning something else. A value that is no number is the error of one response.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from training.jobs.context import JobStopped
from training.jobs.stop import NeverStop, Stop
from training.scoring.custom import Case, CustomValue, RewardError, read_value
from training.spec.hyperparameters import CustomReward

MAX_WAIT_S = 30.0  # between two tries, overrides Retry-After
MAX_REPLY_BYTES = 1_000_000
LOOK_EVERY_S = 0.2  # interval of stop checks
UNREACHABLE, REFUSED = "reward_unreachable", "reward_refused"


class UrlReward:
    """Queries the endpoint. A try ends after ``timeout_s`` in any case."""

    def __init__(
        self,
        settings: CustomReward,
        *,
        environment: Mapping[str, str] | None = None,
        transport: httpx.BaseTransport | None = None,
        stop: Stop | None = None,
    ) -> None:
        """Send an empty batch. ``environment`` and ``transport`` replace the process's own and the network in tests.

        Raises:
            RewardError: the endpoint is down or rejects the batch, or the variable that should hold the key is empty.
        """
        assert settings.url is not None
        self._settings = settings
        self._name = f"the reward {settings.label} at {settings.url.partition('?')[0]}"  # a query may hold a key
        self._stop = stop if stop is not None else NeverStop()
        headers = {"Accept-Encoding": "identity"}  # makes the reply's size equal to the received size
        if settings.api_key_env is not None:
            key = (os.environ if environment is None else environment).get(settings.api_key_env, "")
            if not key:
                detail = f"the environment variable {settings.api_key_env} is empty: it should hold the key"
                raise RewardError(REFUSED, detail)
            headers["Authorization"] = f"Bearer {key}"
        # trust_env off and no redirects: only the configured address receives the key
        self._client = httpx.Client(
            headers=headers,
            timeout=settings.timeout_s,
            transport=transport,
            trust_env=False,
            follow_redirects=False,
        )
        self._send([])

    def score(self, cases: Sequence[Case]) -> list[CustomValue | str]:
        """Send the cases in batches; see :class:`training.scoring.custom.CustomSource`."""
        size, found = self._settings.batch_size, list[CustomValue | str]()
        for first in range(0, len(cases), size):
            found += [_value(value) for value in self._send(cases[first : first + size])]
        return found

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _send(self, cases: Sequence[Case]) -> list[Any]:
        """The values of a batch; raises RewardError after the last try."""
        body = json.dumps({"cases": [case.to_json() for case in cases]}).encode()
        tries = self._settings.retries + 1
        problem, wait = "", 0.0
        for attempt in range(tries):
            if attempt:
                self._pause(min(MAX_WAIT_S, wait))
            wait = 0.5 * 2.0**attempt
            try:
                status, headers, content = self._within(body)
            except (httpx.HTTPError, TimeoutError) as error:
                problem = f"{type(error).__name__}: {error}".rstrip(": ")
                continue
            if status == 429 or status >= 500:
                problem = f"status {status}"
                wait = max(wait, _retry_after(headers))
                continue
            if status != 200:
                raise RewardError(REFUSED, f"{self._name} answered {status}: check its URL and its key")
            return _rewards(content, len(cases), self._name)
        raise RewardError(UNREACHABLE, f"{self._name} cannot be reached: {problem} ({tries} tries)")

    def _within(self, body: bytes) -> tuple[int, httpx.Headers, bytes]:
        """Post in a thread, so that a slow trickle of bytes ends after ``timeout_s``, too, and a stop at once."""
        done: list[tuple[int, httpx.Headers, bytes] | Exception] = []

        def post() -> None:
            try:
                done.append(self._post(body))
            except Exception as error:
                done.append(error)

        thread = threading.Thread(target=post, daemon=True)
        thread.start()
        until = time.monotonic() + self._settings.timeout_s
        while thread.is_alive() and time.monotonic() < until:
            if self._stop:
                raise JobStopped
            thread.join(min(LOOK_EVERY_S, max(0.0, until - time.monotonic())))
        if not done:
            raise TimeoutError(f"no reply within {self._settings.timeout_s:g} s")
        if isinstance(done[0], Exception):
            raise done[0]
        return done[0]

    def _post(self, body: bytes) -> tuple[int, httpx.Headers, bytes]:
        """Status, headers and at most ``MAX_REPLY_BYTES`` + 1 of the body."""
        assert self._settings.url is not None
        content = bytearray()
        json_type = {"Content-Type": "application/json"}
        with self._client.stream("POST", self._settings.url, content=body, headers=json_type) as response:
            if response.headers.get("content-encoding", "identity") != "identity":
                return response.status_code, response.headers, b""  # not requested, and could be a bomb
            for chunk in response.iter_bytes():
                content += chunk
                if len(content) > MAX_REPLY_BYTES:
                    break
        return response.status_code, response.headers, bytes(content)

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if self._stop:
                raise JobStopped
            time.sleep(min(LOOK_EVERY_S, left))


def _rewards(content: bytes, count: int, name: str) -> list[Any]:
    if len(content) > MAX_REPLY_BYTES:
        raise RewardError(REFUSED, f"{name} sent more than {MAX_REPLY_BYTES} bytes")
    try:
        rewards = json.loads(content)["rewards"]
    except (ValueError, LookupError, TypeError, RecursionError):
        rewards = None
    if not isinstance(rewards, list) or len(rewards) != count:
        expected = f'{{"rewards": [...]}} with {count} values'
        raise RewardError(REFUSED, f"{name} did not reply with {expected}")
    return rewards


def _value(value: object) -> CustomValue | str:
    try:
        return read_value(value)
    except ValueError as error:
        return str(error)


def _retry_after(headers: httpx.Headers) -> float:
    try:
        return max(0.0, float(headers.get("retry-after", 0)))
    except ValueError:
        return 0.0

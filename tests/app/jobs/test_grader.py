"""POST /v1/rewards: grading over HTTP, in the client and on the command line."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.cli.main import main
from app.client import Client
from app.contract.problems import Problem
from app.contract.schemas_rewards import MAX_CHARS, MAX_CHOICES, RewardOut
from app.jobs.grader import MAX_WAITING, Grader
from tests.app.conftest import Serve, Server
from training.scoring.grading import grade

CASES = json.loads((Path(__file__).parents[2] / "data" / "grading_cases.json").read_text("utf-8"))


async def reward(server: Server, **body: Any) -> dict[str, Any]:
    response = await server.client.post("/v1/rewards", json=body)
    assert response.status_code == 200, response.text
    return RewardOut.model_validate(response.json()).model_dump(exclude_unset=True)


async def test_answers_are_graded_over_http(server: Server) -> None:
    for case in CASES:
        found = await reward(server, answer=case["answer"], reference=case["reference"], choices=case["choices"])
        assert found["accuracy"] == float(case["right"]), case


async def test_verdict_has_check_and_values(server: Server) -> None:
    assert await reward(server, answer="The answer is 5 km.", reference="5000 m") == {
        "accuracy": 1.0,
        "check": "unit",
        "answer": "5 km",
        "reference": "5000 m",
        "details": {"answer_value": "5", "reference_value": "5000"},
    }
    labelled = await reward(server, answer="q", reference="blue", choices={"P": "red", "Q": "blue"})
    assert (labelled["accuracy"], labelled["check"]) == (1.0, "option")
    near = {"answer": "the bank of Rome", "reference": "the bank of Rom"}
    assert (await reward(server, **near))["accuracy"] == 0.0
    assert 0.77 < (await reward(server, **near, similarity=True))["accuracy"] < 1.0


@pytest.mark.parametrize("answer", ["", "   ", "\n", None, "\0", "\u200b"])
async def test_empty_answer_is_graded_zero(server: Server, answer: str | None) -> None:
    assert (await reward(server, answer=answer, reference="3"))["accuracy"] == 0.0


async def test_invalid_fields_are_rejected(server: Server) -> None:
    good = {"answer": "3", "reference": "3"}
    bad: list[tuple[dict[str, Any], str]] = [
        ({"answer": "3"}, "body.reference"),
        ({"reference": "3"}, "body.answer"),
        ({**good, "answer": 3}, "body.answer"),
        ({**good, "answer": "x" * (MAX_CHARS + 1)}, "body.answer"),
        ({**good, "reference": "x" * (MAX_CHARS + 1)}, "body.reference"),
        ({**good, "choices": ["x"] * (MAX_CHOICES + 1)}, "body.choices"),
        ({**good, "choices": "red"}, "body.choices"),
        ({**good, "choices": [1, 2]}, "body.choices"),
        ({**good, "choices": {"A": None}}, "body.choices"),
        ({**good, "similarity": "yes"}, "body.similarity"),
        ({**good, "other": 1}, "body.other"),
    ]
    for body, path in bad:
        response = await server.client.post("/v1/rewards", json=body)
        assert response.status_code == 422, body
        assert any(error["path"].startswith(path) for error in response.json()["errors"]), response.text
    escaped = b'{"answer": "\\ud800", "reference": "\\ud800"}'
    response = await server.client.post("/v1/rewards", content=escaped, headers={"Content-Type": "application/json"})
    assert response.status_code in (200, 422)


async def test_long_answer_is_graded(server: Server) -> None:
    for piece in ("(", "½", "9**9**", "\\frac{", "1,", "a "):
        text = piece * (MAX_CHARS // len(piece))
        assert (await reward(server, answer=text, reference=text[::-1], choices=["1", text[:9]]))["accuracy"] in (
            0,
            1,
        )


async def test_waiting_answers_do_not_block_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """With its threads busy, the grader keeps the loop free and rejects what exceeds its queue."""
    free = threading.Event()

    def slow(*_: object, **__: object) -> object:
        free.wait(30)
        return grade("1", "1")

    monkeypatch.setattr("training.scoring.grading.grade", slow)
    grader = Grader()
    try:
        running = [asyncio.ensure_future(grader.grade("1", "1", [], similarity=False)) for _ in range(MAX_WAITING)]
        await asyncio.sleep(0)  # each has started: the loop is free although no answer is ready
        assert not any(one.done() for one in running)
        with pytest.raises(Problem) as rejected:
            await grader.grade("1", "1", [], similarity=False)
        assert (rejected.value.code, rejected.value.status) == ("grader_busy", 503)
        free.set()
        assert {one["accuracy"] for one in await asyncio.gather(*running)} == {1.0}
    finally:
        free.set()
        grader.close()


def test_command_line_grades_without_a_server(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["grade", "5 km", "5000 m"]) == 0
    assert capsys.readouterr().out.startswith("right (unit)\n")
    assert main(["grade", "B) red", "B", "--choice", "red", "--choice", "blue", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["accuracy"] == 0.0
    assert main(["grade", "only one"]) == 2


def test_client_sends_choices_as_list_or_labels() -> None:
    sent: list[dict[str, Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(json.loads(request.content))
        verdict = {"accuracy": 1.0, "check": "option", "answer": "B", "reference": "B", "details": {}}
        return httpx.Response(200, json=verdict)

    with Client("http://127.0.0.1:9", transport=httpx.MockTransport(answer)) as client:
        assert client.reward("B", "B", ("red", "blue"))["accuracy"] == 1.0
        client.reward(None, "B", {"B": "blue"}, similarity=True)
    assert sent[0] == {"answer": "B", "reference": "B", "choices": ["red", "blue"], "similarity": False}
    assert sent[1] == {"answer": None, "reference": "B", "choices": {"B": "blue"}, "similarity": True}


async def test_rewards_a_job_may_not_use_are_rejected(server: Server) -> None:
    bad: list[tuple[Any, str, str]] = [
        ({"custom": {"file": "own_reward.py:tidy"}}, "path_not_allowed", "body.reward.custom.0.file"),
        ({"custom": {"name": "nobody-has-this"}}, "invalid", "body.reward.custom.0.name"),
        ({"custom": {"url": "http://127.0.0.1:9/"}}, "reward_failed", "body.reward.custom"),
        ({"custom": {"url": "http://a", "weight": "1"}}, "invalid", "body.reward.custom.0.weight"),
        ({"custom": [{}]}, "invalid", "body.reward.custom.0"),
        ({"alpha": -1.0}, "invalid", "body.reward.alpha"),
        ({"functional": -1.0}, "invalid", "body.reward.functional"),
        ({"delta": 1.0}, "invalid", "body.reward.delta"),
    ]
    for reward, code, path in bad:
        answer = await server.client.post("/v1/rewards", json={"answer": "a", "reference": "a", "reward": reward})
        assert (answer.status_code, answer.json()["code"]) == (422, code), answer.text
        assert answer.json()["errors"][0]["path"] == path, answer.text


async def test_rewards_that_raise_are_reported(serve: Serve, tmp_path: Path) -> None:
    folder = tmp_path / "rewards"
    folder.mkdir()
    (folder / "bad.py").write_text("def bad(sample, response):\n    return 1 / 0\n")
    async with serve(rewards_dir=folder) as server:
        body = {"answer": "a", "reference": "a", "reward": {"custom": {"file": "bad.py:bad"}}}
        answer = await server.client.post("/v1/rewards", json=body)
        assert answer.json()["code"] == "reward_failed"
        assert "ZeroDivisionError" in answer.json()["detail"]

"""Arguments that are rejected before a request is sent, with the allowed values."""

from __future__ import annotations

import pytest

from app.cli.main import main
from tests.app.canned import Canned

ASK = ["ask", "picture.png", "Why?"]
BRANCH = ["branch", "t1", "--after"]


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([*ASK, "--n", "17"], "argument --n: expected a whole number from 1 to 16, not '17'"),
        ([*ASK, "--n", "many"], "argument --n: expected a whole number from 1 to 16, not 'many'"),
        ([*ASK, "--temperature", "5.1"], "argument --temperature: expected a number from 0 to 5, not '5.1'"),
        ([*ASK, "--temperature", "nan"], "argument --temperature: expected a number from 0 to 5, not 'nan'"),
        ([*ASK, "--top-p", "2"], "argument --top-p: expected a number from 0 to 1, not '2'"),
        ([*ASK, "--seed", "-1"], "argument --seed: expected a whole number from 0 to 9007199254740991, not '-1'"),
        ([*ASK, "--max-new-tokens", "0"], "argument --max-new-tokens: expected a whole number of at least 1, not '0'"),
        ([*ASK, "--max-images", "65"], "argument --max-images: expected a whole number from 0 to 64, not '65'"),
        (["ask", "picture.png", " "], "argument QUESTION: must not be empty"),
        ([*BRANCH, "-1"], "argument --after: expected a whole number from 0 to 64, not '-1'"),
        ([*BRANCH, "one"], "argument --after: expected a whole number from 0 to 64, not 'one'"),
        ([*BRANCH, "1", "--then", ""], "argument --then: must not be empty"),
        (["branch", "", "--after", "1"], "argument TRACE: must not be empty"),
        (["task", "--seed", "x"], "argument --seed: expected a whole number from 0 to 9007199254740991, not 'x'"),
        (["jobs", "--limit", "0"], "argument --limit: expected a whole number from 1 to 100, not '0'"),
        (["jobs", "show", ""], "argument ID: must not be empty"),
        (["checkpoints", "show", ""], "argument ID: must not be empty"),
        (["evaluate", "--tasks", "0"], "argument --tasks: expected a whole number of at least 1, not '0'"),
        (["doctor", "--port", "x"], "argument --port: expected a whole number, not 'x'"),
    ],
)
def test_bad_value_is_explained_before_sending(
    canned: Canned, capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"omni-r1: {message} (see omni-r1 ")
    assert canned.calls == []


def test_bounds_themselves_are_allowed(canned: Canned) -> None:
    bounds = ["--n", "1", "--temperature", "5", "--top-p", "1", "--seed", str(2**53 - 1), "--max-images", "64"]
    assert main([*ASK, *bounds]) == 0

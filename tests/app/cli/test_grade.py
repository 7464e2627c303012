"""`omni-r1 grade` with rewards of your own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.cli.main import main

EXAMPLE = Path(__file__).parents[3] / "examples" / "own_reward.py"


def test_own_rewards_are_tried_without_a_server(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "def mine(sample, response):\n    return {'right': response.accuracy, 'length': len(response.answer)}"
    )
    assert main(["grade", "5 km", "5000 m", "--reward", f"{file}:mine", "--reward", f"{EXAMPLE}:tidy"]) == 0
    shown = capsys.readouterr().out
    assert "  mine: 5\n  mine/right: 1\n  mine/length: 4\n  tidy: 0\n" in shown.replace("    ", "  ")
    assert main(["grade", "red", "red", "--reward", f"{file}:mine", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["custom"] == {"mine": 4.0, "mine/right": 1.0, "mine/length": 3.0}


@pytest.mark.parametrize("reward", ["nobody-has-this", "nothing.py:f", "a:b", "http://127.0.0.1:9/"])
def test_unusable_reward_is_bad_input(capsys: pytest.CaptureFixture[str], reward: str) -> None:
    assert main(["grade", "red", "red", "--reward", reward]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


def test_reward_that_raises_is_reported(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def bad(sample, response):\n    return 1 / 0\n")
    assert main(["grade", "red", "red", "--reward", f"{tmp_path}/bad.py:bad"]) == 2
    assert "bad: ZeroDivisionError" in capsys.readouterr().err

"""The study of verified drawing: the majority by hand, and a run from end to end."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny import make_drawing_checkpoint
from training.benchmark.evaluate import Prediction
from training.studies.verified_drawing import main, majority


def said(answer: str | None) -> Prediction:
    return Prediction("t", "natural", "find", answer, "red", answer == "red", False, 0, 0, 0, 0, 1)


@pytest.mark.parametrize(
    ("answers", "chosen"),
    [
        (["blue", "red", "Red "], "red"),
        (["blue", "red", "red", "blue"], "blue"),
        ([None, None, "red"], "red"),
        ([None, None], None),
    ],
)
def test_majority_is_the_most_frequent_answer(answers: list[str | None], chosen: str | None) -> None:
    assert majority([said(answer) for answer in answers]).answer == chosen


def test_study_compares_with_one_greedy_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    drawing = str(make_drawing_checkpoint(tmp_path / "draws", verifier="What was done?"))
    given = ["--tasks", "4", "--level", "3", "--counts", "2", "--out", str(tmp_path / "study")]
    assert main([drawing, *given]) == 0
    found = json.loads((tmp_path / "study" / "verified-drawing.json").read_text())
    rows = found["rows"]
    assert [(row["method"], row["count"]) for row in rows] == [("candidates", 1), ("candidates", 2), ("majority", 2)]
    assert (found["verifier"], found["level"]) == ("draws", 3)
    assert rows[0]["accuracy_gain"][0] == rows[0]["drawings_gain"][0] == 0.0
    assert rows[2]["drawings_right"] is None
    assert all(row["seconds"] > 0 for row in rows)
    silent = str(make_drawing_checkpoint(tmp_path / "silent"))
    assert main([silent, *given]) == 2
    assert "no verifier" in capsys.readouterr().err

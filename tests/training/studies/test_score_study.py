"""The study of the perception score: statistics by hand, and one run on a tiny checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from model.checkpoint.checkpoint import load_checkpoint
from tests.tiny import make_drawing_checkpoint
from training.studies.score_study import (
    Drawing,
    _against,
    _same_step,
    auc,
    sample_drawings,
    stand_ins,
    study,
    study_tasks,
    write,
)


def drawing(task: int, energy: float, right: bool, *, step: int = 1, family: str = "find") -> Drawing:
    return Drawing(task, family, step, energy, 1 / (1 + energy), "ok", right)


def test_auc_counts_pairs_and_ties() -> None:
    # of the pairs (3,1) (3,2) (2,1) (2,2): three are won, one is a tie
    assert auc([3.0, 2.0], [1.0, 2.0]) == pytest.approx(3.5 / 4)
    assert auc([1.0], [2.0]) == 0.0
    assert auc([1.0], []) is None


def test_pairs_share_step_and_task() -> None:
    # Task 0, step 1: right 1.0 against wrong 2.0 (won) and .5 (lost); step 2 and task 1 lack a wrong or a right one.
    found = [drawing(0, 1.0, True), drawing(0, 2.0, False), drawing(0, 0.5, False), drawing(0, 3.0, True, step=2)]
    found += [drawing(1, 9.0, False)]
    result = _same_step(found, lambda d: -d.energy)
    assert (result["pairs"], result["tasks"]) == (2, 1)
    assert result["right_higher"][0] == 0.5


def test_auc_interval_narrows_with_tasks() -> None:
    def spread(tasks: int) -> float:
        found = [drawing(t, 1.0 + (7 * t + k) % 5 - k, k == 1) for t in range(tasks) for k in (0, 1)]
        value, low, high = _against(found, lambda d: -d.energy)["auc"]
        assert low <= value <= high
        return high - low

    assert spread(200) < 0.6 * spread(30)
    two = [drawing(t, float(k), k == 1) for t in (0, 1) for k in (0, 1)]
    assert _against(two, lambda d: -d.energy)["auc"] is None  # two tasks are too few for an interval
    assert _against([*two, drawing(2, 0.0, False), drawing(2, 1.0, True)], lambda d: d.energy)["auc"][0] == 1.0


def test_study_separates_drawings_from_stand_ins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    loaded = load_checkpoint(make_drawing_checkpoint(tmp_path / "draws"))
    tasks = study_tasks(4)
    drawings = sample_drawings(loaded, tasks, rollouts=2)
    assert {d.task for d in drawings} <= set(range(4))
    assert len({d.energy for d in drawings}) > 1
    scores = stand_ins(loaded, tasks)
    assert len(scores["reference"]) == sum(len(task.steps) for task in tasks)
    assert all(score.score == 0.0 for score in scores["picture before"] if score.verdict == "copied")
    assert any(score.verdict == "copied" for score in scores["picture before"])
    result = study(loaded, tasks, drawings, rollouts=2)
    assert result["drawings"] == result["verdict"]["all"]["drawings"] == len(drawings) > 0
    means = [row["mean"] for row in result["sweep"]]
    assert means == sorted(means)
    assert len(set(means)) > 1
    write(result, tmp_path / "out")
    printed = capsys.readouterr().out
    assert "| tau |" in printed
    assert "| one colour |" in printed
    assert json.loads((tmp_path / "out" / "score.json").read_text())["tasks"] == 4
    for name in ("tau.png", "verdict.png"):
        assert (tmp_path / "out" / name).stat().st_size > 1_000

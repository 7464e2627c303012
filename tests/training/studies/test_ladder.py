"""The difficulty ladder: its tasks, its numbers by hand, and how an interrupted run goes on."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from tests.tiny import make_drawing_checkpoint
from training.studies import ladder
from training.studies.ladder import ALL, Outcome, Plan, climb, ladder_tasks, main, outcomes, summarize, tables
from training.world.world import EVAL_SEED_MIN, FAMILIES, task_of_id

FAMILY_COUNT = sum(len(families) for families in FAMILIES.values())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_drawing_checkpoint(tmp_path_factory.mktemp("ladder") / "draws")


@pytest.fixture
def loaded(folder: Path) -> LoadedCheckpoint:
    return load_checkpoint(folder)


def test_every_family_has_its_tasks() -> None:
    tasks = ladder_tasks(5, 3)
    counts = Counter((task.slice, task.family) for task in tasks)
    assert len(counts) == FAMILY_COUNT
    assert set(counts.values()) == {3}
    assert all(task.split == 5 and task.seed >= EVAL_SEED_MIN for task in tasks)
    assert all(task_of_id(task.task_id).question == task.question for task in tasks)
    assert len({task.task_id for task in tasks}) == len(tasks)


def test_summary_matches_numbers_by_hand() -> None:
    found = [
        Outcome("natural/find", True, (2.0, 2.0), 8, 8),
        Outcome("natural/find", False, (0.0, 2.0), 2, 8),
        Outcome("structured/bar", False, (1.0, 4.0), 0, 8),
    ]
    summary = summarize(found)
    first = {name: {key: values and values[0] for key, values in row.items()} for name, row in summary.items()}
    assert first["natural/find"] == {"accuracy": 0.5, "drawings_right": 0.5, "pass_1": 0.625, "pass_n": 1.0}
    assert first["structured/bar"] == {"accuracy": 0.0, "drawings_right": 0.25, "pass_1": 0.0, "pass_n": 0.0}
    assert first[ALL] == {"accuracy": 0.3333, "drawings_right": 0.375, "pass_1": 0.4167, "pass_n": 0.6667}


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only the families of one slice."""
    monkeypatch.setattr(ladder, "FAMILIES", {"natural": FAMILIES["natural"]})


@pytest.mark.usefixtures("few")
def test_outcomes_repeat_with_the_same_seeds(loaded: LoadedCheckpoint) -> None:
    found = climb(loaded, 1, Plan(tasks=1, samples=3))
    assert found == climb(loaded, 1, Plan(tasks=1, samples=3))
    assert [(one.group, one.samples) for one in found] == [(f"natural/{name}", 3) for name in FAMILIES["natural"]]


@pytest.mark.usefixtures("few")
def test_interrupted_run_continues_with_missing_levels(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    computed: list[int] = []

    def stopped(loaded: LoadedCheckpoint, level: int, plan: Plan, *, slots: int) -> list[Outcome]:
        if level == 8 and len(computed) == 1:
            raise KeyboardInterrupt
        computed.append(level)
        return climb(loaded, level, plan, slots=slots)

    monkeypatch.setattr(ladder, "climb", stopped)
    command = [str(folder), "--tasks", "1", "--samples", "2", "--levels", "1", "8", "--out", str(out)]
    with pytest.raises(KeyboardInterrupt):
        main(command)
    computed.append(0)
    assert main(command) == 0
    assert computed == [1, 0, 8]
    result = json.loads((out / "ladder.json").read_text())
    assert list(result["checkpoints"]) == [load_checkpoint(folder).name]
    levels = next(iter(result["checkpoints"].values()))
    assert list(levels) == ["1", "8"]
    assert list(levels["8"]) == [ALL, "natural/find", "natural/relation", "natural/count"]
    assert (out / "ladder.md").read_text() == tables(result) + "\n" == capsys.readouterr().out
    assert (out / "ladder.png").stat().st_size > 1_000


@pytest.mark.usefixtures("few")
def test_outcomes_of_other_settings_are_refused(loaded: LoadedCheckpoint, tmp_path: Path) -> None:
    outcomes(loaded, 1, Plan(tasks=1, samples=1), tmp_path)
    with pytest.raises(ValueError, match="other weights or settings"):
        outcomes(loaded, 1, Plan(tasks=1, samples=2), tmp_path)


def test_checkpoints_of_one_name_are_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([str(folder), str(folder), "--out", str(tmp_path)])
    assert "give --names" in capsys.readouterr().err

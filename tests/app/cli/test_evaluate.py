"""`omni-r1 evaluate`: which tasks it asks, and what it writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from app.cli.main import main
from training.world.world import make_task


@pytest.mark.parametrize(("level", "first"), [("5", 1_000_000_100), ("hard", 7)])
def test_seed_and_level_choose_the_tasks(tiny_checkpoint: Path, tmp_path: Path, level: str, first: int) -> None:
    arguments = ["--tasks", "3", "--level", level, "--first-seed", str(first), "--text-only", "--out", str(tmp_path)]
    assert main(["evaluate", str(tiny_checkpoint), *arguments]) == 0
    rows = [json.loads(line) for line in (tmp_path / "predictions.jsonl").read_text().splitlines()]
    known: int | str = int(level) if level.isdigit() else level
    tasks = [
        make_task(name, first + k, level=known) for k, name in enumerate(("natural", "structured", "diagrammatic"))
    ]
    assert [(row["task_id"], row["reference"]) for row in rows] == [(task.task_id, task.answer) for task in tasks]
    assert [row["task_id"] for row in rows][:2] == [f"natural-{level}-{first}", f"structured-{level}-{first + 1}"]
    assert [path.name for path in tmp_path.glob("*.json")] == ["summary.json"]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert (summary["level"], summary["first_seed"], summary["results"]["all"]["tasks"]) == (known, first, 3)

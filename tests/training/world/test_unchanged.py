"""The tasks of the levels normal and hard never change: ids in saved traces and published results name them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from training.world.task import Task
from training.world.world import EVAL_SEED_MIN, FAMILIES, make_task

DIGESTS = Path(__file__).with_name("digests.json")
SEEDS = (*range(40), *range(20_000_000, 20_000_020), *range(EVAL_SEED_MIN, EVAL_SEED_MIN + 60))
ALL = [
    (slice_, family, level)
    for slice_, families in FAMILIES.items()
    for family in (*families, None)
    for level in ("normal", "hard")
]


def digest(tasks: list[Task]) -> str:
    """Hash of everything that a task is."""
    found = hashlib.sha256()
    for task in tasks:
        texts = [task.task_id, task.family, task.question, task.answer, *task.choices]
        texts += [part for step in task.steps for part in (step.text, step.skill, step.action, step.state)]
        texts += [repr(step.target) for step in task.steps]
        found.update(json.dumps(texts).encode())
        for image in (task.image, *(step.image for step in task.steps)):
            found.update(image.tobytes())
    return found.hexdigest()


def key(slice_: str, family: str | None, level: str) -> str:
    return f"{slice_}/{family or 'any'}/{level}"


@pytest.mark.parametrize(("slice_", "family", "level"), ALL)
def test_normal_and_hard_tasks_never_change(slice_: str, family: str | None, level: str) -> None:
    tasks = [make_task(slice_, seed, family=family, level=level) for seed in SEEDS]
    assert digest(tasks) == json.loads(DIGESTS.read_text())[key(slice_, family, level)]

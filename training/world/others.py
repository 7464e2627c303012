"""Another task in place of one: its images show the same kind of thing, and something else."""

from __future__ import annotations

from itertools import count, islice

from training.world.task import Task
from training.world.world import MAX_SEED, make_task

SEEDS = 1_000_000  # from one candidate to the next; further than any evaluation is long
TRIES = 100  # candidates


def other_task(task: Task, step: int) -> Task | None:
    """Another task of the same family and level that has this step.

    Its answer is another one of the same choices, unless no candidate has one (a fourth mark in `count` always means
    "4"). None if no candidate has this step.
    """
    fallback = None
    for seed in islice(count(task.seed + SEEDS, SEEDS), TRIES):
        other = make_task(task.slice, seed % (MAX_SEED + 1), family=task.family, level=task.split)
        if len(other.steps) < step:
            continue
        if other.answer != task.answer and other.choices == task.choices:
            return other
        fallback = fallback or other
    return fallback

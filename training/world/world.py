"""The procedural world: four slices, families of tasks, and the rule for training seeds.

task = make_task("natural", 1_000_000_123)

A task is a pure function of slice and seed. Seeds from `EVAL_SEED_MIN` are for evaluation: code that builds training
data must call `require_training_seed`. Knows nothing of models.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count, islice
from random import Random
from typing import Final

from training.world import diagrammatic, natural, operational, structured
from training.world.task import Level, Task

EVAL_SEED_MIN: Final = 1_000_000_000
MAX_SEED: Final = 2**53 - 1
BASE_SEEDS: Final = range(0, 20_000_000)
PESFT_SEEDS: Final = range(20_000_000, 30_000_000)
RL_SEEDS: Final = range(30_000_000, 40_000_000)
FROZEN_SEEDS: Final = range(2_000_000_000, 2_000_002_000)  # held out, looked at once per shipped checkpoint

OTHER_SEEDS: Final = 1_000_000  # between candidates for another task; further than any evaluation is long
OTHER_TRIES: Final = 100
GRADES: Final = range(1, 9)  # graded levels, easy to beyond hard
TRAINED_GRADES: Final = range(1, 7)  # the others only measure
LEVELS: Final[tuple[Level, ...]] = ("normal", "hard", *GRADES)
Maker = Callable[[Random, int, Level], Task]

FAMILIES: Final[dict[str, dict[str, Maker]]] = {
    "natural": {"find": natural.make_find, "relation": natural.make_relation, "count": natural.make_count},
    "structured": {
        "bar": structured.make_bar,
        "difference": structured.make_difference,
        "table": structured.make_table,
        "peak": structured.make_peak,
    },
    "diagrammatic": {
        "extend": diagrammatic.make_extend,
        "bounce": diagrammatic.make_bounce,
        "mirror": diagrammatic.make_mirror,
    },
    "operational": {
        "walker": operational.make_walker,
        "tilt": operational.make_tilt,
        "rotate": operational.make_rotate,
    },
}
SLICES: Final = tuple(FAMILIES)
_TASK_ID: Final = re.compile(r"([a-z]+)-(?:(hard|[1-8])-)?(\d{1,16})")


def make_task(slice: str, seed: int, *, family: str | None = None, level: Level = "normal") -> Task:
    """The task of this slice and seed; `family` forces one, otherwise the seed chooses it.

    Raises ValueError for an unknown slice, family or level, or a seed outside 0 … 2^53-1.
    """
    if slice not in FAMILIES:
        raise ValueError(f"unknown slice {slice!r}: one of {', '.join(SLICES)}")
    if level not in LEVELS or isinstance(level, bool):
        raise ValueError(f"unknown level {level!r}: one of {', '.join(map(str, LEVELS))}")
    if not 0 <= seed <= MAX_SEED:
        raise ValueError(f"seed {seed} is outside 0 … {MAX_SEED}")
    rng = Random(f"{slice}/{level}/{seed}")
    drawn = rng.choice(tuple(FAMILIES[slice]))
    name = drawn if family is None else family
    if name not in FAMILIES[slice]:
        raise ValueError(f"unknown family {name!r} of {slice}: one of {', '.join(FAMILIES[slice])}")
    return FAMILIES[slice][name](rng, seed, level)


def parse_level(text: str) -> Level:
    """The level that a text names: "normal", "hard", or "1" … "8". Raises ValueError."""
    for level in LEVELS:
        if text == str(level):
            return level
    raise ValueError(f"unknown level {text!r}: one of {', '.join(map(str, LEVELS))}")


def parse_task_id(task_id: str) -> tuple[str, Level, int]:
    """Slice, level and seed of "natural-1000000123" or "natural-5-1000000123". Raises ValueError."""
    match = _TASK_ID.fullmatch(task_id)
    if match is None or match[1] not in FAMILIES or int(match[3]) > MAX_SEED:
        raise ValueError(f"not a task id: {task_id!r}")
    return match[1], parse_level(match[2] or "normal"), int(match[3])


def task_of_id(task_id: str) -> Task:
    """The task with this id."""
    slice_, level, seed = parse_task_id(task_id)
    return make_task(slice_, seed, level=level)


def require_training_seed(seed: int) -> int:
    """Return `seed`; raise ValueError if it belongs to the evaluation."""
    if not 0 <= seed < EVAL_SEED_MIN:
        raise ValueError(f"seed {seed} is kept for evaluation (from {EVAL_SEED_MIN:,} up) and may not train")
    return seed


def require_training_level(level: Level) -> Level:
    """Return `level`; raise ValueError if it only measures (7 and 8)."""
    if level in GRADES and level not in TRAINED_GRADES:
        raise ValueError(f"level {level} is kept for measuring: train on {TRAINED_GRADES[-1]} at most")
    return level


def other_task(task: Task, step: int) -> Task | None:
    """Another task of the same family and level that has this step.

    Its answer is another one of the same choices, unless no candidate has one (a fourth mark in `count` always means
    "4"). None if no candidate has this step.
    """
    fallback = None
    for seed in islice(count(task.seed + OTHER_SEEDS, OTHER_SEEDS), OTHER_TRIES):
        other = make_task(task.slice, seed % (MAX_SEED + 1), family=task.family, level=task.split)
        if len(other.steps) < step:
            continue
        if other.answer != task.answer and other.choices == task.choices:
            return other
        fallback = fallback or other
    return fallback

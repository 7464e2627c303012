"""The world: pure, balanced, safe about its seeds, and drawn according to its rules."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from random import Random

import numpy as np
import pytest
from PIL import Image

from training.skills import Action, apply
from training.world import operational
from training.world.drills import KINDS, make_drill
from training.world.scenes import random_image
from training.world.task import Level, LineTarget
from training.world.world import (
    EVAL_SEED_MIN,
    FAMILIES,
    FROZEN_SEEDS,
    GRADES,
    LEVELS,
    SLICES,
    make_task,
    other_task,
    parse_task_id,
    require_training_level,
    require_training_seed,
    task_of_id,
)

ALL = [(slice_, family) for slice_, families in FAMILIES.items() for family in families]
each_family = pytest.mark.parametrize(("slice_", "family"), ALL)


def test_every_slice_has_at_least_three_families() -> None:
    assert set(FAMILIES) == set(SLICES)
    assert all(len(families) >= 3 for families in FAMILIES.values())


@each_family
@pytest.mark.parametrize("level", LEVELS)
def test_task_is_a_pure_function_of_seed(slice_: str, family: str, level: Level) -> None:
    for seed in (0, 12_345, EVAL_SEED_MIN + 7):
        one, two = (make_task(slice_, seed, family=family, level=level) for _ in range(2))
        assert (one.question, one.answer, one.image.tobytes()) == (two.question, two.answer, two.image.tobytes())
        assert [(s.text, s.action, s.image.tobytes()) for s in one.steps] == [
            (s.text, s.action, s.image.tobytes()) for s in two.steps
        ]


@each_family
def test_questions_texts_and_answers_are_well_formed(slice_: str, family: str) -> None:
    for seed in range(100):
        task = make_task(slice_, seed, family=family)
        assert 1 <= len(task.steps) <= 4
        assert len(task.question.split()) <= 30
        assert task.answer == task.answer.lower()
        assert " " not in task.answer
        assert task.answer in task.choices
        for step in task.steps:
            assert len(step.text.split()) <= 16
            assert step.state
            assert step.image.size == (64, 64)
            assert step.image.mode == "RGB"


@each_family
def test_step_image_is_action_on_previous(slice_: str, family: str) -> None:
    for seed in range(30):
        task = make_task(slice_, seed, family=family)
        previous = task.image
        for step in task.steps:
            action = Action.parse(step.action)
            assert action.skill == step.skill
            if action.name != "PRED":
                assert apply(action, previous).tobytes() == step.image.tobytes()
            assert step.image.tobytes() != previous.tobytes()
            previous = step.image


@each_family
def test_no_answer_is_much_too_frequent(slice_: str, family: str) -> None:
    tasks = [make_task(slice_, seed, family=family) for seed in range(400)]
    expected: Counter[str] = Counter()
    for task in tasks:
        for choice in task.choices:
            expected[choice] += 1 / len(task.choices)  # type: ignore[assignment]
    most, count = Counter(task.answer for task in tasks).most_common(1)[0]
    assert count < 1.5 * expected[most] + 10


def test_hard_level_is_longer() -> None:
    for slice_, family in (("operational", "walker"), ("natural", "count")):
        normal = max(len(make_task(slice_, seed, family=family).steps) for seed in range(40))
        assert min(len(make_task(slice_, seed, family=family, level="hard").steps) for seed in range(40)) > normal


def test_task_id_finds_its_task() -> None:
    task = make_task("natural", EVAL_SEED_MIN + 123)
    assert task.task_id == "natural-1000000123"
    assert parse_task_id(task.task_id) == ("natural", "normal", 1_000_000_123)
    assert task_of_id(task.task_id).image.tobytes() == task.image.tobytes()
    assert parse_task_id(make_task("natural", 5, level="hard").task_id) == ("natural", "hard", 5)


@pytest.mark.parametrize("level", GRADES)
def test_task_id_names_its_level(level: int) -> None:
    task = make_task("operational", EVAL_SEED_MIN + 3, level=level)
    assert task.task_id == f"operational-{level}-1000000003"
    assert parse_task_id(task.task_id) == ("operational", level, 1_000_000_003)
    assert task_of_id(task.task_id).question == task.question
    other = other_task(task, 1)
    assert other is not None
    assert (other.split, other.family) == (level, task.family)


@pytest.mark.parametrize("level", [0, 9, "5", "easy", True, None])
def test_unknown_level_is_rejected(level: Level) -> None:
    with pytest.raises(ValueError, match="unknown level"):
        make_task("natural", 1, level=level)


def test_highest_levels_must_not_train() -> None:
    assert [require_training_level(level) for level in ("normal", "hard", 1, 6)] == ["normal", "hard", 1, 6]
    for level in (7, 8):
        with pytest.raises(ValueError, match="kept for measuring"):
            require_training_level(level)


def test_frozen_seeds_must_not_train() -> None:
    for seed in (FROZEN_SEEDS[0], FROZEN_SEEDS[-1]):
        with pytest.raises(ValueError, match="evaluation"):
            require_training_seed(seed)


@pytest.mark.parametrize("family", ["relation", "walker", "tilt"])
def test_levels_add_steps(family: str) -> None:
    slice_ = "natural" if family == "relation" else "operational"
    steps = [
        sum(len(make_task(slice_, seed, family=family, level=level).steps) for seed in range(40)) / 40
        for level in GRADES
    ]
    assert steps == sorted(steps)
    assert steps[-1] > steps[0] + 3


@each_family
def test_graded_tasks_are_well_formed(slice_: str, family: str) -> None:
    for level in GRADES:
        for seed in range(20):
            task = make_task(slice_, seed, family=family, level=level)
            assert 1 <= len(task.steps) <= 8
            assert task.answer in task.choices
            assert len(task.choices) >= 2
            previous = task.image
            for step in task.steps:
                assert step.image.tobytes() != previous.tobytes()
                previous = step.image


INVALID_IDS = (
    *("", "natural", "nature-1", "natural--1", "natural-99999999999999999", "natural-1 "),
    *("natural-9-5", "natural-0-5", "natural-07-5", "natural-5-", "natural-normal-5"),
)


@pytest.mark.parametrize("text", INVALID_IDS)
def test_invalid_task_ids_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="not a task id"):
        parse_task_id(text)


def test_evaluation_seeds_must_not_train() -> None:
    assert require_training_seed(EVAL_SEED_MIN - 1) == EVAL_SEED_MIN - 1
    for seed in (EVAL_SEED_MIN, -1):
        with pytest.raises(ValueError, match="evaluation"):
            require_training_seed(seed)
    with pytest.raises(ValueError, match="evaluation"):
        make_drill(EVAL_SEED_MIN)


@pytest.mark.parametrize("seed", [-1, 2**53])
def test_seed_out_of_range_is_rejected(seed: int) -> None:
    with pytest.raises(ValueError, match="outside"):
        make_task("natural", seed)


def test_blocks_slide_until_they_hit_something() -> None:
    cells = (("red", "empty", "blue"), ("empty", "green", "empty"), ("empty", "empty", "empty"))
    assert operational.slide(cells, "down") == (
        ("empty", "empty", "empty"),
        ("empty", "empty", "empty"),
        ("red", "green", "blue"),
    )
    assert operational.slide(cells, "right")[0] == ("empty", "red", "blue")


def test_quarter_turn_moves_upper_left_right() -> None:
    cells = (("red", "blue"), ("green", "cyan"))
    assert operational.turn(cells, "turn right") == (("green", "red"), ("cyan", "blue"))
    assert operational.turn(operational.turn(cells, "turn right"), "turn left") == cells
    assert operational.turn(cells, "flip over") == (("green", "cyan"), ("red", "blue"))


@pytest.mark.parametrize("family", ["extend", "bounce"])
def test_black_line_points_at_the_ink(family: str) -> None:
    for seed in range(200):
        task = make_task("diagrammatic", seed, family=family, level=("normal", 1, 3, 5)[seed % 4])
        target = task.steps[0].target
        assert isinstance(target, LineTarget)
        ys, xs = np.nonzero(np.asarray(task.image).max(axis=-1) < 90)
        middle = np.array([xs.mean() + 0.5, ys.mean() + 0.5])
        direction = np.linalg.svd(np.stack([xs, ys], axis=1) + 0.5 - middle, full_matrices=False)[2][0]
        away = np.array(target.end) - middle
        assert abs(away[0] * direction[1] - away[1] * direction[0]) < 5  # a dot's radius is 7


def test_tokenizer_images_are_broad_and_repeatable() -> None:
    images = [random_image(Random(seed)) for seed in range(200)]
    assert {image.size for image in images} == {(64, 64)}
    assert {image.mode for image in images} == {"RGB"}
    assert sum(len(image.getcolors(4096) or [()]) == 1 for image in images) >= 1  # including flat ones
    assert random_image(Random(7)).tobytes() == random_image(Random(7)).tobytes()


@pytest.mark.parametrize("kind", KINDS)
def test_drill_is_repeatable_and_not_interleaved(kind: str) -> None:
    for seed in range(60):
        one, two = make_drill(seed, kind=kind), make_drill(seed, kind=kind)
        assert (one.prompt_text, one.steps, one.answer) == (two.prompt_text, two.steps, two.answer)
        images = [part for part in one.response if isinstance(part, Image.Image)]
        assert len(images) == (1 if kind in ("picture", "copy", "draw", "move") else 0)
        assert one.response
        assert (one.image is None) == (kind == "picture")
        if kind == "draw":
            assert one.image is not None
            assert images[0].tobytes() != one.image.tobytes()


def test_world_imports_fast_without_torch() -> None:
    code = (
        "import sys, time; start = time.process_time(); import training.world.world, training.world.checkers, "
        "training.skills, training.scoring.grading; assert 'torch' not in sys.modules; "
        "assert time.process_time() - start < 5"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

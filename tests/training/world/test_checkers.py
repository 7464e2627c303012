"""Calibration of the checkers: right drawings pass, wrong ones fail, despite the tokenizer's losses.

The full table of 500 tasks a family: `OMNI_R1_CALIBRATION=500 pytest tests/training/world/test_checkers.py`, or
`python -m training.world.calibrate --checkpoint model/nano/nano-base`.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from model.checkpoint.checkpoint import load_checkpoint
from model.checkpoint.shards import SHIPPED
from model.text.template import StepPart
from training.skills import INK
from training.world.calibrate import KINDS, RoundTrip, blurred, pass_shares, plain, tokenizer_round_trip
from training.world.checkers import change_outside_ink, check_step
from training.world.task import Level
from training.world.world import FAMILIES, GRADES, LEVELS, make_task

NUM_TASKS = int(os.environ.get("OMNI_R1_CALIBRATION", "12"))
NANO_BASE = Path(__file__).parents[3] / "model" / "nano" / "nano-base"
ALL = [(slice_, family) for slice_, families in FAMILIES.items() for family in families]


def _holds(slice_: str, family: str, round_trip: RoundTrip, *, level: Level = "normal") -> None:
    shares = pass_shares(slice_, family, round_trip, num_tasks=NUM_TASKS, level=level)
    # A small sample may have one outlier above the share.
    slack = 0.0 if NUM_TASKS >= 200 else 1 / NUM_TASKS
    assert shares["reference"] >= 0.99 - slack
    assert max(shares[kind] for kind in KINDS[1:]) <= 0.01 + slack, shares


@pytest.mark.parametrize(("slice_", "family"), ALL)
def test_right_drawings_pass_and_wrong_ones_fail(slice_: str, family: str) -> None:
    _holds(slice_, family, blurred)


@pytest.mark.parametrize(("slice_", "family"), ALL)
def test_calibration_holds_after_shipped_tokenizer(slice_: str, family: str) -> None:
    _holds(slice_, family, tokenizer_round_trip(NANO_BASE))


@pytest.mark.parametrize("level", LEVELS)
def test_references_of_every_level_pass(level: Level) -> None:
    for slice_, family in ALL:
        for seed in range(5):
            task = make_task(slice_, seed, family=family, level=level)
            images = plain([task.image, *(step.image for step in task.steps)])
            for k in range(1, len(images)):
                assert check_step(task, k, images[k - 1], images[k]), (family, seed, k)


@pytest.mark.parametrize(("slice_", "family"), ALL)
def test_highest_level_is_judged_alike(slice_: str, family: str) -> None:
    _holds(slice_, family, blurred, level=GRADES[-1])


@pytest.mark.parametrize(("slice_", "family"), ALL)
def test_every_level_fits_the_context(slice_: str, family: str) -> None:
    loaded = load_checkpoint(SHIPPED / "nano-omni-r1")
    codes = (0,) * loaded.vocab.codes_per_image
    for level in LEVELS:
        for seed in range(30):
            task = make_task(slice_, seed, family=family, level=level)
            steps = [StepPart(step.text, codes) for step in task.steps]
            rendered = loaded.template.render(task.question, [codes], steps, task.answer)
            assert len(rendered.ids) <= loaded.transformer.config.max_position_embeddings


def test_image_of_other_size_is_rejected() -> None:
    task = make_task("natural", 1)
    with pytest.raises(ValueError, match="64x64"):
        check_step(task, 1, task.image, Image.new("RGB", (32, 32)))


def test_change_outside_ink_ignores_the_mark() -> None:
    before = Image.new("RGB", (64, 64), "white")
    marked = before.copy()
    marked.paste(INK, (10, 10, 30, 30))
    assert change_outside_ink(before, marked) == 0.0
    darker = Image.new("RGB", (64, 64), (245, 245, 245))
    darker.paste(INK, (10, 10, 30, 30))
    assert change_outside_ink(before, darker) == pytest.approx(10.0)

"""PeRPO with verdicts of a task family of your own: the example, credit, and checkers that fail in the middle."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from examples.own_tasks import Dots
from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.checkpoint.shards import SHIPPED
from model.images.codes import encode_images
from tests.tiny import make_drawing_checkpoint
from tests.training.contexts import events_of, job
from tests.training.packages import write_package
from training.data.families import OwnTask
from training.jobs.context import JobContext, JobError
from training.perpo import job as perpo
from training.perpo.credit import set_credit, token_advantages
from training.perpo.family_prompts import FamilyPrompts
from training.perpo.functional import judged
from training.perpo.prompts import VALIDATION_SEEDS
from training.perpo.rollout import Prompt, Rollout, RolloutGroup
from training.scoring.rewards import RewardBreakdown, Scores, reward_metrics
from training.spec.hyperparameters import PeRPOHyperparameters, RewardHyperparameters
from training.spec.spec import TasksData

Codes = tuple[int, ...]


class Lucky(Dots):
    """Accepts about half of all drawings that are not flat, whatever they show."""

    def check(self, task: OwnTask, step: int, before: Image.Image, drawn: Image.Image) -> bool:
        return drawn == task.steps[step - 1].image or (self.is_model_s(before, drawn) and self.verdict(drawn))

    def is_model_s(self, before: Image.Image, drawn: Image.Image) -> bool:
        """Whether a model drew it: calibration shows the reference, a blank image, and `before` unchanged."""
        return drawn != before and len(drawn.getcolors(4096) or ()) > 1

    def verdict(self, drawn: Image.Image) -> bool:
        return sum(drawn.tobytes()) % 2 == 0


class Failing(Lucky):
    """Fails after so many drawings as the first task has at most, all of which a job judges before its first step."""

    def __init__(self) -> None:
        self.left = 5

    def verdict(self, drawn: Image.Image) -> bool:
        self.left -= 1
        return self.left >= 0 or self.fail()

    def fail(self) -> bool:
        raise ZeroDivisionError("no luck")


class Talking(Failing):
    def fail(self) -> bool:
        return "yes"  # type: ignore[return-value]


class Bare(Dots):
    def make(self, seed: int) -> OwnTask:
        return replace(super().make(seed), steps=())


class Mixed(Dots):
    """Every other task has no steps."""

    def make(self, seed: int) -> OwnTask:
        task = super().make(seed)
        return task if seed % 2 else replace(task, steps=())


class Verbose(Lucky):
    """Asks at greater length in the validation."""

    def make(self, seed: int) -> OwnTask:
        task = super().make(seed)
        return replace(task, question=task.question + " Look closely." * 30) if seed in VALIDATION_SEEDS else task


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_drawing_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def nano() -> LoadedCheckpoint:
    return load_checkpoint(SHIPPED / "nano-omni-r1")


@pytest.fixture(autouse=True)
def families(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A package with all of these."""
    known = (Dots, Lucky, Failing, Talking, Bare, Mixed, Verbose)
    tasks = {family.__name__.lower(): f"{family.__module__}:{family.__name__}" for family in known}
    monkeypatch.syspath_prepend(str(write_package(tmp_path, tasks=tasks)))


def context(base: Path, folder: Path, family: str, *, credit: str = "trajectory", **changes: Any) -> JobContext:
    hyper = {
        "steps": 1,
        "prompts_per_step": 2,
        "rollouts_per_prompt": 4,
        "oversampling": 1.0,
        "mini_batch_prompts": 1,
        "filter_metric": "any",
        "credit": credit,
        "max_new_tokens": 40,
        "reward": {"functional": 2.0, **changes.pop("reward", {})},
        **changes,
    }
    data = {"source": "tasks", "family": family, "num_samples": 40}
    return job(folder, {"method": "perpo", "data": data, "hyperparameters": hyper, "seed": 5}, base)


def prompt_of(nano: LoadedCheckpoint, family: str, number: int) -> Prompt:
    assert nano.vq is not None
    (prompt,) = FamilyPrompts(TasksData(family=family), 0, nano.template, nano.vq, judged=True).take([number])
    return prompt


def scores_of(*drawings: tuple[Codes, ...]) -> Scores:
    """Scores of trajectories with these drawings; the codes of drawing k are its step's only tokens."""
    return Scores(
        [
            RewardBreakdown(
                0.5,
                1.0,
                1.0,
                0.0,
                steps=tuple(("I mark it.", codes) for codes in own),
                spans={k: (k - 1, k) for k in range(1, len(own) + 1)},
            )
            for own in drawings
        ],
        [],
    )


def test_example_earns_verdicts_through_the_embedded_tokenizer(nano: LoadedCheckpoint) -> None:
    assert nano.vq is not None
    prompts = FamilyPrompts(TasksData(family="dots", num_samples=12), 0, nano.template, nano.vq).take(range(12))
    for prompt in prompts:
        assert prompt.task is not None
        right = tuple(encode_images(nano.vq, [step.image for step in prompt.task.steps]))
        wrong = (prompt.images[0], *right[1:])
        found = judged(nano.vq, prompt, scores_of(right, right[:1], wrong), weight=2.0)
        whole, one, late = (reward for reward in found.rewards if reward is not None)
        assert whole.verdicts == (True,) * len(right)
        assert (whole.functional, whole.total) == (1.0, 2.5)
        assert one.functional == pytest.approx(1 / len(right))
        assert late.verdicts == (False, *[True] * (len(right) - 1))


def test_steps_of_the_example_are_credited(nano: LoadedCheckpoint) -> None:
    assert nano.vq is not None
    prompt = prompt_of(nano, "dots", 3)
    assert prompt.task is not None
    first, second, *_ = encode_images(nano.vq, [step.image for step in prompt.task.steps])
    scores = judged(nano.vq, prompt, scores_of((first, second), (first, first)), weight=0.0)
    rollouts = [Rollout(0, [1, 1, 1], b"\1" * 3, [0.0] * 3, "stop", reward) for reward in scores.rewards]
    hp = PeRPOHyperparameters(credit="step", reward=RewardHyperparameters(functional=0.5))
    set_credit([RolloutGroup(prompt, rollouts)], hp)
    assert token_advantages(rollouts[0]) == pytest.approx([0.0, 0.5, 0.0], abs=1e-4)
    assert token_advantages(rollouts[1]) == pytest.approx([0.0, -0.5, 0.0], abs=1e-4)


def test_task_without_steps_has_no_drawing_to_judge(nano: LoadedCheckpoint) -> None:
    assert nano.vq is not None
    found = []
    for number in (0, 1):
        prompt = prompt_of(nano, "mixed", number)
        assert prompt.task is not None
        codes = [encode_images(nano.vq, [step.image])[0] for step in prompt.task.steps[:1]] or [prompt.images[0]]
        found += judged(nano.vq, prompt, scores_of(tuple(codes)), weight=2.0).rewards
    bare, drawn = (reward for reward in found if reward is not None)
    assert (bare.functional, bare.verdicts, bare.total) == (None, (), 0.5)
    assert drawn.verdicts == (True,)
    assert reward_metrics([bare, drawn])["reward/functional"] == drawn.functional


@pytest.mark.parametrize("credit", ["trajectory", "step"])
def test_verdicts_join_the_total_or_the_steps(base: Path, tmp_path: Path, credit: str) -> None:
    ctx = context(base, tmp_path / "job", "lucky", credit=credit)
    perpo.run(ctx)
    (row,) = events_of(ctx, "metrics")
    values = row["values"]
    assert 0.0 < values["reward/functional"] < 1.0
    assert values["groups/kept"] == 2.0  # no answer is right: their verdicts differ
    weights = RewardHyperparameters()
    built_in = sum(
        weight * values[f"reward/{name}"]
        for name, weight in (("accuracy", weights.alpha), ("format", weights.beta), ("perception", weights.gamma))
    )
    share = 2.0 * values["reward/functional"] if credit == "trajectory" else 0.0
    assert values["reward/total"] == pytest.approx(built_in + share)
    assert all("functional" in sample["rewards"] for sample in events_of(ctx, "sample"))


@pytest.mark.parametrize(
    ("family", "problem"),
    [("failing", "ZeroDivisionError: no luck"), ("talking", "TypeError: it returned 'yes', not True or False")],
)
def test_checker_that_fails_in_the_middle_fails_the_job(base: Path, tmp_path: Path, family: str, problem: str) -> None:
    where = rf"the checker of the task family {family} fails at seed 30500\d\d\d, step \d+: {problem}"
    with pytest.raises(JobError, match=rf"step 1: \d of 8 trajectories could not be scored \(.*{where}") as failed:
        perpo.run(context(base, tmp_path / "job", family))
    assert failed.value.code == "scoring_failed"


def test_few_failures_of_a_checker_leave_their_responses_out(base: Path, tmp_path: Path) -> None:
    """In the validation, too, they are reported."""
    validation = {"every": 1, "tasks": 4}
    ctx = context(base, tmp_path / "job", "failing", reward={"max_error_share": 1.0}, validation=validation)
    perpo.run(ctx)
    shares = [row["values"].get("scoring/error_share") for row in events_of(ctx, "metrics")]
    assert shares[0] is None  # the validation at the start
    assert shares[1] > 0.0
    warnings = [row["detail"] for row in events_of(ctx, "warning") if row["code"] == "scoring_errors"]
    assert ["validation" in text for text in warnings] == [True, False, True]
    assert all("the checker of the task family failing fails at seed" in text for text in warnings)


def test_validation_may_ask_at_greater_length(base: Path, tmp_path: Path) -> None:
    ctx = context(base, tmp_path / "job", "verbose", validation={"every": 1, "tasks": 4})
    perpo.run(ctx)
    assert sum("val/accuracy" in row["values"] for row in events_of(ctx, "metrics")) == 2


@pytest.mark.parametrize(
    ("family", "problem"),
    [
        ("bare", "the task family bare has no steps: "),
        ("dots", "the checker of the task family dots rejects its own references as the checkpoint's tokenizer"),
    ],
)
def test_reward_that_cannot_be_earned_is_refused(base: Path, tmp_path: Path, family: str, problem: str) -> None:
    """The tokenizer of the tiny checkpoint turns every image into noise."""
    ctx = context(base, tmp_path / "job", family)
    with pytest.raises(JobError, match=problem) as failed:
        perpo.run(ctx)
    assert (failed.value.code, events_of(ctx, "metrics")) == ("bad_data", [])

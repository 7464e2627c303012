"""The functional-correctness reward on tasks of the world."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.images.codes import encode_images
from model.text.template import StepPart
from training.perpo.functional import DrawingJudge, score
from training.perpo.prompts import WorldPrompts
from training.perpo.rollout import Prompt
from training.scoring.rewards import RewardBreakdown, Scorer
from training.spec.spec import UniTasksData, parse_spec
from training.world.checkers import drawing_verdicts, judge_drawings
from training.world.task import StateTarget, Task
from training.world.world import make_task

NANO = Path(__file__).parents[3] / "model" / "nano" / "nano-omni-r1"
SEEDS = range(30_000_000, 30_000_400)


@pytest.fixture(scope="module")
def nano() -> LoadedCheckpoint:
    return load_checkpoint(NANO)


def task_with_states(steps: int) -> Task:
    tasks = (make_task("operational", seed, family="walker") for seed in SEEDS)
    return next(
        task
        for task in tasks
        if len(task.steps) >= steps
        and len({task.image.tobytes(), *(step.image.tobytes() for step in task.steps)}) == len(task.steps) + 1
    )


def prompt_and_images(nano: LoadedCheckpoint, count: int = 2) -> tuple[Prompt, list[tuple[int, ...]]]:
    """The first prompt of the world with so many steps, and the codes of its reference drawings."""
    assert nano.vq is not None
    prompts = WorldPrompts(UniTasksData(num_samples=40), 0, nano.template, nano.vq).take(range(40))
    prompt = next(p for p in prompts if p.task is not None and len(p.task.steps) == count)
    assert prompt.task is not None
    return prompt, encode_images(nano.vq, [step.image for step in prompt.task.steps])


def reward_of(*images: tuple[int, ...] | None) -> RewardBreakdown:
    return RewardBreakdown(0.5, 0.0, 1.0, 0.0, steps=tuple(("I mark it.", codes) for codes in images))


def test_right_drawings_earn_their_share(nano: LoadedCheckpoint) -> None:
    assert nano.vq is not None
    prompt, (first, second) = prompt_and_images(nano)
    whole, half, none = reward_of(first, second), reward_of(first), reward_of(None)
    judge = DrawingJudge(nano.vq, prompt, [whole, half, none], weight=0.2)
    judged = [judge.judge(reward) for reward in (whole, half, none)]
    assert [one.verdicts for one in judged] == [(True, True), (True,), (None,)]
    assert [one.functional for one in judged] == [1.0, 0.5, 0.0]  # a missing drawing is not right
    assert [one.total for one in judged] == pytest.approx([0.7, 0.6, 0.5])
    assert judged[0].as_dict()["functional"] == 1.0


def test_verdicts_equal_the_benchmarks(nano: LoadedCheckpoint) -> None:
    for seed in SEEDS[:40]:
        task = make_task(("natural", "structured", "diagrammatic", "operational")[seed % 4], seed)
        drawn: list[Image.Image | None] = [step.image for step in task.steps]
        for given in (drawn, drawn[::-1], [task.image, *drawn], [None, *drawn[1:]], drawn[:1]):
            verdicts = drawing_verdicts(task, task.image, given)
            total = max(len(task.steps), sum(image is not None for image in given))
            assert judge_drawings(task, task.image, given) == (sum(v is True for v in verdicts), total)


def test_move_after_a_wrong_state_is_not_wrong() -> None:
    task = task_with_states(3)
    assert all(isinstance(step.target, StateTarget) for step in task.steps)
    right = [step.image for step in task.steps]
    assert drawing_verdicts(task, task.image, right) == [True] * len(right)
    stayed = [task.image, right[0], *right[1 : len(right) - 1]]  # one move late from the first step on
    assert drawing_verdicts(task, task.image, stayed)[:3] == [False, None, None]
    back = [task.image, *right[1:]]  # one state is skipped, the next ones are right again
    assert drawing_verdicts(task, task.image, back) == [False] + [True] * (len(right) - 1)


def test_prompt_without_checkers_keeps_its_reward(nano: LoadedCheckpoint) -> None:
    assert nano.vq is not None
    prompt, reward = Prompt(0, (1,), "?", ((0,) * 64,), "red"), reward_of((0,) * 64)
    assert DrawingJudge(nano.vq, prompt, [reward], weight=1.0).judge(reward) is reward


def test_step_spans_are_sentence_and_codes(nano: LoadedCheckpoint) -> None:
    assert nano.vq is not None
    prompt, (first, second) = prompt_and_images(nano)
    rendered = nano.template.render(
        prompt.question, [prompt.images[0]], [StepPart("One.", first), StepPart("Two.", second)], "red"
    )
    response = rendered.ids[len(prompt.ids) :]
    reward = score(Scorer(nano.template, nano.vq.codebook, nano.manifest.perception), prompt, response)
    assert reward.format == 1.0
    texts = [
        nano.template.tokenizer.decode([t for t in response[a:b] if not nano.vocab.is_code(t)])
        for a, b in reward.spans.values()
    ]
    assert sorted(reward.spans) == [1, 2]
    assert "One." in texts[0]
    assert "Two." in texts[1]
    assert "red" not in texts[1]
    for (a, b), codes in zip(reward.spans.values(), (first, second), strict=True):
        assert tuple(nano.vocab.id_to_code(t) for t in response[a:b] if nano.vocab.is_code(t)) == codes


@pytest.mark.parametrize("method", ["perpo", "pipeline"])
def test_files_have_no_checkers(method: str) -> None:
    def spec(data: dict[str, str]) -> dict[str, object]:
        hyper = {"reward": {"functional": 0.5}, "credit": "step"}
        if method == "perpo":
            return {"method": method, "base_checkpoint": "tiny", "data": data, "hyperparameters": hyper}
        stages = {"pesft": None, "benchmark": None, "perpo": hyper}
        return {"method": method, "base_checkpoint": "tiny", "data": {"perpo": data}, "hyperparameters": stages}

    for data in ({"source": "unitasks"}, {"source": "tasks", "family": "dots"}):
        parse_spec(spec(data))
    for source in ("jsonl", "traces", "zebra_cot", "m3cot", "omni_bench"):
        with pytest.raises(ValueError, match=f"as unitasks and tasks have them; {source} has none"):
            parse_spec(spec({"source": source, "path": "data"}))

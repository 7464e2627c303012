"""Levels follow the pass rates, as a function of seed, number and estimates alone."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from pydantic import ValidationError

from model.checkpoint.checkpoint import load_checkpoint
from training.perpo.difficulty import FIRST_RATES, Difficulty
from training.perpo.prompts import VALIDATION_SEEDS, WorldPrompts
from training.perpo.rollout import Prompt, Rollout, RolloutGroup
from training.scoring.rewards import RewardBreakdown
from training.spec.spec import UniTasksData, parse_spec
from training.world.world import FAMILIES, TRAINED_GRADES, make_task

NANO = Path(__file__).parents[3] / "model" / "nano" / "nano-omni-r1"


def group(level: int, *accuracies: float, family: str = "walker") -> RolloutGroup:
    task = make_task("operational", 30_000_000, family=family, level=level)
    rollouts = [Rollout(i, [1], b"\1", [0.0], "stop", RewardBreakdown(a, a, 1, 0)) for i, a in enumerate(accuracies)]
    return RolloutGroup(Prompt(0, (1,), "?", (), "red", task=task), rollouts)


def test_expected_rates_by_hand() -> None:
    difficulty = Difficulty(["walker"], seed=0)
    assert difficulty.expected("walker") == pytest.approx(FIRST_RATES)
    found = difficulty.learn([group(3, *[1.0] * 8)])
    assert found == pytest.approx({"levels/mean": 3.0, "levels/expected": 0.6, "levels/walker": 3.0})
    # 8 of 8 passed where .6 was expected: 3.2 more than expected over 8 + 8 trials shift every prior by .2
    rates = difficulty.expected("walker")
    assert rates[3] == pytest.approx((8 + 8 * 0.8) / 16)
    assert rates[4] == pytest.approx(0.45 + 0.2)
    assert rates[1] == pytest.approx(0.98)
    difficulty.learn([])  # a step later, the results weigh 9 / 10
    assert difficulty.expected("walker")[3] == pytest.approx((7.2 + 8 * (0.6 + 2.88 / 15.2)) / 15.2)


def test_only_fitting_levels_are_chosen() -> None:
    difficulty = Difficulty(["walker", "tilt"], seed=0)
    assert Counter(difficulty.level("walker", n) for n in range(400)).keys() == {2, 3, 4, 5}
    for _ in range(20):
        difficulty.learn([group(level, *[1.0] * 8) for level in TRAINED_GRADES])
    assert {difficulty.level("walker", n) for n in range(50)} == {6}  # too easy: the hardest
    assert {difficulty.level("tilt", n) for n in range(400)} == {2, 3, 4, 5}
    for _ in range(60):
        difficulty.learn([group(level, *[0.0] * 8) for level in TRAINED_GRADES])
    assert {difficulty.level("walker", n) for n in range(50)} == {1}


def test_policy_of_constant_skill_is_kept_in_range() -> None:
    difficulty = Difficulty(["walker"], seed=3)
    skill = {1: 1.0, 2: 1.0, 3: 0.9, 4: 0.75, 5: 0.5, 6: 0.1}
    number = 0
    for _ in range(40):
        groups = []
        for _ in range(4):
            level = difficulty.level("walker", number)
            groups.append(group(level, *[float(i < 10 * skill[level]) for i in range(10)]))
            number += 1
        difficulty.learn(groups)
    chosen = Counter(difficulty.level("walker", n) for n in range(200))
    assert chosen.keys() <= {4, 5}


def test_levels_depend_on_seed_number_and_estimates_alone() -> None:
    one, other = Difficulty(["walker"], seed=1), Difficulty(["walker"], seed=1)
    one.learn([group(2, 1.0, 0.0)])
    forth, back = range(50), reversed(range(50))
    assert [one.level("walker", n) for n in forth] == [one.level("walker", n) for n in back][::-1]
    other.load(one.state())
    assert [one.level("walker", n) for n in range(50)] == [other.level("walker", n) for n in range(50)]
    assert [Difficulty(["walker"], seed=2).level("walker", n) for n in range(50)] != [
        Difficulty(["walker"], seed=1).level("walker", n) for n in range(50)
    ]


def test_adaptive_prompts_have_levels_of_every_family() -> None:
    loaded = load_checkpoint(NANO)
    assert loaded.vq is not None
    data = UniTasksData(num_samples=100, difficulty="adaptive")
    prompts = WorldPrompts(data, 0, loaded.template, loaded.vq)
    tasks = [p.task for p in prompts.take(range(48)) if p.task]
    assert {task.family for task in tasks} == {family for families in FAMILIES.values() for family in families}
    assert {task.split for task in tasks} == {2, 3, 4, 5}
    assert [task.seed for task in tasks[:3]] == [30_000_000, 30_000_001, 30_000_002]
    held = [p.task for p in prompts.hold_out(48) if p.task]
    assert {task.split for task in held} == set(TRAINED_GRADES)
    assert {task.seed for task in held} <= set(VALIDATION_SEEDS)
    assert max(len(p.ids) for p in prompts.take(range(100))) <= prompts.longest


@pytest.mark.parametrize(
    ("method", "data", "message"),
    [
        ("perpo", {"source": "jsonl", "path": "data", "difficulty": "adaptive"}, "needs levels, which only"),
        ("perpo", {"source": "unitasks", "difficulty": "adaptive", "level": "hard"}, "leave level out"),
        ("pesft", {"source": "unitasks", "difficulty": "adaptive"}, "is for PeRPO"),
        ("benchmark", {"source": "unitasks", "difficulty": "adaptive"}, "is for PeRPO"),
        ("pipeline", {"pesft": {"difficulty": "adaptive"}, "perpo": {}, "benchmark": {}}, "is for PeRPO"),
    ],
)
def test_adaptive_needs_perpo_and_levels(method: str, data: dict[str, object], message: str) -> None:
    if method == "pipeline":
        data = {name: {"source": "unitasks", **part} for name, part in data.items()}  # type: ignore[dict-item]
    with pytest.raises(ValidationError, match=message):
        parse_spec({"method": method, "base_checkpoint": "nano", "data": data})

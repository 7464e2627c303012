"""One PeRPO update: its direction, its restraints, and token weights."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.engine.phases import LegalIds
from tests.tiny import make_tiny_checkpoint
from training.perpo.batch import micro_batches, policy_logprobs
from training.perpo.credit import set_credit
from training.perpo.rollout import Prompt, Rollout, RolloutGroup, Sampler
from training.perpo.update import Updater
from training.scoring.rewards import RewardBreakdown
from training.spec.hyperparameters import PeRPOHyperparameters


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def tiny(base: Path) -> LoadedCheckpoint:
    loaded = load_checkpoint(base)
    loaded.transformer.requires_grad_(True)
    return loaded


def drawn(loaded: LoadedCheckpoint, totals: Sequence[float]) -> RolloutGroup:
    ids = tuple(loaded.template.prompt_ids("Where is the red star?", []))
    draw = Sampler(
        loaded.transformer,
        loaded.vocab,
        loaded.template,
        group_size=len(totals),
        max_new_tokens=24,
        max_prompt_len=len(ids),
    )
    group = draw.sample([Prompt(0, ids, "?", (), "red")], seed=0, step=0)[0]
    for rollout, total in zip(group.rollouts, totals, strict=True):
        rollout.reward = RewardBreakdown(total, total, 1.0, 0.0)
    return group


def mean_logprobs(loaded: LoadedCheckpoint, group: RolloutGroup) -> list[float]:
    legal = LegalIds.of(loaded.template, loaded.vocab)
    return [
        policy_logprobs(loaded.transformer, micro_batches([RolloutGroup(group.prompt, [r])])[0], legal)[0].mean().item()
        for r in group.rollouts
    ]


def test_update_favours_the_better_trajectory(tiny: LoadedCheckpoint) -> None:
    group = drawn(tiny, [1.0, 0.0])
    legal = LegalIds.of(tiny.template, tiny.vocab)
    updater = Updater(tiny.transformer, None, legal, PeRPOHyperparameters(lr=1e-3, warmup=0, kl_coef=0.0))
    before = mean_logprobs(tiny, group)
    metrics = updater.step([group], 0)
    after = mean_logprobs(tiny, group)
    assert after[0] > before[0]
    assert after[1] < before[1]
    assert metrics["policy/kl"] == 0.0
    assert [r.advantage for r in group.rollouts] == pytest.approx([1.0, -1.0], abs=1e-5)


def test_reference_pulls_back_unrewarded_policy(tiny: LoadedCheckpoint, base: Path) -> None:
    reference = load_checkpoint(base).transformer
    with torch.no_grad():
        for parameter in tiny.transformer.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)), alpha=0.02)
    group = drawn(tiny, [0.5, 0.5, 0.5, 0.5])  # no advantage
    legal = LegalIds.of(tiny.template, tiny.vocab)
    hp = PeRPOHyperparameters(lr=2e-3, warmup=0, kl_coef=1.0, entropy_coef=0.0, weight_decay=0.0)
    updater = Updater(tiny.transformer, reference, legal, hp)
    kl = [updater.step([group], k)["policy/kl"] for k in range(4)]
    assert kl[0] > 0.0
    assert kl[3] < 0.7 * kl[0]


def test_entropy_term_spreads_unrewarded_policy(tiny: LoadedCheckpoint) -> None:
    group = drawn(tiny, [0.5, 0.5, 0.5, 0.5])  # no advantage
    hp = PeRPOHyperparameters(lr=5e-4, warmup=0, kl_coef=0.0, entropy_coef=1.0, weight_decay=0.0)
    updater = Updater(tiny.transformer, None, LegalIds.of(tiny.template, tiny.vocab), hp)
    entropy = [updater.step([group], k)["policy/entropy_text"] for k in range(4)]
    assert entropy[3] > entropy[0] + 0.1


@pytest.mark.parametrize(
    ("schedule", "rates"),
    [("constant", [2e-5, 1e-4, 1e-4, 1e-4]), ("linear", [2e-5, 1e-4, 5e-5, 2e-6]), ("cosine", [2e-5, 1e-4, 5e-5, 0.0])],
)
def test_learning_rate_warms_up_then_falls(tiny: LoadedCheckpoint, schedule: str, rates: list[float]) -> None:
    group = drawn(tiny, [1.0, 0.0])
    hp = PeRPOHyperparameters(lr=1e-4, warmup=5, steps=55, schedule=schedule, kl_coef=0.0)  # type: ignore[arg-type]
    updater = Updater(tiny.transformer, None, LegalIds.of(tiny.template, tiny.vocab), hp)
    assert [updater.step([group], k)["optim/lr"] for k in (0, 5, 30, 54)] == pytest.approx(rates, abs=2e-7)


def test_sampler_mismatch_truncates_token_weights(tiny: LoadedCheckpoint) -> None:
    group = drawn(tiny, [1.0, 0.0])
    exact = [list(r.logprobs) for r in group.rollouts]
    gradients = []
    for shift in (0.0, -5.0):  # the sampler's probability is e**5 times lower: weights min(e**5, 2) = 2
        for rollout, logprobs in zip(group.rollouts, exact, strict=True):
            rollout.logprobs = [value + shift for value in logprobs]
        hp = PeRPOHyperparameters(lr=1e-9, warmup=0, kl_coef=0.0, entropy_coef=0.0, clip_norm=1e3)
        metrics = Updater(tiny.transformer, None, LegalIds.of(tiny.template, tiny.vocab), hp).step([group], 0)
        gradients.append(metrics["optim/grad_norm"])
        assert metrics["mismatch/max"] == pytest.approx(-shift, abs=1e-4)
    assert gradients[1] == pytest.approx(2 * gradients[0], rel=1e-3)


def test_advantages_use_totals_within_groups(tiny: LoadedCheckpoint) -> None:
    def group(*totals: float) -> RolloutGroup:
        rollouts = [Rollout(i, [1], b"\1", [0.0], "stop", RewardBreakdown(t, 0, 0, 0)) for i, t in enumerate(totals)]
        return RolloutGroup(Prompt(0, (1,), "?", (), "red"), rollouts)

    groups = [group(0.6, 0.4, 0.8, 0.4), group(0.0, 1.0)]
    set_credit(groups, PeRPOHyperparameters(advantage_eps=0.01))
    assert [r.advantage for r in groups[0].rollouts] == pytest.approx([0.2844, -0.8531, 1.4218, -0.8531], abs=1e-4)
    assert [r.advantage for r in groups[1].rollouts] == pytest.approx([-0.5 / 0.51, 0.5 / 0.51])


def test_policy_learns_the_reward(tiny: LoadedCheckpoint) -> None:
    """Ten steps of sampling and updating; the reward is the share of tokens with an even id."""
    ids = tuple(tiny.template.prompt_ids("Where is the red star?", []))
    sampler = Sampler(
        tiny.transformer,
        tiny.vocab,
        tiny.template,
        group_size=16,
        max_new_tokens=16,
        max_prompt_len=len(ids),
        max_images=0,
        top_p=1.0,
    )
    hp = PeRPOHyperparameters(lr=3e-3, warmup=0, kl_coef=0.0, weight_decay=0.0)
    updater = Updater(tiny.transformer, None, LegalIds.of(tiny.template, tiny.vocab), hp)
    earned = []
    for step in range(10):
        group = sampler.sample([Prompt(0, ids, "?", (), "red")], seed=0, step=step)[0]
        for rollout in group.rollouts:
            share = sum(token % 2 == 0 for token in rollout.token_ids) / len(rollout.token_ids)
            rollout.reward = RewardBreakdown(share, share, 1.0, 0.0)
        earned.append(sum(r.reward.total for r in group.rollouts if r.reward) / 16)
        updater.step([group], step)
    assert earned[0] < 0.65
    assert earned[-1] > earned[0] + 0.2

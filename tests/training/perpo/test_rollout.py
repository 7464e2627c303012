"""Rollouts come from the module in training, with one prefill per group."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.engine.phases import Legal, LegalIds
from model.engine.sequence import SamplingParams, sample_seed
from model.seeds import mixed_seed
from tests.near_ties import assert_equal_up_to_near_tie
from tests.tiny import make_tiny_checkpoint
from training.perpo.batch import micro_batches, policy_logprobs
from training.perpo.rollout import Prompt, RolloutGroup, Sampler
from training.spec.spec import parse_spec


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture
def tiny(folder: Path) -> LoadedCheckpoint:
    """Random weights that often start images."""
    loaded = load_checkpoint(folder)
    with torch.no_grad():
        loaded.transformer.lm_head.weight[loaded.vocab.boi_id] *= 3.0
    loaded.transformer.requires_grad_(True)
    return loaded


def prompt(loaded: LoadedCheckpoint, number: int = 0) -> Prompt:
    image = tuple((number + i) % 64 for i in range(loaded.vocab.codes_per_image))
    question = ("Where is the red star?", "It is red.", "I look.")[number % 3]
    return Prompt(number, tuple(loaded.template.prompt_ids(question, [image])), question, (image,), "red")


def sampler(loaded: LoadedCheckpoint, **settings: object) -> Sampler:
    given = {"group_size": 4, "max_new_tokens": 72, "max_prompt_len": 64, **settings}
    return Sampler(loaded.transformer, loaded.vocab, loaded.template, **given)  # type: ignore[arg-type]


def tokens(groups: list[RolloutGroup]) -> list[list[int]]:
    return [rollout.token_ids for group in groups for rollout in group.rollouts]


def assert_same_rollouts(
    loaded: LoadedCheckpoint,
    one: list[RolloutGroup],
    other: list[RolloutGroup],
    *,
    seed: int,
    step: int,
    first: int = 0,
) -> None:
    """Assert equality up to near ties, for a sampler with default temperature and top-p."""
    for place, (mine, theirs) in enumerate(zip(one, other, strict=True)):
        params = SamplingParams(temperature=1.0, top_p=0.95, seed=mixed_seed(seed, step, first + place))
        for a, b in zip(mine.rollouts, theirs.rollouts, strict=True):
            assert_equal_up_to_near_tie(loaded, mine.prompt.ids, params, a, b, index=a.index)


def gap(loaded: LoadedCheckpoint, groups: list[RolloutGroup], temperature: float) -> float:
    legal, worst = LegalIds.of(loaded.template, loaded.vocab), 0.0
    for micro in micro_batches(groups, max_tokens=400):
        trainer, _ = policy_logprobs(loaded.transformer, micro, legal, temperature=temperature)
        worst = max(worst, (trainer.detach() - micro.sampler_logprobs).abs().max().item())
    return worst


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 0.95), (0.7, 1.0)])
def test_invariant_7_sampler_logprobs_equal_the_trainers(
    tiny: LoadedCheckpoint, temperature: float, top_p: float
) -> None:
    draw = sampler(tiny, temperature=temperature, top_p=top_p)
    groups = draw.sample([prompt(tiny, n) for n in range(3)], seed=1, step=0)
    seen = {byte for group in groups for rollout in group.rollouts for byte in rollout.legal}
    assert seen == set(Legal)  # text, text with begin-image, codes and forced ends all occur
    assert gap(tiny, groups, temperature) <= 1e-4
    assert gap(tiny, groups, temperature * 1.1) > 1e-2  # another temperature is another distribution

    optimizer = torch.optim.AdamW(tiny.transformer.parameters(), lr=1e-2)
    logprobs = [
        policy_logprobs(tiny.transformer, m, LegalIds.of(tiny.template, tiny.vocab))[0].sum()
        for m in micro_batches(groups)
    ]
    torch.stack(logprobs).sum().backward()
    optimizer.step()
    assert gap(tiny, groups, temperature) > 1e-2
    assert gap(tiny, draw.sample([prompt(tiny)], seed=1, step=1), temperature) <= 1e-4


def test_invariant_7_changed_weight_is_never_missed(tiny: LoadedCheckpoint) -> None:
    draw, prompts = sampler(tiny), [prompt(tiny)]
    before = draw.sample(prompts, seed=1, step=0)
    again = draw.sample(prompts, seed=1, step=0)
    assert_same_rollouts(tiny, before, again, seed=1, step=0)
    with torch.no_grad():
        layer = tiny.transformer.model.layers[0]
        layer.self_attn.q_proj.weight.mul_(-1.0)  # type: ignore[union-attr, operator, operator]
    after = draw.sample(prompts, seed=1, step=0)
    assert tokens(after) != tokens(before)
    assert gap(tiny, after, 1.0) <= 1e-4


def test_group_takes_one_prefill(tiny: LoadedCheckpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = sampler(tiny, max_new_tokens=4, max_images=0, num_slots=12)
    lengths = []
    forward = tiny.transformer.forward

    def spy(ids: torch.Tensor, *args: object, **kwargs: object) -> torch.Tensor:
        lengths.append(len(ids))
        return forward(ids, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(tiny.transformer, "forward", spy)
    prompts = [prompt(tiny, n) for n in range(3)]
    groups = draw.sample(prompts, seed=0, step=0)
    prefills = [n for n in lengths if n > 12]
    assert prefills == [len(p.ids) - 1 for p in prompts if len(p.ids) > 13]
    assert [len(group.rollouts) for group in groups] == [4, 4, 4]


def test_rollout_is_independent_of_the_batch(tiny: LoadedCheckpoint) -> None:
    draw = sampler(tiny)
    alone = draw.sample([prompt(tiny, 1)], seed=3, step=5, first=1)
    together = draw.sample([prompt(tiny, 0), prompt(tiny, 1), prompt(tiny, 2)], seed=3, step=5)
    assert_same_rollouts(tiny, alone, together[1:2], seed=3, step=5, first=1)


def test_every_sample_has_its_own_seed() -> None:
    seeds = {
        sample_seed(mixed_seed(seed, step, place), index)
        for seed in range(3)
        for step in range(5)
        for place in range(5)
        for index in range(4)
    }
    assert len(seeds) == 3 * 5 * 5 * 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_group_of_one_is_rejected(tiny: LoadedCheckpoint) -> None:
    with pytest.raises(ValueError, match="at least 2"):
        sampler(tiny, group_size=1)
    spec = {
        "method": "perpo",
        "base_checkpoint": "tiny",
        "data": {"source": "unitasks"},
        "hyperparameters": {"rollouts_per_prompt": 1},
    }
    with pytest.raises(ValidationError, match="rollouts_per_prompt"):
        parse_spec(spec)


def test_prompt_without_answer_room_is_rejected(tiny: LoadedCheckpoint) -> None:
    with pytest.raises(ValueError, match="leaves no room"):
        sampler(tiny, max_prompt_len=512)


def test_non_finite_logits_stop_sampling(tiny: LoadedCheckpoint) -> None:
    with torch.no_grad():
        tiny.transformer.lm_head.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        sampler(tiny).sample([prompt(tiny)], seed=0, step=0)


def test_micro_batches_exclude_forced_tokens(tiny: LoadedCheckpoint) -> None:
    groups = sampler(tiny).sample([prompt(tiny, n) for n in range(3)], seed=1, step=0)
    rollouts = [rollout for group in groups for rollout in group.rollouts]
    forced = sum(rollout.legal.count(0) for rollout in rollouts)
    assert forced > 0
    parts = micro_batches(groups, max_tokens=200)
    assert len(parts) > 1
    assert sum(len(part.targets) for part in parts) == sum(len(r.token_ids) for r in rollouts) - forced
    weights = torch.cat([part.weights for part in parts])
    assert weights.sum().item() == pytest.approx(1.0)
    first = rollouts[0].num_drawn
    assert weights[:first].tolist() == pytest.approx([1 / (first * 12)] * first)
    whole = micro_batches(groups, max_tokens=10**6)
    assert len(whole) == 1
    assert torch.equal(whole[0].targets, torch.cat([part.targets for part in parts]))


def test_micro_batches_add_up_to_one_batch(tiny: LoadedCheckpoint) -> None:
    groups = sampler(tiny).sample([prompt(tiny, n) for n in range(2)], seed=1, step=0)
    legal = LegalIds.of(tiny.template, tiny.vocab)
    gradients = []
    for size in (150, 10**6):
        tiny.transformer.zero_grad()
        for micro in micro_batches(groups, max_tokens=size):
            (policy_logprobs(tiny.transformer, micro, legal)[0] * micro.weights).sum().backward()
        gradients.append([p.grad.clone() for p in tiny.transformer.parameters() if p.grad is not None])
    for parts, whole in zip(*gradients, strict=True):
        assert torch.allclose(parts, whole, atol=1e-5)

"""Rollouts in actors equal those of an engine in the worker. Without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.low_rank import LoRASettings
from model.nets.lora import attach, trained_state
from tests.tiny import make_tiny_checkpoint
from tests.training.cluster.in_process import InProcessPool
from tests.training.perpo.test_job import StopAfter, context, step_metrics
from tests.training.perpo.test_rollout import assert_same_rollouts, prompt, tokens
from training.cluster import rollouts
from training.cluster.pool import PoolError
from training.cluster.rollouts import Recipe, RemoteEngines, parts
from training.jobs.context import JobStopped
from training.perpo import job as perpo
from training.perpo.rollout import RolloutGroup, Sampler

LORA = LoRASettings(rank=2, alpha=8.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rollouts, "ActorPool", InProcessPool)
    InProcessPool.made.clear()


@pytest.fixture
def tiny(folder: Path) -> LoadedCheckpoint:
    """Random weights that often start images."""
    loaded = load_checkpoint(folder)
    with torch.no_grad():
        loaded.transformer.lm_head.weight[loaded.vocab.boi_id] *= 3.0
    loaded.transformer.requires_grad_(True)
    return loaded


def engines(loaded: LoadedCheckpoint, count: int, lora: LoRASettings | None = None) -> tuple[Any, InProcessPool]:
    transformer = loaded.transformer
    text_ids = tuple(loaded.template.text_legal_ids())
    recipe = Recipe(transformer.config, transformer.dtype, lora, loaded.vocab, text_ids, 64 + 72, "cpu")
    pool = InProcessPool(recipe, count)
    return RemoteEngines(pool, transformer), pool  # type: ignore[arg-type]


def sampler(loaded: LoadedCheckpoint, engine: RemoteEngines | None = None) -> Sampler:
    return Sampler(
        loaded.transformer,
        loaded.vocab,
        loaded.template,
        group_size=3,
        max_new_tokens=72,
        max_prompt_len=64,
        engine=engine,
    )


def assert_equal(loaded: LoadedCheckpoint, one: list[RolloutGroup], other: list[RolloutGroup], step: int) -> None:
    assert_same_rollouts(loaded, one, other, seed=3, step=step)
    for mine, theirs in zip(one, other, strict=True):
        assert mine.prompt is theirs.prompt
        for a, b in zip(mine.rollouts, theirs.rollouts, strict=True):
            assert (a.index, a.legal, a.finish_reason) == (b.index, b.legal, b.finish_reason)
            assert a.logprobs == pytest.approx(b.logprobs, abs=1e-4)


@pytest.mark.parametrize("lora", [None, LORA])
def test_actors_sample_what_the_worker_would(tiny: LoadedCheckpoint, lora: LoRASettings | None) -> None:
    if lora is not None:
        attach(tiny.transformer, lora)
    prompts = [prompt(tiny, n) for n in range(4)]
    remote, pool = engines(tiny, 3, lora)
    here, there = sampler(tiny), sampler(tiny, remote)
    seen = []
    for step in range(2):
        local = here.sample(prompts, seed=3, step=step)
        assert_equal(tiny, local, there.sample(prompts, seed=3, step=step), step)
        seen.append(tokens(local))
        with torch.no_grad():
            for value in trained_state(tiny.transformer).values():
                value += 0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(step))
    assert [[len(share.prompts) for share in pool.shares[i : i + 3]] for i in (0, 3)] == [[1, 1, 2]] * 2
    trained = trained_state(tiny.transformer)
    fixed, *changing = pool.sent
    assert {*fixed} | {*trained} == {*tiny.transformer.state_dict()}
    assert not {*fixed} & {*trained}
    assert [{*one} for one in changing] == [{*trained}] * 2, "with pairs, only these travel"
    assert bool(fixed) == (lora is not None)


def test_refill_uses_the_weights_of_its_step(tiny: LoadedCheckpoint) -> None:
    prompts = [prompt(tiny, n) for n in range(3)]
    remote, pool = engines(tiny, 2)
    there = sampler(tiny, remote)
    whole = there.sample(prompts, seed=3, step=0)
    both = there.sample(prompts[:2], seed=3, step=0) + there.sample(prompts[2:], seed=3, step=0, first=2)
    assert_equal(tiny, whole, both, 0)
    assert len(pool.sent) == 1 + 2, "and they are sent once a step"


def test_share_does_not_depend_on_its_actor(tiny: LoadedCheckpoint) -> None:
    prompts = [prompt(tiny, n) for n in range(4)]
    remote, pool = engines(tiny, 3)
    there = sampler(tiny, remote)
    whole = there.sample(prompts, seed=3, step=0)
    pool.dead = {0, 2}
    again = there.sample(prompts, seed=3, step=0)
    assert [r.logprobs for g in whole for r in g.rollouts] == [r.logprobs for g in again for r in g.rollouts]
    assert tokens(whole) == tokens(again)


def test_logits_that_are_not_finite_stop_the_sampling(tiny: LoadedCheckpoint) -> None:
    remote, _ = engines(tiny, 2)
    with torch.no_grad():
        tiny.transformer.lm_head.weight.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="not finite"):
        sampler(tiny, remote).sample([prompt(tiny)], seed=0, step=0)


@pytest.mark.parametrize(("count", "most"), [(1, 1), (1, 4), (7, 3), (64, 5), (3, 3)])
def test_parts_are_whole_in_order_and_even(count: int, most: int) -> None:
    found = [list(range(count)[part]) for part in parts(count, most)]
    assert [item for part in found for item in part] == list(range(count))
    sizes = [len(part) for part in found]
    assert len(sizes) == min(count, most)
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1


def test_job_with_actors_takes_the_same_steps_and_resumes_exactly(folder: Path, tmp_path: Path) -> None:
    actors: dict[str, Any] = {"rollout_actors": 3, "validation": {"every": 2, "tasks": 2}}
    perpo.run(context(folder, tmp_path / "alone", **actors | {"rollout_actors": 0}))
    perpo.run(context(folder, tmp_path / "spread", **actors))
    alone, spread = step_metrics(tmp_path / "alone"), step_metrics(tmp_path / "spread")
    assert [*alone] == [*spread] == [0, 1, 2, 3]
    for step, values in alone.items():
        assert spread[step] == pytest.approx(values, abs=1e-5)
    with pytest.raises(JobStopped):
        perpo.run(context(folder, tmp_path / "resumed", stop=StopAfter(8), **actors))
    perpo.run(context(folder, tmp_path / "resumed", resume=True, **actors))
    assert step_metrics(tmp_path / "resumed") == spread
    assert not any(pool.is_open for pool in InProcessPool.made)
    assert len(InProcessPool.made) == 3


def test_lost_cluster_saves_the_steps_before(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    perpo.run(context(folder, tmp_path / "whole", rollout_actors=2))
    work, rounds = InProcessPool.work, []

    def lost(pool: InProcessPool, *arguments: Any) -> list[Any]:
        rounds.append(1)
        if len(rounds) == 2:
            raise PoolError("cluster_unreachable", "the connection is lost")
        return work(pool, *arguments)

    monkeypatch.setattr(InProcessPool, "work", lost)
    with pytest.raises(PoolError, match="cluster_unreachable"):
        perpo.run(context(folder, tmp_path / "lost", rollout_actors=2))
    assert not InProcessPool.made[-1].is_open
    perpo.run(context(folder, tmp_path / "lost", resume=True, rollout_actors=2))
    assert len(rounds) == 2 + 2, "the first step is not taken again"
    assert step_metrics(tmp_path / "lost") == step_metrics(tmp_path / "whole")

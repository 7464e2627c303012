"""What credit for steps costs a step of PeRPO: sampling, scoring, judging every drawing, and the update.

Both sides take the same prompts of the world with the shipped weights, and learn at a rate that leaves these as they
are. Counted are sampled tokens a second over the whole step.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from model.checkpoint.checkpoint import load_checkpoint
from model.engine.phases import LegalIds
from tests.benchmarks.decoding import Row, compare
from training.perpo.collect import Collector
from training.perpo.prompts import PromptOrder, WorldPrompts
from training.perpo.rollout import Sampler
from training.perpo.update import Updater
from training.scoring.rewards import Scorer
from training.spec.hyperparameters import PeRPOHyperparameters
from training.spec.spec import UniTasksData

TRAINED = Path(__file__).parents[2] / "model" / "nano" / "nano-omni-r1"
PROMPTS, GROUP = 4, 8
PLAIN: dict[str, Any] = {
    "lr": 1e-12,
    "prompts_per_step": PROMPTS,
    "rollouts_per_prompt": GROUP,
    "mini_batch_prompts": PROMPTS,
    "oversampling": 1.0,
    "filter_metric": "none",
}
STEP_CREDIT: dict[str, Any] = {"credit": "step", "code_weights": "changed", "reward": {"functional": 0.5}}


class Learning:
    """Steps of a run without its job."""

    def __init__(self, **hyper: Any) -> None:
        hp = PeRPOHyperparameters(**{**PLAIN, **hyper})
        loaded = load_checkpoint(TRAINED)
        assert loaded.vq is not None
        policy, reference = loaded.transformer.train().requires_grad_(True), load_checkpoint(TRAINED).transformer
        prompts = WorldPrompts(UniTasksData(num_samples=1_000), 0, loaded.template, loaded.vq)
        scorer = Scorer(loaded.template, loaded.vq.codebook, loaded.manifest.perception, hp.reward)
        sampler = Sampler(
            policy,
            loaded.vocab,
            loaded.template,
            group_size=GROUP,
            max_new_tokens=hp.max_new_tokens,
            max_prompt_len=prompts.longest,
        )
        self.collector = Collector(sampler, scorer, loaded.vq, prompts, PromptOrder(1_000, 0), hp, seed=0)
        self.updater = Updater(
            policy, reference.eval().requires_grad_(False), LegalIds.of(loaded.template, loaded.vocab), hp
        )
        self.at = 0

    def __call__(self) -> float:
        """Tokens a second of one step."""
        start = time.perf_counter()
        batch = self.collector.collect(self.at, self.at * PROMPTS)
        self.updater.step(batch.kept, self.at)
        self.at += 1
        return batch.num_tokens / (time.perf_counter() - start)


def _step_credit(sides: Any, *, rounds: int, threads: Sequence[int]) -> Row:
    credited, plain = Learning(**STEP_CREDIT), Learning()
    unit = "tokens/s with and without"
    return compare(credited, plain, unit=unit, more_is_better=True, rounds=rounds, threads=threads)


ROWS: dict[str, Callable[..., Row]] = {"step_credit_cost": _step_credit}

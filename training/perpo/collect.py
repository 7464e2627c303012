"""The sampling half of a PeRPO step: groups of scored rollouts, refilled until enough of them are informative.

Knows no optimiser, log or checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from model.nets.vq import VQModel
from training.jobs.context import JobError
from training.perpo.credit import is_informative
from training.perpo.functional import judged, score
from training.perpo.prompts import PromptOrder, PromptSet
from training.perpo.rollout import RolloutGroup, Sampler
from training.scoring.custom import Sample
from training.scoring.custom_scorer import CustomScorer
from training.scoring.rewards import Scorer, reward_metrics, score_all
from training.spec.hyperparameters import PeRPOHyperparameters


@dataclass
class StepBatch:
    """Groups sampled in one step, and those it learns from."""

    seen: list[RolloutGroup] = field(default_factory=list)
    kept: list[RolloutGroup] = field(default_factory=list)
    dropped: int = 0
    informative: int = 0  # of those seen: the answers or some verdicts on a drawing differ
    refills: int = 0
    errors: list[str] = field(default_factory=list)
    num_prompts: int = 0

    def metrics(self) -> dict[str, float]:
        """Rewards, images, groups and lengths of all samples, dropped groups included."""
        rollouts = [r for group in self.seen for r in group.rollouts]
        return {
            **reward_metrics([r.reward for r in rollouts if r.reward is not None]),
            "groups/informative": self.informative / max(1, len(self.seen)),
            "groups/dropped_share": self.dropped / max(1, len(self.seen)),
            "groups/kept": float(len(self.kept)),
            "groups/refills": float(self.refills),
            "groups/skipped": float(not self.kept),
            "scoring/error_share": len(self.errors) / max(1, len(rollouts)),
            "response/len": self.num_tokens / max(1, len(rollouts)),
            "response/length_stops": sum(r.finish_reason == "length" for r in rollouts) / max(1, len(rollouts)),
        }

    @property
    def num_tokens(self) -> int:
        """Tokens of all responses."""
        return sum(len(r.token_ids) for group in self.seen for r in group.rollouts)


@dataclass(frozen=True)
class Collector:
    """Samples and scores the groups of a run's steps, the prompts in the run's order."""

    sampler: Sampler
    scorer: Scorer
    vq: VQModel
    prompts: PromptSet
    order: PromptOrder
    hp: PeRPOHyperparameters
    seed: int
    custom: CustomScorer | None = None

    def collect(self, step: int, cursor: int, check_stop: Callable[[], None] = lambda: None) -> StepBatch:
        """Sample and score groups until a step has enough to learn from, or its refills are used up.

        A refill samples as many prompts as the missing groups need at the same oversampling. Unscored trajectories are
        excluded from their groups.

        Args:
            step: from 0.
            cursor: prompts that earlier steps have used.
            check_stop: called after every trajectory; may raise.

        Raises:
            JobError: ``scoring_failed``, if too large a share of the trajectories could not be scored.
            training.scoring.custom.RewardError: a custom reward cannot be used any more.
        """
        hp, batch = self.hp, StepBatch()
        for round_ in range(hp.refill_rounds + 1):
            missing = hp.prompts_per_step - len(batch.kept)
            if missing <= 0:
                break
            first, count = batch.num_prompts, math.ceil(missing * hp.oversampling)
            chosen = self.prompts.take([self.order[cursor + first + i] for i in range(count)])
            groups = self.sampler.sample(
                chosen, seed=self.seed, step=step, first=first, on_finish=lambda _: check_stop()
            )
            batch.refills, batch.num_prompts = round_, first + count
            for group in groups:
                self._take(group, batch)
            self._require_scores(step, batch)
        return batch

    def _take(self, group: RolloutGroup, batch: StepBatch) -> None:
        """Score a group, and keep it if it is needed and informative."""
        prompt = group.prompt
        scores = score_all(partial(score, self.scorer, prompt, r.token_ids) for r in group.rollouts)
        if self.custom is not None:
            sample = Sample(prompt.question, prompt.reference, prompt.choices, prompt.slice)
            scores = self.custom.add(scores, sample, prompt.images, [len(r.token_ids) for r in group.rollouts])
        if delta := self.hp.reward.functional:
            scores = judged(self.vq, prompt, scores, delta if self.hp.credit == "trajectory" else 0.0)
        batch.errors += scores.errors
        for rollout, reward in zip(group.rollouts, scores.rewards, strict=True):
            rollout.reward = reward
        batch.seen.append(group)
        learnt = RolloutGroup(prompt, [r for r in group.rollouts if r.reward is not None])
        batch.informative += is_informative(learnt, "any")
        if not is_informative(learnt, self.hp.filter_metric):
            batch.dropped += 1
        elif len(batch.kept) < self.hp.prompts_per_step:
            batch.kept.append(learnt)

    def _require_scores(self, step: int, batch: StepBatch) -> None:
        trajectories, failed = sum(len(group.rollouts) for group in batch.seen), len(batch.errors)
        if failed > self.hp.reward.max_error_share * trajectories:
            raise JobError(
                "scoring_failed",
                f"step {step + 1}: {failed} of {trajectories} trajectories could not be scored ({batch.errors[0]})",
            )

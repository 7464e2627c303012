"""The optimiser's half of a PeRPO step: old and reference log-probabilities, then one pass of updates (Eqs. 13-16).

Takes groups of scored rollouts, a policy and a reference; samples and logs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from model.engine.phases import LegalIds
from model.nets.lora import pairs
from model.nets.transformer import LayerWeights, Transformer
from training.jobs.loop import adamw, set_lr
from training.jobs.schedules import make_schedule
from training.perpo.batch import MicroBatch, micro_batches, policy_logprobs
from training.perpo.credit import set_credit
from training.perpo.losses import clipped_loss, effective_share, kl_estimate, truncated_weights
from training.perpo.rollout import RolloutGroup
from training.spec.hyperparameters import PeRPOHyperparameters

EXACT = 1e-4  # nats between sampler and trainer that count as zero (invariant 7)


class Updater:
    """Updates the policy: one pass over the kept groups, in mini-batches of whole groups."""

    def __init__(
        self, policy: Transformer, reference: Transformer | None, legal: LegalIds, hp: PeRPOHyperparameters
    ) -> None:
        """``reference`` is None without a KL term."""
        self.policy, self.reference, self.legal, self.hp = policy, reference, legal, hp
        self._schedule = make_schedule(hp.schedule, hp.lr, hp.steps, hp.warmup, floor=0.0)
        self.optimizer = adamw([policy], weight_decay=hp.weight_decay)
        self._parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        self._forward: Callable[..., tuple[Tensor, Tensor]] = partial(
            policy_logprobs, legal=legal, temperature=hp.temperature, precision=hp.precision
        )

    def step(self, groups: Sequence[RolloutGroup], step: int) -> dict[str, float]:
        """Update the policy on one step's groups; ``step`` counts from 0.

        Raises:
            FloatingPointError: the loss or its gradient is not finite; this mini-batch was not applied.
        """
        hp = self.hp
        set_credit(groups, hp)
        size = hp.mini_batch_prompts
        batches = [micro_batches(groups[i : i + size], device=self.policy.device) for i in range(0, len(groups), size)]
        # Computed before the first update: sampling policy and reference, as the trainer's forward sees them.
        old = self._logprobs(self.policy, batches)
        ref = self._logprobs(self.reference, batches) if self.reference else [None] * len(batches)
        flat = [micro for mini in batches for micro in mini]
        off = torch.cat([o - m.sampler_logprobs for o, m in zip((o for part in old for o in part), flat, strict=True)])
        mismatch = off.abs().max().item()
        lr = self._schedule.lr(step)
        set_lr(self.optimizer, lr)
        tally = _Tally()
        norms = []
        for number, (mini, old_mini, ref_mini) in enumerate(zip(batches, old, ref, strict=True)):
            self.optimizer.zero_grad(set_to_none=True)
            weights = _stacked(self.policy)
            for place, micro in enumerate(mini):
                loss = self._loss(
                    micro,
                    weights,
                    old_mini[place],
                    ref_mini[place] if ref_mini else None,
                    tally,
                    first=number == 0,
                    correct=mismatch > EXACT,
                )
                if not torch.isfinite(loss):
                    raise FloatingPointError(f"the loss is {loss.item()}")
                loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(self._parameters, hp.clip_norm)
            if not torch.isfinite(norm):
                raise FloatingPointError(f"the gradient's norm is {norm.item()}")
            self.optimizer.step()
            norms.append(norm.item())
        return {
            **tally.metrics(),
            "mismatch/mean": off.abs().mean().item(),
            "mismatch/max": mismatch,
            "optim/lr": lr,
            "optim/grad_norm": sum(norms) / len(norms),
            "optim/updates": float(len(norms)),
        }

    def _logprobs(self, transformer: Transformer, batches: Sequence[Sequence[MicroBatch]]) -> list[list[Tensor]]:
        weights = _stacked(transformer)
        return [[self._forward(transformer, micro, weights=weights)[0].detach() for micro in mini] for mini in batches]

    def _loss(
        self,
        micro: MicroBatch,
        weights: Sequence[LayerWeights] | None,
        old: Tensor,
        ref: Tensor | None,
        tally: _Tally,
        *,
        first: bool,
        correct: bool,
    ) -> Tensor:
        """One micro-batch's part of the negated objective (Eqs. 13-16)."""
        hp = self.hp
        logprobs, entropies = self._forward(self.policy, micro, weights=weights)
        loss, ratio, clipped = clipped_loss(
            logprobs, old, micro.advantages, clip_low=hp.clip_low, clip_high=hp.clip_high
        )
        if correct:
            loss = loss * truncated_weights(old, micro.sampler_logprobs, hp.sampler_ratio_cap)
        kl = torch.zeros_like(logprobs) if ref is None else kl_estimate(logprobs, ref, hp.kl_estimator)
        tally.add(micro, ratio, clipped, kl.detach(), entropies.detach(), first=first)
        return (micro.weights * (micro.factors * loss + hp.kl_coef * kl - hp.entropy_coef * entropies)).sum()


def _stacked(transformer: Transformer) -> list[LayerWeights] | None:
    """Weights shared by the forwards of a mini-batch; None where the forward must stack them itself."""
    if transformer.recompute_layers or next(pairs(transformer), None) is not None:
        return None
    return transformer.layer_weights()


class _Tally:
    """Token means over the mini-batches of a step."""

    def __init__(self) -> None:
        self._parts: dict[str, list[Tensor]] = {}

    def add(
        self, micro: MicroBatch, ratio: Tensor, clipped: Tensor, kl: Tensor, entropy: Tensor, *, first: bool
    ) -> None:
        parts = {
            "ratio": ratio,
            "clipped": clipped.float(),
            "kl": kl,
            "text": entropy[~micro.is_code],
            "image": entropy[micro.is_code],
        }
        if first:
            parts |= {"first_ratio": ratio, "first_clipped": clipped.float()}
        for name, values in parts.items():
            self._parts.setdefault(name, []).append(values)

    def metrics(self) -> dict[str, float]:
        every = {name: torch.cat(parts) for name, parts in self._parts.items()}

        def mean(name: str) -> float:
            return every[name].mean().item() if len(every[name]) else 0.0

        return {
            "policy/kl": mean("kl"),
            "policy/entropy_text": mean("text"),
            "policy/entropy_image": mean("image"),
            "policy/clip_frac": mean("clipped"),
            "policy/ratio_max": every["ratio"].max().item(),
            "policy/ess": effective_share(every["ratio"]),
            "policy/first_clip_frac": mean("first_clipped"),
            "policy/first_ratio_off": (every["first_ratio"] - 1.0).abs().max().item(),
        }

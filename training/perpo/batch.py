"""Rollouts -> packed micro-batches, and the policy's forward over them. Knows no rewards, loops or optimisers.

The old log-probabilities and the update use the same micro-batches in the same mode: only then is the first ratio
exactly 1, since the last bits of a product depend on its shape and its kernel.

Legend: T tokens of a micro-batch, M drawn positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.engine.phases import Legal, LegalIds
from model.nets.transformer import LayerWeights, PackedAttention, PackedLayout, Transformer
from model.precision import PrecisionChoice, autocast
from training.perpo.credit import token_advantages
from training.perpo.losses import Heads, legal_logprobs, token_weights
from training.perpo.rollout import Rollout, RolloutGroup

MICRO_BATCH_TOKENS = 2_048  # bounds the memory of a backward; does not affect the result


@dataclass(frozen=True)
class MicroBatch:
    """Complete trajectories, packed. Everything but ``ids`` has one entry per sampled position, no forced ones."""

    ids: Tensor  # [T]
    layout: PackedLayout
    predictors: Tensor  # [M] positions of the predicting states
    targets: Tensor  # [M] token ids
    legal: Tensor  # [M] uint8
    is_code: Tensor  # [M]
    sampler_logprobs: Tensor  # [M]
    advantages: Tensor  # [M]
    weights: Tensor  # [M] 1 / (L_i * N)
    factors: Tensor  # [M] of the weights in the clipped term; KL and entropy keep theirs

    @property
    def num_tokens(self) -> int:
        """T."""
        return len(self.ids)


def largest_part(longest: int, trajectories: int) -> int:
    """Tokens that `micro_batches` puts together at most, of so many trajectories with at most ``longest`` each."""
    return max(longest, min(MICRO_BATCH_TOKENS, longest * trajectories))


def micro_batches(
    groups: Sequence[RolloutGroup], *, max_tokens: int = MICRO_BATCH_TOKENS, device: str | torch.device = "cpu"
) -> list[MicroBatch]:
    """Split one optimiser batch into parts of at most ``max_tokens`` or one trajectory; the parts' losses add up."""
    rows = [(group.prompt.ids, rollout) for group in groups for rollout in group.rollouts]
    parts: list[list[tuple[tuple[int, ...], Rollout]]] = []
    size = 0
    for prompt, rollout in rows:
        length = len(prompt) + len(rollout.token_ids) - 1
        if not parts or size + length > max_tokens:
            parts.append([])
            size = 0
        parts[-1].append((prompt, rollout))
        size += length
    return [_pack(part, len(rows), device) for part in parts]


def _pack(rows: Sequence[tuple[tuple[int, ...], Rollout]], trajectories: int, device: str | torch.device) -> MicroBatch:
    ids: list[int] = []
    lengths, drawn = [], []
    predictors: list[int] = []
    targets: list[int] = []
    legal: list[int] = []
    logprobs: list[float] = []
    advantages: list[float] = []
    factors: list[float] = []
    for prompt, rollout in rows:
        start = len(ids) + len(prompt) - 1  # the prompt's last token predicts the response's first
        ids += prompt
        ids += rollout.token_ids[:-1]
        lengths.append(len(prompt) + len(rollout.token_ids) - 1)
        places = [i for i, byte in enumerate(rollout.legal) if byte != Legal.FORCED]
        drawn.append(len(places))
        predictors += [start + i for i in places]
        targets += [rollout.token_ids[i] for i in places]
        legal += [rollout.legal[i] for i in places]
        logprobs += [rollout.logprobs[i] for i in places]
        credited = token_advantages(rollout)
        advantages += [credited[i] for i in places]
        factors += [1.0 if rollout.factors is None else rollout.factors[i] for i in places]
    bytes_ = torch.tensor(legal, dtype=torch.uint8)
    return MicroBatch(
        ids=torch.tensor(ids, device=device),
        layout=PackedLayout.from_lengths(lengths, device),
        predictors=torch.tensor(predictors, device=device),
        targets=torch.tensor(targets, device=device),
        legal=bytes_.to(device),
        is_code=(bytes_ == Legal.CODE).to(device),
        sampler_logprobs=torch.tensor(logprobs, device=device),
        advantages=torch.tensor(advantages, device=device),
        weights=token_weights(drawn, trajectories).to(device),
        factors=torch.tensor(factors, device=device),
    )


def policy_logprobs(
    transformer: Transformer,
    batch: MicroBatch,
    legal: LegalIds,
    *,
    temperature: float = 1.0,
    precision: PrecisionChoice = "fp32",
    weights: Sequence[LayerWeights] | None = None,
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies [M] of the sampled tokens under the sampler's mask, in fp32.

    Always call with gradients enabled: PyTorch uses other kernels without them. ``weights`` are the transformer's
    stacked ones, shared by several micro-batches (stacking saves nothing for its backward, so it may be repeated).
    """
    with autocast(precision, batch.ids.device):
        hidden = transformer(batch.ids, batch.layout.positions, PackedAttention(batch.layout), weights=weights)
        heads = Heads.of(transformer.lm_head.weight, legal)
        return legal_logprobs(hidden[batch.predictors], batch.targets, batch.legal, heads, temperature=temperature)

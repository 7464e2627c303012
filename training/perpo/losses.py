"""The PeRPO objective as free functions on tensors: log-probabilities, advantages, ratio, KL, entropy (Eqs. 12-16).

Log-probabilities are those of the *sampler's* distribution: over the legal ids of a position,
at the sampling temperature, without top-p. One byte per response token encodes the legal set
(`model.engine.phases.Legal`): 0 forced, 1 text, 2 text with begin-image, 3 code. Forced tokens are excluded.

Knows no models, rewards or optimisers.

Legend: M sampled positions, H width, V vocabulary, G group, N trajectories of an optimiser batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from model.checkpoint.memory import CHUNKED_LOGITS
from model.engine.phases import Legal, LegalIds
from model.nets.chunks import in_parts

KLEstimator = Literal["k3", "k1"]
MAX_LOG_RATIO = 20.0  # larger ratios carry no information, and exp() would overflow in fp32


@dataclass(frozen=True, slots=True)
class Heads:
    """The rows of the output matrix that can be sampled: ``text`` [V_text, H], begin-image last, ``codes`` [K, H].

    ``text_index`` and ``code_index`` [V] give a token id's row in either, -1 if it is in neither.
    """

    text: Tensor
    codes: Tensor
    text_index: Tensor
    code_index: Tensor

    @classmethod
    def of(cls, lm_head: Tensor, legal: LegalIds) -> Heads:
        """Select from the output matrix [V, H]; gradients flow back through the selection."""
        size, device = lm_head.shape[0], lm_head.device
        rows, indices = [], []
        for ids in (legal.text, legal.codes):
            chosen = torch.tensor(ids, device=device)
            index = torch.full((size,), -1, dtype=torch.long, device=device)
            index[chosen] = torch.arange(len(ids), device=device)
            rows.append(lm_head.index_select(0, chosen))
            indices.append(index)
        return cls(rows[0], rows[1], indices[0], indices[1])


def legal_logprobs(
    hidden: Tensor, targets: Tensor, legal: Tensor, heads: Heads, *, temperature: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Log-probabilities and entropies of sampled tokens under the sampler's mask.

    Logits of many positions are computed in chunks, and again in the backward.

    Args:
        hidden: [M, H], the states that predict the targets.
        targets: [M] sampled token ids.
        legal: [M] uint8, the legal set of each; no position may be forced.
        heads: the output matrix's rows.
        temperature: of the sampling.

    Returns:
        log-probabilities [M] and entropies [M] in nats, both fp32.

    Raises:
        ValueError: a target is not legal at its position, or a position is forced.
    """
    is_code = legal == Legal.CODE
    index = torch.where(is_code, heads.code_index[targets], heads.text_index[targets])
    closed = legal == Legal.TEXT
    last = heads.text.shape[0] - 1
    if bool(((legal == Legal.FORCED) | (index < 0) | (closed & (index == last))).any()):
        raise ValueError("a token is forced or not legal at its position: it has no log-probability")
    logprobs = hidden.new_empty(targets.shape, dtype=torch.float32)
    entropies = torch.empty_like(logprobs)
    for rows, head in (((~is_code).nonzero()[:, 0], heads.text), (is_code.nonzero()[:, 0], heads.codes)):
        if not len(rows):
            continue
        scored = partial(_scored, head=head, temperature=temperature, shuts=head is heads.text)
        size = max(1, CHUNKED_LOGITS // len(head))
        found, entropy = in_parts(scored, size, hidden[rows], index[rows], closed[rows])
        logprobs = logprobs.index_copy(0, rows, found)
        entropies = entropies.index_copy(0, rows, entropy)
    return logprobs, entropies


def _scored(
    states: Tensor, index: Tensor, closed: Tensor, *, head: Tensor, temperature: float, shuts: bool
) -> tuple[Tensor, Tensor]:
    """Log-probabilities [m] of the head's rows ``index`` [m], and entropies [m].

    With ``shuts``, the last row is not legal where ``closed`` [m].
    """
    logits = (states @ head.t()).float() / temperature
    if shuts:
        shut = torch.zeros_like(logits)
        shut[closed, -1] = float("-inf")
        logits = logits + shut
    log_softmax = torch.log_softmax(logits, dim=-1)
    entropies = -(log_softmax.exp() * log_softmax.masked_fill(log_softmax.isinf(), 0.0)).sum(-1)
    return log_softmax.gather(1, index[:, None])[:, 0], entropies


def group_advantages(rewards: Sequence[float], eps: float) -> list[float]:
    """A = (r - mu) / (sigma + eps) within one group, sigma of the population (Eq. 13).

    Raises:
        ValueError: fewer than two rewards.
    """
    if len(rewards) < 2:
        raise ValueError(f"a group of {len(rewards)} has no advantages: it needs at least 2")
    mean = sum(rewards) / len(rewards)
    sigma = (sum((r - mean) ** 2 for r in rewards) / len(rewards)) ** 0.5
    return [(r - mean) / (sigma + eps) for r in rewards]


def token_weights(lengths: Sequence[int], trajectories: int) -> Tensor:
    """Weight [M] of every sampled token: 1 / (L_i * N), the mean over a trajectory's tokens, then over trajectories.

    Args:
        lengths: L_i, sampled tokens of each trajectory, in token order.
        trajectories: N of the whole optimiser batch, so that micro-batches add up to one batch.
    """
    counts = torch.tensor(lengths)
    return (1.0 / (counts.float() * trajectories)).repeat_interleave(counts)


def clipped_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, *, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """The clipped surrogate, negated, per token (Eqs. 14, 15).

    Args:
        logprobs: [M] under the optimised policy.
        old_logprobs: [M] under the sampling policy.
        advantages: [M], each token its trajectory's.
        clip_low: lower bound of the ratio, 1 - clip_low.
        clip_high: upper bound, 1 + clip_high.

    Returns:
        loss [M], ratio [M] and whether the gradient was clipped [M].
    """
    ratio = (logprobs - old_logprobs).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    bounded = ratio.clamp(1.0 - clip_low, 1.0 + clip_high)
    free, held = ratio * advantages, bounded * advantages
    return -torch.minimum(free, held), ratio.detach(), (held < free).detach()


def kl_estimate(logprobs: Tensor, ref_logprobs: Tensor, estimator: KLEstimator = "k3") -> Tensor:
    """KL(policy || reference) per token [M] from the sampled tokens alone (Eq. 16).

    ``k1`` is the plain log-ratio of the paper, whose gradient has no expected value as a loss term; ``k3`` is
    exp(-d) - 1 + d for the log-ratio d: never negative, of the same expectation, and its gradient pulls back.
    """
    difference = logprobs - ref_logprobs
    if estimator == "k1":
        return difference
    bounded = difference.clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
    return torch.exp(-bounded) - 1.0 + bounded


def truncated_weights(old_logprobs: Tensor, sampler_logprobs: Tensor, cap: float) -> Tensor:
    """min(pi_old / pi_sampler, cap) [M], for a sampler with another precision than the trainer."""
    return (old_logprobs - sampler_logprobs).clamp(max=MAX_LOG_RATIO).exp().clamp(max=cap)


def effective_share(ratio: Tensor) -> float:
    """Effective sample size of the ratios [M] over their number: (sum r)^2 / (M sum r^2); 1 if all are equal."""
    return (ratio.mean().square() / ratio.square().mean()).item()

"""Losses as free functions on tensors. They know no models, data formats or optimisers.

Legend: M positions, V vocabulary, H transformer width, D codebook width, K codes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from model.checkpoint.memory import CHUNKED_LOGITS
from model.nets.chunks import in_parts

Reduction = Literal["sum", "mean"]


def token_logprobs(logits: Tensor, targets: Tensor) -> Tensor:
    """Log-probabilities [M] of the targets [M] under the full-vocabulary softmax of the logits [M, V], in fp32."""
    return -F.cross_entropy(logits.float(), targets, reduction="none")


def sft_loss(logits: Tensor, targets: Tensor, is_code: Tensor, denominator: float) -> tuple[Tensor, dict[str, float]]:
    """Next-token cross-entropy over response tokens, text and image alike (Eq. 1).

    Args:
        logits: [M, V], predicting the targets.
        targets: [M] token ids.
        is_code: [M] bool, where the target is an image code.
        denominator: response tokens of the whole optimiser batch, so that k micro-batches add up to one batch.

    Returns:
        The scalar sum / denominator, and ``loss/text`` and ``loss/image``: the plain means over each kind.
    """
    return reduce_nll(-token_logprobs(logits, targets), is_code, denominator)


def target_nll(states: Tensor, targets: Tensor, head: Callable[[Tensor], Tensor], vocab_size: int) -> Tensor:
    """Negative log-likelihoods [M] of the targets [M], from the states [M, H] that predict them.

    Logits of a large vocabulary are computed in chunks, and again in the backward: 5,000 positions of 65,536 tokens
    would take 1.3 GB in fp32, and as much for their gradient. `head` maps states to logits.
    """

    def of(states: Tensor, targets: Tensor) -> tuple[Tensor]:
        return (-token_logprobs(head(states), targets),)

    return in_parts(of, max(1, CHUNKED_LOGITS // vocab_size), states, targets)[0]


def reduce_nll(nll: Tensor, is_code: Tensor, denominator: float) -> tuple[Tensor, dict[str, float]]:
    """The loss and its parts from the negative log-likelihoods [M]; see :func:`sft_loss`."""
    detached = nll.detach()
    return nll.sum() / denominator, {
        "loss/text": _masked_mean(detached, ~is_code),
        "loss/image": _masked_mean(detached, is_code),
    }


def perception_loss(
    projected: Tensor, codes: Tensor, codebook: Tensor, denominator: float, *, reduction: Reduction = "sum"
) -> tuple[Tensor, dict[str, float]]:
    """Perception alignment loss: mean over Omega of ||W h_t - E[c_t]||^2 (Eq. 2).

    The codebook is a constant here: no gradient reaches E. Without an image in the batch the loss is 0.

    Args:
        projected: [M, D], W h_t for the positions of Omega (image codes of the response only).
        codes: [M], the code c_t at each position.
        codebook: [K, D].
        denominator: image-code positions of the whole optimiser batch.
        reduction: "sum" over D as in the paper, or "mean" as in the authors' code (D times smaller).
    """
    error = (projected.float() - codebook.detach().float()[codes]).square()
    per_position = error.sum(-1) if reduction == "sum" else error.mean(-1)
    loss = per_position.sum() / max(denominator, 1.0)
    return loss, {"loss/perception": float(per_position.detach().mean()) if len(codes) else 0.0}


def _masked_mean(values: Tensor, mask: Tensor) -> float:
    count = int(mask.sum())
    return float(values[mask].sum()) / count if count else 0.0

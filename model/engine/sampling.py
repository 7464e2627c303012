"""Token sampling: legal rows of logits in, indices and log-probabilities out, all rows at once and with no host sync.

Log-probabilities are those of the temperature-scaled distribution over the legal tokens, without top-p (method.md §3),
because that is what the trainer computes; greedy rows count as temperature 1. Top-p needs no sort: a sample of the full
distribution is rejected when the likelier tokens already hold `top_p`, which leaves exactly the nucleus. A row rejected
twice returns -1 and is resampled by :func:`draw_from_nucleus`.

Legend: n rows, V legal tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from model.engine.sequence import SamplingParams

__all__ = ["RowParams", "SamplingParams", "choose", "draw", "draw_from_nucleus"]

_BELOW_ONE = 1.0 - 2.0**-23  # keeps u * total strictly below the total in fp32


@dataclass(frozen=True, slots=True)
class RowParams:
    """Sampling parameters of a step's rows, ready for the device. None skips the operation."""

    inverse_temperature: Tensor | None  # [n, 1], None where all are 1
    is_greedy: Tensor | None  # [n], None where no row is greedy
    top_p: Tensor | None  # [n, 1], None where no row has one
    all_greedy: bool

    @classmethod
    def of(cls, params: Sequence[SamplingParams], device: torch.device) -> RowParams:
        """Build from one entry per row."""
        greedy = [p.temperature == 0.0 for p in params]
        inverse = [1.0 if p.temperature == 0.0 else 1.0 / p.temperature for p in params]
        # 2.0 is never reached; the mass above a rare token may round to 1.0.
        top_p = [2.0 if p.top_p >= 1.0 else p.top_p for p in params]
        return cls(
            inverse_temperature=None if set(inverse) == {1.0} else torch.tensor(inverse, device=device)[:, None],
            is_greedy=torch.tensor(greedy, device=device) if any(greedy) else None,
            top_p=None if set(top_p) == {2.0} else torch.tensor(top_p, device=device)[:, None],
            all_greedy=all(greedy),
        )

    def select(self, rows: Tensor) -> RowParams:
        """Select the parameters of some rows."""

        def pick(values: Tensor | None) -> Tensor | None:
            return None if values is None else values.index_select(0, rows)

        return RowParams(pick(self.inverse_temperature), pick(self.is_greedy), pick(self.top_p), self.all_greedy)


def choose(
    logits: Tensor, params: RowParams, numbers: Sequence[tuple[float, float, float]]
) -> tuple[list[int], list[float]]:
    """Logits [n, V] and each row's random numbers -> indices and their log-probs, NaN where the logits are."""
    uniform = None
    if not params.all_greedy:
        uniform = torch.tensor([two[:2] for two in numbers], dtype=torch.float32).to(logits.device)
    index, logprob, all_logprobs = draw(logits, params, uniform)
    if logits.device.type == "cpu":
        choices, values = index.tolist(), logprob.tolist()
    else:  # one transfer; ids below 2**24 are exact in fp32
        choices_and_values = torch.stack([index.float(), logprob]).tolist()
        choices, values = [int(c) for c in choices_and_values[0]], choices_and_values[1]
    for row, choice in enumerate(choices):
        if choice < 0:
            assert params.top_p is not None
            choices[row] = draw_from_nucleus(all_logprobs[row], float(params.top_p[row]), numbers[row][2])
            values[row] = float(all_logprobs[row, choices[row]])
    return choices, values


def draw(logits: Tensor, params: RowParams, uniform: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Logits [n, V] and uniform numbers [n, 2] in [0, 1) -> indices [n], their log-probs [n], all log-probs [n, V].

    An index of -1 is a rejected row. `uniform` may be None when every row is greedy.
    """
    logits = logits.float()
    if params.inverse_temperature is not None:
        logits = logits * params.inverse_temperature
    logprobs = torch.log_softmax(logits, dim=-1)
    if params.all_greedy:
        best, index = logprobs.max(dim=-1)
        return index, best, logprobs
    assert uniform is not None
    probs = logprobs.exp()
    cumulative = probs.cumsum(dim=-1)
    target = cumulative[:, -1:] * (uniform * _BELOW_ONE)
    tries = torch.searchsorted(cumulative, target, right=True)  # never a token of probability zero
    tries.clamp_(max=logits.shape[-1] - 1)  # NaN rows
    if params.top_p is None:
        index = tries[:, 0]
    else:
        chance = probs.gather(1, tries)
        index, rejected = tries[:, 0], _mass_above(probs, chance[:, :1]) >= params.top_p
        if probs.device.type != "cpu" or bool(
            rejected.any()
        ):  # on other devices the host sync costs more than the second try
            again = _mass_above(probs, chance[:, 1:]) >= params.top_p
            index = torch.where(rejected, tries[:, 1:].masked_fill(again, -1), tries[:, :1])[:, 0]
    if params.is_greedy is not None:
        index = torch.where(params.is_greedy, logprobs.argmax(dim=-1), index)
    return index, logprobs.gather(1, index.clamp(min=0)[:, None])[:, 0], logprobs


def _mass_above(probs: Tensor, chance: Tensor) -> Tensor:
    """Probabilities [n, V] -> the mass [n, 1] of the tokens that are likelier than `chance` [n, 1]."""
    above = torch.gt(probs, chance, out=torch.empty_like(probs))  # 0 and 1: multiplying is faster than `where`
    return above.mul_(probs).sum(dim=-1, keepdim=True)


def draw_from_nucleus(logprobs: Tensor, top_p: float, uniform: float) -> int:
    """One row's log-probs [V] -> an index from its nucleus, by sorting."""
    probs, order = logprobs.exp().sort(descending=True, stable=True)
    cumulative = probs.cumsum(dim=-1)
    size = int((cumulative < top_p).sum()) + 1  # includes the token that reaches top_p
    cumulative = cumulative[:size]
    place = torch.searchsorted(cumulative, cumulative[-1:] * (uniform * _BELOW_ONE), right=True)
    return int(order[min(int(place), cumulative.shape[0] - 1)])

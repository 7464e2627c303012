"""Sampling follows the documented distribution."""

from __future__ import annotations

import torch

from model.engine.sampling import RowParams, draw, draw_from_nucleus
from model.engine.sequence import SamplingParams

ROWS = 20_000


def shares(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """Shares of 20,000 samples, drawn as in the engine."""
    uniform = torch.rand(ROWS, 3, generator=torch.Generator().manual_seed(0))
    rows = RowParams.of([params] * ROWS, torch.device("cpu"))
    index, logprob, all_logprobs = draw(logits.expand(ROWS, -1), rows, uniform[:, :2])
    expected, drawn = torch.log_softmax(logits / params.temperature, -1), index >= 0
    torch.testing.assert_close(logprob[drawn], expected[index[drawn]], atol=1e-5, rtol=0)
    for row in (~drawn).nonzero().flatten().tolist():
        index[row] = draw_from_nucleus(all_logprobs[row], params.top_p, float(uniform[row, 2]))
    return torch.bincount(index, minlength=logits.shape[0]) / ROWS


def nucleus(logits: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    probs = torch.softmax(logits / params.temperature, -1)
    order = probs.argsort(descending=True)
    kept = order[: int((probs[order].cumsum(-1) < params.top_p).sum()) + 1]
    result = torch.zeros_like(probs)
    result[kept] = probs[kept]
    return result / result.sum()


def test_samples_follow_the_tempered_nucleus() -> None:
    logits = torch.randn(24, generator=torch.Generator().manual_seed(4)) * 2
    for params in (
        SamplingParams(temperature=1.0),
        SamplingParams(temperature=0.6, top_p=0.95),
        SamplingParams(temperature=1.5, top_p=0.5),
        SamplingParams(temperature=1.0, top_p=0.01),
    ):
        expected, seen = nucleus(logits, params), shares(logits, params)
        assert seen[expected == 0].sum() == 0
        assert (seen - expected).abs().max() < 0.014  # 4 standard deviations of a share at 20,000 samples


def test_zero_probability_token_is_never_sampled() -> None:
    logits = torch.tensor([[float("-inf"), 0.0, float("-inf"), 0.0, float("-inf")]]).expand(4, -1)
    rows = RowParams.of([SamplingParams(temperature=1.0)] * 4, torch.device("cpu"))
    edges = torch.tensor([[0.0, 0.0], [1.0 - 2**-24, 0.5], [0.50001, 0.0], [0.49999, 0.0]])
    index, _, _ = draw(logits, rows, edges)
    assert index.tolist() == [1, 3, 3, 1]


def test_greedy_and_sampled_rows_share_a_step() -> None:
    logits = torch.randn(6, 50, generator=torch.Generator().manual_seed(1))
    params = [SamplingParams(temperature=float(i % 2), top_p=0.9) for i in range(6)]
    index, logprob, _ = draw(logits, RowParams.of(params, torch.device("cpu")), torch.full((6, 2), 0.999))
    assert index[::2].tolist() == logits[::2].argmax(-1).tolist()
    torch.testing.assert_close(logprob[::2], torch.log_softmax(logits, -1)[::2].max(-1).values)

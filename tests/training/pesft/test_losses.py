"""Losses against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from training.pesft.losses import perception_loss, sft_loss, token_logprobs


def test_token_logprobs_are_the_full_softmax() -> None:
    # softmax of (ln 1, ln 2, ln 5) = (1/8, 2/8, 5/8)
    logits = torch.log(torch.tensor([[1.0, 2.0, 5.0], [5.0, 2.0, 1.0]]))
    got = token_logprobs(logits, torch.tensor([2, 2]))
    assert got.tolist() == pytest.approx([math.log(5 / 8), math.log(1 / 8)])


def test_sft_loss_reports_text_and_image_parts() -> None:
    logits = torch.log(torch.tensor([[1.0, 3.0], [1.0, 3.0], [1.0, 1.0]]))
    targets, is_code = torch.tensor([1, 0, 0]), torch.tensor([False, True, True])
    loss, metrics = sft_loss(logits, targets, is_code, 3)
    # -ln 3/4 = .28768, -ln 1/4 = 1.38629, -ln 1/2 = .69315; mean .78904; image mean 1.03972
    assert loss.item() == pytest.approx(0.78904, abs=1e-5)
    assert metrics["loss/text"] == pytest.approx(0.28768, abs=1e-5)
    assert metrics["loss/image"] == pytest.approx(1.03972, abs=1e-5)


def test_perception_loss_sums_width_averages_omega() -> None:
    codebook = torch.tensor([[0.0, 0.0], [1.0, 2.0]])
    projected = torch.tensor([[1.0, 0.0], [1.0, 5.0]])
    codes = torch.tensor([1, 1])
    # position 1: (0)^2 + (-2)^2 = 4; position 2: 0 + 3^2 = 9; mean 6.5; per-element mean 3.25
    assert perception_loss(projected, codes, codebook, 2)[0].item() == pytest.approx(6.5)
    assert perception_loss(projected, codes, codebook, 2, reduction="mean")[0].item() == pytest.approx(3.25)
    wrong = perception_loss(projected, torch.tensor([0, 1]), codebook, 2)[0].item()
    assert wrong == pytest.approx((1 + 9) / 2)
    assert wrong != pytest.approx(6.5)


def test_perception_loss_without_an_image_is_zero() -> None:
    loss, metrics = perception_loss(torch.empty(0, 2), torch.empty(0, dtype=torch.long), torch.zeros(3, 2), 0)
    assert loss.item() == 0.0
    assert metrics["loss/perception"] == 0.0


def test_invariant_9_no_gradient_reaches_the_codebook() -> None:
    codebook = nn.Parameter(torch.randn(4, 3))
    projection = nn.Linear(5, 3, bias=False)
    projected = projection(torch.randn(6, 5))
    perception_loss(projected, torch.tensor([0, 1, 2, 3, 0, 1]), codebook, 6)[0].backward()
    assert codebook.grad is None
    assert projection.weight.grad is not None
    assert projection.weight.grad.abs().sum() > 0


def test_micro_batches_add_up_to_one_batch() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(7, 5), torch.randint(5, (7,))
    is_code = torch.tensor([True, False, True, True, False, False, True])
    whole = sft_loss(logits, targets, is_code, 7)[0]
    parts = sum(sft_loss(logits[s], targets[s], is_code[s], 7)[0] for s in (slice(0, 3), slice(3, 7)))
    assert torch.allclose(whole, torch.as_tensor(parts))

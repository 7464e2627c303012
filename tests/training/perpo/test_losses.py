"""PeRPO's terms against numbers computed by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from model.checkpoint.memory import POLICY_LOGIT_BYTES
from model.engine.phases import Legal, LegalIds
from tests.model.live import Live
from training.perpo.losses import (
    Heads,
    clipped_loss,
    effective_share,
    group_advantages,
    kl_estimate,
    legal_logprobs,
    token_weights,
    truncated_weights,
)

# Seven ids: 0 BOS, 1 and 2 text, 3 EOS, 4 begin-image, 5 and 6 codes. The state is the number 1.0, so that the output
# matrix's rows are the logits: text (ln 1, ln 2, ln 5), begin-image ln 8, codes (ln 1, ln 3).
LEGAL = LegalIds(text=(1, 2, 3, 4), codes=(5, 6))
HEAD = torch.log(torch.tensor([[100.0], [1.0], [2.0], [5.0], [8.0], [1.0], [3.0]]))


def logprobs(targets: list[int], legal: list[int], temperature: float = 1.0) -> tuple[list[float], list[float]]:
    hidden = torch.ones(len(targets), 1)
    out = legal_logprobs(
        hidden,
        torch.tensor(targets),
        torch.tensor(legal, dtype=torch.uint8),
        Heads.of(HEAD, LEGAL),
        temperature=temperature,
    )
    return out[0].tolist(), out[1].tolist()


def test_logprobs_cover_legal_ids_only() -> None:
    # text with begin-image: 1 + 2 + 5 + 8 = 16; without: 8; codes: 4. BOS, with logit ln 100, never counts.
    got, _ = logprobs([3, 4, 3, 6], [Legal.TEXT_OR_IMAGE, Legal.TEXT_OR_IMAGE, Legal.TEXT, Legal.CODE])
    assert got == pytest.approx([math.log(5 / 16), math.log(8 / 16), math.log(5 / 8), math.log(3 / 4)], abs=1e-6)


def test_temperature_is_the_samplers() -> None:
    # at temperature 1/2 the weights are squared: 1, 4, 25 -> 25/30; codes 1, 9 -> 9/10
    got, _ = logprobs([3, 6], [Legal.TEXT, Legal.CODE], temperature=0.5)
    assert got == pytest.approx([math.log(25 / 30), math.log(9 / 10)], abs=1e-6)


def test_entropy_covers_legal_ids_only() -> None:
    _, entropy = logprobs([1, 5], [Legal.TEXT, Legal.CODE])
    text = sum(-p * math.log(p) for p in (1 / 8, 2 / 8, 5 / 8))  # .90026
    codes = sum(-p * math.log(p) for p in (1 / 4, 3 / 4))  # .56234
    assert entropy == pytest.approx([text, codes], abs=1e-6)


@pytest.mark.parametrize(
    ("target", "legal"),
    [(0, Legal.TEXT), (5, Legal.TEXT), (1, Legal.CODE), (4, Legal.TEXT), (4, Legal.CODE), (1, Legal.FORCED)],
)
def test_illegal_token_has_no_logprob(target: int, legal: Legal) -> None:
    with pytest.raises(ValueError, match="not legal"):
        logprobs([target], [legal])


def test_gradients_reach_legal_rows_only() -> None:
    head = HEAD.clone().requires_grad_(True)
    out, entropy = legal_logprobs(
        torch.ones(1, 1), torch.tensor([2]), torch.tensor([Legal.TEXT], dtype=torch.uint8), Heads.of(head, LEGAL)
    )
    (out + entropy).sum().backward()
    assert head.grad is not None
    assert torch.isfinite(head.grad).all()
    assert head.grad[[0, 4, 5, 6]].abs().sum() == 0.0
    assert (head.grad[[1, 2, 3]] != 0.0).all()


def test_group_advantages_by_hand() -> None:
    # mean .55, population sigma .16583; (.05, -.15, .25, -.15) / .17583
    got = group_advantages([0.6, 0.4, 0.8, 0.4], eps=0.01)
    assert got == pytest.approx([0.2844, -0.8531, 1.4218, -0.8531], abs=1e-4)
    sample_sigma = 0.19149  # with n - 1, which is wrong here
    assert got[0] != pytest.approx(0.05 / (sample_sigma + 0.01), abs=1e-3)


def test_equal_rewards_have_no_advantage() -> None:
    assert group_advantages([0.3, 0.3, 0.3], eps=1e-6) == pytest.approx([0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="at least 2"):
        group_advantages([0.5], eps=1e-6)


def test_trajectories_and_tokens_weigh_alike() -> None:
    # lengths 2 and 4 of a batch of 4 trajectories: 1/(2*4) = .125 and 1/(4*4) = .0625
    assert token_weights([2, 4], 4).tolist() == pytest.approx([0.125] * 2 + [0.0625] * 4)
    assert token_weights([1, 2, 3], 3).sum().item() == pytest.approx(1.0)


def clipped(ratio: float, advantage: float) -> tuple[float, float, bool]:
    """Loss, gradient with respect to the log-probability, and whether it was clipped."""
    logprob = torch.tensor([math.log(ratio)], requires_grad=True)
    loss, _, is_clipped = clipped_loss(
        logprob, torch.zeros(1), torch.tensor([advantage]), clip_low=0.20, clip_high=0.28
    )
    loss.sum().backward()
    assert logprob.grad is not None
    return loss.item(), logprob.grad.item(), bool(is_clipped)


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "gradient", "is_clipped"),
    [
        (1.0, 2.0, -2.0, -2.0, False),
        (1.27, 1.0, -1.27, -1.27, False),  # the upper bound is 1.28, not 1.20
        (1.5, 1.0, -1.28, 0.0, True),
        (0.5, 1.0, -0.5, -0.5, False),  # a good token that became rarer is still pulled back
        (0.7, -1.0, 0.8, 0.0, True),
        (0.9, -1.0, 0.9, 0.9, False),
        (2.0, -1.0, 2.0, 2.0, False),  # a bad token that became more common is never clipped
    ],
)
def test_ratio_is_clipped_at_two_bounds(
    ratio: float, advantage: float, loss: float, gradient: float, is_clipped: bool
) -> None:
    got = clipped(ratio, advantage)
    assert got[0] == pytest.approx(loss, abs=1e-6)
    assert got[1] == pytest.approx(gradient, abs=1e-6)
    assert got[2] is is_clipped


def test_equal_logprobs_have_ratio_one() -> None:
    values = torch.randn(1_000, generator=torch.Generator().manual_seed(0)) * 10
    _, ratio, is_clipped = clipped_loss(values, values.clone(), torch.randn(1_000), clip_low=0.0, clip_high=0.0)
    assert bool((ratio == 1.0).all())
    assert not bool(is_clipped.any())


def test_huge_log_ratio_stays_finite() -> None:
    loss, ratio, _ = clipped_loss(
        torch.tensor([1_000.0, -1_000.0]), torch.zeros(2), torch.tensor([-1.0, 1.0]), clip_low=0.2, clip_high=0.28
    )
    assert torch.isfinite(loss).all()
    assert torch.isfinite(ratio).all()
    assert torch.isfinite(kl_estimate(torch.tensor([1_000.0, -1_000.0]), torch.zeros(2))).all()


def test_kl_estimates_by_hand() -> None:
    # policy 1/2, reference 1/4: d = ln 2 = .69315; k3 = 1/2 - 1 + .69315 = .19315
    policy, reference = torch.tensor([math.log(0.5)]), torch.tensor([math.log(0.25)])
    assert kl_estimate(policy, reference, "k1").item() == pytest.approx(0.69315, abs=1e-5)
    assert kl_estimate(policy, reference, "k3").item() == pytest.approx(0.19315, abs=1e-5)
    # reversed: d = -ln 2; k3 = 2 - 1 - .69315 = .30685, k1 is negative
    assert kl_estimate(reference, policy, "k3").item() == pytest.approx(0.30685, abs=1e-5)
    assert kl_estimate(reference, policy, "k1").item() < 0.0


def test_k3_gradient_pulls_back_unlike_k1() -> None:
    reference = torch.log(torch.tensor([0.7, 0.3]))
    expected: dict[str, Tensor] = {}
    for estimator in ("k3", "k1"):
        logits = torch.log(torch.tensor([0.5, 0.5])).requires_grad_(True)
        policy = torch.log_softmax(logits, -1)
        per_token = kl_estimate(policy, reference, estimator)  # type: ignore[arg-type]
        loss = (policy.detach().exp() * per_token).sum()  # sampled tokens are given: no gradient through sampling
        # KL((.5, .5) || (.7, .3)) = .5 ln(.5/.7) + .5 ln(.5/.3) = .08718
        assert loss.item() == pytest.approx(0.08718, abs=1e-5)
        loss.backward()
        assert logits.grad is not None
        expected[estimator] = logits.grad
    assert expected["k1"].abs().max() == pytest.approx(0.0, abs=1e-7)
    assert expected["k3"][0] < 0.0  # a descent step raises the probability that the reference has higher


def test_truncated_weights_are_capped() -> None:
    old, sampler = torch.log(torch.tensor([0.5, 0.9, 0.1])), torch.log(torch.tensor([0.5, 0.1, 0.2]))
    assert truncated_weights(old, sampler, cap=2.0).tolist() == pytest.approx([1.0, 2.0, 0.5])


def test_effective_share_of_uneven_ratios() -> None:
    assert effective_share(torch.tensor([2.0, 2.0])) == 1.0
    assert effective_share(torch.tensor([1.0, 3.0])) == pytest.approx(16 / 20)


def scores(rows: int, text: int, codes: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities, entropies and their gradients for states and head; a third of the rows are codes."""
    torch.manual_seed(0)
    hidden, head = torch.randn(rows, 8, requires_grad=True), torch.randn(text + codes, 8, requires_grad=True)
    kinds = torch.tensor([Legal.TEXT, Legal.TEXT_OR_IMAGE, Legal.CODE], dtype=torch.uint8)[torch.arange(rows) % 3]
    targets = torch.where(kinds == Legal.CODE, text + torch.arange(rows) % codes, torch.arange(rows) % (text - 1))
    legal = LegalIds(text=tuple(range(text)), codes=tuple(range(text, text + codes)))
    found, entropies = legal_logprobs(hidden, targets, kinds, Heads.of(head, legal), temperature=0.7)
    (found * torch.linspace(-1, 1, rows) + 0.1 * entropies).sum().backward()
    assert hidden.grad is not None
    assert head.grad is not None
    return found, entropies, hidden.grad, head.grad


def test_chunks_of_logits_have_the_same_values_and_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = scores(60, 50, 20)
    monkeypatch.setattr("training.perpo.losses.CHUNKED_LOGITS", 7 * 50)
    for found, expected in zip(scores(60, 50, 20), whole, strict=True):
        torch.testing.assert_close(found, expected)


def test_counted_logits_are_those_of_a_step() -> None:
    rows, text = 300, 3000
    with Live() as live:
        scores(rows, text, 20)
    assert 0.85 * POLICY_LOGIT_BYTES < live.peak / (rows * 2 / 3 * text) <= POLICY_LOGIT_BYTES

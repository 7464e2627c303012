"""Which tokens a verdict reaches, and which codes count, with numbers computed by hand."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from training.perpo.batch import micro_batches
from training.perpo.credit import (
    changed_places,
    code_factors,
    is_informative,
    set_credit,
    step_advantages,
    token_advantages,
)
from training.perpo.rollout import Prompt, Rollout, RolloutGroup
from training.scoring.rewards import RewardBreakdown
from training.spec.hyperparameters import PeRPOHyperparameters, RewardHyperparameters

SEEN = (7, 7, 7, 7)  # the question's image
Codes = tuple[int, ...]


def rollout(
    drawings: Sequence[Codes],
    verdicts: Sequence[bool | None] = (),
    *,
    accuracy: float = 0.0,
    total: float | None = None,
) -> Rollout:
    """Each step is two words, begin-image, four codes and a forced end-image; the answer two words and EOS."""
    legal = bytes([1, 1, 2, 3, 3, 3, 3, 0] * len(drawings) + [1, 1, 1])
    spans = {k: (8 * (k - 1), 8 * k) for k in range(1, len(drawings) + 1)}
    reward = RewardBreakdown(
        accuracy if total is None else total,
        accuracy,
        1.0,
        0.0,
        steps=tuple(("I mark it.", codes) for codes in drawings),
        spans=spans,
        verdicts=tuple(verdicts),
    )
    return Rollout(0, [1] * len(legal), legal, [0.0] * len(legal), "stop", reward)


def group(*rollouts: Rollout) -> RolloutGroup:
    return RolloutGroup(Prompt(0, (1,), "?", (SEEN,), "red"), list(rollouts))


def by_step(delta: float = 0.5) -> PeRPOHyperparameters:
    return PeRPOHyperparameters(credit="step", reward=RewardHyperparameters(functional=delta))


def test_verdicts_are_normalised_step_by_step() -> None:
    found = step_advantages([(True, True), (True, False), (False, True), (False, False)], eps=0.0)
    # the second drawing is compared only where the first one was right
    assert found == [{1: 1.0, 2: 1.0}, {1: 1.0, 2: -1.0}, {1: -1.0}, {1: -1.0}]


def test_population_deviation_of_uneven_verdicts() -> None:
    found = step_advantages([(True,), (False,), (False,), (False,)], eps=0.0)
    # mean 1/4, sigma sqrt(3)/4
    assert [row[1] for row in found] == pytest.approx([3**0.5, *[-(3**-0.5)] * 3])


@pytest.mark.parametrize(
    "verdicts",
    [
        [(True,), (True,)],
        [(False,), (False,)],
        [(True,), ()],
        [(True,), (None,)],
        [(False, True), (False, False), (True, True)],  # only one is left at the second drawing, and ...
    ],
)
def test_fewer_than_two_or_equal_verdicts_teach_nothing(verdicts: list[tuple[bool | None, ...]]) -> None:
    found = step_advantages(verdicts, eps=0.0)
    assert all(2 not in row for row in found)
    assert any(found) == (len(verdicts) == 3)  # ... its first drawings differ


def test_right_drawing_after_an_unjudged_one_is_left_out() -> None:
    assert step_advantages([(None, True), (True, True), (True, False)], eps=0.0)[0] == {}


def test_step_tokens_get_both_advantages() -> None:
    one, other = rollout([SEEN, SEEN], (True, False), accuracy=1.0), rollout([SEEN, SEEN], (True, True))
    set_credit([group(one, other)], by_step(0.5))
    assert (one.advantage, other.advantage) == pytest.approx((1.0, -1.0), abs=1e-4)
    assert one.step_advantages == pytest.approx({2: -0.5}, abs=1e-4)
    assert token_advantages(one) == pytest.approx([1.0] * 8 + [0.5] * 8 + [1.0] * 3, abs=1e-4)
    assert token_advantages(other) == pytest.approx([-1.0] * 8 + [-0.5] * 8 + [-1.0] * 3, abs=1e-4)


def test_equal_answers_leave_only_step_credit() -> None:
    one = rollout([SEEN], (True,), accuracy=1.0, total=0.99)
    other = rollout([SEEN], (False,), accuracy=1.0, total=0.91)  # totals differ by R_Pe
    set_credit([group(one, other)], by_step(2.0))
    assert (one.advantage, other.advantage) == (0.0, 0.0)
    assert token_advantages(one) == pytest.approx([2.0] * 8 + [0.0] * 3, abs=1e-4)
    set_credit([group(one, other)], PeRPOHyperparameters())
    assert token_advantages(one) == pytest.approx([1.0] * 11, abs=1e-4)  # by trajectory, R_Pe is all there is


def test_any_keeps_groups_whose_verdicts_differ() -> None:
    same_answers = group(rollout([SEEN], (True,)), rollout([SEEN], (False,)))
    assert is_informative(same_answers, "any")
    assert not is_informative(same_answers, "accuracy")
    assert is_informative(group(rollout([SEEN], accuracy=1.0), rollout([SEEN])), "any")
    assert not is_informative(group(rollout([SEEN], (True,)), rollout([SEEN], (True,))), "any")


def test_one_mask_for_all_trajectories_of_a_group() -> None:
    one = rollout([(7, 1, 7, 7), (7, 1, 7, 2)])
    other = rollout([(7, 7, 7, 7), (7, 7, 7, 2)])
    # first drawings: only place 1 differs; second: place 3 from the own previous image, place 1 from each other
    assert changed_places(group(one, other)) == {1: {1}, 2: {1, 3}}


def test_code_factors_keep_the_sum_of_weights() -> None:
    drawings = rollout([(7, 1, 7, 7)])
    factors = code_factors(drawings, {1: frozenset({1})})
    # 10 tokens are drawn, 7 keep their weight
    assert factors[:8] == pytest.approx([10 / 7, 10 / 7, 10 / 7, 0.0, 10 / 7, 0.0, 0.0, 10 / 7])
    assert sum(f for f, byte in zip(factors, drawings.legal, strict=True) if byte) == pytest.approx(10.0)


def test_factors_are_limited_and_empty_masks_ignored() -> None:
    only_codes = Rollout(0, [1] * 66, bytes([2] + [3] * 64 + [0]), [0.0] * 66, "length")
    image = tuple(range(64))
    only_codes.reward = RewardBreakdown(0.0, 0.0, 0.0, 0.0, steps=(("", image),), spans={1: (0, 66)})
    assert max(code_factors(only_codes, {1: frozenset({5})})) == 4.0  # 65 / 2 otherwise
    assert set(code_factors(only_codes, {1: frozenset()})) == {1.0}


def test_batches_carry_credit_of_drawn_tokens() -> None:
    one, other = rollout([(7, 1, 7, 7)], (True,)), rollout([(7, 7, 7, 7)], (False,))
    both = group(one, other)
    set_credit([both], by_step(1.0).model_copy(update={"code_weights": "changed"}))
    (micro,) = micro_batches([both])
    assert micro.advantages.tolist() == pytest.approx([*[1.0] * 7, *[0.0] * 3, *[-1.0] * 7, *[0.0] * 3], abs=1e-4)
    kept = 10 / 7
    assert micro.factors.tolist() == pytest.approx([*[kept] * 3, 0.0, kept, 0.0, 0.0, *[kept] * 3] * 2)
    assert micro.weights.tolist() == pytest.approx([1 / 20] * 20)  # of KL and entropy: unchanged


def test_step_credit_needs_a_weight() -> None:
    with pytest.raises(ValueError, match="give it a weight"):
        PeRPOHyperparameters(credit="step")

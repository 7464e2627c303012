"""Failure signs are reported once when they appear, and again after an absence."""

from __future__ import annotations

import pytest

from training.perpo.failure_signs import QUIET_STEPS, FailureSigns

FINE = {
    "reward/perception_std": 0.1,
    "reward/total_std": 0.4,
    "format/error_share": 0.02,
    "pictures/blank_share": 0.0,
    "pictures/copied_share": 0.03,
    "pictures/capped_share": 0.04,
    "groups/dropped_share": 0.4,
    "mismatch/max": 1e-5,
    "response/images": 2.0,
}


def codes(steps: list[dict[str, float]], precision: str = "fp32") -> list[list[str]]:
    signs = FailureSigns(precision=precision)
    return [[code for code, _ in signs.check(k, {**FINE, **step})] for k, step in enumerate(steps, 1)]


def test_healthy_run_has_no_sign() -> None:
    assert codes([{}] * 30) == [[]] * 30


@pytest.mark.parametrize(
    ("code", "values"),
    [
        ("blank_pictures", {"pictures/blank_share": 0.05}),
        ("degenerate_groups", {"groups/dropped_share": 0.8}),
        ("logprob_mismatch", {"mismatch/max": 2e-4}),
    ],
)
def test_some_signs_appear_immediately(code: str, values: dict[str, float]) -> None:
    assert codes([{}, values]) == [[], [code]]


@pytest.mark.parametrize(
    ("code", "values"),
    [
        ("format_errors_rising", {"format/error_share": 0.08}),  # from 2 % to 8 %: doubled, and five points more
        ("copied_pictures", {"pictures/copied_share": 0.09}),
        ("capped_pictures", {"pictures/capped_share": 0.10}),
        ("reward_collapse", {"reward/perception_std": 0.005}),
        ("reward_collapse", {"reward/total_std": 0.001}),
    ],
)
def test_other_signs_need_three_steps(code: str, values: dict[str, float]) -> None:
    logged = codes([{}] * 3 + [values] * 3)
    assert logged == [[]] * 5 + [[code]]


def test_initially_high_share_must_double() -> None:
    assert codes([{"format/error_share": 0.4}] * 6) == [[]] * 6
    assert codes([{"format/error_share": 0.4}] * 3 + [{"format/error_share": 0.9}] * 3)[-1] == ["format_errors_rising"]


def test_rewards_without_images_are_no_collapse() -> None:
    assert codes([{"reward/perception_std": 0.0, "response/images": 0.0}] * 5) == [[]] * 5


def test_bf16_may_differ_more_than_fp32() -> None:
    assert codes([{"mismatch/max": 0.1}], precision="bf16") == [[]]
    assert codes([{"mismatch/max": 0.6}], precision="bf16") == [["logprob_mismatch"]]


def test_sign_repeats_only_after_an_absence() -> None:
    blank: dict[str, float] = {"pictures/blank_share": 0.5}
    logged = codes([blank] * 20 + [{}] * QUIET_STEPS + [blank])
    assert [k for k, step in enumerate(logged, 1) if step] == [1, 21 + QUIET_STEPS]


def test_resumed_run_reports_the_same_signs() -> None:
    steps = [{}] * 4 + [{"format/error_share": 0.08, "pictures/blank_share": 0.2}] * 6
    before = FailureSigns()
    for k, step in enumerate(steps[:5], 1):
        before.check(k, {**FINE, **step})
    after = FailureSigns(state=before.state())
    rest = [[c for c, _ in after.check(k, {**FINE, **s})] for k, s in enumerate(steps[5:], 6)]
    assert rest == codes(steps)[5:]
    assert rest[:2] == [[], ["format_errors_rising"]]  # and the blank images of step 5 are not reported again

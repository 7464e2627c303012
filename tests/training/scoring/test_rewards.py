"""Rewards against numbers computed by hand, and the effect of each guard."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import pytest
import torch

from model.checkpoint.manifest import Perception
from model.text.template import StepPart, Template
from model.text.tokenizer import TextTokenizer
from model.text.vocab import Vocabulary
from tests.tiny import tiny_config
from training.scoring.rewards import RewardBreakdown, Scorer, aggregate, changes_nothing, reward_metrics, score_all
from training.spec.hyperparameters import RewardHyperparameters

# Code 0 is (0, 0), 1 is (1, 0), 2 is (0, 3), 3 is (4, 4); the others are far away. An image is 2 x 2 codes.
BOOK = torch.cat([torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 3.0], [4.0, 4.0]]), torch.full((60, 2), 50.0)])
MIXED = (0, 1, 2, 3)


@cache
def template(name: str = "plain") -> Template:
    config, tokenizer = tiny_config()
    return Template(name, Vocabulary.from_parts(config, tokenizer), TextTokenizer.from_object(tokenizer))  # type: ignore[arg-type]


def scorer(perception: Perception | None = None, **settings: object) -> Scorer:
    return Scorer(template(), BOOK, perception, RewardHyperparameters(**settings))  # type: ignore[arg-type]


def response(*images: Sequence[int] | None, answer: str = "red", texts: Sequence[str] = ()) -> list[int]:
    words = list(texts) or [f"I look {k}" for k in range(len(images))]
    steps = [StepPart(text, None if i is None else tuple(i)) for text, i in zip(words, images, strict=True)]
    return template().response_ids(steps, answer)


def test_image_score_by_hand() -> None:
    # rows (0,0)-(1,0) and (0,3)-(4,4): squared distances 1 and 16 + 1 = 17, mean 9
    # columns (0,0)-(0,3) and (1,0)-(4,4): 9 and 9 + 16 = 25, mean 17; E_2D = (9 + 17) / 2 = 13; tau 13: s = 1/2
    image = scorer(Perception(tau=13.0)).score_image(MIXED)
    assert image.energy == pytest.approx(13.0)
    assert image.score == pytest.approx(0.5)
    assert image.verdict == "ok"
    assert scorer(Perception(tau=3.0)).score_image(MIXED).score == pytest.approx(3.0 / 16.0)


def test_tau_override_keeps_the_cap() -> None:
    own = Perception(tau=99.0, energy_p95=26.0)
    # smoother than the reference (13 < 26), so it scores like 26: 1 / (1 + 26/13) = 1/3
    image = scorer(own, tau=13.0).score_image(MIXED)
    assert (image.score, image.verdict) == (pytest.approx(1 / 3), "capped")


def test_reward_is_the_weighted_sum() -> None:
    got = scorer(Perception(tau=13.0)).score(response(MIXED, (0, 2, 1, 3)), "red")
    # the second: rows (0,0)-(0,3) 9, (1,0)-(4,4) 25: 17; columns 1 and 17: 9; 13 again
    assert (got.accuracy, got.format, got.perception) == (1.0, 1.0, pytest.approx(0.5))
    assert got.total == pytest.approx(0.855 + 0.095 + 0.05 * 0.5)
    assert got.answer == "red"


def test_wrong_answer_keeps_format_and_perception() -> None:
    got = scorer(Perception(tau=13.0)).score(response(MIXED, answer="blue"), "red")
    assert got.total == pytest.approx(0.095 + 0.05 * 0.5)


def test_no_image_earns_no_perception() -> None:
    without = scorer().score(response(None), "red")
    assert without.perception == 0.0
    assert without.total == pytest.approx(0.95)
    assert without.total < scorer().score(response(MIXED), "red").total


def test_blank_image_scores_zero() -> None:
    image = scorer().score_image((1, 1, 1, 1))
    assert image.energy == 0.0
    assert (image.score, image.verdict) == (0.0, "flat")
    assert scorer().score_image((1, 1, 1, 0)).verdict == "flat"  # 3 of 4 are more than half
    assert scorer().score_image((1, 1, 0, 0)).verdict == "ok"
    flat_world = Perception(flat_share_max=0.7)  # its references are that flat: only more than .8 is blank
    assert scorer(flat_world).score_image((1, 1, 1, 0)).verdict == "ok"


def test_copied_image_scores_zero() -> None:
    got = scorer().score(response(MIXED, MIXED), "red")
    assert [p.verdict for p in got.images] == ["ok", "copied"]
    assert got.perception == pytest.approx(got.images[0].score / 2)
    of_the_question = scorer().score(response(MIXED), "red", seen=MIXED)
    assert [p.verdict for p in of_the_question.images] == ["copied"]
    assert scorer().score(response(MIXED), "red", seen=(0, 1, 2, 2)).images[0].verdict == "ok"


def test_step_without_change_may_copy() -> None:
    kept = scorer().score(response(MIXED, MIXED), "red", identity_steps={2})
    assert [p.verdict for p in kept.images] == ["ok", "ok"]
    named = scorer().score(response(MIXED, MIXED, texts=["I look", "ZOOM(0,0,1,1)"]), "red")
    assert [p.verdict for p in named.images] == ["ok", "ok"]
    assert changes_nothing("I wait: PRED(no change)")
    assert not changes_nothing("PRED(up)")
    assert not changes_nothing("ZOOM(0,0,1,0.5)")


def test_copied_share_is_configurable() -> None:
    assert scorer(copied_share=0.75).score_image(MIXED, (0, 1, 2, 2)).verdict == "copied"
    assert scorer(copied_share=0.76).score_image(MIXED, (0, 1, 2, 2)).verdict == "ok"


def test_incomplete_image_scores_zero_and_fails_format() -> None:
    ids = response(MIXED, (0, 2, 1, 3))
    eoi = template().vocab.eoi_id
    cut = ids[: [i for i, token in enumerate(ids) if token == eoi][1] - 1]  # one code is missing
    got = scorer(Perception(tau=13.0)).score(cut, "red")
    assert [p.verdict for p in got.images] == ["ok", "malformed"]
    assert math.isnan(got.images[1].energy)
    assert got.format == 0.0
    assert got.perception == pytest.approx(0.25)
    assert got.total == pytest.approx(0.05 * 0.25)


def test_response_without_end_keeps_its_answer() -> None:
    got = scorer().score(response(None)[:-1], "red")
    assert (got.accuracy, got.format) == (1.0, 0.0)


def test_minimum_can_replace_the_mean() -> None:
    assert aggregate([0.2, 0.6]) == pytest.approx(0.4)
    assert aggregate([0.2, 0.6], "min") == 0.2
    assert aggregate([]) == 0.0


def test_tagged_template_has_its_own_format() -> None:
    tagged = Scorer(template("tagged"), BOOK, Perception(tau=13.0))
    ids = template("tagged").response_ids([StepPart("I look", MIXED)], "red")
    assert tagged.score(ids, "red").total == pytest.approx(0.855 + 0.095 + 0.025)
    assert tagged.score(response(MIXED), "red").format == 0.0  # the plain template's marks


def test_scoring_errors_are_counted() -> None:
    fine = RewardBreakdown(1.0, 1.0, 1.0, 1.0)

    def broken() -> RewardBreakdown:
        raise RuntimeError("the codebook is gone")

    scores = score_all([lambda: fine, broken, lambda: fine, broken])
    assert scores.rewards == [fine, None, fine, None]
    assert scores.errors == ["RuntimeError: the codebook is gone"] * 2
    assert scores.error_share == 0.5


def test_metrics_are_means_spreads_and_shares() -> None:
    one = scorer(Perception(tau=13.0)).score(response(MIXED, MIXED), "red")  # ok, copied
    other = scorer(Perception(tau=13.0)).score(response((1, 1, 1, 1), None, answer="blue"), "red")  # flat
    values = reward_metrics([one, other])
    assert values["reward/accuracy"] == 0.5
    assert values["reward/accuracy_std"] == 0.5  # of (1, 0)
    assert values["reward/perception"] == pytest.approx(0.125)  # (.25 + 0) / 2
    assert values["pictures/blank_share"] == pytest.approx(1 / 3)
    assert values["pictures/copied_share"] == pytest.approx(1 / 3)
    assert values["pictures/malformed_share"] == 0.0
    assert values["format/error_share"] == 0.0
    assert values["response/images"] == 1.5

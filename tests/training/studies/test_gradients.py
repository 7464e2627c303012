"""The signal in PeRPO's gradient: parts that add up to a job's own gradient, and halves of known signal and noise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from model.checkpoint.checkpoint import load_checkpoint
from model.checkpoint.shards import SHIPPED
from training.perpo.collect import Collector
from training.perpo.loading import make_sampler
from training.perpo.prompts import PromptOrder, WorldPrompts
from training.scoring.rewards import Scorer
from training.spec.hyperparameters import PeRPOHyperparameters
from training.spec.spec import UniTasksData
from training.studies.gradients import compare_halves, gradient_of, main, part_gradients


def settings(**changes: object) -> PeRPOHyperparameters:
    given = {"prompts_per_step": 4, "rollouts_per_prompt": 4, "filter_metric": "none", "oversampling": 1.0}
    return PeRPOHyperparameters.model_validate({"credit": "step", "reward": {"functional": 1.0}, **given, **changes})


def test_parts_add_up_to_the_gradient_of_step_credit() -> None:
    loaded = load_checkpoint(SHIPPED / "nano-omni-r1")
    assert loaded.vq is not None
    data = UniTasksData.model_validate({"num_samples": 8, "level": 6})
    hp = settings()
    prompts = WorldPrompts(data, 0, loaded.template, loaded.vq)
    scorer = Scorer(loaded.template, loaded.vq.codebook, loaded.manifest.perception, hp.reward)
    sampler = make_sampler(loaded, prompts, hp)
    collector = Collector(sampler, scorer, loaded.vq, prompts, PromptOrder(8, 0), hp, 0)
    groups = collector.collect(0, 0).kept
    answers, verdicts, *changed = part_gradients(loaded, groups, hp)
    assert answers.norm() > 0
    assert verdicts.norm() > 0
    assert not torch.allclose(answers, changed[0])
    whole = settings(reward={"functional": 2.5})
    together = gradient_of(loaded, groups, whole, lambda group: None)
    torch.testing.assert_close(together, answers + 2.5 * verdicts, rtol=1e-3, atol=1e-6)


def test_pure_signal_needs_few_groups_and_pure_noise_has_none() -> None:
    torch.manual_seed(0)
    signal, noise = torch.randn(4_000), torch.randn(32, 4_000)
    alike = compare_halves((signal.repeat(32, 1) @ signal.repeat(32, 1).T).double(), 8)
    assert alike["cosine"] == pytest.approx(1.0)
    assert alike["groups_for_half"] == pytest.approx(0.0, abs=1e-3)
    orthogonal = compare_halves(torch.eye(32).double(), 8)
    assert orthogonal["cosine"] == 0.0
    assert orthogonal["groups_for_half"] == float("inf")
    mixed = signal + 2.0 * noise  # noise of four times the signal's power: four chunks of 8 groups
    found = compare_halves((mixed @ mixed.T).double(), 8)
    assert found["groups_for_half"] == pytest.approx(32.0, rel=0.15)
    assert found["cosine"] == pytest.approx(16 / (16 + 4), abs=0.05)  # halves of 16 chunks


def test_a_study_writes_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "gradients.json"
    flags = ["--groups", "4", "--chunk", "1", "--samples", "2", "--level", "6", "--out", str(out)]
    assert main(["nano-omni-r1", *flags]) == 0
    written = json.loads(out.read_text())
    assert written["groups"] == 4
    assert len(written["rows"]) == 10
    assert capsys.readouterr().out.count("\n| ") == 11


@pytest.mark.parametrize("flags", [["--groups", "3", "--chunk", "1"], ["--samples", "1"], ["--splits", "1"]])
def test_too_few_of_anything_is_refused(flags: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["nano-omni-r1", *flags])
    assert "at least" in capsys.readouterr().err


@pytest.mark.parametrize("level", ["7", "12", "easy"])
def test_levels_that_may_not_train_are_refused(level: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nano-omni-r1", "--level", level]) == 2
    assert "level" in capsys.readouterr().err.lower()

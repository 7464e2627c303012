"""PeSFT of low-rank pairs: a frozen base, adapters beside checkpoints, and a bit-identical resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from model.checkpoint.adapter import load_adapter
from model.checkpoint.checkpoint import load_checkpoint
from model.low_rank import TARGETS
from model.nets.lora import MergedState
from tests.training.job_helpers import losses, make_context, pesft_spec
from training.jobs.checkpoints import ADAPTER_FOLDER
from training.jobs.context import JobError, JobStopped
from training.jobs.log import JobLog
from training.jobs.loop import StopFlag
from training.pesft.job import run
from training.pesft.losses import sft_loss, target_nll
from training.spec.hyperparameters import PROJECTIONS
from training.spec.spec import parse_spec

LORA: dict[str, Any] = {"rank": 4, "alpha": 16.0, "dropout": 0.1}


def lora_spec(**hyper: Any) -> dict[str, Any]:
    return pesft_spec(precision="fp32", **{"lora": LORA, **hyper})


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Path:
    """The folder of a whole run."""
    folder = tmp_path_factory.mktemp("lora") / "whole"
    run(make_context(folder, lora_spec(), tiny_checkpoint))
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_checkpoint(folder).transformer.state_dict()


def test_only_the_targets_change_and_the_loss_falls(job: Path, tiny_checkpoint: Path) -> None:
    before, after = weights(tiny_checkpoint), weights(job / "checkpoints" / "job-step-6")
    changed = {name for name, value in before.items() if not torch.equal(value.bfloat16().float(), after[name])}
    assert changed
    assert {name.split(".")[-2] for name in changed} <= {*TARGETS}
    found = losses(job)
    assert found[6] < found[1]


def test_the_adapter_gives_the_checkpoints_weights(job: Path, tiny_checkpoint: Path) -> None:
    folder = job / "checkpoints" / "job-step-6"
    transformer = load_checkpoint(tiny_checkpoint).transformer
    settings = load_adapter(transformer, folder / ADAPTER_FOLDER)
    assert (settings.rank, settings.alpha, settings.dropout) == (4, 16.0, 0.1)
    after = weights(folder)
    for name, value in MergedState(transformer).items():
        assert torch.equal(value.bfloat16().float(), after[name]), name


def test_the_state_holds_the_pairs_alone(job: Path) -> None:
    state = torch.load(job / "runs" / "pesft" / "state.pt", weights_only=True)
    assert {name.split(".")[-2] for name in state["model"]} == {"lora"}


def stopped_after(step: int, folder: Path, base: Path) -> None:
    """Run until this step's metrics are logged."""
    stop, log = StopFlag(), JobLog.metrics

    def stop_at(self: JobLog, stage: str, done: int, values: Any) -> None:
        log(self, stage, done, values)
        if done == step:
            stop.request()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JobLog, "metrics", stop_at)
        with pytest.raises(JobStopped):
            run(make_context(folder, lora_spec(), base, stop=stop))


def test_a_resumed_run_equals_the_uninterrupted_one(job: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    stopped_after(3, tmp_path, tiny_checkpoint)
    run(make_context(tmp_path, lora_spec(), tiny_checkpoint, resume=True))
    assert losses(tmp_path) == losses(job)
    one, other = (weights(folder / "checkpoints" / "job-step-6") for folder in (tmp_path, job))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_run_of_other_pairs_is_not_resumed(tiny_checkpoint: Path, tmp_path: Path) -> None:
    stopped_after(1, tmp_path, tiny_checkpoint)
    with pytest.raises(JobError, match="lora") as refused:
        run(make_context(tmp_path, lora_spec(lora={**LORA, "rank": 8}), tiny_checkpoint, resume=True))
    assert refused.value.code == "settings_changed"


@pytest.mark.parametrize("lora", [None, {**LORA, "dropout": 0.0}], ids=["full", "lora"])
def test_recomputed_layers_train_alike(tiny_checkpoint: Path, tmp_path: Path, lora: dict[str, Any] | None) -> None:
    for name, recompute in (("kept", False), ("again", True)):
        run(make_context(tmp_path / name, lora_spec(lora=lora, recompute=recompute, steps=2), tiny_checkpoint))
    assert losses(tmp_path / "kept") == losses(tmp_path / "again")


def test_a_frozen_base_may_be_bf16(tiny_checkpoint: Path, tmp_path: Path) -> None:
    run(make_context(tmp_path, pesft_spec(lora=LORA, precision="bf16", steps=2, save_every=2), tiny_checkpoint))
    assert losses(tmp_path)[2] == pytest.approx(losses(tmp_path)[1], rel=0.5)
    assert (tmp_path / "checkpoints" / "job-step-2" / ADAPTER_FOLDER).is_dir()


def test_chunks_of_logits_have_the_same_loss_and_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    head, states = torch.randn(50, 8, requires_grad=True), torch.randn(33, 8, requires_grad=True)
    targets = torch.arange(33) % 50
    whole, _ = sft_loss(states @ head.t(), targets, targets < 10, 33)
    whole.backward()
    expected = [head.grad, states.grad]
    head.grad = states.grad = None
    monkeypatch.setattr("training.pesft.losses.CHUNKED_LOGITS", 50 * 7)
    nll = target_nll(states, targets, lambda x: x @ head.t(), 50)
    (nll.sum() / 33).backward()
    torch.testing.assert_close(nll.sum() / 33, whole)
    for found, wanted in zip((head.grad, states.grad), expected, strict=True):
        torch.testing.assert_close(found, wanted)


@pytest.mark.parametrize(
    "lora",
    [{"rank": 0}, {"rank": 2.5}, {"alpha": 0.0}, {"dropout": 1.0}, {"targets": []}, {"targets": ["lm_head"]}, {"r": 8}],
    ids=str,
)
def test_impossible_pairs_are_refused(lora: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"hyperparameters\.lora"):
        parse_spec({"base_checkpoint": "tiny", **pesft_spec(lora=lora)})


def test_targets_are_those_of_the_transformer() -> None:
    assert PROJECTIONS == TARGETS

"""PeRPO of low-rank pairs: ratio one, the frozen base as reference, and a bit-identical resume."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file

from model.checkpoint.checkpoint import load_checkpoint
from tests.tiny import make_tiny_checkpoint
from tests.training.perpo.test_job import STEP, StopAfter, context, step_metrics
from training.jobs.checkpoints import ADAPTER_FOLDER
from training.jobs.context import JobStopped
from training.perpo import job as perpo
from training.spec.spec import parse_spec

LORA: dict[str, Any] = {"lora": {"rank": 4, "alpha": 16.0}, "ema_decay": 0.5}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


@pytest.fixture(scope="module")
def whole(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("job") / "whole"
    return folder, perpo.run(context(base, folder, **LORA))


def test_first_mini_batch_has_ratio_one(whole: tuple[Path, dict[str, Any]]) -> None:
    for metrics in step_metrics(whole[0]).values():
        assert metrics["policy/first_ratio_off"] == 0.0
        assert metrics["policy/first_clip_frac"] == 0.0
        assert metrics["mismatch/max"] < 1e-4


def test_the_reference_is_the_base_without_pairs(base: Path, tmp_path: Path) -> None:
    run = perpo._Run(context(base, tmp_path, **LORA), contextlib.ExitStack())
    reference, start = run.updater.reference, load_checkpoint(base).transformer.state_dict()
    assert reference is not None
    assert reference.lm_head.weight is run.policy.lm_head.weight  # shared, not copied
    run.learn()
    assert {*reference.state_dict()} == {*start}
    assert all(torch.equal(value, start[name]) for name, value in reference.state_dict().items())


def test_checkpoints_are_whole_and_hold_their_adapter(base: Path, whole: tuple[Path, dict[str, Any]]) -> None:
    folder = Path(whole[1]["folder"])
    assert (folder / ADAPTER_FOLDER / "adapter_config.json").is_file()
    before, after = (load_checkpoint(one).transformer.state_dict() for one in (base, folder))
    changed = [name for name, value in before.items() if not torch.equal(value.bfloat16().float(), after[name])]
    assert changed
    assert all("proj" in name for name in changed)


def test_resumed_run_equals_the_uninterrupted_one(
    base: Path, whole: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    with pytest.raises(JobStopped):
        perpo.run(context(base, tmp_path, stop=StopAfter(STEP), **LORA))
    result = perpo.run(context(base, tmp_path, resume=True, **LORA))
    assert step_metrics(tmp_path) == step_metrics(whole[0])
    one, other = (load_file(Path(r["folder"]) / "model-lm.safetensors") for r in (result, whole[1]))
    assert all(torch.equal(one[name], other[name]) for name in other)


def test_dropout_is_refused() -> None:
    spec = {
        "method": "perpo",
        "base_checkpoint": "tiny",
        "data": {"source": "unitasks"},
        "hyperparameters": {"lora": {"dropout": 0.1}},
    }
    with pytest.raises(ValidationError, match="a policy with dropout is not the one that sampled"):
        parse_spec(spec)

"""A job that goes on from a finished one: bit for bit the run that was asked for all steps at once."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.training.job_helpers import events, pesft_spec, write_job
from training.jobs.worker import FAILED, SUCCEEDED, run_job

PERPO: dict[str, Any] = {
    "method": "perpo",
    "data": {"source": "unitasks", "num_samples": 40},
    "seed": 5,
    "hyperparameters": {
        "lr": 1e-3,
        "warmup": 0,
        "schedule": "constant",
        "prompts_per_step": 2,
        "rollouts_per_prompt": 2,
        "oversampling": 1.0,
        "mini_batch_prompts": 1,
        "filter_metric": "none",
        "max_new_tokens": 24,
    },
}


def spec(method: str, steps: int) -> dict[str, Any]:
    """A run at a constant rate, with momentum that a new optimiser would not have."""
    if method == "pesft":
        return pesft_spec(steps=steps, schedule="constant", warmup=1)
    return {**PERPO, "hyperparameters": {**PERPO["hyperparameters"], "steps": steps}}


def run(home: Path, name: str, wanted: dict[str, Any], base: Path, after: str | None = None, *, ends: int = 0) -> Path:
    folder = write_job(home / "jobs" / name, wanted, base)
    described = json.loads((folder / "job.json").read_text())
    if after is not None:
        described["continues"] = {"job_id": after, "folder": f"jobs/{after}", "steps": 2, "differs": []}
    assert run_job(folder, described) == ends
    return folder


def state(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("runs/*/state.pt")
    return dict(torch.load(path, weights_only=True))


def same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


@pytest.mark.parametrize("method", ["pesft", "perpo"])
def test_continued_run_equals_one_of_all_steps(method: str, tmp_path: Path, tiny_checkpoint: Path) -> None:
    whole = state(run(tmp_path, "whole", spec(method, 4), tiny_checkpoint))
    first = run(tmp_path, "first", spec(method, 2), tiny_checkpoint)
    before = {path: path.read_bytes() for path in sorted(first.rglob("*")) if path.is_file()}
    more = run(tmp_path, "more", {**spec(method, 4), "output_name": "longer"}, tiny_checkpoint, after="first")
    assert {event["step"] for event in events(more, "metrics")} == {3, 4}
    for part in ("model", "optimizer", "step"):
        assert same(state(more)[part], whole[part]), part
    assert {path: path.read_bytes() for path in sorted(first.rglob("*")) if path.is_file()} == before
    again = write_job(tmp_path / "jobs" / "again", {**spec(method, 5), "output_name": None}, tiny_checkpoint)
    described = json.loads((again / "job.json").read_text())
    described["continues"] = {"job_id": "more", "folder": "jobs/more", "steps": 4, "differs": []}
    assert run_job(again, described) == SUCCEEDED
    shutil.rmtree(more)  # a worker that took its state needs the other job no more
    assert run_job(again, described, resume=True) == SUCCEEDED
    assert state(again)["step"] == 5


def test_deleted_job_cannot_be_continued(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder = run(tmp_path, "more", spec("pesft", 4), tiny_checkpoint, after="gone", ends=FAILED)
    assert json.loads((folder / "error.json").read_text())["code"] == "state_gone"

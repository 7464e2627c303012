"""PeRPO runs that an earlier version has started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.tiny import make_tiny_checkpoint
from tests.training.perpo.test_job import STEP, StopAfter, context
from training.jobs.context import JobError, JobStopped
from training.perpo import job as perpo


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tiny_checkpoint(tmp_path_factory.mktemp("tiny") / "tiny")


def as_of_an_earlier_version(folder: Path) -> None:
    """Leave what such a version would have recorded."""
    run = folder / "runs" / "perpo"
    known = json.loads((run / "spec.json").read_text())
    for name in ("schedule", "ema_decay", "validation", "final", "credit", "code_weights"):
        del known["spec"]["hyperparameters"][name]
    del known["spec"]["hyperparameters"]["reward"]["functional"]
    del known["spec"]["data"]["difficulty"]
    (run / "spec.json").write_text(json.dumps(known))


def test_run_without_newer_settings_can_be_resumed(base: Path, tmp_path: Path) -> None:
    with pytest.raises(JobStopped):
        perpo.run(context(base, tmp_path, schedule="constant", stop=StopAfter(STEP)))
    as_of_an_earlier_version(tmp_path)
    with pytest.raises(JobError, match="other settings"):
        perpo.run(context(base, tmp_path, resume=True))  # the rate did not fall then
    perpo.run(context(base, tmp_path, schedule="constant", resume=True))


def test_optimiser_of_an_earlier_version_is_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(JobStopped):
        perpo.run(context(base, tmp_path, schedule="constant", stop=StopAfter(STEP)))
    as_of_an_earlier_version(tmp_path)
    path = tmp_path / "runs" / "perpo" / "state.pt"
    state = torch.load(path, weights_only=True)
    decayed, others = state["optimizer"]["param_groups"]
    decayed["params"].append(others["params"].pop())  # q/k norms did
    torch.save(state, path)
    with pytest.raises(JobError, match="q/k norms") as error:
        perpo.run(context(base, tmp_path, schedule="constant", resume=True))
    assert error.value.code == "settings_changed"

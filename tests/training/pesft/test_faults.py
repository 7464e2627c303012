"""Kills, non-finite numbers and a full disk during a PeSFT job: the last good checkpoint stays."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import training.pesft.loop
from model.checkpoint import checkpoint as checkpoint_module
from model.checkpoint.checkpoint import validate_checkpoint
from tests.training.job_helpers import events, losses, make_context, write_job
from tests.training.job_helpers import pesft_spec as spec
from training.jobs.context import JobError, JobStopped
from training.jobs.log import JobLog
from training.jobs.loop import RunFolder, StopFlag
from training.pesft.job import run


def test_sigkilled_job_resumes_in_new_process(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """A real process, without the worker's low priority: on a busy machine that would take minutes."""
    job = write_job(tmp_path / "job", spec(steps=400, save_every=3), tiny_checkpoint)
    script = (
        "import json, pathlib, sys; from training.jobs.worker import run_job\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "run_job(folder, json.loads((folder / 'job.json').read_text()))\n"
    )
    command = [sys.executable, "-c", script, str(job)]
    with (job / "log.txt").open("wb") as log:
        worker = subprocess.Popen(command, stdout=log, stderr=log, cwd=Path(__file__).parents[3])
        try:
            wait_for_checkpoint(job, worker)
        finally:
            worker.send_signal(signal.SIGKILL)
            worker.wait()
    state = torch.load(job / "runs" / "pesft" / "state.pt", weights_only=True)["step"]
    assert 3 <= state < 400
    assert not (job / "result.json").exists()
    for folder in (job / "checkpoints").glob("job-step-*"):
        validate_checkpoint(folder)  # visible checkpoints are complete
    stop = StopFlag()
    context = make_context(job, spec(steps=400, save_every=3), tiny_checkpoint, resume=True, stop=stop)
    stop.request()
    with pytest.raises(JobStopped):
        run(context)
    assert torch.load(job / "runs" / "pesft" / "state.pt", weights_only=True)["step"] == state + 1


def wait_for_checkpoint(job: Path, worker: subprocess.Popen[bytes]) -> None:
    while not list((job / "checkpoints").glob("job-step-*")):
        try:
            worker.wait(0.05)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError((job / "log.txt").read_text())


@pytest.mark.parametrize("where", ["loss", "gradient", "weights"])
def test_non_finite_values_keep_the_last_checkpoint(
    where: str, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = training.pesft.loop.accumulate, []

    def poisoned(model: Any, *args: Any, **options: Any) -> tuple[float, dict[str, float]]:
        loss, metrics = real(model, *args, **options)
        calls.append(loss)
        if len(calls) == 4:
            weight = model.transformer.lm_head.weight
            if where == "loss":
                return float("nan"), metrics
            broken = weight.grad if where == "gradient" else weight
            with torch.no_grad():
                broken[0, 0] = float("nan")
        return loss, metrics

    monkeypatch.setattr(training.pesft.loop, "accumulate", poisoned)
    with pytest.raises(JobError, match="the last good checkpoint is job-step-2") as caught:
        run(make_context(tmp_path, spec(), tiny_checkpoint))
    assert caught.value.code == "loss_not_finite"
    assert "step 4" in caught.value.detail
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["job-step-2"]
    validate_checkpoint(tmp_path / "checkpoints" / "job-step-2")
    assert torch.load(tmp_path / "runs" / "pesft" / "state.pt", weights_only=True)["step"] == 2


Switch = Callable[[int | None], None]


@pytest.fixture
def small_files() -> Iterator[Switch]:
    """A switch that fails writes of files above a size, as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def switch(limit: int | None) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft if limit is None else limit, hard))

    yield switch
    switch(None)


def full_between(first: int, last: int, switch: Switch, limit: int) -> Any:
    tell = JobLog.metrics

    def metrics(log: JobLog, stage: str, step: int, values: Any) -> None:
        tell(log, stage, step, values)
        switch(limit if first <= step < last else None)

    return metrics


@pytest.mark.parametrize("what", ["state", "weights"])
def test_temporarily_full_disk_costs_a_checkpoint(
    what: str,
    tmp_path: Path,
    tiny_checkpoint: Path,
    pesft_job: Path,
    small_files: Switch,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(JobLog, "metrics", full_between(3, 5, small_files, 20_000))
    if what == "weights":  # the state was written just before the disk was full
        save = RunFolder.save_state
        monkeypatch.setattr(RunFolder, "save_state", lambda run, state: (small_files(None), save(run, state)))
        write = checkpoint_module.save_file
        monkeypatch.setattr(
            checkpoint_module,
            "save_file",
            lambda *a, **k: (small_files(20_000 if len(events(tmp_path, "metrics")) == 4 else None), write(*a, **k)),
        )
    run(make_context(tmp_path, spec(), tiny_checkpoint))
    assert [e["name"] for e in events(tmp_path, "checkpoint")] == ["job-step-2", "job-step-6"]
    (warning,) = events(tmp_path, "warning")
    assert warning["code"] == "save_failed"
    assert "the last good checkpoint is job-step-2" in warning["detail"]
    assert losses(tmp_path) == losses(pesft_job)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["job-step-2", "job-step-6"]  # no leftovers


def test_full_disk_fails_job_and_keeps_checkpoint(
    tmp_path: Path, tiny_checkpoint: Path, pesft_job: Path, small_files: Switch, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(JobLog, "metrics", full_between(3, 99, small_files, 20_000))
        with pytest.raises(JobError, match="step 6 could not be written") as caught:
            run(make_context(tmp_path, spec(), tiny_checkpoint))
    small_files(None)
    assert caught.value.code == "save_failed"
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["job-step-2"]
    validate_checkpoint(tmp_path / "checkpoints" / "job-step-2")
    run(make_context(tmp_path, spec(), tiny_checkpoint, resume=True))  # once there is space again
    assert losses(tmp_path) == losses(pesft_job)

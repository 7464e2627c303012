"""A job in two processes on a CPU: the steps of one process, what it leaves when a rank dies, and how it goes on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

from model.checkpoint.checkpoint import load_checkpoint
from tests.e2e.real_server import wait_until
from tests.training.job_helpers import events, losses, make_context, masters, pesft_spec, write_job
from training.jobs.context import JobError
from training.jobs.ranks import CPU_RANKS, exit_code
from training.jobs.worker import FAILED, STOPPED, SUCCEEDED
from training.pesft.job import run

ROOT = Path(__file__).parents[3]
SPREAD: dict[str, Any] = {"gpu": "exclusive", "num_gpus": 2}


def spec(**hyper: Any) -> dict[str, Any]:
    """Batches of one sequence and of several, in three parts: two ranks take two each, some of them blank."""
    return pesft_spec(**{"precision": "fp32", "micro_batches": 3, "lr": 1e-3, **hyper})


def worker(folder: Path, *arguments: str) -> subprocess.Popen[bytes]:
    with (folder / "log.txt").open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "training.jobs.worker", str(folder), *arguments],
            cwd=ROOT,
            env={**os.environ, CPU_RANKS: "2", "OMNI_R1_DEVICE": "cpu"},
            stdout=output,
            stderr=output,
            process_group=0,
        )


def step_of(folder: Path) -> int:
    """The last logged step."""
    path = folder / "events.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    return max((row["data"]["step"] for row in rows if row["type"] == "metrics"), default=0)


def ranks_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    found = [child for child in psutil.Process(process.pid).children() if "--rank" in child.cmdline()]
    return sorted(found, key=lambda child: child.environ()["RANK"])


def test_two_ranks_take_the_steps_of_one_process(tmp_path: Path, tiny_checkpoint: Path) -> None:
    one, two = tmp_path / "one", write_job(tmp_path / "two", spec() | SPREAD, tiny_checkpoint)
    run(make_context(one, spec(), tiny_checkpoint))
    process = worker(two)
    assert process.wait() == SUCCEEDED, (two / "log.txt").read_text()
    alone, together = (
        [{k: v for k, v in e["values"].items() if "speed" not in k} for e in events(folder, "metrics")]
        for folder in (one, two)
    )
    assert len(alone) == len(together) == 6
    for mine, theirs in zip(together, alone, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-6, abs=1e-6)
    expected = masters(one, 6)
    for name, value in masters(two, 6).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-6, atol=1e-6)
    result = json.loads((two / "result.json").read_text())
    assert result["checkpoint"] == "job-step-6"
    served = load_checkpoint(two / "checkpoints" / "job-step-6").transformer.state_dict()
    assert all(torch.equal(served[name], value.bfloat16().float()) for name, value in masters(two, 6).items())


def test_dead_rank_is_named_and_any_number_of_ranks_resumes(tmp_path: Path, tiny_checkpoint: Path) -> None:
    steps = {"steps": 100, "save_every": 4}  # so many that it can be stopped before its end on a busy machine
    whole, job = tmp_path / "whole", write_job(tmp_path / "job", spec(**steps) | SPREAD, tiny_checkpoint)
    run(make_context(whole, spec(**steps), tiny_checkpoint))

    process = worker(job)
    wait_until(lambda: step_of(job) >= 5, "five steps")
    survivor, victim = ranks_of(process)
    victim.kill()
    assert process.wait() == FAILED
    assert not survivor.is_running()
    error = json.loads((job / "error.json").read_text())
    assert error["code"] == "rank_died"
    assert error["detail"].startswith("rank 1 was ended by signal 9")

    before = step_of(job)
    process = worker(job, "--resume")
    wait_until(lambda: step_of(job) > before, "another step")
    os.killpg(process.pid, signal.SIGTERM)
    assert process.wait() == STOPPED
    assert not (job / "error.json").exists()
    state = torch.load(job / "runs" / "pesft" / "state.pt", weights_only=True)
    assert state["step"] == step_of(job) < steps["steps"]

    run(make_context(job, spec(**steps), tiny_checkpoint, resume=True))
    assert losses(job) == pytest.approx(losses(whole), rel=1e-4)


def test_ranks_end_with_the_worker_that_started_them(tmp_path: Path, tiny_checkpoint: Path) -> None:
    job = write_job(tmp_path / "job", spec(steps=10_000, save_every=10_000) | SPREAD, tiny_checkpoint)
    process = worker(job)
    wait_until(lambda: step_of(job) >= 1, "the first step")
    ranks = ranks_of(process)
    process.kill()
    process.wait()
    assert len(ranks) == 2
    psutil.wait_procs(ranks)


def test_too_few_devices_are_refused_with_both_numbers(tmp_path: Path, tiny_checkpoint: Path) -> None:
    job = write_job(tmp_path / "job", spec() | {"gpu": "exclusive", "num_gpus": 3}, tiny_checkpoint)
    assert worker(job).wait() == FAILED
    assert json.loads((job / "error.json").read_text()) == {
        "code": "too_few_devices",
        "detail": "3 devices asked, 2 found",
    }


@pytest.mark.parametrize(
    ("codes", "reported", "expected"),
    [
        ({0: 1, 1: -9}, True, "rank 1 was ended by signal 9"),
        ({0: -6, 1: -9}, False, "rank 1 was ended by signal 9"),
        ({0: -15, 1: 7}, False, "rank 1 exited with code 7"),
        ({0: -15, 1: 1}, True, FAILED),
        ({0: -6, 1: 1}, True, FAILED),
        ({0: STOPPED, 1: STOPPED}, False, STOPPED),
    ],
    ids=str,
)
def test_cause_is_found_among_the_ends_of_all_ranks(
    codes: dict[int, int], reported: bool, expected: str | int, tmp_path: Path
) -> None:
    """What ended one rank, not what losing it did to the others."""
    if reported:
        (tmp_path / "error.json").touch()
    if isinstance(expected, int):
        assert exit_code(codes, tmp_path, STOPPED) == expected
    else:
        with pytest.raises(JobError, match=expected) as died:
            exit_code(codes, tmp_path, STOPPED)
        assert died.value.code == "rank_died"

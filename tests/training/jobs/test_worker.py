"""The worker's interface: exit codes, result and error files, and the classification of failures."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from model.checkpoint.shards import CheckpointError
from tests.training.job_helpers import events, write_job
from training.data.rows import DataError
from training.jobs.context import JobContext, JobError, JobStopped
from training.jobs.worker import FAILED, STOPPED, SUCCEEDED, main, run_job
from training.spec.spec import JsonlData, PeSFTSpec

SPEC = {"method": "pesft", "data": {"source": "unitasks", "num_samples": 4}, "seed": 3}


def job_of(folder: Path, base: Path) -> tuple[Path, dict[str, Any]]:
    write_job(folder, SPEC, base)
    return folder, json.loads((folder / "job.json").read_text())


def raising(error: BaseException) -> Callable[[JobContext], dict[str, Any]]:
    def run(ctx: JobContext) -> dict[str, Any]:
        raise error

    return run


def test_method_gets_context_and_writes_result(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder, job = job_of(tmp_path / "job-1", tiny_checkpoint)
    seen: list[JobContext] = []

    def run(ctx: JobContext) -> dict[str, Any]:
        seen.append(ctx)
        return {"checkpoint": "job-step-1", "metrics": {"loss/ce": 1.0}}

    assert run_job(folder, job, run=run) == SUCCEEDED
    (ctx,) = seen
    assert (ctx.job_id, ctx.output_prefix, ctx.base_folder) == ("job-1", "job", tiny_checkpoint)
    assert ctx.checkpoint_name(7) == "job-step-7"
    assert ctx.for_stage("perpo", ctx.spec, tmp_path).checkpoint_name(7) == "job-perpo-step-7"
    assert ctx.provenance["seed"] == 3
    assert {"commit", "torch", "python"} <= set(ctx.provenance)
    assert json.loads((folder / "result.json").read_text())["checkpoint"] == "job-step-1"
    assert not (folder / "error.json").exists()


def test_data_on_the_hub_keeps_its_commit(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, commits = "hf://datasets/lab/shapes", iter(("1" * 40, "2" * 40))
    monkeypatch.setattr("training.data.hub.pinned", lambda text: f"{text}@{next(commits)}")
    read: list[str] = []

    def run(ctx: JobContext) -> dict[str, Any]:
        assert isinstance(ctx.spec, PeSFTSpec)
        assert isinstance(ctx.spec.data, JsonlData)
        read.append(ctx.spec.data.path)
        return {}

    spec = {"method": "pesft", "data": {"source": "jsonl", "path": address}}
    write_job(tmp_path / "jobs" / "a", spec, tiny_checkpoint)
    first = json.loads((tmp_path / "jobs" / "a" / "job.json").read_text())
    for resume in (False, True):
        assert run_job(tmp_path / "jobs" / "a", first, resume=resume, run=run) == SUCCEEDED
    (tmp_path / "jobs" / "a" / "runs" / "pesft").mkdir(parents=True)
    (tmp_path / "jobs" / "a" / "runs" / "pesft" / "state.pt").touch()
    write_job(tmp_path / "jobs" / "b", spec, tiny_checkpoint)
    second = {**first, "continues": {"job_id": "a", "folder": "jobs/a"}}
    assert run_job(tmp_path / "jobs" / "b", second, run=run) == SUCCEEDED
    assert read == [f"{address}@{'1' * 40}"] * 3


def test_missing_data_on_the_hub_fails_the_job(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unknown(text: str) -> str:
        raise DataError(f"{text} cannot be read from the hub: 404")

    monkeypatch.setattr("training.data.hub.pinned", unknown)
    write_job(
        tmp_path / "job", {"method": "pesft", "data": {"source": "jsonl", "path": "hf://datasets/a/b"}}, tiny_checkpoint
    )
    assert run_job(tmp_path / "job", json.loads((tmp_path / "job" / "job.json").read_text())) == FAILED
    assert json.loads((tmp_path / "job" / "error.json").read_text())["code"] == "bad_data"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (JobError("no_samples", "nothing is left"), "no_samples", "nothing is left"),
        (JobError("bad_data", os.fsdecode(b"caf\xe9.jsonl is empty")), "bad_data", "caf?.jsonl is empty"),
        (FloatingPointError("the loss of step 3 is nan"), "loss_not_finite", "step 3"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk_full", "No space"),
        (MemoryError(), "out_of_memory", "MemoryError"),
        (CheckpointError("hash_mismatch", "x differs"), "bad_checkpoint", "hash_mismatch"),
        (ZeroDivisionError("oh"), "internal", "ZeroDivisionError: oh"),
        (KeyboardInterrupt(), "killed", "second signal"),
    ],
)
def test_every_failure_has_code_and_sentence(
    error: BaseException, code: str, words: str, tmp_path: Path, tiny_checkpoint: Path
) -> None:
    folder, job = job_of(tmp_path / "job", tiny_checkpoint)
    assert run_job(folder, job, run=raising(error)) == FAILED
    logged = json.loads((folder / "error.json").read_text())
    assert logged["code"] == code
    assert words in logged["detail"]
    assert not (folder / "result.json").exists()


def test_stop_on_full_disk_exit_code(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class FullDisk:
        def write(self, *_: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

        flush = write

    def stopped(then: BaseException | None = None) -> Callable[[JobContext], dict[str, Any]]:
        def run(ctx: JobContext) -> dict[str, Any]:
            os.kill(os.getpid(), signal.SIGTERM)
            if then is not None:
                raise then
            return {}

        return run

    folder, job = job_of(tmp_path / "job", tiny_checkpoint)
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", FullDisk())
        patch.setattr(Path, "write_text", FullDisk.write)
        assert run_job(folder, job, run=stopped(JobError("bad_data", "no rows"))) == FAILED
        assert run_job(folder, job, run=stopped()) == STOPPED  # an unsaved result is not a success
    assert not (folder / "result.json").exists()


def test_result_waits_for_disk_space(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, waits = Path.write_text, []

    def write_text(path: Path, *args: Any, **options: Any) -> int:
        if "result.json" in path.name and len(waits) < 3:
            waits.append(json.loads((folder / "waiting.json").read_text()))
            raise OSError(errno.EDQUOT, "Disk quota exceeded")
        return real(path, *args, **options)

    folder, job = job_of(tmp_path / "job", tiny_checkpoint)
    monkeypatch.setattr("training.jobs.disk.POLL_S", 0.001)
    monkeypatch.setattr(Path, "write_text", write_text)
    assert run_job(folder, job, run=lambda ctx: {"steps": 3}) == SUCCEEDED
    assert json.loads((folder / "result.json").read_text()) == {"steps": 3}
    assert [waiting is None for waiting in waits] == [True, False, False]
    assert waits[1]["for"] == "disk"
    assert waits[1].keys() == {"for", "needed_bytes", "free_bytes"}
    assert json.loads((folder / "waiting.json").read_text()) is None
    assert [e["code"] for e in events(folder, "warning")] == ["disk_full"]
    assert ["waiting" in e for e in events(folder, "progress")] == [True, False]


def test_stop_at_boundary_has_its_exit_code(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder, job = job_of(tmp_path / "job", tiny_checkpoint)

    def run(ctx: JobContext) -> dict[str, Any]:
        os.kill(os.getpid(), signal.SIGTERM)
        ctx.check_stop()
        raise AssertionError("the stop was not seen")

    assert run_job(folder, job, run=run) == 3
    assert not (folder / "error.json").exists()
    assert "stopped at a step boundary" in events(folder, "log")[-1]["line"]
    assert run_job(folder, job, run=raising(JobStopped())) == 3


def test_invalid_specification_fails_early(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder, job = job_of(tmp_path / "job", tiny_checkpoint)
    job["spec"]["hyperparameters"] = {"lr": -1.0}
    assert run_job(folder, job, run=raising(AssertionError("started"))) == FAILED
    assert json.loads((folder / "error.json").read_text())["code"] == "bad_spec"


@pytest.mark.parametrize("text", [None, "{", '{"spec": 3}', "[]"])
def test_unreadable_job_fails_with_its_name(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "job.json").write_text(text)
    assert main([str(tmp_path)]) == FAILED
    assert json.loads((tmp_path / "error.json").read_text())["code"] == "bad_job"


def test_old_error_is_removed_on_restart(tmp_path: Path, tiny_checkpoint: Path) -> None:
    folder, job = job_of(tmp_path / "job", tiny_checkpoint)
    run_job(folder, job, run=raising(JobError("no_samples", "")))
    assert (folder / "error.json").exists()
    assert run_job(folder, job, run=lambda ctx: {}) == SUCCEEDED
    assert not (folder / "error.json").exists()


def test_worker_limits_threads_and_priority(tmp_path: Path, tiny_checkpoint: Path) -> None:
    """The real command line with a missing base: the end of a real run without its cost."""
    write_job(tmp_path / "job", {**SPEC, "threads": 1}, tmp_path / "no-such-base")
    script = (
        "import os, runpy, sys, threading\n"
        "before = os.nice(0)\n"
        "sys.argv = ['worker', sys.argv[1]]\n"
        "try:\n"
        "    runpy.run_module('training.jobs.worker', run_name='__main__')\n"
        "except SystemExit as end:\n"
        "    import torch\n"
        "    print(end.code, os.nice(0) - before, torch.get_num_threads(), os.environ['OMP_NUM_THREADS'])\n"
    )
    environment = {k: v for k, v in os.environ.items() if not k.endswith("NUM_THREADS")}
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "job")],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
        cwd=Path(__file__).parents[3],
    )
    code, nicer, threads, variable = done.stdout.split()
    assert (code, threads, variable) == ("1", "1", "1"), done.stderr
    assert int(nicer) == min(10, 19 - os.nice(0))  # 19 is the lowest priority
    assert json.loads((tmp_path / "job" / "error.json").read_text())["code"] == "bad_checkpoint"

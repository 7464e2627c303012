"""Memory that runs out in a job: a code, a remedy, and a state to resume from."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import training.pesft.loop
from tests.training.job_helpers import losses, pesft_spec, write_job
from training.jobs.worker import FAILED, SUCCEEDED, run_job

SPEC = pesft_spec(steps=3, save_every=1, precision="fp32")


def of_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")


def of_cublas() -> None:
    raise RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`")


def of_python() -> None:
    bytearray(1 << 60)


def of_torch_on_a_cpu() -> None:
    torch.empty(1 << 58, dtype=torch.uint8)


def run(folder: Path, base: Path, *, resume: bool = False) -> int:
    write_job(folder, SPEC, base)
    return run_job(folder, json.loads((folder / "job.json").read_text()), resume=resume)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> dict[int, float]:
    """The losses of a run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("jobs") / "whole"
    assert run(folder, tiny_checkpoint) == SUCCEEDED
    return losses(folder)


@pytest.mark.parametrize("shortage", [of_a_gpu, of_cublas, of_python, of_torch_on_a_cpu])
def test_job_without_memory_fails_with_a_remedy_and_resumes(
    shortage: Callable[[], None], whole: dict[int, float], tmp_path: Path, tiny_checkpoint: Path
) -> None:
    accumulate, calls = training.pesft.loop.accumulate, []

    def third_fails(*args: Any, **how: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            shortage()
        return accumulate(*args, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.pesft.loop, "accumulate", third_fails)
        assert run(tmp_path, tiny_checkpoint) == FAILED
    error = json.loads((tmp_path / "error.json").read_text())
    assert error["code"] == "out_of_memory"
    assert "resume the job" in error["detail"]
    assert "`recompute`" in error["detail"]
    assert run(tmp_path, tiny_checkpoint, resume=True) == SUCCEEDED
    assert losses(tmp_path) == whole

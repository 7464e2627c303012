"""A job's context and its events, for tests of the training methods."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.app.stream_events import check_worker_event
from training.jobs.context import JobContext
from training.jobs.log import JobLog
from training.jobs.loop import StopFlag
from training.spec.spec import parse_spec


def make_context(
    folder: Path, spec: dict[str, Any], base: Path, *, resume: bool = False, stop: StopFlag | None = None
) -> JobContext:
    """Build the context that the worker would build for a job in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    return JobContext(
        folder=folder,
        spec=parse_spec({"base_checkpoint": base.name, **spec}),
        base_folder=base,
        checkpoints={base.name: base},
        log=JobLog(folder, tensorboard=False),
        output_prefix="job",
        resume=resume,
        stop=StopFlag() if stop is None else stop,  # an unset flag is falsy
    )


def events(folder: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The data of every event in a job's folder, optionally of one type."""
    rows = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    for row in rows:
        check_worker_event(row)
    return [row["data"] for row in rows if kind in (None, row["type"])]


def write_job(folder: Path, spec: dict[str, Any], base: Path) -> Path:
    """Write a job's folder as the server does."""
    folder.mkdir(parents=True, exist_ok=True)
    job = {
        "id": folder.name,
        "spec": {"base_checkpoint": base.name, **spec},
        "base": {"name": base.name, "folder": str(base)},
        "checkpoints": {base.name: str(base)},
        "output_prefix": "job",
    }
    (folder / "job.json").write_text(json.dumps(job))
    return folder


WORLD = {"source": "unitasks", "num_samples": 12}
HYPER: dict[str, Any] = {
    "steps": 6,
    "save_every": 2,
    "log_every": 1,
    "lr": 1e-2,
    "warmup": 1,
    "batch_tokens": 256,
    "sample_every": 0,
}


def pesft_spec(data: dict[str, Any] | None = None, **hyper: Any) -> dict[str, Any]:
    """Six steps on twelve tasks, or the given settings."""
    return {"method": "pesft", "data": data or WORLD, "hyperparameters": {**HYPER, **hyper}, "seed": 1}


def losses(folder: Path) -> dict[int, float]:
    """The loss of each step; of two rows for one step, the later one counts."""
    return {e["step"]: e["values"]["loss/ce"] for e in events(folder, "metrics")}


def masters(job: Path, step: int) -> dict[str, Tensor]:
    """The fp32 weights in the training checkpoint of a step."""
    path = job / "checkpoints" / f"job-step-{step}" / "train" / "state.pt"
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["model"]
    return state

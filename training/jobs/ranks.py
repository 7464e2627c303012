"""A job on several devices: one process ("rank") each, started and watched by torchrun's agent in the worker.

The worker of such a job (``num_gpus`` > 1) computes nothing itself. Ranks are workers too (``--rank``); rank 0 writes
the job's folder, and any rank reports its own failure. They live in sessions of their own, so signals reach them
through the agent, and a pipe tells them when the worker is gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from training.jobs.context import JobError

CPU_RANKS = "OMNI_R1_CPU_RANKS"  # the most processes of a job without GPUs, for trying it out
STOP_S = 86_400  # the server decides how long a stop may take
_COUNT = "import torch; print(torch.cuda.device_count())"


def devices_found(device: str, cpu_ranks: int) -> int:
    """Number of devices that a job may spread over: the machine's GPUs, or ``cpu_ranks`` without any.

    Args:
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``, as in the settings.
        cpu_ranks: processes that a job may have on a CPU; 1 counts as no device.
    """
    found = 0
    if device in ("auto", "cuda"):  # asks a child process: a server imports no torch
        asked = subprocess.run([sys.executable, "-c", _COUNT], capture_output=True, text=True, check=False, timeout=120)
        found = int(asked.stdout) if asked.returncode == 0 else 0
    return found or (cpu_ranks if cpu_ranks > 1 else 0)


def too_few(asked: int, found: int) -> str | None:
    """A sentence if fewer devices were found than asked for."""
    return f"{asked} devices asked, {found} found" if asked > max(1, found) else None


def run_ranks(folder: Path, job: Mapping[str, Any], *, resume: bool, stopped: int) -> int:
    """Run the job in one process for each device; return the worker's exit code.

    Args:
        folder: of the job; with ``error.json`` if a rank reported a failure, and the code is that rank's.
        job: the object of ``job.json``.
        resume: continue from saved states.
        stopped: the exit code of a worker that stopped with its state saved.

    Raises:
        JobError: ``too_few_devices``, or ``rank_died`` with the rank and its signal or exit code.
    """
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    count = int(job["spec"]["num_gpus"])
    found = devices_found(os.environ.get("OMNI_R1_DEVICE", "auto"), int(os.environ.get(CPU_RANKS, "1")))
    if (why := too_few(count, found)) is not None:
        raise JobError("too_few_devices", why)
    lifeline, held = os.pipe()  # only this process holds the writing end
    os.dup2(lifeline, 0)
    os.close(lifeline)
    command = ["-m", "training.jobs.worker", str(folder), "--rank", *(["--resume"] if resume else [])]
    with tempfile.TemporaryDirectory(prefix="omni-r1-ranks-") as logs:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id=folder.name,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            local_addr="localhost",
            rdzv_configs={"keep_alive_max_attempt": 1_000_000},  # one node cannot lose another, only be slow
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(log_dir=logs),
            shutdown_timeout=STOP_S,
        )
        try:
            elastic_launch(config, sys.executable)(*command)
        except SignalException:
            if (folder / "error.json").exists():
                return 1
            return 0 if (folder / "result.json").exists() else stopped
        except ChildFailedError as error:
            return exit_code({rank: failure.exitcode for rank, failure in error.failures.items()}, folder, stopped)
        finally:
            os.close(held)
    return 0


def exit_code(codes: Mapping[int, int], folder: Path, stopped: int) -> int:
    """The worker's exit code from those of the ranks that did not succeed.

    A signal that ended a rank is the cause of what the others report: they lost it. Some libraries abort then, and the
    agent sends SIGTERM to those that are left.

    Raises:
        JobError: ``rank_died``.
    """
    effects = (-signal.SIGABRT, -signal.SIGTERM)
    _, rank, code = min((2 if code in effects else int(code > 0), rank, code) for rank, code in codes.items())
    reported = (folder / "error.json").exists()
    if code < 0 and not (reported and code in effects):
        detail = f"rank {rank} was ended by signal {-code}; the other ranks stopped with it"
        raise JobError("rank_died", f"{detail}, and the job resumes from its last saved state")
    if reported:
        return 1
    if stopped in codes.values():
        return stopped
    raise JobError("rank_died", f"rank {rank} exited with code {code} and reported no error")

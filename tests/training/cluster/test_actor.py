"""The actor that runs a job's worker on a node, without Ray."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import json
import os
import signal
from pathlib import Path

import pytest

from tests.patience import PATIENCE_S
from training.cluster import actor as module
from training.cluster.actor import LOCK, JobActor, NodeError

# In place of `training.jobs.worker`: reports what it got, then waits for SIGTERM, or for the end of stdin.
WORKER = """
import os, signal, sys
folder = sys.argv[1]
def stopped(*_):
    os._exit(3)
signal.signal(signal.SIGTERM, stopped)
print(" ".join(sys.argv[2:]), os.environ["OMNI_R1_X"], flush=True)
sys.stdin.read()
os._exit(4)
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job's folder; its worker is the script above."""
    package = tmp_path / "here" / "training"
    (package / "jobs").mkdir(parents=True)
    for folder in (package, package / "jobs"):
        (folder / "__init__.py").touch()
    (package / "jobs" / "worker.py").write_text(WORKER)
    monkeypatch.setattr(module, "ROOT", tmp_path / "here")
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "job.json").write_text(json.dumps({}))
    return folder


async def run(actor: JobActor, job: Path, *options: str) -> int | None:
    async with asyncio.timeout(PATIENCE_S):
        end = await actor.run(str(job), options, {"OMNI_R1_X": "y"})
    return None if end is None else end.code


async def started(job: Path) -> str:
    async with asyncio.timeout(PATIENCE_S):
        while not (job / "log.txt").exists() or not (text := (job / "log.txt").read_text()).endswith("\n"):
            await asyncio.sleep(0.01)
    return text


async def test_stop_reaches_the_worker_and_its_exit_code_comes_back(job: Path) -> None:
    actor = JobActor()
    running = asyncio.create_task(run(actor, job, "--resume"))
    assert await started(job) == "--attached --resume y\n"
    await actor.stop()
    assert await running == 3


async def test_signal_that_ended_the_worker_comes_back(job: Path) -> None:
    actor = JobActor()
    running = asyncio.create_task(run(actor, job))
    await started(job)
    assert actor._worker is not None
    os.kill(actor._worker.pid, signal.SIGKILL)
    assert await running == -signal.SIGKILL


async def test_worker_ends_with_its_actor(job: Path) -> None:
    """Whose end closes the pipe."""
    actor = JobActor()
    running = asyncio.create_task(run(actor, job))
    await started(job)
    assert actor._worker is not None
    assert actor._worker.stdin is not None
    actor._worker.stdin.close()
    assert await running == 4


async def test_two_nodes_never_run_one_job(job: Path) -> None:
    first, second = JobActor(), JobActor(lock_s=0.5)
    running = asyncio.create_task(run(first, job))
    await started(job)
    with pytest.raises(NodeError, match="still runs on another node"):
        await run(second, job)
    await first.stop()
    assert await running == 3
    third = JobActor()
    again = asyncio.create_task(run(third, job))
    while third._worker is None:
        await asyncio.sleep(0.01)
    await third.stop()
    await again


async def test_stop_before_the_worker_starts_none(job: Path) -> None:
    actor = JobActor()
    await actor.stop()
    assert await run(actor, job) is None
    held = os.open(job / LOCK, os.O_RDWR | os.O_CREAT)
    fcntl.flock(held, fcntl.LOCK_EX)
    actor = JobActor()
    waiting = asyncio.create_task(run(actor, job))
    await asyncio.sleep(0)
    await actor.stop()
    assert await waiting is None
    os.close(held)
    assert not (job / "log.txt").exists()


async def test_node_without_the_folder_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match=r"does not see .*no-such: OMNI_R1_HOME must lie on a file system that all"):
        await JobActor().run(str(tmp_path / "no-such"), [], {})


async def test_reports_of_the_worker_are_named_with_their_sizes(job: Path) -> None:
    (job / "events.jsonl").write_text("{}\n")
    actor = JobActor()
    running = asyncio.create_task(actor.run(str(job), [], {"OMNI_R1_X": "y"}))
    await started(job)
    (job / "result.json").write_text("{}")
    await actor.stop()
    end = await running
    assert end is not None
    assert (end.code, end.sizes) == (3, {"events.jsonl": 3, "result.json": 2})


async def test_worker_waits_for_a_full_disk(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a job on the server's machine does."""
    real, tries = os.open, []

    def full(path: object, *more: object, **options: object) -> int:
        if str(path).endswith(LOCK) and len(tries) < 3:
            tries.append(path)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(path, *more, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(module.os, "open", full)
    actor = JobActor()
    running = asyncio.create_task(run(actor, job))
    await started(job)
    assert len(tries) == 3
    await actor.stop()
    assert await running == 3

"""The worker of a job on a node of a Ray cluster: a child process of an actor there. Imports no Ray."""

from __future__ import annotations

import asyncio
import fcntl
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.jobs.disk import is_full

LOCK = "node.lock"
REPORTS = ("events.jsonl", "result.json", "error.json")
LOCK_S = 60.0  # for an earlier worker of the job to save and end
POLL_S = 0.2
ROOT = Path(__file__).parents[2]  # the folder that holds the packages, here


class NodeError(RuntimeError):
    """The job cannot run on this node; the message is one sentence."""


@dataclass(frozen=True)
class Ended:
    """How a worker ended: its exit code, negative for a signal, and the sizes of its reports in the job's folder."""

    code: int
    sizes: Mapping[str, int]


def sizes_of(folder: Path) -> dict[str, int]:
    """Bytes of the worker's reports that this machine sees; listing the folder asks a network file system anew."""
    return {entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.name in REPORTS}


class JobActor:
    """Runs the worker of one job. Its methods are async: `stop` comes while `run` goes on."""

    def __init__(self, lock_s: float = LOCK_S) -> None:
        self._lock_s = lock_s
        self._worker: subprocess.Popen[bytes] | None = None
        self._stopped = False

    async def run(self, folder: str, options: Sequence[str], environment: Mapping[str, str]) -> Ended | None:
        """Run ``python -m training.jobs.worker`` on a job's folder to its end.

        The worker holds a lock on the folder for its whole life. A node that only seemed lost may still run the job's
        last worker, and two must not write.

        Args:
            folder: of the job, on a file system that all nodes share.
            options: of the worker.
            environment: variables that it gets besides this process's own.

        Returns:
            How it ended; None if `stop` came before it was started.

        Raises:
            NodeError: this node does not see the folder, or another one still runs the job.
        """
        if not (Path(folder) / "job.json").is_file():
            where = f"node {platform.node()} does not see {folder}"
            raise NodeError(f"{where}: OMNI_R1_HOME must lie on a file system that all nodes share")
        while not self._stopped:
            try:
                self._worker = await self._start(folder, options, environment)
                break
            except OSError as error:
                if not is_full(error):
                    raise
            await asyncio.sleep(POLL_S)  # as a job on the server's machine waits for space
        if self._worker is None:
            return None
        code = await asyncio.to_thread(self._worker.wait)
        if self._worker.stdin is not None:
            self._worker.stdin.close()
        return Ended(code, sizes_of(Path(folder)))

    async def _start(
        self, folder: str, options: Sequence[str], environment: Mapping[str, str]
    ) -> subprocess.Popen[bytes] | None:
        lock = os.open(Path(folder) / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            await self._acquire(lock)
            if self._stopped:
                return None
            command = [sys.executable, "-m", "training.jobs.worker", folder, "--attached", *options]
            with (Path(folder) / "log.txt").open("ab") as output:
                return subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=os.environ | dict(environment),
                    stdin=subprocess.PIPE,  # closes with this process, and the worker stops
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    pass_fds=(lock,),
                    process_group=0,
                )
        finally:
            os.close(lock)

    async def stop(self) -> None:
        """Have the worker save and stop at its next step boundary."""
        self._stopped = True
        if self._worker is not None and self._worker.poll() is None:
            self._worker.send_signal(signal.SIGTERM)

    async def _acquire(self, lock: int) -> None:
        deadline = time.monotonic() + self._lock_s
        while not self._stopped:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise NodeError("a worker of this job still runs on another node; resume the job later") from None
            await asyncio.sleep(POLL_S)

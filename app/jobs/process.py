"""A worker as a process group: starting, liveness, signals, exit code.

A worker holds the lock of its folder, `worker.lock`, for its whole life. The lock belongs to an inherited open file, so
the kernel releases it when the process exits. Clock steps and reused pids cannot be mistaken for the worker, and a copy
of the folder has its own lock. Knows nothing about jobs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

COMMAND = (sys.executable, "-m", "training.jobs.worker")
ON_CLUSTER = (sys.executable, "-m", "training.cluster.launcher")
LOCK = "worker.lock"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # Linux only; elsewhere reboots cannot be detected
_LOCK_BYTES = 256


class WorkerRuns(RuntimeError):
    """A worker is still running in the folder."""


def start_worker(command: Sequence[str], folder: Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start a process group that holds the folder's lock; `options` are passed to `subprocess.Popen`.

    Raises:
        WorkerRuns: the lock is held.
        OSError: the process cannot be started, or the disk is full.
    """
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkerRuns(f"a worker is still running in {folder}") from None
        _write(lock, None)  # allocates disk space before the process exists
        process = subprocess.Popen(command, process_group=0, pass_fds=(lock,), **options)
        _write(lock, {"pid": process.pid, "boot": _boot_id(), "inode": os.fstat(lock).st_ino})
        return process
    finally:
        os.close(lock)


@dataclass(frozen=True)
class WorkerProcess:
    """The latest worker of a folder."""

    folder: Path

    @property
    def alive(self) -> bool:
        """Whether the worker is running; zombies do not count."""
        try:
            lock = os.open(self.folder / LOCK, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(lock)
        return False

    @property
    def pid(self) -> int | None:
        """Its pid, which is also its process group id; None if unknown."""
        owner = self._content()
        return int(owner["pid"]) if owner else None

    def kill_survivors(self) -> None:
        """Kill the rest of its process group after the worker has exited, but never a group with a reused id."""
        owner = self._content()
        if not owner or self.alive or psutil.pid_exists(owner["pid"]):
            return
        if owner["boot"] is not None and owner["boot"] == _boot_id() and owner["inode"] == self._inode():
            self.signal_group(signal.SIGKILL)

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to the worker's process group."""
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)

    def _content(self) -> Mapping[str, Any] | None:
        try:
            owner = json.loads((self.folder / LOCK).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return owner if isinstance(owner, dict) else None

    def _inode(self) -> int:
        return (self.folder / LOCK).stat().st_ino


def exit_code(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code after the process has exited and its group is killed; None while it runs."""
    if process.returncode is None:
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # before the pid can be reused
        process.wait()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
    return process.returncode


def _write(lock: int, owner: Mapping[str, Any] | None) -> None:
    os.pwrite(lock, json.dumps(owner).encode().ljust(_LOCK_BYTES - 1) + b"\n", 0)


def _boot_id() -> str | None:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return None

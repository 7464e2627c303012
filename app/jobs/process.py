"""A worker as a process group: how it is started, whether it runs, how to signal it, how it ended.

A worker holds the lock of its folder, `worker.lock`, from its start to its end. The lock belongs to an open file that
the worker inherits, so it is gone with the process, however that ends. No step of the clock and no later process with
the same number can be mistaken for the worker, and a copy of the folder has a lock of its own. Knows nothing of jobs.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

LOCK = "worker.lock"
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")  # Linux; elsewhere nothing says whether the machine was restarted
_LOCK_BYTES = 256


class WorkerRuns(RuntimeError):
    """Another worker still runs in the folder."""


def start_worker(command: Sequence[str], folder: Path, **options: Any) -> subprocess.Popen[bytes]:
    """Start a process group that holds the folder's lock; `options` are those of `subprocess.Popen`.

    Raises:
        WorkerRuns: the lock is held.
        OSError: it cannot be started, or the disk is full.
    """
    lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WorkerRuns(f"a worker still runs in {folder}") from None
        _write(lock, None)  # takes its room now: the process cannot be told of on a full disk
        process = subprocess.Popen(command, process_group=0, pass_fds=(lock,), **options)
        _write(lock, {"pid": process.pid, "boot": _boot_id(), "inode": os.fstat(lock).st_ino})
        return process
    finally:
        os.close(lock)


@dataclass(frozen=True)
class WorkerProcess:
    """The worker that was started last in a folder."""

    folder: Path

    @property
    def alive(self) -> bool:
        """Whether it runs; one that has ended and that nobody has waited for does not."""
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
        """Its number, which is that of its group; None where it cannot be known."""
        told = self._told()
        return int(told["pid"]) if told else None

    def kill_survivors(self) -> None:
        """End what it had started, once it has ended itself; never a group that only has its number."""
        told = self._told()
        if not told or self.alive or psutil.pid_exists(told["pid"]):
            return
        if told["boot"] is not None and told["boot"] == _boot_id() and told["inode"] == self._inode():
            self.signal_group(signal.SIGKILL)

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to it and to everything it has started."""
        pid = self.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(pid, number)

    def _told(self) -> Mapping[str, Any] | None:
        try:
            told = json.loads((self.folder / LOCK).read_text("utf-8"))
        except (OSError, ValueError):
            return None
        return told if isinstance(told, dict) else None

    def _inode(self) -> int:
        return (self.folder / LOCK).stat().st_ino


def exit_code(process: subprocess.Popen[bytes]) -> int | None:
    """The exit code once the process has ended; then nothing of its group is left either."""
    if process.returncode is None:
        if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            return None
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # before its number can become another's
        process.wait()
        if process.stdin is not None:
            with contextlib.suppress(OSError):
                process.stdin.close()
    return process.returncode


def _write(lock: int, told: Mapping[str, Any] | None) -> None:
    os.pwrite(lock, json.dumps(told).encode().ljust(_LOCK_BYTES - 1) + b"\n", 0)


def _boot_id() -> str | None:
    try:
        return BOOT_ID.read_text().strip()
    except OSError:
        return None

"""A worker as a process group: whether it runs, how to signal it, how it ended. Knows nothing of jobs."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass

import psutil


@dataclass(frozen=True)
class WorkerProcess:
    """A process, told from a later one with the same number by when it was started."""

    pid: int
    started: float  # seconds since the epoch, as the system keeps it

    @classmethod
    def of(cls, pid: int) -> WorkerProcess:
        """The process that has this number now."""
        try:
            return cls(pid, psutil.Process(pid).create_time())
        except psutil.Error:
            return cls(pid, time.time())

    @property
    def alive(self) -> bool:
        """Whether it runs; one that has ended and that nobody has waited for does not."""
        try:
            process = psutil.Process(self.pid)
            same = bool(abs(process.create_time() - self.started) < 1.0)
            return same and str(process.status()) != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False

    def kill_survivors(self) -> None:
        """End what it had started, once it has ended itself; never a group that only has its number."""
        if psutil.pid_exists(self.pid) or psutil.boot_time() > self.started:
            return  # its number is another's by now
        self.signal_group(signal.SIGKILL)

    def signal_group(self, number: signal.Signals) -> None:
        """Send a signal to it and to everything it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)


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

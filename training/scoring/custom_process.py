"""A function of yours as a reward, run in a process of its own.

Whatever the function does, the job goes on: an exception, a value that is no number, or the end of its process is the
error of one response. A call that takes longer than ``timeout_s`` is one, too; its process is killed and started again.
What the function prints is read and dropped but for its end.
"""

from __future__ import annotations

import collections
import contextlib
import json
import os
import socket
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from training.jobs.context import JobStopped
from training.jobs.stop import NeverStop, Stop
from training.scoring.custom import Case, CustomValue, RewardError, read_value
from training.spec.hyperparameters import CustomReward

ROOT = Path(__file__).parents[2]
LOAD_S = 120.0  # to import the function: it may import torch
LOOK_EVERY_S = 0.2  # interval of stop checks
GIVE_UP_AFTER = 3  # consecutive calls that ended with their process
MAX_REPLY_BYTES = 65_536
KEPT_OUTPUT = 500  # characters of what the function printed last
SECRETS = ("OMNI_R1_API_KEY", "OMNI_R1_DATABASE_URL")
SECRET_PREFIXES = ("JUDGE_", "REWARD_")


class FunctionReward:
    """Calls a function in a child process."""

    def __init__(self, settings: CustomReward, *, stop: Stop | None = None) -> None:
        """Start the process and import the function.

        Raises:
            RewardError: ``reward_unusable``, if that fails.
            JobStopped: the job should stop.
        """
        self._settings = settings
        self._stop = stop if stop is not None else NeverStop()
        self._lost = 0  # consecutive calls
        self._child: _Child | None = self._start()

    def score(self, cases: Sequence[Case]) -> list[CustomValue | str]:
        """Call the function for each case; see :class:`training.scoring.custom.CustomSource`."""
        return [self._score(case) for case in cases]

    def close(self) -> None:
        """End the process."""
        if self._child is not None:
            self._child.end()
            self._child = None

    def _start(self) -> _Child:
        target = {key: value for key in ("name", "file") if (value := getattr(self._settings, key)) is not None}
        child = _Child()
        try:
            reply = child.ask(target, LOAD_S, self._stop)
        except _Lost as lost:
            reply = {"error": str(lost)}
        except BaseException:
            child.end()
            raise
        if "error" in reply:
            child.end()
            detail = f"the reward {self._settings.label} cannot be used: {reply['error']}{child.said()}"
            raise RewardError("reward_unusable", detail)
        return child

    def _score(self, case: Case) -> CustomValue | str:
        if self._lost >= GIVE_UP_AFTER:
            return f"given up: its process was lost {GIVE_UP_AFTER} times in a row"
        if self._child is None:
            self._child = self._start()
        try:
            reply = self._child.ask(case.to_json(), self._settings.timeout_s, self._stop)
        except _Lost as lost:
            said = self._child.said()
            self.close()
            self._lost += 1
            return f"{lost}{said}"
        self._lost = 0
        return str(reply["error"]) if "error" in reply else read_value(reply["value"])


class _Lost(Exception):
    """The process did not answer."""


class _Child:
    """The process, its connection, and the end of its output."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            command = [sys.executable, "-m", "training.scoring.custom_child", str(theirs.fileno())]
            self._process = subprocess.Popen(
                command,
                cwd=ROOT,
                env=_environment(),
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.PIPE,  # closes when this process ends, and then so does the child
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
        self._connection = Connection(ours.detach())
        self._output: collections.deque[str] = collections.deque(maxlen=KEPT_OUTPUT)
        assert self._process.stdout is not None
        self._sink = threading.Thread(target=_drain, args=(self._process.stdout, self._output), daemon=True)
        self._sink.start()
        self._end = weakref.finalize(self, _end, self._process, self._connection)

    def ask(self, message: Mapping[str, Any], timeout_s: float, stop: Stop) -> dict[str, Any]:
        """Send a message and wait for its reply.

        Raises:
            _Lost: it took too long, or the process ended.
            JobStopped: the job should stop.
        """
        until = time.monotonic() + timeout_s
        try:
            self._connection.send_bytes(json.dumps(message).encode())
            while not self._connection.poll(max(0.0, min(LOOK_EVERY_S, until - time.monotonic()))):
                if stop:
                    raise JobStopped
                if time.monotonic() >= until:
                    raise _Lost(f"it took longer than {timeout_s:g} s")
            reply = json.loads(self._connection.recv_bytes(MAX_REPLY_BYTES))
            if not isinstance(reply, dict):
                raise ValueError("no reply of ours")
            return reply
        except (EOFError, OSError, ValueError):
            raise _Lost("its process ended") from None

    def said(self) -> str:
        """What the function printed last, as a remark; empty if nothing."""
        self._sink.join(LOOK_EVERY_S)  # ends with the process
        text = " ".join("".join(self._output).split())
        return f" (it printed: {text})" if text else ""

    def end(self) -> None:
        """Kill the process."""
        self._end()


def _drain(output: IO[bytes], last: collections.deque[str]) -> None:
    with output, contextlib.suppress(OSError, ValueError):
        while data := os.read(output.fileno(), 65_536):
            last.extend(data[-4 * KEPT_OUTPUT :].decode("utf-8", "replace"))


def _end(process: subprocess.Popen[bytes], connection: Connection) -> None:
    process.kill()
    process.wait()
    connection.close()
    if process.stdin is not None:
        with contextlib.suppress(OSError):
            process.stdin.close()


def _environment() -> dict[str, str]:
    """Ours without secrets, with our import path: a package that we can import, the function can, too."""
    kept = {k: v for k, v in os.environ.items() if k not in SECRETS and not k.startswith(SECRET_PREFIXES)}
    path = os.pathsep.join([str(ROOT), *(part for part in sys.path if part)])
    return kept | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}

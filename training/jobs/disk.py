"""Writing to a full disk: jobs wait for free space and resume, and report what they wait for.

A waiting job is described in ``waiting.json`` in its folder. Its bytes are allocated when the job starts and are
written in place, since a full disk takes no new ones.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from model.checkpoint.atomic import write_file
from training.jobs.stop import Stop

WAITING = "waiting.json"
TRAIN = "train"  # training state inside a checkpoint
MARGIN_BYTES = 1 << 20  # left free for events and the server's database
POLL_S = 0.5
LONGEST_PAUSE_S = 30.0  # between tries when the free bytes do not explain the failure: quotas, inodes
_SLOT_BYTES = 512
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_WORDS = re.compile(r"os error (28|122)\b|no space left on device|disk quota exceeded|disk is full", re.IGNORECASE)

T = TypeVar("T")


def is_full(error: BaseException) -> bool:
    """Whether a write failed for lack of space; safetensors and databases raise their own errors."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return _WORDS.search(str(error)) is not None


class Disk:
    """The disk of a job's folder. Without ``stop`` writes never wait and full disks raise."""

    def __init__(
        self,
        folder: Path,
        *,
        stop: Stop | None = None,
        on_wait: Callable[[dict[str, Any]], None] = lambda waiting: None,
        on_room: Callable[[], None] = lambda: None,
        on_spared: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Set up the hooks; allocates nothing (see :meth:`prepare`).

        Args:
            folder: of the job.
            stop: ends every wait once true.
            on_wait: called with ``{for, needed_bytes, free_bytes}`` when a wait starts.
            on_room: called when the wait ends.
            on_spared: called with the number of old optimiser states that were removed.
        """
        self._folder = folder
        self._stop = stop
        self._on_wait = on_wait
        self._on_room = on_room
        self._on_spared = on_spared
        self._slot: int | None = None
        self._shown: Mapping[str, Any] | None = None
        self.waited_s = 0.0

    @property
    def waits(self) -> bool:
        """Whether writes wait for space."""
        return self._stop is not None

    def write(self, action: Callable[[], T], *, needed: int = 0) -> T:
        """Perform a write; if the disk is full, wait for space and restart it.

        Obsolete optimiser states are removed first.

        Args:
            action: the write; must tolerate leftovers of a failed attempt.
            needed: required bytes, if known; the write does not start with less free space.

        Raises:
            OSError, SafetensorError: another error, or still no space when the job is stopping.
        """
        pause = 0.0
        try:
            while True:
                try:
                    self._require(needed)
                    return action()
                except Exception as error:
                    if not is_full(error):
                        raise
                    if not (self.waits and self._drop_old_states()):
                        self._wait(error, needed + MARGIN_BYTES, pause)
                        pause = min(LONGEST_PAUSE_S, max(POLL_S, 2 * pause))
        finally:
            self._over()

    def replace(self, path: Path, write: Callable[[Path], object]) -> None:
        """Replace a file atomically, see :func:`model.checkpoint.atomic.write_file`."""
        self.write(lambda: write_file(path, write))

    def append(self, path: Path, text: str, *, sync: bool = True) -> None:
        """Append lines to a file, all or none of them."""
        data = text.encode()
        size = path.stat().st_size if path.exists() else 0

        def add() -> None:
            with path.open("ab") as file:
                file.truncate(size)  # remove the partial write of a full disk
                file.write(data)
                file.flush()
                if sync:
                    os.fsync(file.fileno())

        self.write(add)

    def prepare(self) -> None:
        """Allocate the bytes of `waiting.json` while there is space."""
        if self._slot is not None:
            return
        with contextlib.suppress(OSError):
            slot = os.open(self._folder / WAITING, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.pwrite(slot, _padded(None), 0)
                self._slot = slot
            except OSError:
                os.close(slot)

    def close(self) -> None:
        """Close `waiting.json`."""
        if self._slot is not None:
            os.close(self._slot)
            self._slot = None

    @property
    def free_bytes(self) -> int:
        """Bytes this user may still write, as reported by the file system."""
        return shutil.disk_usage(self._folder).free

    def _drop_old_states(self) -> bool:
        """Remove the training states of all checkpoints but the newest; return whether there were any.

        A job resumes from the state in ``runs``, which stays.
        """
        states = sorted(self._folder.glob(f"checkpoints/*/{TRAIN}"), key=lambda path: path.parent.stat().st_mtime_ns)
        for path in states[:-1]:
            shutil.rmtree(path, ignore_errors=True)
        if states[:-1]:
            self._on_spared(len(states) - 1)
        return len(states) > 1

    def _require(self, needed: int) -> None:
        if needed and self.waits and not self._stop and self.free_bytes < needed + MARGIN_BYTES:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def _wait(self, error: Exception, needed: int, pause: float) -> None:
        """Return once there may be space; raise ``error`` if waiting is not possible (any more)."""
        began = time.monotonic()
        try:
            while self.waits and not self._stop:
                free = self.free_bytes
                self._show({"for": "disk", "needed_bytes": needed, "free_bytes": free})
                if free >= needed and time.monotonic() - began >= pause:
                    return
                time.sleep(POLL_S)
        finally:
            self.waited_s += time.monotonic() - began
        raise error

    def _show(self, waiting: dict[str, Any]) -> None:
        begins = self._shown is None
        if waiting != self._shown:
            self._shown = waiting
            self.note(waiting)
        if begins:
            self._on_wait(waiting)

    def _over(self) -> None:
        if self._shown is not None:
            self._shown = None
            self.note(None)
            self._on_room()

    def note(self, waiting: Mapping[str, Any] | None) -> None:
        """Write what the job waits for, or that it waits for nothing, to ``waiting.json``."""
        self.prepare()
        if self._slot is not None:
            with contextlib.suppress(OSError):
                os.pwrite(self._slot, _padded(waiting), 0)


NO_WAIT = Disk(Path())


def _padded(waiting: Mapping[str, Any] | None) -> bytes:
    return json.dumps(waiting).encode().ljust(_SLOT_BYTES - 1) + b"\n"

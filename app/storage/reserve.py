"""A little room kept aside on the disk of the home, so that a full disk can be got out of.

A cancellation, the end of a job and a deletion are rows, too. They take the reserve when there is no other room. It is
smaller than what a waiting job waits for, so that no job takes it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from training.jobs.disk import MARGIN_BYTES

RESERVED_BYTES = MARGIN_BYTES * 3 // 4


class Reserve:
    """A file of one home that holds nothing but room. Blocking."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def take(self) -> None:
        """Keep the room aside, unless the disk is nearly full."""
        if self._path.exists() or shutil.disk_usage(self._path.parent).free < 8 * RESERVED_BYTES:
            return
        try:
            self._path.write_bytes(os.urandom(RESERVED_BYTES))  # nothing that a file system could compress
        except OSError:
            self.release()

    def release(self) -> bool:
        """Give it up for something that must be written; whether there was any."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
            return True
        return False

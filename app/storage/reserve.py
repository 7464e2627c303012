"""Disk space reserved in the home, so that jobs can end and files be deleted on a full disk.

Cancellations, job ends and deletions write rows, too; they use the reserve when the disk is full. It is smaller than
the free space a waiting job needs, so that no job takes it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from pathlib import Path

from training.jobs.disk import MARGIN_BYTES

RESERVED_BYTES = MARGIN_BYTES * 3 // 4


class Reserve:
    """A file in the home that only occupies space. Blocking."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.disk: dict[str, int] = {}  # bytes of the home's disk, `total` and `free`, as of the last `take`

    def take(self) -> None:
        """Measure the disk, and reserve the space unless it is nearly full."""
        disk = shutil.disk_usage(self._path.parent)
        self.disk = {"total": disk.total, "free": disk.free}
        if self._path.exists() or disk.free < 8 * RESERVED_BYTES:
            return
        try:
            self._path.write_bytes(os.urandom(RESERVED_BYTES))  # incompressible
        except OSError:
            self.release()

    def release(self) -> bool:
        """Free the space; returns whether there was any."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
            return True
        return False

"""How far a checkpoint's files are read: counted in the loading thread, reported by the worker."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from pathlib import Path

from model.checkpoint.parts import weights_of
from model.checkpoint.shards import CheckpointError, read_entries
from model.engine.messages import Reading

log = logging.getLogger("omni_r1.engine")

STEPS = 100  # reports of one reading
LOGGED_FROM = 1_000_000_000  # bytes; smaller checkpoints are read in seconds
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class ReadingMoved:
    """Wakes the worker, which then sends its status."""


class Progress:
    """Counts the bytes of one reading; `report` gets a `Reading` at every hundredth of it."""

    def __init__(self, folder: Path, what: str, report: Callable[[Reading], None]) -> None:
        self._what, self._report = what, report
        self._total, self._done, self._step = stored_bytes(folder), 0, 0
        report(Reading(0, self._total))

    def __call__(self, count: int) -> None:
        """Count the bytes of one more tensor."""
        self._done += count
        step = STEPS * self._done // max(1, self._total)
        if step == self._step:
            return
        if self._total >= LOGGED_FROM and step // 10 > self._step // 10:
            log.info("%s: %.1f of %.1f GB", self._what, self._done / 1e9, self._total / 1e9)
        self._step = step
        self._report(Reading(self._done, self._total))


def stored_bytes(folder: Path) -> int:
    """Bytes of a folder's tensors; 0 for an invalid one, whose reader reports the error."""
    try:
        entries = read_entries(weights_of(folder)).values()
    except CheckpointError:
        return 0
    return sum(math.prod(entry.shape) * _WIDTHS.get(entry.dtype, 1) for entry in entries)

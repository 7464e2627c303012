"""Ids that sort by creation, so that "newest first" and `after` need no second column."""

from __future__ import annotations

import secrets
import threading
import time

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"
GROUP = "gr_"  # prefix of a group's id
TRACE_ID, GROUP_ID, JOB_ID = r"tr_[0-9a-z]{20}", r"gr_[0-9a-z]{20}", r"job_[0-9a-z]{20}"  # as regular expressions


class SortableIds:
    """Prefixed ids that stay ordered within a millisecond and when the clock steps back."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._lock = threading.Lock()
        self._last = 0

    def not_before(self, known_id: str | None) -> None:
        """Make every new id sort after `known_id`."""
        if known_id is not None and known_id.startswith(self._prefix):
            value = 0
            for char in known_id[len(self._prefix) :][:12]:
                value = value * 32 + max(0, _ALPHABET.find(char))
            self._last = max(self._last, value)

    def new(self) -> str:
        """A new id: 12 characters of time and counter, 8 random ones."""
        with self._lock:
            # 45 bits of milliseconds, 15 bits of counter
            self._last = max(self._last + 1, int(time.time() * 1000) << 15)
            value = self._last
        digits = [_ALPHABET[(value >> shift) & 31] for shift in range(55, -5, -5)]
        return self._prefix + "".join(digits) + "".join(secrets.choice(_ALPHABET) for _ in range(8))

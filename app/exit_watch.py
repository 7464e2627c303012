"""The last resort at a stop: ends the process when the orderly way takes too long. Committed data is safe anyway."""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable

REPORT_S = 0.2

log = logging.getLogger("omni_r1.server")


class ExitWatch:
    """Ends the process `deadline_s` seconds after `start`, with exit code 0, unless it has ended by itself.

    `arm` it first.
    """

    def __init__(self, deadline_s: float, kill_children: Callable[[], None]) -> None:
        """`kill_children` must not block; it leaves no process behind that would hold on to anything."""
        self._deadline_s = deadline_s
        self._kill_children = kill_children
        self._began: queue.SimpleQueue[None] = queue.SimpleQueue()  # may be filled in a signal handler, unlike a lock

    def arm(self) -> None:
        """Be ready to count."""
        threading.Thread(target=self._watch, name="exit watch", daemon=True).start()

    def start(self) -> None:
        """Begin to count; safe in a signal handler."""
        self._began.put(None)

    def end_now(self, code: int) -> None:
        """End the process at once."""
        self._kill_children()
        os._exit(code)

    def _watch(self) -> None:
        self._began.get()
        time.sleep(self._deadline_s)
        # In a thread of its own: what hangs may be the one who reads the log.
        threading.Thread(target=self._report, daemon=True).start()
        time.sleep(REPORT_S)
        self.end_now(0)

    def _report(self) -> None:
        log.warning("not all parts stopped within %g s; the next start settles the rest", self._deadline_s)

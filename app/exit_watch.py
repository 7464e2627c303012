"""The last resort at shutdown: ends the process when an orderly stop takes too long. Committed data is safe."""

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
    """Ends the process with exit code 0 if it is still alive `deadline_s` seconds after `start`.

    Call `arm` first.
    """

    def __init__(self, deadline_s: float, kill_children: Callable[[], None]) -> None:
        """`kill_children` must not block; it kills all processes that could hold resources."""
        self._deadline_s = deadline_s
        self._kill_children = kill_children
        self._began: queue.SimpleQueue[None] = queue.SimpleQueue()  # unlike a lock, safe in signal handlers

    def arm(self) -> None:
        """Start the watching thread."""
        threading.Thread(target=self._watch, name="exit watch", daemon=True).start()

    def start(self) -> None:
        """Start the countdown; safe in a signal handler."""
        self._began.put(None)

    def end_now(self, code: int) -> None:
        """End the process immediately."""
        self._kill_children()
        os._exit(code)

    def _watch(self) -> None:
        self._began.get()
        time.sleep(self._deadline_s)
        # In a separate thread: the reader of the log may hang.
        threading.Thread(target=self._report, daemon=True).start()
        time.sleep(REPORT_S)
        self.end_now(0)

    def _report(self) -> None:
        log.warning("shutdown took longer than %g s; the next start cleans up", self._deadline_s)

"""The last resort at a stop: ends the process when the orderly way takes too long. Committed data is safe anyway."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable

log = logging.getLogger("omni_r1.server")


class ExitWatch:
    """Ends the process `deadline_s` seconds after `start`, with exit code 0, unless it has ended by itself."""

    def __init__(self, deadline_s: float, kill_children: Callable[[], None]) -> None:
        """`kill_children` must not block; it leaves no process behind that would hold on to anything."""
        self._deadline_s = deadline_s
        self._kill_children = kill_children

    def start(self) -> None:
        """Begin to count; safe in a signal handler."""
        watch = threading.Timer(self._deadline_s, self._end)
        watch.name, watch.daemon = "exit watch", True
        watch.start()

    def end_now(self, code: int) -> None:
        """End the process at once."""
        self._kill_children()
        os._exit(code)

    def _end(self) -> None:
        log.warning("not everything stopped within %g s; the process ends, and the next start settles the rest",
                    self._deadline_s)  # fmt: skip
        self.end_now(0)

"""Reports that a store fails once, and once that it is back, although many threads notice."""

from __future__ import annotations

import logging
import threading

from app.store.bucket import StoreError

log = logging.getLogger("omni_r1.store")


class Outage:
    """The state of one store, as its uses show it.

    A lane is work that is repeated until it succeeds: while one fails, the store is not back.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._guard = threading.Lock()
        self._out = False
        self._failing: set[str] = set()

    def fails(self, error: StoreError, lane: str | None = None) -> None:
        """The store failed, in a lane or for a reader."""
        with self._guard:
            if not self._out:
                log.warning("%s; uploads and deletions wait", error)
            self._out = True
            if lane is not None:
                self._failing.add(lane)

    def works(self, lane: str | None = None) -> None:
        """The store did what was asked: for a reader, or all that a lane tried."""
        with self._guard:
            self._failing.discard(lane or "")
            if self._out and not self._failing:
                self._out = False
                log.info("%s is back", self._url)

    def rests(self, lane: str) -> None:
        """A lane has nothing to do any more, which says nothing of the store."""
        with self._guard:
            if lane in self._failing:
                self._failing.remove(lane)
                self._out = bool(self._failing)

"""Limits how many threads wait for a store, and for how long."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator

from app.store.bucket import NoObject, StoreDown, StoreError
from app.store.outage import Outage
from app.store.trees import Damaged

AT_ONCE, TURN_S = 8, 10.0
GIVE_UP_S = 5.0  # nothing is tried that soon after something that the store did not answer


class Turns:
    """The turns at one store."""

    def __init__(self, outage: Outage) -> None:
        self._outage = outage
        self._free = threading.BoundedSemaphore(AT_ONCE)
        self._silent_until = 0.0

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """A turn; blocks until there is one. Raises StoreDown, at once while the store is silent."""
        if time.monotonic() < self._silent_until or not self._free.acquire(timeout=TURN_S):
            raise StoreDown("the store does not answer")
        try:
            yield
            self._outage.works()
        except (NoObject, Damaged):
            self._outage.works()
            raise
        except StoreError as error:
            self._silent_until = time.monotonic() + GIVE_UP_S
            self._outage.fails(error)
            raise
        finally:
            self._free.release()

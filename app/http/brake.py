"""Rate limit against guessing the key at the login form: 20 wrong keys per minute and address.

Bearer tokens are not limited: guessing must not lock out programs behind the same address.
"""

from __future__ import annotations

import ipaddress
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable

LIMIT = 20
WINDOW_S = 60.0
EVERYWHERE = 10 * LIMIT  # wrong keys from all addresses
MOST_ADDRESSES = 1000


class Brake:
    """Counts wrong keys of the last minute by address; IPv6 addresses by /64."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wrong: OrderedDict[str, deque[float]] = OrderedDict()
        self._all: deque[float] = deque(maxlen=EVERYWHERE)

    def note_wrong(self, address: str) -> None:
        """Count one wrong key from `address`."""
        key, now = _network(address), self._clock()
        self._wrong.setdefault(key, deque(maxlen=LIMIT)).append(now)
        self._wrong.move_to_end(key)
        self._all.append(now)
        if len(self._wrong) > MOST_ADDRESSES:
            self._wrong.popitem(last=False)

    def wait_s(self, address: str) -> int:
        """Whole seconds until `address` may retry; 0 if it may now."""
        own = self._wrong.get(_network(address), deque())
        return max(self._left(own, LIMIT), self._left(self._all, EVERYWHERE))

    def _left(self, times: deque[float], limit: int) -> int:
        if len(times) < limit:
            return 0
        return max(0, math.ceil(times[0] + WINDOW_S - self._clock()))


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address[:64]
    if parsed.version == 6:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return address

"""One seed from many values."""

from __future__ import annotations

import hashlib


def mixed_seed(*parts: object) -> int:
    """A seed of 56 bits, a function of the parts and their order alone; the parts may not contain ``/``."""
    digest = hashlib.blake2b("/".join(map(str, parts)).encode(), digest_size=7).digest()
    return int.from_bytes(digest, "big")

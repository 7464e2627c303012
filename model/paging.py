"""Sizes of pages of keys and values. Imports no torch."""

from __future__ import annotations

from typing import Final

PAGE: Final = 256  # positions; what FlashAttention's kernels need
CHUNK: Final = 2  # pages of a prefill's pass


def pages_of(length: int, page: int = PAGE) -> int:
    """Pages that hold `length` positions."""
    return -(-length // page)

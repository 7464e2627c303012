"""How much one pass computes at once: pages of keys and values, parts of a long sequence. Imports no torch."""

from __future__ import annotations

from typing import Final

PAGE: Final = 256  # positions; what FlashAttention's kernels need
CHUNK: Final = 2  # pages of a prefill's pass
PART: Final = CHUNK * PAGE  # tokens that a layer's matrices multiply at once, without gradients

# Tokens of a pass with a CUDA graph: at most a third of them is padding. Wider passes are bound by arithmetic.
GRAPH_SIZES: Final = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256)


def pages_of(length: int, page: int = PAGE) -> int:
    """Pages that hold `length` positions."""
    return -(-length // page)


def graph_sizes(most: int, context_len: int) -> tuple[int, ...]:
    """The sizes that passes of up to `most` tokens need, none longer than a context."""
    pairs = zip((0, *GRAPH_SIZES), GRAPH_SIZES, strict=False)
    return tuple(size for last, size in pairs if last < most and size <= context_len)

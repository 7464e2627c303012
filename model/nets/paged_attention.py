"""Attention over keys and values in pages: prefills, single tokens and windows alike.

On CUDA it is FlashAttention with a page table (`torch.nn.attention.varlen`). Elsewhere, and in fp32, the pages of each
row are gathered first, which costs a copy of what is read.

Legend: P pages of B positions, J key/value heads, G query heads a key head, K head dim, n rows, M pages of the longest
one, w tokens of a row, W of the widest one, T of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from inspect import signature
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from model.nets import fused
from model.paging import PAGE, pages_of

try:
    from torch.nn.attention import varlen
except ImportError:  # before torch 2.10
    varlen = None  # type: ignore[assignment]

HALVES = (torch.bfloat16, torch.float16)
TOLERANCE = 0.03  # of an output of about 1 in bf16


class PagedAttention:
    """New tokens of some rows, each of which attends to its row's past and itself.

    The keys and values of all pages are [layers, P, B, J, K] each.
    """

    def __init__(
        self, keys: Tensor, values: Tensor, *, groups: int, kernel: bool | None = None, longest: int | None = None
    ) -> None:
        """`kernel`: use FlashAttention's; None: on CUDA in 16 bits, which :func:`has_kernel` has allowed.

        With `longest`, positions of the longest row that may ever come, all passes have the same numbers of tokens and
        rows, and what the device reads of them stays where it is, as a CUDA graph needs.
        """
        self._keys, self._values = keys.unbind(0), values.unbind(0)
        self._flat_keys, self._flat_values = keys.flatten(1, 2).unbind(0), values.flatten(1, 2).unbind(0)
        self._page, self._groups, self._scale = keys.shape[2], groups, keys.shape[-1] ** -0.5
        self._device, self._dtype = keys.device, keys.dtype
        self._kernel = (keys.is_cuda and keys.dtype in HALVES) if kernel is None else kernel
        self._fixed, self._kept = longest, list[Tensor]()

    @property
    def is_fixed(self) -> bool:
        """Whether every pass reads the same memory."""
        return self._fixed is not None

    def begin(
        self, ids: Sequence[int], tables: Sequence[list[int]], starts: Sequence[int], widths: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """Start a pass; returns the token ids and their positions, [T] each.

        Args:
            ids: the new tokens of all rows.
            tables: the pages of each row, in order; at least one.
            starts: each row's first new position.
            widths: number of new tokens of each row, which may be 0.
        """
        page = self._page
        firsts = list(accumulate(widths, initial=0))
        places = [(r, starts[r] + i) for r, width in enumerate(widths) for i in range(width)]
        used = [start + width for start, width in zip(starts, widths, strict=True)]
        self._widest, self._longest = (max(widths), max(used)) if self._fixed is None else (len(places), self._fixed)
        most = pages_of(self._longest, page)
        targets = [tables[r][p // page] * page + p % page for r, p in places]
        table = [[*row[:most], *row[-1:] * (most - len(row))] for row in tables]
        counts = [*firsts, *accumulate(used, initial=0), *used]
        tokens, self._table, numbers = self._on_device(
            torch.tensor([list(ids), [p for _, p in places], targets]),
            torch.tensor(table, dtype=torch.int32),
            torch.tensor(counts, dtype=torch.int32),
        )
        ids_of_rows, positions, self._target = tokens.unbind(0)
        self._firsts, self._seen, self._used = numbers.split([len(firsts), len(firsts), len(used)])
        if not self._kernel:
            self._begin_gathered(firsts, starts, widths)
        return ids_of_rows, positions

    def _on_device(self, *given: Tensor) -> list[Tensor]:
        if self._fixed is None or not self._kept:
            found = [one.to(self._device) for one in given]
            if self._fixed is not None:
                self._kept = found
            return found
        for kept, one in zip(self._kept, given, strict=True):
            kept.copy_(one)
        return self._kept

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, J * G, K], k and v [T, J, K] -> [T, J * G * K]."""
        heads, dim = k.shape[1:]
        keys, values = self._flat_keys[layer], self._flat_values[layer]
        if fused.serves(keys):
            fused.write_rows(k, v, keys, values, self._target)
        else:
            keys.index_copy_(0, self._target, k.reshape(-1, heads, dim))
            values.index_copy_(0, self._target, v.reshape(-1, heads, dim))
        if not self._kernel:
            return self._gathered(layer, q)
        found = varlen.varlen_attn(
            q.reshape(-1, heads * self._groups, dim),
            self._keys[layer],
            self._values[layer],
            self._firsts,
            self._seen,
            self._widest,
            self._longest,
            scale=self._scale,
            window_size=(-1, 0),  # causal, the last query at the last key
            enable_gqa=self._groups > 1,
            seqused_k=self._used,
            block_table=self._table,
        )
        return found.flatten(1)  # type: ignore[union-attr]

    def _begin_gathered(self, firsts: Sequence[int], starts: Sequence[int], widths: Sequence[int]) -> None:
        """Pad each row's queries to the widest."""
        rows, widest, length = len(widths), max(widths), self._table.shape[1] * self._page
        padded = [(r, max(0, min(i, width - 1))) for r, width in enumerate(widths) for i in range(widest)]
        last = firsts[-1] - 1
        sources = [min(firsts[r] + i, last) for r, i in padded]
        self._source, seen = torch.tensor([sources, [starts[r] + i for r, i in padded]]).to(self._device)
        found = [r * widest + i for r, width in enumerate(widths) for i in range(width)]
        self._found = torch.tensor(found).to(self._device)
        later = torch.arange(length, device=self._device) > seen.view(rows, 1, widest, 1, 1)
        mask = torch.zeros(later.shape, dtype=self._dtype, device=self._device)
        mask.masked_fill_(later, float("-inf"))
        self._mask = mask.expand(rows, 1, widest, self._groups, length).reshape(rows, 1, -1, length)

    def _gathered(self, layer: int, q: Tensor) -> Tensor:
        rows, _, queries, length = self._mask.shape
        groups, widest = self._groups, queries // self._groups
        heads, dim = self._keys[layer].shape[-2:]
        keys, values = (
            pages[layer].index_select(0, self._table.flatten()).view(rows, length, heads, dim).transpose(1, 2)
            for pages in (self._keys, self._values)
        )
        padded = q.index_select(0, self._source).view(rows, widest, heads, groups, dim).transpose(1, 2)
        out = F.scaled_dot_product_attention(
            padded.reshape(rows, heads, queries, dim), keys, values, attn_mask=self._mask
        )
        out = out.view(rows, heads, widest, groups * dim).transpose(1, 2).reshape(rows * widest, -1)
        return out.index_select(0, self._found)


@cache
def has_kernel(device: torch.device, dtype: torch.dtype, head_dim: int, groups: int) -> bool:
    """Whether FlashAttention reads pages on this device with such heads: it is tried once, against gathered pages.

    Raises:
        torch.OutOfMemoryError: there is too little memory to try.
    """
    if device.type != "cuda" or dtype not in HALVES:
        return False
    if varlen is None or "block_table" not in signature(varlen.varlen_attn).parameters:
        return False
    try:
        return _agrees(device, dtype, head_dim, groups)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:  # a GPU that is too old, or a build without it
        return False


@torch.inference_mode()
def _agrees(device: torch.device, dtype: torch.dtype, head_dim: int, groups: int) -> bool:
    generator = torch.Generator(device).manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype, generator=generator)

    caches = noise(2, 1, 4, PAGE, 2, head_dim)
    q, k, v = (noise(4, heads, head_dim) for heads in (2 * groups, 2, 2))
    found = []
    for kernel in (True, False):
        attention = PagedAttention(*caches.clone(), groups=groups, kernel=kernel)
        attention.begin([0] * 4, [[2, 0], [3]], [300, 7], [1, 3])
        found.append(attention(0, q, k, v).float())
    return bool((found[0] - found[1]).abs().max() < TOLERANCE)

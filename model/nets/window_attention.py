"""Attention of several new tokens for each running sequence: how drafts are verified in one forward pass.

The tokens of all rows lie end to end, so that the layers' matrix products waste nothing; windows of different lengths
are padded inside attention only. Knows no tokens.

Legend: S slots, C context, J key/value heads, G query heads a key head, K head dim, n rows, W the widest window,
T tokens of all windows.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from model.nets.kv_cache import KVCache, read_length


class WindowAttention:
    """A window of new tokens for each of the slots 0 ... n-1; each token attends to its row's past and to itself."""

    def __init__(self, cache: KVCache, *, groups: int) -> None:
        slots, kv_heads, context, dim = cache.keys.shape[1:]
        device = cache.keys.device
        self.cache, self.groups = cache, groups
        self._starts = torch.arange(0, slots * kv_heads * context, context, device=device).view(slots, kv_heads)
        self._values = cache.values.flatten(1, 2).unbind(0)  # [S * J, C, K] each
        self._flat_values = cache.values.flatten(1, 3).unbind(0)
        if cache.keys_turned:
            turned = cache.keys.mT
            self._turned_keys = turned.flatten(1, 2).unbind(0)  # [S * J, K, C] each
            self._flat_keys = turned.flatten(1).unbind(0)
            starts = torch.arange(0, slots * kv_heads * dim * context, context, device=device)
            self._key_starts = starts.view(slots, kv_heads, dim)
        else:
            self._flat_keys = cache.keys.flatten(1, 3).unbind(0)
        self._scale = dim**-0.5

    def begin(self, starts: Sequence[int], widths: Sequence[int]) -> Tensor:
        """Start a pass: each row's first new position and number of new tokens. Returns the positions [T]."""
        rows, widest = len(widths), max(widths)
        length = read_length(max(s + w for s, w in zip(starts, widths, strict=True)), self.cache.context_len)
        padded = [(row, min(place, width - 1)) for row, width in enumerate(widths) for place in range(widest)]
        flat = [(row, place) for row, width in enumerate(widths) for place in range(width)]
        first = [sum(widths[:row]) for row in range(rows)]
        numbers = [
            [starts[row] + place for row, place in padded],
            [first[row] + place for row, place in padded],
            [starts[row] + place for row, place in flat] + [0] * (len(padded) - len(flat)),
            [row for row, _ in flat] + [0] * (len(padded) - len(flat)),
            [row * widest + place for row, place in flat] + [0] * (len(padded) - len(flat)),
        ]
        device = self.cache.keys.device
        both = torch.tensor(numbers).to(device)
        seen = both[0].view(rows, 1, widest, 1, 1)
        positions, slots = both[2, : len(flat)], both[3, : len(flat)]
        self._shape = (rows, widest, length)
        is_ragged = len(flat) < len(padded)
        self._source = both[1] if is_ragged else None
        self._target = both[4, : len(flat)] if is_ragged else None
        self._value_target = (self._starts[slots] + positions[:, None]).view(-1)
        kv_heads = self.cache.keys.shape[2]
        # A query's row of the mask: 0 up to its own position, -inf after it.
        mask = torch.zeros(rows, 1, widest, 1, length, dtype=self.cache.keys.dtype, device=device)
        mask.masked_fill_(torch.arange(length, device=device) > seen, float("-inf"))
        if self.cache.keys_turned:
            self._key_target = self._key_starts[slots] + positions[:, None, None]
            shape = (rows, kv_heads, widest, self.groups, length)
            self._mask = mask.expand(shape).reshape(rows * kv_heads, widest * self.groups, length)
        else:
            shape = (rows, 1, widest, self.groups, length)
            self._mask = mask.expand(shape).reshape(rows, 1, widest * self.groups, length)
        return positions

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, J * G, K], k and v [T, J, K] -> [T, J * G * K]."""
        kv_heads, dim = k.shape[1:]
        rows, widest, length = self._shape
        self._flat_values[layer].index_copy_(0, self._value_target, v.reshape(-1, dim))
        if self._source is not None:
            q = q.index_select(0, self._source)
        queries = q.view(rows, widest, kv_heads, self.groups, dim).transpose(1, 2)
        if self.cache.keys_turned:
            matrices = rows * kv_heads
            self._flat_keys[layer].put_(self._key_target, k)
            queries = queries.reshape(matrices, widest * self.groups, dim)
            keys = self._turned_keys[layer][:matrices, :, :length]
            scores = torch.baddbmm(self._mask, queries, keys, alpha=self._scale)
            torch.softmax(scores, -1, out=scores)
            out = torch.bmm(scores, self._values[layer][:matrices, :length])
        else:
            self._flat_keys[layer].index_copy_(0, self._value_target, k.reshape(-1, dim))
            queries = queries.reshape(rows, kv_heads, widest * self.groups, dim)
            keys = self.cache.keys[layer, :rows, :, :length]
            values = self.cache.values[layer, :rows, :, :length]
            out = F.scaled_dot_product_attention(queries, keys, values, attn_mask=self._mask)
        out = out.view(rows, kv_heads, widest, self.groups * dim).transpose(1, 2).reshape(rows * widest, -1)
        return out if self._target is None else out.index_select(0, self._target)

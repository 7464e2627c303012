"""Attention of several new tokens for each running sequence: how guesses are verified in one forward pass.

The tokens of all rows lie end to end, so that the layers' matrix products waste nothing. On a CPU, each window is a
product of its own over its row's length, and rows with one token share one; elsewhere, windows are padded to the
widest. Knows no tokens.

Legend: S slots, C context, J key/value heads, G query heads a key head, K head dim, n rows, w tokens of a window, W of
the widest one, T of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

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
        self._flat_values = cache.values.flatten(1, 3).unbind(0)
        if cache.keys_turned:
            turned = cache.keys.mT
            self._keys = turned.flatten(1, 2).unbind(0)  # [S * J, K, C] each
            self._values = cache.values.flatten(1, 2).unbind(0)  # [S * J, C, K] each
            self._flat_keys = turned.flatten(1).unbind(0)
            starts = torch.arange(0, slots * kv_heads * dim * context, context, device=device)
            self._key_starts = starts.view(slots, kv_heads, dim)
            self._zero = torch.zeros((), dtype=cache.keys.dtype)
            self._later = torch.empty(0, groups, 0)
        else:
            self._flat_keys = cache.keys.flatten(1, 3).unbind(0)
        self._scale = dim**-0.5

    def begin(self, starts: Sequence[int], widths: Sequence[int]) -> Tensor:
        """Start a pass: each row's first new position and number of new tokens. Returns the positions [T]."""
        self._rows = list(zip(starts, widths, accumulate(widths, initial=0), strict=False))
        both = [
            [start + place for start, width, _ in self._rows for place in range(width)],
            [row for row, width in enumerate(widths) for _ in range(width)],
        ]
        positions, slots = torch.tensor(both).to(self.cache.keys.device)
        self._target = (self._starts[slots] + positions[:, None]).view(-1)
        if self.cache.keys_turned:
            self._key_target = self._key_starts[slots] + positions[:, None, None]
            self._begin_products(widths)
        else:
            self._begin_padded(widths)
        return positions

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, J * G, K], k and v [T, J, K] -> [T, J * G * K]."""
        dim = k.shape[-1]
        self._flat_values[layer].index_copy_(0, self._target, v.reshape(-1, dim))
        if self.cache.keys_turned:
            self._flat_keys[layer].put_(self._key_target, k)
            return self._products(layer, q)
        self._flat_keys[layer].index_copy_(0, self._target, k.reshape(-1, dim))
        return self._padded(layer, q)

    def _begin_products(self, widths: Sequence[int]) -> None:
        widest, rows = max(widths), len(widths)
        if widest > len(self._later):
            later = torch.full((widest, widest), float("-inf"), dtype=self.cache.keys.dtype).triu(1)
            self._later = later[:, None].expand(widest, self.groups, widest)
        self._single = [row for row, width in enumerate(widths) if width == 1]
        if not self._single:
            return
        self._single_rows = torch.tensor(self._single)
        self._single_tokens = torch.tensor([self._rows[row][2] for row in self._single])
        self._firsts = torch.tensor([first for _, _, first in self._rows])
        length = read_length(max(self._rows[row][0] for row in self._single) + 1, self.cache.context_len)
        last = torch.tensor([start for start, _, _ in self._rows])
        mask = torch.zeros(rows, 1, length, dtype=self.cache.keys.dtype)
        mask.masked_fill_(torch.arange(length) > last[:, None, None], float("-inf"))
        kv_heads = self.cache.keys.shape[2]
        matrices = mask.expand(rows, kv_heads, length).reshape(-1, 1, length)
        self._single_mask = matrices.expand(-1, self.groups, length)

    def _products(self, layer: int, q: Tensor) -> Tensor:
        kv_heads, groups, dim = self.cache.keys.shape[2], self.groups, q.shape[-1]
        keys, values = self._keys[layer], self._values[layer]
        out = q.new_empty(q.shape[0], kv_heads, groups, dim)
        for row, (start, width, first) in enumerate(self._rows):
            if width == 1:
                continue
            heads = slice(row * kv_heads, (row + 1) * kv_heads)
            queries = q[first : first + width].view(width, kv_heads, groups, dim).transpose(0, 1)
            queries = queries.reshape(kv_heads, width * groups, dim)
            seen = keys[heads, :, : start + width]
            scores = torch.baddbmm(self._zero, queries, seen, beta=0, alpha=self._scale)
            new = scores.view(kv_heads, width, groups, start + width)[..., start:]
            new.add_(self._later[:width, :, :width])
            torch.softmax(scores, -1, out=scores)
            found = torch.bmm(scores, values[heads, : start + width])
            out[first : first + width] = found.view(kv_heads, width, groups, dim).transpose(0, 1)
        if self._single:
            matrices, length = self._single_mask.shape[0], self._single_mask.shape[2]
            queries = q.index_select(0, self._firsts).view(matrices, groups, dim)
            scores = torch.baddbmm(self._single_mask, queries, keys[:matrices, :, :length], alpha=self._scale)
            torch.softmax(scores, -1, out=scores)
            found = torch.bmm(scores, values[:matrices, :length]).view(-1, kv_heads, groups, dim)
            out.index_copy_(0, self._single_tokens, found.index_select(0, self._single_rows))
        return out.view(q.shape[0], -1)

    def _begin_padded(self, widths: Sequence[int]) -> None:
        rows, widest, device = len(widths), max(widths), self.cache.keys.device
        length = read_length(max(start + width for start, width, _ in self._rows), self.cache.context_len)
        tokens = [
            [first + min(place, width - 1) for _, width, first in self._rows for place in range(widest)],
            [start + min(place, width - 1) for start, width, _ in self._rows for place in range(widest)],
        ]
        self._source, seen = torch.tensor(tokens).to(device)
        places = [row * widest + place for row, width in enumerate(widths) for place in range(width)]
        self._found = torch.tensor(places).to(device)
        mask = torch.zeros(rows, 1, widest, 1, length, dtype=self.cache.keys.dtype, device=device)
        mask.masked_fill_(torch.arange(length, device=device) > seen.view(rows, 1, widest, 1, 1), float("-inf"))
        shape = (rows, 1, widest, self.groups, length)
        self._mask = mask.expand(shape).reshape(rows, 1, widest * self.groups, length)

    def _padded(self, layer: int, q: Tensor) -> Tensor:
        rows, _, queries, length = self._mask.shape
        kv_heads, groups, dim = self.cache.keys.shape[2], self.groups, q.shape[-1]
        widest = queries // groups
        padded = q.index_select(0, self._source).view(rows, widest, kv_heads, groups, dim).transpose(1, 2)
        keys, values = self.cache.keys[layer, :rows, :, :length], self.cache.values[layer, :rows, :, :length]
        out = F.scaled_dot_product_attention(
            padded.reshape(rows, kv_heads, queries, dim), keys, values, attn_mask=self._mask
        )
        out = out.view(rows, kv_heads, widest, groups * dim).transpose(1, 2).reshape(rows * widest, -1)
        return out.index_select(0, self._found)

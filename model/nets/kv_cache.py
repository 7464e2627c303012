"""Keys and values of running sequences, and the attention strategies that read and write them.

Active sequences occupy slots 0 ... n-1, so that a decode step reads plain views ``cache[:n, :, :length]`` and never
gathers; a freed slot takes the last sequence (see :class:`model.engine.engine.Engine`). Knows no tokens.

Legend: S slots, C context, J key/value heads, G query heads a key head, K head dim, n rows of a step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import TransformerConfig
from model.nets.attention import causal_sdpa

READ_MULTIPLE = 64


def read_length(longest: int, context_len: int) -> int:
    """Number of cached positions that a decode step reads if the longest row needs `longest`."""
    return min(context_len, -(-longest // READ_MULTIPLE) * READ_MULTIPLE)


class KVCache:
    """Keys and values of every slot and layer, [layers, S, J, C, K] each.

    On a CPU a key's positions are innermost in memory, which halves the time of scores for few queries.
    """

    def __init__(
        self,
        config: TransformerConfig,
        num_slots: int,
        context_len: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        heads = (config.num_layers, num_slots, config.num_kv_heads)
        shape = (*heads, context_len, config.head_dim)
        self.keys_turned = torch.device(device).type == "cpu"
        if self.keys_turned:
            self.keys = torch.zeros((*heads, config.head_dim, context_len), device=device, dtype=dtype).mT
        else:
            self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.num_slots, self.context_len = num_slots, context_len

    @property
    def num_bytes(self) -> int:
        """Size of the keys and values together."""
        return 2 * self.keys.numel() * self.keys.element_size()

    def write(self, layer: int, slot: int, keys: Tensor, values: Tensor) -> None:
        """Write keys and values [J, T, K] of positions 0 ... T-1."""
        length = keys.shape[1]
        self.keys[layer, slot, :, :length] = keys
        self.values[layer, slot, :, :length] = values

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first `length` positions of a slot into another one: a fork, or the move into a freed slot."""
        for cache in (self.keys, self.values):
            cache[:, target, :, :length] = cache[:, source, :, :length]

    def export(self, slot: int, length: int, *, start: int = 0) -> Tensor:
        """Copy a slot's positions from `start` to `length`, [2, layers, J, length - start, K]."""
        return torch.stack([self.keys[:, slot, :, start:length], self.values[:, slot, :, start:length]])

    def clear(self, slot: int, start: int = 0) -> None:
        """Zero a slot from a position on: a leftover NaN would reach later steps through masked positions (0 * NaN)."""
        self.keys[:, slot, :, start:] = 0.0
        self.values[:, slot, :, start:] = 0.0

    def write_rows(self, slot: int, rows: Tensor) -> None:
        """Write back the result of :meth:`export`."""
        length = rows.shape[-2]
        self.keys[:, slot, :, :length] = rows[0]
        self.values[:, slot, :, :length] = rows[1]


class PrefillAttention:
    """One whole sequence into an empty slot: ids [T] -> its keys and values in positions 0 ... T-1."""

    def __init__(self, cache: KVCache, slot: int) -> None:
        self.cache, self.slot = cache, slot

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, J * G, K], k and v [T, J, K] -> [T, J * G * K]."""
        self.cache.write(layer, self.slot, k.transpose(0, 1), v.transpose(0, 1))
        return causal_sdpa(q[None], k[None], v[None])[0].flatten(-2)


class DecodeAttention:
    """One new token for each of the slots 0 ... n-1; kept between steps, since its views and mask rows change little.

    The additive mask [S * J, C] exposes the positions before a slot's new token; every step opens one more per row.
    """

    def __init__(self, cache: KVCache, *, groups: int) -> None:
        slots, kv_heads, context, dim = cache.keys.shape[1:]
        device = cache.keys.device
        self.cache, self.groups = cache, groups
        self._mask = torch.full((slots * kv_heads, context), float("-inf"), device=device, dtype=cache.keys.dtype)
        self._flat_mask = self._mask.view(-1)
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
        self._shape = (0, 0)

    def open(self, slot: int, length: int) -> None:
        """Mark a slot as holding a sequence whose first `length` positions are cached."""
        rows = self._mask.view(self.cache.num_slots, -1, self.cache.context_len)[slot]
        rows[:, :length] = 0.0
        rows[:, length:] = float("-inf")

    def open_more(self, slot: int, start: int, stop: int) -> None:
        """Mark positions `start` ... `stop - 1` of a slot as cached; another attention has written them."""
        self._mask.view(self.cache.num_slots, -1, self.cache.context_len)[slot, :, start:stop] = 0.0

    def begin(self, positions: Tensor, longest: int) -> None:
        """Start a step: each row's position [n], and the largest of them plus one."""
        rows, length = positions.shape[0], read_length(longest, self.cache.context_len)
        if self._shape != (rows, length):
            self._shape = (rows, length)
            self._begin_shape(rows, length)
        self._target = (self._rows_starts + positions[:, None]).view(-1)
        self._flat_mask.index_fill_(0, self._target, 0.0)
        if self.cache.keys_turned:
            self._key_target = self._rows_key_starts + positions[:, None, None]

    def _begin_shape(self, rows: int, length: int) -> None:
        kv_heads, dim = self.cache.keys.shape[2], self.cache.keys.shape[4]
        matrices, groups = rows * kv_heads, self.groups
        self._rows_starts = self._starts[:rows]
        if not self.cache.keys_turned:
            mask = self._mask.view(self.cache.num_slots, kv_heads, 1, -1)
            self._rows_mask = mask[:rows, :, :, :length].expand(rows, kv_heads, groups, length)
            self._rows_keys = list(self.cache.keys[:, :rows, :, :length])
            self._rows_values = list(self.cache.values[:, :rows, :, :length])
            return
        self._rows_mask = self._mask[:matrices, None, :length].expand(matrices, groups, length)
        self._rows_key_starts = self._key_starts[:rows]
        self._rows_keys = [keys[:matrices, :, :length] for keys in self._turned_keys]
        self._scores = torch.empty(matrices, groups, length, dtype=self.cache.keys.dtype)
        self._out = torch.empty(matrices, groups, dim, dtype=self.cache.keys.dtype)
        self._rows_values = [values[:matrices, :length] for values in self._values]

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [n, J * G, K], k and v [n, J, K] -> [n, J * G * K], valid until the next layer's."""
        rows, kv_heads, dim = k.shape
        self._flat_values[layer].index_copy_(0, self._target, v.reshape(-1, dim))
        if self.cache.keys_turned:
            self._flat_keys[layer].put_(self._key_target, k)
            queries = q.reshape(-1, self.groups, dim)
            torch.baddbmm(self._rows_mask, queries, self._rows_keys[layer], alpha=self._scale, out=self._scores)
            torch.softmax(self._scores, -1, out=self._scores)
            torch.bmm(self._scores, self._rows_values[layer], out=self._out)
            return self._out.view(rows, -1)
        self._flat_keys[layer].index_copy_(0, self._target, k.reshape(-1, dim))
        queries = q.view(rows, kv_heads, self.groups, dim)
        keys, values = self._rows_keys[layer], self._rows_values[layer]
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=self._rows_mask).reshape(rows, -1)

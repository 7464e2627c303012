"""Keys and values of running sequences, and the attention strategies that read and write them.

Active sequences occupy slots 0 ... n-1, so that a decode step reads plain views ``cache[:n, :length]`` and never
gathers; a freed slot takes the last sequence (see :class:`model.engine.engine.Engine`). Nothing here knows tokens.

Legend: S slots, C context, J key/value heads, G query heads a key head, K head dim, n rows of a step.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.config import TransformerConfig

SHORT_MULTIPLE, LONG_MULTIPLE = 64, 256


def read_length(longest: int, context_len: int) -> int:
    """How many cached positions a decode step reads where the longest row needs `longest`.

    Multiples of 64 up to 256, of 256 beyond: MKL sums over 448 positions as 224 + 224 but over 256 or 512 in whole
    blocks of 256, and only like blocks give a short row the same last bits beside a long one (measured, AVX-512).
    """
    multiple = SHORT_MULTIPLE if longest <= LONG_MULTIPLE else LONG_MULTIPLE
    return min(context_len, -(-longest // multiple) * multiple)


class KVCache:
    """Keys and values of every slot and layer, [layers, S, C, J, K] each."""

    def __init__(
        self,
        config: TransformerConfig,
        num_slots: int,
        context_len: int,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
    ) -> None:
        shape = (config.num_layers, num_slots, context_len, config.num_kv_heads, config.head_dim)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.num_slots, self.context_len = num_slots, context_len

    @property
    def num_bytes(self) -> int:
        return 2 * self.keys.numel() * self.keys.element_size()

    def copy(self, source: int, target: int, length: int) -> None:
        """The first `length` positions of a slot into another one: a fork, or the move into a freed slot."""
        for cache in (self.keys, self.values):
            cache[:, target, :length] = cache[:, source, :length]

    def export(self, slot: int, length: int) -> Tensor:
        """A copy of a slot's first `length` positions, [2, layers, length, J, K]."""
        return torch.stack([self.keys[:, slot, :length], self.values[:, slot, :length]])

    def clear(self, slot: int) -> None:
        """Zero a slot: a NaN left behind would reach its next holder through the masked positions (0 * NaN)."""
        self.keys[:, slot] = 0.0
        self.values[:, slot] = 0.0

    def restore(self, slot: int, rows: Tensor) -> None:
        """Write back what :meth:`export` gave."""
        length = rows.shape[2]
        self.keys[:, slot, :length] = rows[0]
        self.values[:, slot, :length] = rows[1]


class PrefillAttention:
    """One sequence, whole, into an empty slot: ids [T] -> its keys and values in positions 0 ... T-1."""

    def __init__(self, cache: KVCache, slot: int, length: int, *, groups: int) -> None:
        self.cache, self.slot, self.length, self.groups = cache, slot, length, groups
        mask = torch.full((length, length), float("-inf"), device=cache.keys.device, dtype=cache.keys.dtype).triu(1)
        self.mask = mask.repeat(groups, 1)  # the query heads of a group stand below each other

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, J * G, K], k and v [T, J, K] -> [T, J * G * K]."""
        length, kv_heads, dim = k.shape
        self.cache.keys[layer, self.slot, :length] = k
        self.cache.values[layer, self.slot, :length] = v
        folded = q.unflatten(1, (kv_heads, self.groups)).permute(1, 2, 0, 3).reshape(1, kv_heads, -1, dim)
        out = F.scaled_dot_product_attention(
            folded, k.transpose(0, 1)[None], v.transpose(0, 1)[None], attn_mask=self.mask
        )
        out = out.view(kv_heads, self.groups, length, dim).permute(2, 0, 1, 3)
        return out.reshape(length, -1)


class DecodeAttention:
    """One new token for each of the slots 0 ... n-1; kept over steps, since its views and mask rows change little.

    The additive mask [S, C] shows a slot the positions before its new token; every step opens one more a row.
    """

    def __init__(self, cache: KVCache, *, groups: int) -> None:
        slots, context, device = cache.num_slots, cache.context_len, cache.keys.device
        self.cache, self.groups = cache, groups
        self._mask = torch.full((slots, context), float("-inf"), device=device, dtype=cache.keys.dtype)
        self._flat_mask = self._mask.view(-1)
        self._starts = torch.arange(0, slots * context, context, device=device)
        self._flat_keys = cache.keys.flatten(1, 2).unbind(0)
        self._flat_values = cache.values.flatten(1, 2).unbind(0)
        self._shape = (0, 0)

    def open(self, slot: int, length: int) -> None:
        """Tell that a slot holds a sequence whose first `length` positions are cached."""
        self._mask[slot, :length] = 0.0
        self._mask[slot, length:] = float("-inf")

    def begin(self, positions: Tensor, longest: int) -> None:
        """Start a step: where each row's new token stands [n], and the longest of them plus one."""
        rows, context = positions.shape[0], self.cache.context_len
        length = read_length(longest, context)
        self.target = self._starts[:rows] + positions
        self._flat_mask.index_fill_(0, self.target, 0.0)
        if self._shape != (rows, length):
            self._shape = (rows, length)
            self._rows_mask = self._mask[:rows, None, None, :length].expand(rows, 1, self.groups, length)
            self._keys = self.cache.keys[:, :rows, :length].transpose(2, 3).unbind(0)
            self._values = self.cache.values[:, :rows, :length].transpose(2, 3).unbind(0)

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [n, J * G, K], k and v [n, J, K] -> [n, J * G * K]."""
        self._flat_keys[layer].index_copy_(0, self.target, k)
        self._flat_values[layer].index_copy_(0, self.target, v)
        rows, kv_heads, dim = k.shape
        queries = q.view(rows, kv_heads, self.groups, dim)
        out = F.scaled_dot_product_attention(queries, self._keys[layer], self._values[layer], attn_mask=self._rows_mask)
        return out.reshape(rows, -1)

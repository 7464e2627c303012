"""A decode step in fp32 on a CPU: the operations of `Transformer.forward` on preallocated buffers and views.

Small steps are dominated by call overhead: the general forward makes 45 calls per layer for one row, half of them views
and allocations; this one makes 23. It uses the engine's weight copies, with both norms folded into the following
matrices. Other devices, dtypes, quantised weights and swin-norm use the general forward (see
`Engine`).

Legend: n rows, D width, H query heads, J key/value heads, K head dim, I width of the MLP.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from model.nets.attention import Attention
from model.nets.quantised import is_quantised
from model.nets.transformer import QK_NORM_EPS, LayerWeights, Transformer

_MOST_SIZES = 64  # numbers of rows whose views are kept
_silu_: Any = torch._C._nn.silu_


class _Rows:
    """The buffers of a step of n rows, and the views into them."""

    def __init__(self, transformer: Transformer, rows: int, buffers: list[Tensor]) -> None:
        config = transformer.config
        dim, heads, kv_heads = config.head_dim, config.num_heads, config.num_kv_heads
        self.x, self.y, self.norm, self.qkv, normed, q, k, self.gate_up, self.inner = (b[:rows] for b in buffers)
        self.heads = self.qkv.view(rows, heads + 2 * kv_heads, dim)
        self.qk, self.v = self.heads[:, : heads + kv_heads], self.heads[:, heads + kv_heads :]
        self.normed = normed.view(rows, heads + kv_heads, dim)
        pairs = torch.view_as_complex(normed.view(rows, heads + kv_heads, dim // 2, 2))
        self.q_pairs, self.k_pairs = pairs[:, :heads], pairs[:, heads:]
        self.q, self.k = q.view(rows, heads, dim), k.view(rows, kv_heads, dim)
        self.q_turned = torch.view_as_complex(self.q.view(rows, heads, dim // 2, 2))
        self.k_turned = torch.view_as_complex(self.k.view(rows, kv_heads, dim // 2, 2))
        self.gate, self.up = self.gate_up.chunk(2, dim=-1)


def _buffers(transformer: Transformer, rows: int) -> list[Tensor]:
    """Memory for steps of up to `rows` rows."""
    config = transformer.config
    width, inner, dim = config.hidden_size, config.intermediate_size, config.head_dim
    heads, kv_heads = config.num_heads, config.num_kv_heads
    widths = [width, width, 1, (heads + 2 * kv_heads) * dim, (heads + kv_heads) * dim, heads * dim, kv_heads * dim]
    return [torch.empty(rows, one) for one in (*widths, 2 * inner, inner)]


class DecodeStep:
    """Steps over one cache. Returned tensors are valid until the next call."""

    def __init__(self, transformer: Transformer) -> None:
        config = transformer.config
        self._transformer = transformer
        self._rows: dict[int, _Rows] = {}
        self._most_rows = 0
        self._head_shape = (config.head_dim,)
        self._eps = torch.tensor((config.rms_norm_eps * config.hidden_size) ** 0.5)

    @staticmethod
    def serves(transformer: Transformer) -> bool:
        """Whether this class supports a transformer."""
        on_cpu = transformer.device.type == "cpu" and transformer.dtype == torch.float32
        return on_cpu and not transformer.config.swin_norm and not is_quantised(transformer)

    def __call__(
        self,
        ids: Tensor,
        positions: Tensor,
        attention: Attention,
        weights: Sequence[LayerWeights],
        final_norm: Tensor,
    ) -> Tensor:
        """Token ids and positions [n], for which `attention.begin` was called -> hidden states [n, D].

        `final_norm` [D] is the last norm's weight times the square root of D.
        """
        rows = ids.shape[0]
        b = self._rows.get(rows) or self._new_rows(rows)
        x, y, norm, eps = b.x, b.y, b.norm, self._eps
        vector_norm, hypot, divide, matmul = torch.linalg.vector_norm, torch.hypot, torch.div, torch.mm
        torch.index_select(self._transformer.model.embed_tokens.weight, 0, ids, out=x)
        rotation = self._transformer.rope(positions)
        w: Any  # its matrices are plain tensors (see `serves`)
        for index, w in enumerate(weights):
            vector_norm(x, 2, -1, True, out=norm)
            divide(x, hypot(norm, eps, out=norm), out=y)
            matmul(y, w.qkv, out=b.qkv)
            unit = torch.layer_norm(b.qk, self._head_shape, None, None, QK_NORM_EPS)
            torch.addcmul(w.qk_norm_bias, unit, w.qk_norm, out=b.normed)
            torch.mul(b.q_pairs, rotation, out=b.q_turned)
            torch.mul(b.k_pairs, rotation, out=b.k_turned)
            x.addmm_(attention(index, b.q, b.k, b.v), w.o)
            vector_norm(x, 2, -1, True, out=norm)
            divide(x, hypot(norm, eps, out=norm), out=y)
            matmul(y, w.gate_up, out=b.gate_up)
            torch.mul(_silu_(b.gate), b.up, out=b.inner)
            x.addmm_(b.inner, w.down)
        vector_norm(x, 2, -1, True, out=norm)
        divide(x, hypot(norm, eps, out=norm), out=y)
        return y.mul_(final_norm)

    def _new_rows(self, rows: int) -> _Rows:
        if len(self._rows) == _MOST_SIZES:
            self._rows.clear()
        if rows > self._most_rows:
            self._most_rows = 1 << (rows - 1).bit_length()
            self._memory = _buffers(self._transformer, self._most_rows)
            self._rows.clear()
        self._rows[rows] = made = _Rows(self._transformer, rows, self._memory)
        return made

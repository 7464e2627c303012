"""The Chameleon transformer: one forward for training, prefill and decode.

In fp32 on a CPU, a decode step runs the same operations on preallocated buffers (:mod:`model.nets.decode_step`).
Parameter names are those of the HF checkpoints (``model.*``, ``lm_head.*``), so a state dict loads without a map. The
module only knows token ids and positions, not which ids are codes or legal, nor prompts. The caller passes an
*attention strategy*: :class:`CausalAttention` (dense batches), :class:`PackedAttention` (documents packed end to end,
for training), or the engine's cached ones (``model/nets/kv_cache.py``).

Legend of shapes: B batch, T time, V vocabulary, D width, H query heads, J key/value heads, K head dim.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from model.config import TransformerConfig
from model.nets import fused
from model.nets.attention import Attention, CausalAttention, PackedAttention, PackedLayout
from model.nets.embedding import new_embedding
from model.nets.lora import NO_ADAPTERS, Adapter, LayerAdapters, adapter, effective
from model.nets.norms import QKNormRotate, RMSNorm
from model.nets.quantised import Linear, Matrix, Quantised, QuantisedLinear, product
from model.paging import PART

__all__ = [
    "Attention",
    "CausalAttention",
    "LayerWeights",
    "PackedAttention",
    "PackedLayout",
    "Transformer",
]

QK_NORM_EPS = 1e-5  # fixed by the architecture, independent of the config's eps


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One layer's tensors in the layout of the forward: q, k, v stacked in one matrix, gate and up in another.

    The rows of every query and key head are interleaved (0, K/2, 1, K/2 + 1, ...), which turns the half-split rotation
    into one complex product; scores do not change, since queries and keys are permuted alike. Matrices are (in, out). A
    norm is None when its weight times the square root of D has been folded into the following matrix. Quantised layers
    have all four matrices quantised.
    """

    input_norm: Tensor | None  # [D]
    qkv: Matrix  # [D, (H + 2J) * K]
    qk_norm: Tensor  # [H + J, K]
    qk_norm_bias: Tensor  # [H + J, K]
    o: Matrix  # [H * K, D]
    post_norm: Tensor | None  # [D]
    gate_up: Matrix  # [D, 2 * I]
    down: Matrix  # [I, D]


class _Scale(nn.Module):
    """Holds the weight of an RMSNorm."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))


class _ScaleShift(nn.Module):
    """Holds weight and bias of a q/k LayerNorm, of shape (heads, head_dim) or (head_dim,)."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(*shape))
        self.bias = nn.Parameter(torch.zeros(*shape))


class _SelfAttention(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width, head = config.hidden_size, config.head_dim
        self.q_proj = nn.Linear(width, config.num_heads * head, bias=False)
        self.k_proj = nn.Linear(width, config.num_kv_heads * head, bias=False)
        self.v_proj = nn.Linear(width, config.num_kv_heads * head, bias=False)
        self.o_proj = nn.Linear(config.num_heads * head, width, bias=False)
        per_head = config.qk_norm_per_head
        self.q_norm = _ScaleShift(config.num_heads, head) if per_head else _ScaleShift(head)
        self.k_norm = _ScaleShift(config.num_kv_heads, head) if per_head else _ScaleShift(head)


class _MLP(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)


class _Layer(nn.Module):
    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.num_heads, self.num_kv_heads, self.head_dim = config.num_heads, config.num_kv_heads, config.head_dim
        self.self_attn = _SelfAttention(config)
        self.mlp = _MLP(config)
        self.input_layernorm = _Scale(config.hidden_size)
        self.post_attention_layernorm = _Scale(config.hidden_size)

    def forward(self, x: Tensor, index: int, rotation: Tensor, attention: Attention, *, recompute: bool) -> Tensor:
        """The layer on its own parameters, which FSDP gathers before this call and before its backward."""

        def run(x: Tensor) -> Tensor:
            weights, adapters = self.weights(merged=False), self.adapters()
            return _layer_forward(self.config, index, weights, adapters, x, rotation, attention)

        return checkpoint(run, x, use_reentrant=False) if recompute else run(x)

    def weights(self, *, merged: bool) -> LayerWeights:
        """Stack the parameters, with LoRA pairs merged in or left out; gradients flow back through the stacking."""
        attn, mlp = self.self_attn, self.mlp
        heads, kv_heads, dim = self.num_heads, self.num_kv_heads, self.head_dim

        def matrix(linear: Linear) -> Tensor:
            return effective(linear) if merged and isinstance(linear, nn.Linear) else linear.weight

        def stacked(rows: Callable[[Any], Tensor]) -> list[Tensor]:
            q, k = self._interleave(rows(attn.q_proj), heads), self._interleave(rows(attn.k_proj), kv_heads)
            gate_up = torch.cat([rows(mlp.gate_proj), rows(mlp.up_proj)])
            return [torch.cat([q, k, rows(attn.v_proj)]), rows(attn.o_proj), gate_up, rows(mlp.down_proj)]

        def per_head(q: Tensor, k: Tensor) -> Tensor:
            both = torch.cat([q.expand(heads, dim), k.expand(kv_heads, dim)])
            return self._interleave(both, heads + kv_heads).view(heads + kv_heads, dim)

        plain = [rows.t() for rows in stacked(matrix)]
        matrices: Sequence[Matrix] = plain
        if isinstance(attn.q_proj, QuantisedLinear):
            scales = stacked(lambda linear: linear.scale)
            matrices = [Quantised(m, s.view(-1)) for m, s in zip(plain, scales, strict=True)]
        return LayerWeights(
            input_norm=self.input_layernorm.weight,
            qkv=matrices[0],
            qk_norm=per_head(attn.q_norm.weight, attn.k_norm.weight),
            qk_norm_bias=per_head(attn.q_norm.bias, attn.k_norm.bias),
            o=matrices[1],
            post_norm=self.post_attention_layernorm.weight,
            gate_up=matrices[2],
            down=matrices[3],
        )

    def adapters(self) -> LayerAdapters:
        """The LoRA pairs in the layout of :meth:`weights`."""
        attn, mlp = self.self_attn, self.mlp
        heads = (self.num_heads, self.num_kv_heads)

        def rows(i: int, b: Tensor) -> Tensor:  # of q, k and v
            return self._interleave(b, heads[i]) if i < len(heads) else b

        return LayerAdapters(
            qkv=adapter(attn.q_proj, attn.k_proj, attn.v_proj, rows=rows, train=self.training),
            o=adapter(attn.o_proj, train=self.training),
            gate_up=adapter(mlp.gate_proj, mlp.up_proj, train=self.training),
            down=adapter(mlp.down_proj, train=self.training),
        )

    def _interleave(self, x: Tensor, heads: int) -> Tensor:
        """[heads * K, F] -> the same with each head's rows reordered."""
        return x.view(heads, 2, self.head_dim // 2, -1).transpose(1, 2).reshape(heads * self.head_dim, -1)


class _Body(nn.Module):
    """The part that HF keeps under ``model.``."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.embed_tokens = new_embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.num_layers))
        self.norm = _Scale(config.hidden_size)


class Transformer(nn.Module):
    """Chameleon's decoder (swin-norm variant included), without the VQ.

    Construction leaves torch's default initialisation; call :meth:`init_weights` to train from scratch.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        if config.num_heads % config.num_kv_heads:
            raise ValueError(f"num_heads {config.num_heads} is not a multiple of num_kv_heads {config.num_kv_heads}")
        self.config = config
        self.model = _Body(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight
        self.recompute_layers = False  # keep only each layer's input for the backward, and compute the rest twice
        self._rope_table: Tensor | None = None

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type of activations, and of weights unless quantised; under autocast the matrix products have another."""
        return self.model.embed_tokens.weight.dtype

    def set_context(self, context_len: int) -> None:
        """Change the longest context; no weight depends on it."""
        self.config = replace(self.config, max_position_embeddings=context_len)
        self._rope_table = None

    def init_weights(self, seed: int) -> None:
        """Normal(0, 0.02), the two projections that write to the residual stream divided by sqrt(2 * layers)."""
        generator = torch.Generator().manual_seed(seed)
        residual_std = 0.02 / math.sqrt(2 * self.config.num_layers)
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if "norm" in name:
                    parameter.fill_(0.0 if name.endswith("bias") else 1.0)
                    continue
                std = residual_std if name.endswith(("o_proj.weight", "down_proj.weight")) else 0.02
                values = torch.empty(parameter.shape, dtype=torch.float32).normal_(0.0, std, generator=generator)
                parameter.copy_(values)

    def rope(self, positions: Tensor) -> Tensor:
        """Positions [...] -> unit complex numbers [..., 1, K / 2] in fp32 (`default` RoPE)."""
        table = self._rope_table
        if table is None or table.device != positions.device:
            config = self.config
            with torch.inference_mode(False):  # built by an engine, it must also serve a training step
                exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
                inv_freq = 1.0 / (config.rope_theta**exponent)
                angles = torch.arange(config.max_position_embeddings, dtype=torch.float32)[:, None] * inv_freq
                table = torch.complex(angles.cos(), angles.sin()).to(positions.device)  # [context, K / 2]
            self._rope_table = table
        return table.index_select(0, positions.flatten()).view(*positions.shape, 1, -1)

    def layer_weights(self) -> list[LayerWeights]:
        """Stacked weights of every layer, for :meth:`forward`'s `weights` (the engine keeps a detached copy)."""
        return list(self.stacked_layers())

    def stacked_layers(self) -> Iterator[LayerWeights]:
        """Stack one layer after another, so that a caller may free each before the next."""
        for layer in self.model.layers:
            yield layer.weights(merged=True)  # type: ignore[operator]

    def forward(
        self,
        ids: Tensor,
        positions: Tensor,
        attention: Attention,
        *,
        weights: Sequence[LayerWeights] | None = None,
    ) -> Tensor:
        """Token ids and positions [..., T] -> hidden states [..., T, D] after the final norm.

        `weights` are stacked weights kept by the caller; otherwise they are stacked here, layer by layer, with LoRA
        pairs beside them.
        """
        config = self.config
        x = F.embedding(ids, self.model.embed_tokens.weight)
        rotation = self.rope(positions)
        recompute = self.recompute_layers and torch.is_grad_enabled()
        for index, layer in enumerate(self.model.layers):
            if weights is None:
                x = layer(x, index, rotation, attention, recompute=recompute)
            else:
                x = _layer_forward(config, index, weights[index], NO_ADAPTERS, x, rotation, attention)
        return rms_norm(x, self.model.norm.weight, config.rms_norm_eps)

    def logits(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] -> logits [..., V] over the whole vocabulary, image codes included."""
        return self.lm_head(hidden)


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x [..., D] over its root mean square, times `weight`; without a weight, over the square root of D times that."""
    width = x.shape[-1]
    if weight is None:
        # sqrt(|x|^2 + D * eps): half the operations of PyTorch's norm; small steps are dominated by call overhead.
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
        return x / norm.hypot(norm.new_tensor((eps * width) ** 0.5))
    if fused.serves(x):
        return fused.rms_norm(x, weight, eps)
    if _trains_on_cpu(x):
        return RMSNorm.apply(x, weight, eps)
    return F.rms_norm(x, (width,), weight, eps)


def _layer_forward(
    config: TransformerConfig,
    index: int,
    w: LayerWeights,
    adapters: LayerAdapters,
    x: Tensor,
    rotation: Tensor,
    attention: Attention,
) -> Tensor:
    """One layer; for one long sequence without gradients, only attention sees all of its tokens at once.

    The rest runs in parts of `PART` tokens, which takes a quarter of the memory.
    """
    if torch.is_grad_enabled() or x.shape[-2] <= PART or x.shape[:-1].numel() > x.shape[-2]:
        return _after_attention(config, w, adapters, x, attention(index, *_heads(config, w, adapters, x, rotation)))
    whole: list[Tensor] = []
    for start, part, turned in zip(
        range(0, x.shape[-2], PART), x.split(PART, -2), rotation.split(PART, -3), strict=True
    ):
        found = _heads(config, w, adapters, part, turned)
        whole = whole or [heads.new_empty(*x.shape[:-1], *heads.shape[-2:]) for heads in found]
        for all_heads, heads in zip(whole, found, strict=True):
            all_heads.narrow(-3, start, heads.shape[-3]).copy_(heads)
    y = attention(index, *whole)
    whole.clear()
    for part, seen in zip(x.split(PART, -2), y.split(PART, -2), strict=True):
        part.copy_(_after_attention(config, w, adapters, part, seen))
    return x


def _heads(
    config: TransformerConfig, w: LayerWeights, adapters: LayerAdapters, x: Tensor, rotation: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """x [..., T, D] -> rotated queries [..., T, H, K] and keys [..., T, J, K], and values like these."""
    heads, kv_heads, head = config.num_heads, config.num_kv_heads, config.head_dim
    y = x if config.swin_norm else rms_norm(x, w.input_norm, config.rms_norm_eps)
    qkv = _linear(y, w.qkv, adapters.qkv).unflatten(-1, (heads + 2 * kv_heads, head))
    qk, v = qkv.split([heads + kv_heads, kv_heads], dim=-2)
    if fused.serves(qk):
        qk = fused.norm_rotate(qk, w.qk_norm, w.qk_norm_bias, rotation, QK_NORM_EPS)
    elif _trains_on_cpu(qk):
        qk = QKNormRotate.apply(qk, w.qk_norm, w.qk_norm_bias, rotation, QK_NORM_EPS)
    else:
        qk = F.layer_norm(qk, (head,), None, None, QK_NORM_EPS)
        qk = rotate(torch.addcmul(w.qk_norm_bias, qk, w.qk_norm), rotation).to(qkv.dtype)
    q, k = qk.split([heads, kv_heads], dim=-2)
    return q, k, v


def _after_attention(
    config: TransformerConfig, w: LayerWeights, adapters: LayerAdapters, x: Tensor, y: Tensor
) -> Tensor:
    """The rest of a layer: x [..., D] and what its tokens attended to, [..., H * K] -> [..., D]."""
    eps, swin = config.rms_norm_eps, config.swin_norm
    o, down = adapters.o, adapters.down
    x = x + rms_norm(_linear(y, w.o, o), w.input_norm, eps) if swin else add_linear(x, y, w.o, o)

    y = x if swin else rms_norm(x, w.post_norm, eps)
    gate_up = _linear(y, w.gate_up, adapters.gate_up)
    if fused.serves(gate_up):
        y = fused.silu_product(gate_up)
    else:
        gate, up = gate_up.chunk(2, dim=-1)
        y = F.silu(gate) * up
    return x + rms_norm(_linear(y, w.down, down), w.post_norm, eps) if swin else add_linear(x, y, w.down, down)


def _trains_on_cpu(x: Tensor) -> bool:
    return x.device.type == "cpu" and torch.is_grad_enabled()


def _linear(x: Tensor, weight: Matrix, pair: Adapter | None) -> Tensor:
    """x @ weight, and the LoRA pair's product."""
    return product(x, weight) if pair is None else product(x, weight) + pair(x)


def add_linear(x: Tensor, y: Tensor, weight: Matrix, pair: Adapter | None = None) -> Tensor:
    """x + y @ weight; without gradients, one operation that overwrites x if the weight is not quantised."""
    if pair is not None or isinstance(weight, Quantised):
        return x + _linear(y, weight, pair)
    if torch.is_grad_enabled() or x.dtype != y.dtype:
        return x + y @ weight
    if x.dim() == 2:
        return x.addmm_(y, weight)
    x.view(-1, x.shape[-1]).addmm_(y.reshape(-1, y.shape[-1]), weight)
    return x


def rotate(x: Tensor, rotation: Tensor) -> Tensor:
    """RoPE on interleaved pairs, in fp32. x [..., heads, K], rotation [..., 1, K / 2] complex."""
    pairs = torch.view_as_complex(x.float().unflatten(-1, (-1, 2)))
    return torch.view_as_real(pairs * rotation).flatten(-2)

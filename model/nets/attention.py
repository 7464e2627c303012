"""Attention without a cache: dense batches, and documents packed end to end for training.

The engine's cached strategies are in :mod:`model.nets.kv_cache`.

Legend: B batch, T time, H query heads, J key/value heads, K head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from model.paging import PART


class Attention(Protocol):
    """How the tokens of one forward attend to each other."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [..., H, K], k and v [..., J, K], all rotated -> [..., H * K]."""
        ...


class CausalAttention:
    """Dense batches [B, T]: every token attends to itself and those before it."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, T, H, K], k and v [B, T, J, K] -> [B, T, H * K]."""
        out = causal_sdpa(q, k, v)
        return out.flatten(-2)


class HidingAttention:
    """Causal attention [B, T], but tokens after a range of positions do not attend to it.

    The mask [T, T] never exists as a whole.
    """

    def __init__(self, hidden: range) -> None:
        self.hidden = hidden

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, T, H, K], k and v [B, T, J, K] -> [B, T, H * K]."""
        grouped, begin, end = q.shape[2] != k.shape[2], self.hidden.start, self.hidden.stop
        out = torch.empty_like(q)
        before = [x[:, :end] for x in (q, k, v)]  # these attend to all that is before them
        out[:, :end] = causal_sdpa(*before)
        k, v = (torch.cat([x[:, :begin], x[:, end:]], dim=1).transpose(1, 2) for x in (k, v))
        for start in range(end, q.shape[1], PART):
            part = q[:, start : start + PART].transpose(1, 2)
            seen = begin + start - end + part.shape[2]  # keys up to the part's last token
            mask = torch.ones(part.shape[2], seen, dtype=torch.bool, device=q.device).tril(seen - part.shape[2])
            found = F.scaled_dot_product_attention(
                part, k[:, :, :seen], v[:, :, :seen], attn_mask=mask, enable_gqa=grouped
            )
            out[:, start : start + PART] = found.transpose(1, 2)
        return out.flatten(-2)


class RecordedAttention(CausalAttention):
    """Causal attention [B, T] that adds up how much the tokens `rows` attend to each token in the layers from `first`.

    Attributes:
        total: sum over those layers of the weights [B, R, T], each the mean over heads.
    """

    def __init__(self, rows: Tensor, first: int) -> None:
        """`rows` are positions [R]."""
        self.rows, self.first = rows, first
        self.total: Tensor | float = 0.0

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [B, T, H, K], k and v [B, T, J, K] -> [B, T, H * K]."""
        if layer >= self.first:
            groups = q.shape[2] // k.shape[2]
            asking = q[:, self.rows].float() * q.shape[-1] ** -0.5
            future = torch.arange(k.shape[1], device=k.device) > self.rows[:, None]
            for head in range(k.shape[2]):  # one at a time, for the memory
                queries = asking[:, :, head * groups : (head + 1) * groups]
                scores = torch.einsum("brgk,btk->bgrt", queries, k[:, :, head].float())
                weights = scores.masked_fill_(future, float("-inf")).softmax(-1)
                self.total = self.total + weights.sum(1) / q.shape[2]
        return super().__call__(layer, q, k, v)


def causal_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [B, T, H, K], k and v [B, T, J, K] -> [B, T, H, K]."""
    if q.device.type == "cpu" and torch.is_grad_enabled() and q.requires_grad:
        return _CausalSDPA.apply(q, k, v)
    return _causal_sdpa(q, k, v)


def _causal_sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
    grouped = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped).transpose(1, 2)


class _CausalSDPA(torch.autograd.Function):
    """SDPA on a CPU with a backward of our own: PyTorch's takes 109 ms where this one takes 34 (bf16, 16 x 300 tokens).

    Blocks of queries attend to the keys up to them, with the query heads of a group side by side: matrix products over
    half the square, without copying heads.
    """

    BLOCK = 64

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = _causal_sdpa(q, k, v)
        ctx.save_for_backward(q, k, v, out)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v, out = ctx.saved_tensors
        batch, time, heads, dim = q.shape
        kv_heads = k.shape[2]
        rows, groups, scale = batch * kv_heads, heads // kv_heads, dim**-0.5

        def fold(x: Tensor) -> Tensor:  # [B, T, J * G, F] -> [B * J, G, T, F]
            return x.unflatten(2, (kv_heads, groups)).permute(0, 2, 3, 1, 4).reshape(rows, groups, time, -1)

        queries, grads = fold(q * scale), fold(grad)
        delta = fold((grad * out).sum(-1, keepdim=True))
        keys = k.transpose(1, 2).reshape(rows, time, dim)
        values = v.transpose(1, 2).reshape(rows, time, dim)
        grad_k = torch.zeros(keys.shape, device=q.device, dtype=torch.promote_types(q.dtype, torch.float32))
        grad_v = torch.zeros_like(grad_k)
        grad_q = torch.empty_like(queries)
        future = torch.full((_CausalSDPA.BLOCK, _CausalSDPA.BLOCK), float("-inf"), dtype=q.dtype).triu(1)
        for start in range(0, time, _CausalSDPA.BLOCK):
            stop = min(time, start + _CausalSDPA.BLOCK)
            size = stop - start
            block = queries[:, :, start:stop].reshape(rows, groups * size, dim)
            grad_out = grads[:, :, start:stop].reshape(rows, groups * size, dim)
            scores = torch.bmm(block, keys[:, :stop].transpose(1, 2)).view(rows, groups, size, stop)
            scores[..., start:].add_(future[:size, :size])
            probs = torch.softmax(scores, dim=-1)
            flat = probs.view(rows, groups * size, stop)
            grad_v[:, :stop] += torch.bmm(flat.transpose(1, 2), grad_out)
            grad_scores = torch.bmm(grad_out, values[:, :stop].transpose(1, 2)).view(rows, groups, size, stop)
            grad_scores.sub_(delta[:, :, start:stop]).mul_(probs)
            flat = grad_scores.view(rows, groups * size, stop)
            grad_q[:, :, start:stop] = torch.bmm(flat, keys[:, :stop]).view(rows, groups, size, dim)
            grad_k[:, :stop] += torch.bmm(flat.transpose(1, 2), block)

        def unfold(x: Tensor, groups: int) -> Tensor:  # [B * J, G, T, K] -> [B, T, J * G, K]
            x = x.view(batch, kv_heads, groups, time, dim).permute(0, 3, 1, 2, 4)
            return x.reshape(batch, time, kv_heads * groups, dim)

        return unfold(grad_q.mul_(scale), groups), unfold(grad_k.to(q.dtype), 1), unfold(grad_v.to(q.dtype), 1)


@dataclass(frozen=True, slots=True)
class _Bucket:
    """Documents of similar length: the source of their padded rows, [n * len] indices into the flat tokens."""

    num_docs: int
    length: int
    source: Tensor


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """Documents packed end to end, and their attention layout: buckets of similar length, padded inside attention only.

    `positions` [T] counts from 0 in each document. Padding follows its document, so the causal rule hides it from real
    tokens, and its gradient is zero.
    """

    lengths: tuple[int, ...]
    positions: Tensor
    buckets: tuple[_Bucket, ...]
    source: Tensor  # [padded rows of all buckets] -> flat token, for padding rows some token of the same document
    target: Tensor  # [T] -> row among the padded rows
    is_real: Tensor  # [padded rows, 1] 1.0 for tokens, 0.0 for padding

    @classmethod
    def from_lengths(
        cls, lengths: Sequence[int], device: torch.device | str = "cpu", *, multiple: int = 64
    ) -> PackedLayout:
        """Build from document lengths in token order; attention pads lengths to a `multiple`."""
        if not lengths or min(lengths) < 1:
            raise ValueError("every document needs at least one token")
        starts, total = [], 0
        by_length: dict[int, list[int]] = {}
        for doc, length in enumerate(lengths):
            starts.append(total)
            total += length
            by_length.setdefault(-(-length // multiple) * multiple, []).append(doc)
        positions = torch.cat([torch.arange(n) for n in lengths])
        target = torch.empty(total, dtype=torch.long)
        buckets, sources, reals, row = [], [], [], 0
        for padded, docs in sorted(by_length.items()):
            start = torch.tensor([starts[d] for d in docs])[:, None]
            size = torch.tensor([lengths[d] for d in docs])[:, None]
            step = torch.arange(padded)[None, :]
            source = start + torch.minimum(step, size - 1)
            real = step < size
            rows = row + torch.arange(len(docs) * padded).view(len(docs), padded)
            target[source[real]] = rows[real]
            buckets.append(_Bucket(len(docs), padded, source.flatten().to(device)))
            sources.append(source.flatten())
            reals.append(real.flatten())
            row += len(docs) * padded
        return cls(
            lengths=tuple(lengths),
            positions=positions.to(device),
            buckets=tuple(buckets),
            source=torch.cat(sources).to(device),
            target=target.to(device),
            is_real=torch.cat(reals).to(device)[:, None],
        )


class _Pad(torch.autograd.Function):
    """Flat tokens [T, F] -> padded rows; both directions are gathers, since no gradient arrives at a padding row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: PackedLayout) -> Tensor:
        ctx.layout = layout
        return x.index_select(0, layout.source)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad.index_select(0, ctx.layout.target), None


class _Unpad(torch.autograd.Function):
    """Padded rows -> flat tokens [T, F]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: PackedLayout) -> Tensor:
        ctx.layout = layout
        return x.index_select(0, layout.target)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        layout: PackedLayout = ctx.layout
        return grad.index_select(0, layout.source) * layout.is_real, None


class PackedAttention:
    """Flat tokens [T] of several documents: each attends to its own past only. Equal to one document at a time."""

    def __init__(self, layout: PackedLayout) -> None:
        self.layout = layout

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q [T, H, K], k and v [T, J, K] -> [T, H * K]."""
        layout, heads, kv_heads = self.layout, q.shape[-2], k.shape[-2]
        rows = _Pad.apply(torch.cat([q, k, v.to(q.dtype)], dim=-2), layout)
        outs = []
        parts = rows.split([bucket.num_docs * bucket.length for bucket in layout.buckets])  # whose gradients are joined
        for bucket, part in zip(layout.buckets, parts, strict=True):
            docs = part.unflatten(0, (bucket.num_docs, bucket.length))
            outs.append(causal_sdpa(*docs.split([heads, kv_heads, kv_heads], dim=-2)).flatten(2).flatten(0, 1))
        return _Unpad.apply(torch.cat(outs), layout)

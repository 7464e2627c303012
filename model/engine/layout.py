"""The weights as the engine keeps them: stacked, contiguous copies, made layer by layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

from model.nets.quantised import Linear, Matrix, Quantised, QuantisedLinear, is_quantised
from model.nets.transformer import LayerWeights, Transformer


@dataclass(frozen=True)
class Weights:
    """A transformer's weights in the layout of the engine."""

    layers: list[LayerWeights]
    text_head: Matrix  # [D, legal text tokens]
    code_head: Matrix  # [D, codes]
    embedding: Tensor  # [V, D]
    final_norm: Tensor  # [D], the norm's weight times the square root of D

    @classmethod
    @torch.no_grad()
    def of(cls, transformer: Transformer, text: Sequence[int], codes: Sequence[int], *, release: bool) -> Weights:
        """Copy the layers, and the head's columns of these ids; `release` frees the parameters on the way."""
        # Folding a weight loses bits in bf16, quantised matrices keep theirs, and swin-norm normalises afterwards.
        config, head = transformer.config, transformer.lm_head
        fold = transformer.dtype == torch.float32 and not (config.swin_norm or is_quantised(transformer))
        final_norm = transformer.model.norm.weight * config.hidden_size**0.5
        text_head, code_head = (columns(head, torch.tensor(ids, device=transformer.device)) for ids in (text, codes))
        embedding = transformer.model.embed_tokens.weight
        if release and head.weight is not embedding:
            free(head)
        layers = list(kept_layers(transformer, fold_norms=fold, release=release))
        return cls(layers, text_head, code_head, embedding, final_norm)

    @property
    def num_bytes(self) -> int:
        """Bytes of what a step reads, including the embedding."""
        tensors = [getattr(layer, field.name) for layer in self.layers for field in fields(layer)]
        return sum(t.nbytes for t in (*tensors, self.text_head, self.code_head, self.embedding) if t is not None)


def kept_layers(transformer: Transformer, *, fold_norms: bool, release: bool) -> Iterator[LayerWeights]:
    """The engine's copy of each layer; `release` frees the layer's parameters before the next one is stacked."""
    for index, layer in enumerate(transformer.stacked_layers()):
        yield _keep(layer, fold_norms=fold_norms)
        if release:
            free(transformer.model.layers[index])


def columns(linear: Linear, rows: Tensor) -> Matrix:
    """Rows of a head [V, D] as the columns of a matrix [D, n], without a second copy of them on the way."""
    head = linear.weight
    if isinstance(linear, QuantisedLinear):
        return Quantised(head.t(), linear.scale.view(-1)).columns(rows)
    columns = head.new_empty(head.shape[1], len(rows))
    for part, place in zip(rows.split(4096), columns.split(4096, 1), strict=True):
        place.copy_(head[part].t())
    return columns


def free(module: nn.Module) -> None:
    """Give back the memory of a module's parameters and buffers."""
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.requires_grad_(False)
        tensor.data = tensor.data.new_empty(0)


def _keep(layer: LayerWeights, *, fold_norms: bool) -> LayerWeights:
    """Contiguous copies of a layer's stacked weights.

    Contiguous as (in, out): small products read this layout nearly twice as fast as the usual one.
    """
    kept: dict[str, Any] = {}
    for field in fields(layer):
        value = getattr(layer, field.name)
        if isinstance(value, Quantised):
            kept[field.name] = value.contiguous_copy()
        else:
            kept[field.name] = None if value is None else value.detach().clone(memory_format=torch.contiguous_format)
    if fold_norms:
        scale = kept["o"].shape[1] ** 0.5
        kept["qkv"].mul_((kept["input_norm"] * scale)[:, None])
        kept["gate_up"].mul_((kept["post_norm"] * scale)[:, None])
        kept["input_norm"] = kept["post_norm"] = None
    return LayerWeights(**kept)

"""Whether the tensors of a folder are those of the model that its config describes: names, types and shapes.

From headers alone; modules are built without storage to learn their shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TypeVar

import torch
from torch import nn

from model.checkpoint.shards import CheckpointError, TensorEntry, check_storage
from model.config import ModelConfig, TransformerConfig, VQConfig
from model.nets.transformer import Transformer
from model.nets.vq import VQModel

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"
# In addition to the two models: our projection W, and buffers of old exports.
_HARMLESS = ("perception.", "model.vqmodel.", "model.rotary_emb.")

M = TypeVar("M", bound=nn.Module)


def skeleton(build: Callable[[], M]) -> M:
    """Build a module without storage: names and shapes only, until a state is assigned."""
    with torch.device("meta"):
        return build()


# Kept: the next checkpoint mostly has the same shape, and reading one takes time from the streams.
@lru_cache(maxsize=8)
def _transformer_shapes(config: TransformerConfig) -> Mapping[str, tuple[int, ...]]:
    return _shapes(skeleton(lambda: Transformer(config)))


@lru_cache(maxsize=8)
def _vq_shapes(config: VQConfig, *, draws: bool) -> Mapping[str, tuple[int, ...]]:
    return _shapes(skeleton(lambda: VQModel(config, with_decoder=draws)))


def _shapes(module: nn.Module) -> Mapping[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def check_names(entries: Mapping[str, TensorEntry], config: ModelConfig) -> None:
    """Check names, types and shapes of everything but the VQ.

    Raises:
        CheckpointError: the first tensor that is missing, of another shape or type, or not of this model.
    """
    check_storage(entries)
    expected = _transformer_shapes(config.transformer)
    for name, shape in expected.items():
        entry = entries.get(name)
        if entry is None:
            if name == HEAD and config.transformer.tie_word_embeddings:
                continue
            raise CheckpointError("missing_tensor", f"{name} is missing from the checkpoint")
        shared = "_norm." in name and entry.shape in _shared_norms(shape, config.transformer)
        if entry.shape != shape and not shared:
            rows = name in (HEAD, EMBEDDING) and entry.shape[1:] == shape[1:]
            code = "wrong_vocabulary" if rows else "unexpected_shape"
            raise CheckpointError(code, f"{name} has shape {list(entry.shape)}, but config.json expects {list(shape)}")
    for name in entries:
        if name not in expected and not name.startswith(_HARMLESS) and not name.endswith("rotary_emb.inv_freq"):
            raise CheckpointError(
                "unexpected_tensor", f"{name} does not belong to the model that config.json describes"
            )


def _shared_norms(shape: tuple[int, ...], config: TransformerConfig) -> list[tuple[int, ...]]:
    """Alternative shapes of a q/k norm [heads, head_dim]: one row for all heads, or one for the heads of each shard."""
    if len(shape) != 2:
        return []
    heads, head_dim = shape
    shards = [(config.qk_norm_shards, head_dim)] if heads % config.qk_norm_shards == 0 else []
    return [(head_dim,), (1, head_dim), *shards]


def check_vq(entries: Mapping[str, TensorEntry], prefix: str, config: ModelConfig, *, draws: bool) -> None:
    """Check names and shapes of the stored VQ."""
    for name, shape in _vq_shapes(config.vq, draws=draws).items():
        entry = entries.get(prefix + name)
        if entry is None:
            raise CheckpointError("missing_tensor", f"{prefix}{name} is missing from the checkpoint")
        if entry.shape != shape:
            raise CheckpointError(
                "unexpected_shape",
                f"{prefix}{name} has shape {list(entry.shape)}, but vq_config expects {list(shape)}",
            )

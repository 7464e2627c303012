"""The memory of a job's device: refuses a job before its base is loaded, and counts the rollouts that fit at once."""

from __future__ import annotations

from typing import Literal

import torch

from model.checkpoint.memory import WIDTHS, spread_needs, training_needs
from model.checkpoint.shards import CheckpointError, read_entries
from model.config import ConfigError, ModelConfig
from model.engine.device import CPU_SLOTS, free_bytes, total_bytes
from model.nets.kv_cache import KVCache
from model.nets.transformer import Transformer
from model.precision import resolve_precision
from training.jobs.context import JobContext, JobError
from training.spec.hyperparameters import Precision

GIB = 1 << 30
MAX_SLOTS = 256
CACHE_SHARE = 0.4  # of the device's free memory, for the KV cache of rollouts


def require_memory(ctx: JobContext, method: Literal["pesft", "perpo"], *, lora: bool, precision: Precision) -> None:
    """Compare what the job needs before its first token with the memory of its device.

    Raises:
        JobError: ``insufficient_memory`` with the figures.
    """
    device = torch.device(ctx.device)
    try:
        config, entries = ModelConfig.read(ctx.base_folder), read_entries(ctx.base_folder)
    except (CheckpointError, ConfigError):
        return  # loading it says what is wrong
    width = WIDTHS[resolve_precision(precision, device)]
    needed = training_needs(config, entries, width=width, device=device.type, tokens=1)
    kind = f"{'lora' if lora else 'full'}_{method}"
    least = needed[kind]
    if ctx.ranks.size > 1:
        least = spread_needs(config, entries, devices=ctx.ranks.size, width=width, device=device.type, tokens=1)
    memory = total_bytes(device) // (1 if device.type == "cuda" else ctx.ranks.size)
    if least > memory:
        remedy = "" if lora else f"; with `lora` it would be {needed[f'lora_{method}'] / GIB:.1f} GiB"
        raise JobError(
            "insufficient_memory",
            f"training {ctx.spec.base_checkpoint} takes at least {least / GIB:.1f} GiB before its first token, "
            f"and {device.type} has {memory / GIB:.1f} GiB{remedy}; `omni-r1 doctor FOLDER` shows what it takes",
        )


def slots_for(transformer: Transformer, context_len: int) -> int:
    """Concurrent sequences: as many as a share of the device's free memory holds, from 2 to a maximum.

    What the job takes later stays free: gradients and Adam's two moments of every trained parameter, in fp32, and the
    engine's own copy of the weights.
    """
    device = transformer.device
    one = KVCache(transformer.config, 1, context_len, device="meta", dtype=transformer.dtype).num_bytes
    later = sum(p.nbytes + (12 * p.numel() if p.requires_grad else 0) for p in transformer.parameters())
    most = CPU_SLOTS if device.type == "cpu" else MAX_SLOTS
    return max(2, min(most, int((free_bytes(device) - later) * CACHE_SHARE) // one))

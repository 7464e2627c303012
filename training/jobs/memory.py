"""The memory of a job's device: refuses a job before its base is loaded, and counts the rollouts that fit at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from model.checkpoint.memory import WIDTHS, JobFigures, spread_needs, training_needs
from model.checkpoint.parts import weights_of
from model.checkpoint.shards import CheckpointError, read_entries
from model.config import ConfigError, ModelConfig
from model.engine.device import CPU_SLOTS, free_bytes, total_bytes
from model.nets.kv_cache import KVCache
from model.nets.transformer import Transformer
from model.precision import resolve_precision
from training.jobs.context import JobContext, JobError
from training.spec.hyperparameters import PeRPOHyperparameters, PeSFTHyperparameters

GIB = 1 << 30
MAX_SLOTS = 256
CACHE_SHARE = 0.4  # of the device's free memory, for the KV cache of rollouts


def figures_of(
    hyper: PeSFTHyperparameters | PeRPOHyperparameters, tokens: int = 1, context: int | None = None
) -> JobFigures:
    """What these settings take with so many tokens at once; PeRPO's longest prompt and completion are ``context``."""
    figures = JobFigures(tokens=tokens, context=context or tokens, recompute=hyper.recompute)
    if hyper.lora is not None:
        figures = replace(figures, rank=hyper.lora.rank, targets=tuple(hyper.lora.targets))
    if isinstance(hyper, PeSFTHyperparameters):
        return figures
    average, elsewhere = bool(hyper.ema_decay), hyper.rollout_actors > 0
    validates = hyper.validation is not None and (average or elsewhere)  # otherwise with the engine of the rollouts
    engines = int(not elsewhere) + int(validates)
    return replace(figures, engines=engines, reference=hyper.kl_coef > 0, average=average)


def require_memory(
    ctx: JobContext,
    hyper: PeSFTHyperparameters | PeRPOHyperparameters,
    tokens: int = 1,
    context: int | None = None,
) -> None:
    """Compare what the job needs with so many tokens at once with the memory of its device; see :func:`figures_of`.

    Raises:
        JobError: ``insufficient_memory`` with the figures.
    """
    method: Literal["pesft", "perpo"] = "pesft" if isinstance(hyper, PeSFTHyperparameters) else "perpo"
    figures = figures_of(hyper, tokens, context)
    device = torch.device(ctx.device)
    try:
        folder = weights_of(ctx.base_folder)
        config, entries = ModelConfig.read(folder), read_entries(folder)
    except (CheckpointError, ConfigError):
        return  # loading it says what is wrong
    width = WIDTHS[resolve_precision(hyper.precision, device)]

    def needs(kind: str, figures: JobFigures) -> int:
        if ctx.ranks.size > 1 and kind == "full":
            devices = ctx.ranks.size
            return spread_needs(config, entries, devices=devices, width=width, device=device.type, figures=figures)
        return training_needs(config, entries, width=width, device=device.type, figures=figures)[f"{kind}_{method}"]

    kind = "full" if hyper.lora is None else "lora"
    least = needs(kind, figures)
    memory = total_bytes(device) // (1 if device.type == "cuda" else ctx.ranks.size)
    if least > memory:
        remedies = {} if figures.recompute else {"recompute": needs(kind, replace(figures, recompute=True))}
        if hyper.lora is None:
            remedies["lora"] = needs("lora", figures)
        would = "".join(f"; with `{name}` it would be {less / GIB:.1f} GiB" for name, less in remedies.items())
        when = "before its first token" if tokens == 1 else f"with {tokens:,} tokens at a time"
        raise JobError(
            "insufficient_memory",
            f"training {ctx.spec.base_checkpoint} takes at least {least / GIB:.1f} GiB {when}, "
            f"and {device.type} has {memory / GIB:.1f} GiB{would}; `omni-r1 doctor FOLDER` shows what it takes",
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

"""LoRA in a job: the base's precision, the pairs, and the adapter beside every checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from model.checkpoint.adapter import save_adapter
from model.low_rank import LoRASettings
from model.nets.lora import attach
from model.nets.transformer import Transformer
from model.precision import PrecisionChoice
from training.spec.hyperparameters import LoRAHyperparameters


def base_dtype(lora: LoRAHyperparameters | None, precision: PrecisionChoice) -> torch.dtype:
    """Type of the base's weights: fp32 if they are trained, that of the forward if they are frozen."""
    return torch.bfloat16 if lora is not None and precision == "bf16" else torch.float32


def begin(transformer: Transformer, lora: LoRAHyperparameters | None, *, recompute: bool, seed: int) -> None:
    """Attach the pairs, if any, and set whether the backward computes layers again."""
    transformer.recompute_layers = recompute
    if lora is not None:
        attach(transformer, settings_of(lora), seed=seed)


def settings_of(lora: LoRAHyperparameters) -> LoRASettings:
    """The pairs' settings."""
    return LoRASettings(lora.rank, lora.alpha, lora.dropout, tuple(lora.targets))


def adapter_writer(
    transformer: Transformer, lora: LoRAHyperparameters | None, *, base: str
) -> Callable[[Path], None] | None:
    """What writes the adapter of this transformer into a folder; None without LoRA."""
    if lora is None:
        return None
    return partial(save_adapter, transformer=transformer, settings=settings_of(lora), base=base)

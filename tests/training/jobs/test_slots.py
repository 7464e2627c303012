"""How many rollouts run at once: what the job takes later is left free."""

from __future__ import annotations

import pytest
import torch

import training.jobs.memory
from model.engine.device import CPU_SLOTS
from model.low_rank import LoRASettings
from model.nets.kv_cache import KVCache
from model.nets.lora import attach
from model.nets.transformer import Transformer
from tests.tiny import tiny_config
from training.jobs.memory import CACHE_SHARE, slots_for

CONTEXT = 256


def slots(transformer: Transformer, free: int, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(training.jobs.memory, "free_bytes", lambda _device: free)
    return slots_for(transformer, CONTEXT)


def test_slots_follow_the_memory_that_training_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    transformer = Transformer(tiny_config()[0].transformer)
    count = sum(parameter.numel() for parameter in transformer.parameters())
    one = KVCache(transformer.config, 1, CONTEXT, device="meta").num_bytes
    trained = (4 + 12) * count  # the engine's copy; the gradient and two moments
    assert slots(transformer, 1 << 40, monkeypatch) == CPU_SLOTS
    assert slots(transformer, 0, monkeypatch) == 2
    assert slots(transformer, trained, monkeypatch) == 2
    assert slots(transformer, trained + int(10.5 * one / CACHE_SHARE), monkeypatch) == 10
    frozen = transformer.requires_grad_(False)
    assert slots(frozen, trained + int(10.5 * one / CACHE_SHARE), monkeypatch) > 10


def test_pairs_need_less_than_whole_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, thin = (Transformer(tiny_config()[0].transformer) for _ in range(2))
    attach(thin, LoRASettings(rank=2, alpha=4.0))
    free = sum(16 * parameter.numel() for parameter in whole.parameters())
    assert slots(thin, free, monkeypatch) > slots(whole, free, monkeypatch) == 2
    assert next(thin.parameters()).dtype == torch.float32

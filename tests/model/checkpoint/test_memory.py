"""Memory counted from headers, against what the engine really holds."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model.checkpoint.checkpoint import load_checkpoint
from model.checkpoint.memory import LONGEST_CONTEXT, MemoryNeeds, memory_needs, needs_of
from model.checkpoint.shards import read_entries
from model.engine.engine import Engine
from tests.model.sparse import chameleon_config, sparse_checkpoint

GIB = 1 << 30


@pytest.fixture(scope="module")
def seven_b(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The 7B's config, vocabulary and headers; its weights are a hole in a file and never read."""
    return sparse_checkpoint(tmp_path_factory.mktemp("sparse") / "7B", chameleon_config())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counted_bytes_are_those_of_the_engine(tiny_checkpoint: Path, dtype: torch.dtype) -> None:
    loaded = load_checkpoint(tiny_checkpoint, dtype=dtype)
    engine = Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=3, keep_parameters=False)
    assert loaded.vq is not None
    held = engine.num_weight_bytes + sum(tensor.nbytes for tensor in loaded.vq.state_dict().values())
    needs = needs_of(tiny_checkpoint, width=dtype.itemsize, device="cpu")
    assert held <= needs.weights <= held * 1.02  # a few rows of the head are never drawn, and not kept
    assert needs.kv_per_token * 3 * engine.context_len == engine.cache.num_bytes


def test_a_7b_in_bf16_fits_24_gib_and_in_fp32_does_not(seven_b: Path) -> None:
    half = needs_of(seven_b, width=2, device="cuda")
    assert half.weights == pytest.approx(14.3e9, rel=0.01)
    assert half.loading_peak - half.weights < 2e9
    assert half.kv_per_token == 2 * 32 * 32 * 128 * 2
    assert half.max_context(24 * GIB) >= 6000
    assert half.max_context(80 * GIB) == LONGEST_CONTEXT
    assert half.max_context(14 * GIB) == 0
    full = needs_of(seven_b, width=4, device="cuda")
    assert full.loading_peak - full.weights < 2e9
    assert full.max_context(24 * GIB) == 0


def test_slots_share_what_the_weights_leave(seven_b: Path) -> None:
    needs = needs_of(seven_b, width=2, device="cuda")
    for gib in (16, 24, 40, 48, 80):
        slots = needs.slots(gib * GIB, 4096, 16)
        used = needs.weights + needs.work_fixed + 4096 * (needs.work_per_token + slots * needs.kv_per_token)
        assert used <= gib * GIB or slots == 0
        assert slots == 16 or used + 4096 * needs.kv_per_token > gib * GIB
    assert needs.slots(1 << 60, 4096, 16) == 16
    assert needs.slots(0, 4096, 16) == 0


def test_memory_only_grows_with_every_size() -> None:
    """More layers, width, numbers or words never need less."""

    def of(layers: int = 2, width: int = 256, words: int = 9000, number: int = 2) -> MemoryNeeds:
        return memory_needs(chameleon_config(layers, width=width, vocab_size=words), {}, width=number)

    small = of()
    for larger in (of(layers=3), of(width=512), of(words=10_000), of(number=4)):
        assert larger.weights > small.weights
        assert larger.loading_peak > small.loading_peak
        assert larger.kv_per_token >= small.kv_per_token
        assert larger.max_context(2 * GIB) <= small.max_context(2 * GIB)


def test_entries_outside_the_models_count_for_nothing(tiny_checkpoint: Path) -> None:
    config, entries = load_checkpoint(tiny_checkpoint).config, read_entries(tiny_checkpoint)
    alone = {name: entry for name, entry in entries.items() if not name.startswith("model.vqmodel.")}
    with_vq, without = (memory_needs(config, some, width=4) for some in (entries, alone))
    vq = sum(torch.Size(e.shape).numel() * 4 for name, e in entries.items() if name not in alone)
    assert with_vq.weights - without.weights == vq

"""Loading for serving: the weights are in memory once, and progress is counted in bytes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.checkpoint.shards import read_entries
from model.engine.engine import Engine
from model.engine.sequence import SamplingParams
from model.nets.transformer import LayerWeights, Transformer


def serving_engine(loaded: LoadedCheckpoint, *, keep_parameters: bool) -> Engine:
    return Engine(loaded.transformer, loaded.vocab, loaded.template, num_slots=2, keep_parameters=keep_parameters)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_one_layer_is_in_memory_twice(
    tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    """While a layer is stacked, the parameters of those before it and of the head are gone."""
    held: list[list[bool]] = []
    stacked = Transformer.stacked_layers

    def watched(transformer: Transformer) -> Iterator[LayerWeights]:
        for layer in stacked(transformer):
            parts = [one.parameters() for one in transformer.model.layers]
            held.append([any(p.numel() for p in part) for part in parts] + [transformer.lm_head.weight.numel() > 0])
            yield layer

    monkeypatch.setattr(Transformer, "stacked_layers", watched)
    loaded = load_checkpoint(tiny_checkpoint, dtype=dtype)
    engine = serving_engine(loaded, keep_parameters=False)
    assert held == [[True, True, False], [False, True, False]]
    left = sum(parameter.nbytes for parameter in loaded.transformer.parameters())
    assert left == loaded.transformer.model.embed_tokens.weight.nbytes + loaded.transformer.model.norm.weight.nbytes
    prompt = loaded.template.prompt_ids("?", [])
    params = SamplingParams(temperature=1.0, top_p=0.9, seed=3, max_new_tokens=30)
    kept = serving_engine(load_checkpoint(tiny_checkpoint, dtype=dtype), keep_parameters=True)
    assert engine.generate([prompt], params) == kept.generate([prompt], params)


def test_bytes_are_counted_as_they_are_read(tiny_checkpoint: Path) -> None:
    sizes = {"BF16": 2, "F32": 4}
    entries = read_entries(tiny_checkpoint).values()
    expected = sum(torch.Size(entry.shape).numel() * sizes[entry.dtype] for entry in entries)
    seen: list[int] = []
    load_checkpoint(tiny_checkpoint, on_bytes=seen.append)
    assert sum(seen) == expected
    assert len(seen) == len(entries)

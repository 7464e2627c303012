"""LoRA pairs: the same answers beside the matrix and merged, gradients for the pairs alone, and recomputed layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from model.checkpoint.checkpoint import LoadedCheckpoint, load_checkpoint
from model.low_rank import LoRASettings
from model.nets.attention import PackedAttention, PackedLayout
from model.nets.lora import (
    TARGETS,
    MergedState,
    attach,
    load_trained_state,
    pairs,
    shared_copy,
    trained_state,
)
from model.nets.transformer import Transformer
from tests.tiny import make_tiny_checkpoint

LENGTHS = [23, 17]


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedCheckpoint:
    return load_checkpoint(make_tiny_checkpoint(tmp_path / "tiny"))


@pytest.fixture
def transformer(loaded: LoadedCheckpoint) -> Transformer:
    return loaded.transformer


def fill(transformer: Transformer, seed: int = 3) -> None:
    """Give every B values; they are zero at first."""
    torch.manual_seed(seed)
    for _, pair in pairs(transformer):
        torch.nn.init.normal_(pair.b, std=0.05)


def states(transformer: Transformer, *, merged: bool = False) -> Tensor:
    ids = torch.arange(sum(LENGTHS)) * 7 % transformer.config.vocab_size
    layout = PackedLayout.from_lengths(LENGTHS)
    weights = transformer.layer_weights() if merged else None
    return transformer(ids, layout.positions, PackedAttention(layout), weights=weights)


@pytest.mark.parametrize(
    "targets", [TARGETS, ("k_proj", "up_proj"), ("v_proj",), ("o_proj", "down_proj")], ids="-".join
)
def test_pairs_beside_the_matrices_equal_merged_ones(transformer: Transformer, targets: tuple[str, ...]) -> None:
    before = states(transformer)
    attach(transformer, LoRASettings(3, 12.0, targets=targets, rslora=len(targets) == 2))
    torch.testing.assert_close(states(transformer), before)  # B is zero
    fill(transformer)
    beside = states(transformer)
    assert (beside - before).abs().max() > 1e-3
    torch.testing.assert_close(states(transformer, merged=True), beside, rtol=1e-4, atol=1e-5)
    plain = Transformer(transformer.config)
    plain.load_state_dict(MergedState(transformer))
    torch.testing.assert_close(states(plain), beside, rtol=1e-4, atol=1e-5)


def test_only_the_pairs_learn(transformer: Transformer) -> None:
    attach(transformer, LoRASettings(2, 4.0))
    fill(transformer)
    states(transformer).square().mean().backward()
    learning = {name for name, parameter in transformer.named_parameters() if parameter.grad is not None}
    assert learning == {*trained_state(transformer)}
    assert len(learning) == 2 * len(TARGETS) * transformer.config.num_layers
    assert all(parameter.grad.abs().max() > 0 for parameter in transformer.parameters() if parameter.grad is not None)


def test_gradients_equal_those_through_the_merged_matrix(transformer: Transformer) -> None:
    attach(transformer, LoRASettings(2, 4.0))
    fill(transformer)
    gradients = []
    for merged in (False, True):
        transformer.zero_grad()
        states(transformer, merged=merged).square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in transformer.parameters() if parameter.requires_grad])
    for beside, through in zip(*gradients, strict=True):
        torch.testing.assert_close(beside, through, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("rank", [0, 4], ids=["full", "lora"])
def test_recomputed_layers_have_the_same_gradients(transformer: Transformer, rank: int, dropout: float) -> None:
    if rank:
        attach(transformer, LoRASettings(rank, 8.0, dropout))
        fill(transformer)
    else:
        transformer.requires_grad_(True)
    transformer.train()
    found = []
    for recompute in (False, True):
        transformer.recompute_layers = recompute
        transformer.zero_grad()
        torch.manual_seed(0)
        hidden = states(transformer)
        hidden.square().mean().backward()
        found.append([hidden.detach()] + [p.grad.clone() for p in transformer.parameters() if p.grad is not None])
    assert all(torch.equal(kept, again) for kept, again in zip(*found, strict=True))


def test_dropout_acts_in_training_only(transformer: Transformer) -> None:
    attach(transformer, LoRASettings(4, 8.0, 0.5))
    fill(transformer)
    assert torch.equal(states(transformer.eval()), states(transformer))
    assert not torch.equal(states(transformer.train()), states(transformer))


def test_trained_state_holds_the_pairs_alone(loaded: LoadedCheckpoint, tmp_path: Path) -> None:
    attach(loaded.transformer, LoRASettings(2, 4.0))
    fill(loaded.transformer)
    expected, state = states(loaded.transformer), trained_state(loaded.transformer)
    assert all(".lora." in name for name in state)
    again = load_checkpoint(loaded.folder).transformer
    attach(again, LoRASettings(2, 4.0), seed=9)
    load_trained_state(again, state)
    assert torch.equal(states(again), expected)
    other = load_checkpoint(loaded.folder).transformer
    attach(other, LoRASettings(2, 4.0, targets=("q_proj",)))
    with pytest.raises(RuntimeError, match="other LoRA settings"):
        load_trained_state(other, state)


def test_a_shared_copy_learns_alone(transformer: Transformer) -> None:
    attach(transformer, LoRASettings(2, 4.0))
    other = shared_copy(transformer)
    assert other.lm_head.weight is transformer.lm_head.weight
    before = states(transformer)
    fill(other)
    assert torch.equal(states(transformer), before)
    assert not torch.equal(states(other), before)


@pytest.mark.parametrize(
    "settings", [LoRASettings(0, 1.0), LoRASettings(2, 1.0, targets=()), LoRASettings(2, 1.0, targets=("lm_head",))]
)
def test_impossible_settings_are_refused(transformer: Transformer, settings: LoRASettings) -> None:
    with pytest.raises(ValueError, match="rank of at least 1 and targets among"):
        attach(transformer, settings)


def test_pairs_are_attached_once(transformer: Transformer) -> None:
    attach(transformer, LoRASettings(2, 4.0))
    with pytest.raises(ValueError, match="already"):
        attach(transformer, LoRASettings(2, 4.0))

"""The optimiser of every training loop: what decays, and whose state it takes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model.nets.transformer import Transformer
from tests.tiny import tiny_config, tiny_modules
from training.jobs.loop import SettingsChanged, adamw, load_optimizer, set_lr


def tiny() -> Transformer:
    return tiny_modules(tiny_config()[0])[0].requires_grad_(True)


def test_only_linear_layers_and_embeddings_decay() -> None:
    model, bias = tiny(), nn.Linear(3, 3)
    optimizer = adamw([model, bias], weight_decay=0.5)
    set_lr(optimizer, 0.1)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for parameter in (*model.parameters(), *bias.parameters()):
        parameter.grad = torch.zeros_like(parameter)
    bias_before = bias.bias.detach().clone()
    optimizer.step()
    for name, parameter in model.named_parameters():
        factor = 1.0 if "norm" in name else 0.95
        assert torch.allclose(parameter, factor * before[name], atol=1e-7), name
    assert torch.equal(bias.bias, bias_before)


def test_tied_and_frozen_weights_count_right() -> None:
    one, other, frozen = nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False)
    other.weight = one.weight
    optimizer = adamw([one, other, frozen], weight_decay=0.1)
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 2]


def test_state_of_other_groups_is_refused() -> None:
    model = tiny()
    by_shape = [[p for p in model.parameters() if (p.ndim >= 2) is matrix] for matrix in (True, False)]
    old = torch.optim.AdamW([{"params": parameters} for parameters in by_shape])
    with pytest.raises(SettingsChanged, match="other parameter groups"):
        load_optimizer(adamw([model], weight_decay=0.1), old.state_dict())

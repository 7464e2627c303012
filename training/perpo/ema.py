"""Exponential moving average of a policy's trained weights, in fp32."""

from __future__ import annotations

from typing import Any

import torch

from model.nets.lora import load_trained_state, shared_copy, trained_state
from model.nets.transformer import Transformer


class MovingAverage:
    """e <- d e + (1 - d) w after every update.

    d = min(decay, (1 + n) / (10 + n)) with n earlier updates: the average covers at most about the last ninth of a
    young run, so the start weights fade out at any decay.
    """

    def __init__(self, policy: Transformer, decay: float) -> None:
        """The average starts at the policy's weights."""
        self.model = shared_copy(policy).eval()
        self._names = [name for name, parameter in policy.named_parameters() if parameter.requires_grad]
        self.model.requires_grad_(False)
        self._decay, self._updates = decay, 0

    @torch.no_grad()
    def update(self, policy: Transformer) -> None:
        """Take in the weights of one more update."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        self._updates += 1
        own, new = dict(self.model.named_parameters()), dict(policy.named_parameters())
        torch._foreach_lerp_([own[name] for name in self._names], [new[name] for name in self._names], 1.0 - decay)

    def state(self) -> dict[str, Any]:
        """What the next update depends on."""
        return {"updates": self._updates, "model": trained_state(self.model)}

    def load(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        self._updates = state["updates"]
        load_trained_state(self.model, state["model"])

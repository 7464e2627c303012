"""Exponential moving average of a policy's weights, in fp32."""

from __future__ import annotations

import copy
from typing import Any

import torch

from model.nets.transformer import Transformer


class MovingAverage:
    """e <- d e + (1 - d) w after every update.

    d = min(decay, (1 + n) / (10 + n)) with n earlier updates: the average covers at most about the last ninth of a
    young run, so the start weights fade out at any decay.
    """

    def __init__(self, policy: Transformer, decay: float) -> None:
        """The average starts at the policy's weights."""
        self.model = copy.deepcopy(policy).eval().requires_grad_(False)
        self._decay, self._updates = decay, 0

    @torch.no_grad()
    def update(self, policy: Transformer) -> None:
        """Take in the weights of one more update."""
        decay = min(self._decay, (1 + self._updates) / (10 + self._updates))
        self._updates += 1
        torch._foreach_lerp_(list(self.model.parameters()), list(policy.parameters()), 1.0 - decay)

    def state(self) -> dict[str, Any]:
        """What the next update depends on."""
        return {"updates": self._updates, "model": self.model.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Restore a saved state."""
        self._updates = state["updates"]
        self.model.load_state_dict(state["model"])

"""Learning rates as functions of the step alone. Knows no tensors."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, Protocol

Decline = Literal["cosine", "linear", "constant"]


class Schedule(Protocol):
    """The learning rate as a function of the step alone."""

    def lr(self, step: int) -> float:
        """The learning rate of step ``step`` (from 0)."""
        ...


@dataclass(frozen=True, slots=True)
class LinearSchedule:
    """Linear warm-up to ``peak``, then a straight line to zero at ``total`` steps (transformers' default)."""

    peak: float
    total: int
    warmup: int = 0

    def lr(self, step: int) -> float:
        """The learning rate of step ``step`` (from 0)."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        return self.peak * max(0.0, (self.total - step) / max(1, self.total - self.warmup))


@dataclass(frozen=True, slots=True)
class ConstantSchedule:
    """Linear warm-up to ``peak``, then constant."""

    peak: float
    warmup: int = 0

    def lr(self, step: int) -> float:
        """The learning rate of step ``step`` (from 0)."""
        return self.peak * min(1.0, (step + 1) / max(1, self.warmup))


@dataclass(frozen=True, slots=True)
class CosineSchedule:
    """Linear warm-up to ``peak``, then a cosine down to ``floor * peak`` at ``total`` steps."""

    peak: float
    total: int
    warmup: int = 50
    floor: float = 0.05

    def lr(self, step: int) -> float:
        """The learning rate of step ``step`` (from 0)."""
        if step < self.warmup:
            return self.peak * (step + 1) / self.warmup
        progress = min(1.0, (step - self.warmup) / max(1, self.total - self.warmup))
        return self.peak * (self.floor + (1.0 - self.floor) * 0.5 * (1.0 + math.cos(math.pi * progress)))


def make_schedule(decline: Decline, peak: float, total: int, warmup: int, *, floor: float) -> Schedule:
    """The schedule of this name; only a cosine has a floor."""
    if decline == "linear":
        return LinearSchedule(peak, total, warmup)
    if decline == "constant":
        return ConstantSchedule(peak, warmup)
    return CosineSchedule(peak, total, warmup, floor)

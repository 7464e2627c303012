"""The settings of LoRA pairs (:mod:`model.nets.lora`), without torch."""

from __future__ import annotations

from dataclasses import dataclass

TARGETS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True, slots=True)
class LoRASettings:
    """Shape and scale of the pairs.

    Attributes:
        rank: R.
        alpha: the scale s is alpha / rank, or alpha / sqrt(rank) with ``rslora``.
        dropout: share of the inputs of A that a training step drops.
        targets: projections that get a pair, of `TARGETS`.
        rslora: see alpha (arXiv 2312.03732).
    """

    rank: int
    alpha: float
    dropout: float = 0.0
    targets: tuple[str, ...] = TARGETS
    rslora: bool = False

    @property
    def scale(self) -> float:
        """The factor s of the product."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)

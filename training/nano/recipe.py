"""Sizes, data and lengths of the embedded family's stages; :mod:`training.nano.stages` runs them."""

from __future__ import annotations

from dataclasses import dataclass, field

from model.precision import PrecisionChoice
from training.nano.vq import VQSpec
from training.pesft.losses import Reduction
from training.world.drills import DRAWING, LOCATING


@dataclass(frozen=True, slots=True)
class Polish:
    """Repeats a stage with a raised learning rate: on the same traces (drills), or on new ones with other shares."""

    steps: int
    lr: float
    traces: int = 0  # (drills) new ones, from the seeds after the earlier ones; 0: the same again
    shares: tuple[tuple[str, float], ...] = ()  # share of each family (kind of drill); none: as before
    tokens: int | None = None  # per step, instead of the stage's


# One minus the accuracy after the first polish, plus a tenth; `find`, the worst, doubled.
MISSED: tuple[tuple[str, float], ...] = (
    ("find", 1.2),
    ("relation", 0.3),
    ("count", 0.5),
    ("bar", 0.2),
    ("difference", 0.1),
    ("table", 0.1),
    ("peak", 0.1),
    ("extend", 0.5),
    ("bounce", 0.55),
    ("mirror", 0.15),
    ("walker", 0.15),
    ("tilt", 0.4),
    ("rotate", 0.1),
)

# Likewise after the fourth phase, read off 64 tasks a family of the RL range (39,000,000 on), `count` doubled.
MISSED_AGAIN: tuple[tuple[str, float], ...] = (
    ("find", 0.16),
    ("relation", 0.28),
    ("count", 0.9),
    ("bar", 0.2),
    ("difference", 0.14),
    ("table", 0.22),
    ("peak", 0.08),
    ("extend", 0.16),
    ("bounce", 0.22),
    ("mirror", 0.16),
    ("walker", 0.08),
    ("tilt", 0.34),
    ("rotate", 0.06),
)

# The same again with more of `count`, which uses wider, numbered marks from then on.
RECOUNTED: tuple[tuple[str, float], ...] = tuple(
    (family, 1.2 if family == "count" else share) for family, share in MISSED_AGAIN
)


@dataclass(frozen=True, slots=True)
class NanoRecipe:
    """Sizes and lengths of all stages; ``RECIPES`` names the vetted ones."""

    seed: int = 0
    precision: PrecisionChoice = "auto"
    vq: VQSpec = field(default_factory=VQSpec)
    hidden_size: int = 192
    intermediate_size: int = 512
    num_layers: int = 6
    num_heads: int = 6
    num_kv_heads: int = 2
    text_vocab: int = 1024
    tokenizer_tasks: int = 4_000  # tasks whose texts train the tokenizer
    reference_tasks: int = 400  # tasks whose images set the scale of the perception score
    drills: int = 60_000
    base_steps: int = 1_200
    base_lr: float = 2e-3
    base_tokens: int = 6_144
    base_polish: tuple[Polish, ...] = (
        Polish(1_600, 1.5e-3, 18_000, tuple(DRAWING.items()), 3_072),
        Polish(984, 2e-3, 56_000, tuple(DRAWING.items()), 3_072),
        Polish(1_650, 2e-3, 44_000, tuple(LOCATING.items()), 3_072),
        Polish(1_640, 1.5e-3, tokens=3_072),
        Polish(600, 1.2e-3, tokens=3_072),
    )
    traces: int = 64_000
    pesft_steps: int = 6_000
    pesft_lr: float = 2e-3
    polish: tuple[Polish, ...] = (
        Polish(1_300, 8e-4),
        Polish(2_600, 1.5e-3, 36_000, MISSED),
        Polish(1_500, 1.2e-3),
        Polish(3_449, 1.5e-3, 44_000, MISSED_AGAIN),
        Polish(2_600, 1.3e-3, 26_000, RECOUNTED),
    )
    perception_weight: float = 1.0
    perception_reduction: Reduction = "mean"
    pesft_tokens: int = 3_072


RECIPES = {
    "nano": NanoRecipe(),
    # hours become seconds: tests that every stage runs, not that it learns
    "smoke": NanoRecipe(
        vq=VQSpec(
            pictures=32,
            plain_steps=2,
            crop_steps=4,
            crop_batch=4,
            full_steps=2,
            full_batch=2,
            polish_steps=2,
            decoder_steps=2,
            decoder_batch=2,
            num_embeddings=128,
        ),
        hidden_size=64,
        intermediate_size=96,
        num_layers=2,
        num_heads=4,
        text_vocab=512,
        tokenizer_tasks=200,
        reference_tasks=20,
        drills=64,
        base_steps=4,
        traces=32,
        pesft_steps=4,
        base_tokens=1_024,
        pesft_tokens=1_024,
        base_polish=(Polish(2, 1e-4, 32, (("draw", 1.0),), 512),),
        polish=(Polish(2, 1e-4), Polish(2, 1e-4, 32, (("find", 1.0), ("tilt", 1.0)))),
    ),
}

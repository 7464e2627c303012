"""Vetted specifications to start from, as plain JSON; :func:`training.spec.spec.parse_spec` fills in the rest."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Preset:
    """A vetted specification to start from; ``card`` ones are offered on the training page."""

    name: str
    title: str
    what: str
    spec: dict[str, Any] = field(repr=False)
    card: bool = False


_WORLD: dict[str, Any] = {"source": "unitasks"}
_UPSTREAM: dict[str, Any] = {
    "epochs": 1.0,
    "lr": 1e-5,
    "schedule": "linear",
    "warmup": 0,
    "weight_decay": 0.0,
    "betas": [0.9, 0.999],
    "batch_samples": 8,
    "micro_batches": 8,
    "max_len": 5_100,
    "normalisation": "micro_batch",
    "perception_reduction": "mean",
    "perception_projection": "frozen",
    "perception_state": "token",
    "recompute": True,
}
_PAPER: dict[str, Any] = {
    "steps": 30,
    "lr": 1e-7,
    "schedule": "constant",
    "precision": "auto",
    "prompts_per_step": 64,
    "rollouts_per_prompt": 16,
    "oversampling": 3.0,
    "mini_batch_prompts": 16,
    "kl_estimator": "k1",
    "max_new_tokens": 5_100,
    "reward": {"tau": 3.0},
    "recompute": True,
}
_JSONL = {"source": "jsonl", "path": "data"}
_PAIRS = {"rank": 16, "alpha": 32.0}  # their learning rates are our choice [D]

PRESETS: dict[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "nano-pesft",
            "PeSFT",
            "Teaches the base to reason in images from annotated traces: cross-entropy plus the perception loss.",
            {
                "method": "pesft",
                "base_checkpoint": "nano-base",
                "data": {**_WORLD, "num_samples": 8_000},
                "hyperparameters": {
                    "steps": 1_000,
                    "lr": 2e-3,
                    "warmup": 100,
                    "save_every": 200,
                },
            },
            card=True,
        ),
        Preset(
            "nano-perpo",
            "PeRPO",
            "Reinforcement learning on tasks without annotations: rewards for the answer, the format and the images.",
            {
                "method": "perpo",
                "base_checkpoint": "nano-omni-r1",
                "data": {**_WORLD, "num_samples": 4_000},
                "hyperparameters": {"steps": 60},
            },
            card=True,
        ),
        Preset(
            "nano-zero",
            "Zero",
            "The whole recipe without annotated images: the base draws its own, then PeSFT, PeRPO and a benchmark.",
            {
                "method": "pipeline",
                "base_checkpoint": "nano-base",
                "data": {
                    "zero": {**_WORLD, "num_samples": 2_000},
                    "perpo": {**_WORLD, "num_samples": 4_000},
                    "benchmark": {**_WORLD, "num_samples": 200},
                },
                "hyperparameters": {
                    # The base's drills, limited to confident drawings (docs/zero.md has the numbers).
                    "zero": {
                        "context": "instruction",
                        "pictures_shown": 2,
                        "temperature": 0.0,
                        "candidates": 1,
                        "score": "first",
                        "keep_share": 0.4,
                    },
                    "pesft": {"steps": 600, "lr": 2e-3, "warmup": 50, "template": "tagged"},
                    "perpo": {"steps": 40},
                    "benchmark": {"compare_with": "pesft"},
                },
            },
            card=True,
        ),
        Preset(
            "upstream",
            "PeSFT as the authors' code",
            "The authors' released settings for a 7B checkpoint, their deviations from the paper included.",
            {"method": "pesft", "base_checkpoint": "Anole-7b", "data": _JSONL, "hyperparameters": _UPSTREAM},
        ),
        Preset(
            "upstream-lora",
            "PeSFT as the authors' code, on 24 GB",
            "The same with LoRA pairs, for a 7B on one GPU of 24 GB.",
            {
                "method": "pesft",
                "base_checkpoint": "Anole-7b",
                "data": _JSONL,
                "hyperparameters": {**_UPSTREAM, "lora": _PAIRS, "lr": 1e-4},
            },
        ),
        Preset(
            "paper",
            "PeRPO as in the paper",
            "The paper's values for a 7B checkpoint. A small model hardly moves under them.",
            {"method": "perpo", "base_checkpoint": "Omni-R1", "data": _JSONL, "hyperparameters": _PAPER},
        ),
        Preset(
            "paper-lora",
            "PeRPO as in the paper, on 48 GB",
            "The same with LoRA pairs, for a 7B on one GPU of 48 GB.",
            {
                "method": "perpo",
                "base_checkpoint": "Omni-R1",
                "data": _JSONL,
                "hyperparameters": {**_PAPER, "lora": _PAIRS, "lr": 1e-5},
            },
        ),
    )
}

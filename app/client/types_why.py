"""Typed dictionaries of reliance, attention and interventions."""

from __future__ import annotations

from typing import Literal, TypedDict

from app.contract.words import Replacement

Effect = TypedDict(
    "Effect",
    {
        "trace_id": str,
        "step": int,
        "with": Replacement,
        "answer_before": str | None,
        "answer_after": str | None,
        "changed": bool | None,
        "verdict_before": Literal["right", "wrong"] | None,
        "verdict_after": Literal["right", "wrong"] | None,
        "later_images_changed": int | None,
    },
)
"""What replacing one image changed; `changed` is None while it runs, or if it did not complete."""

Skipped = TypedDict("Skipped", {"step": int, "with": Replacement, "reason": str})
"""A replacement that is not possible."""


class ImageReliance(TypedDict):
    """What an image is worth, in nats: to the answer, and to each step. `step` 0: an image of the question."""

    step: int
    image_id: str | None
    reliance: float
    per_step: list[float]


class Reliance(TypedDict):
    """How much a trace relies on each image."""

    answer_logprob: float
    images: list[ImageReliance]
    method: Literal["masking"]


class ImageAttention(TypedDict):
    """The share of attention that an image gets, and where on it. `step` 0: an image of the question."""

    step: int
    image_id: str | None
    share: float
    grid: list[list[float]]

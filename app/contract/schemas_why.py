"""JSON of reliance and attention, and the request of interventions: how much a trace depends on its images."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from app.contract.schemas import In, Out
from app.contract.words import Replacement

MAX_MEMBERS = 64
AnyStep = Annotated[int, Field(ge=1, le=1_000_000)]  # beyond the trace's steps it is `no_such_step`

# ---- requests


class FromStep(In):
    """The tokens of a step."""

    step: AnyStep


class AttentionIn(In):
    """Body of `POST /v1/traces/{id}/attention`: whose attention."""

    from_: Literal["answer"] | FromStep = Field("answer", alias="from")


class InterventionsIn(In):
    """Body of `POST /v1/traces/{id}/interventions`: which images are replaced, and with what."""

    steps: Literal["all"] | Annotated[list[AnyStep], Field(min_length=1, max_length=1000)] = "all"
    with_: list[Replacement] = Field(
        ["previous"],
        alias="with",
        min_length=1,
        max_length=6,
        description="the image before, a white one, the question's, that of another trace or task, the task's "
        "reference, or `none`: the image itself, as a control",
    )


# ---- responses


class ImageRelianceOut(Out):
    """What an image is worth: the loss of log-probability, in nats, when no later token can see it."""

    step: int = Field(description="0: an image of the question")
    image_id: str | None
    reliance: float = Field(description="of the answer")
    per_step: list[float] = Field(description="of the text and codes of each step")


class RelianceOut(Out):
    """How much a trace relies on each image."""

    answer_logprob: float = Field(description="log-probability of the answer's tokens with every image, in nats")
    images: list[ImageRelianceOut]
    method: Literal["masking"]


class ImageAttentionOut(Out):
    """Where the attention on an image goes; `grid` sums to `share`."""

    step: int = Field(description="0: an image of the question")
    image_id: str | None
    share: float
    grid: list[list[float]]


class AttentionOut(Out):
    """How much tokens attend to each image up to them: the mean over heads and layers. Not a cause."""

    images: list[ImageAttentionOut]
    layers: Literal["last third"]
    method: Literal["attention"]

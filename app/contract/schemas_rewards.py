"""The JSON of `POST /v1/rewards`. Pure shapes, like `app.contract.schemas`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from app.contract.schemas import In, Out

MAX_CHARS = 8_000
MAX_CHOICES = 26

Text = Annotated[str, Field(max_length=MAX_CHARS)]
Choice = Annotated[str, Field(max_length=1_000)]
Label = Annotated[str, Field(min_length=1, max_length=16)]


class RewardIn(In):
    """Body of `POST /v1/rewards`."""

    answer: Text | None = Field(description="as a model wrote it; an empty one is graded 0")
    reference: Text = Field(description="the right answer; with `choices` also an option's label")
    choices: (
        Annotated[list[Choice], Field(max_length=MAX_CHOICES)]
        | Annotated[dict[Label, Choice], Field(max_length=MAX_CHOICES)]
    ) = Field(default_factory=list, description="the question's options in order, or by their labels")
    similarity: bool = Field(False, description="whether an answer in nearly the same words earns its similarity")


class RewardOut(Out):
    """The verdict on an answer."""

    accuracy: float = Field(ge=0, le=1, description="1 right, 0 wrong; between them only with `similarity`")
    check: str = Field(
        description="what decided: exact, option, number, unit, date, time, ratio, set, formula, text, similarity, none"
    )
    answer: str = Field(description="the answer as it was compared")
    reference: str = Field(description="the reference as it was compared")
    details: dict[str, str] = Field(description="intermediate values: what answer and reference were read as")

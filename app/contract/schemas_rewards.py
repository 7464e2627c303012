"""The JSON of `POST /v1/rewards`. Shapes only, like `app.contract.schemas`."""

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

    answer: Text | None = Field(description="the model's answer; an empty one is graded 0")
    reference: Text = Field(description="the correct answer; with `choices`, an option's label is valid too")
    choices: (
        Annotated[list[Choice], Field(max_length=MAX_CHOICES)]
        | Annotated[dict[Label, Choice], Field(max_length=MAX_CHOICES)]
    ) = Field(default_factory=list, description="the question's options in order, or by label")
    similarity: bool = Field(False, description="award partial accuracy by text similarity")


class RewardOut(Out):
    """The grade of an answer."""

    accuracy: float = Field(ge=0, le=1, description="1 correct, 0 wrong; fractions only with `similarity`")
    check: str = Field(
        description="one of exact, option, number, unit, date, time, ratio, set, formula, text, similarity, none"
    )
    answer: str = Field(description="the answer as compared")
    reference: str = Field(description="the reference as compared")
    details: dict[str, str] = Field(description="intermediate values: the parsed answer and reference")

"""The JSON of `POST /v1/rewards`. Shapes only, like `app.contract.schemas`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from app.contract.schemas import In, Out

MAX_CHARS = 8_000
TRACE_ID = r"^tr_[0-9A-Za-z]{1,60}$"
MAX_CHOICES = 26

Text = Annotated[str, Field(max_length=MAX_CHARS)]
Choice = Annotated[str, Field(max_length=1_000)]
Label = Annotated[str, Field(min_length=1, max_length=16)]


class RewardSettingsIn(In):
    """The weights of the total reward, by default those of PeRPO, and rewards of your own."""

    alpha: float | None = Field(None, description="of the accuracy")
    beta: float | None = Field(None, description="of the format")
    gamma: float | None = Field(None, description="of the perception")
    functional: float | None = Field(
        None, description="of the share of right drawings, as in a job with `credit: trajectory`; 0 by default"
    )
    custom: dict[str, Any] | Annotated[list[dict[str, Any]], Field(max_length=4)] = Field(
        default_factory=list, description="as `reward.custom` of a job: `name`, `file` or `url`, `weight`, …"
    )


class RewardIn(In):
    """Body of `POST /v1/rewards`."""

    answer: Text | None = Field(
        None, description="the model's answer; required unless `trace_id` gives one; an empty one is graded 0"
    )
    reference: Text | None = Field(
        None,
        description="the correct answer; with `choices`, an option's label is valid too; required unless `trace_id` "
        "belongs to a task, whose answer it is by default",
    )
    choices: (
        Annotated[list[Choice], Field(max_length=MAX_CHOICES)]
        | Annotated[dict[Label, Choice], Field(max_length=MAX_CHOICES)]
    ) = Field(default_factory=list, description="the question's options in order, or by label")
    similarity: bool = Field(False, description="award partial accuracy by text similarity")
    trace_id: str | None = Field(
        None, pattern=TRACE_ID, description="a completed trace: its answer, format and drawings are scored, too"
    )
    reward: RewardSettingsIn | None = Field(None, description="weights of the total, and rewards of your own")


class DrawingOut(Out):
    """The score of a drawing of the trace."""

    step: int
    energy: float | None = Field(description="E_2D of its codes; null if unknown")
    score: float | None = Field(description="its part of R_Pe")
    check: Literal["ok", "capped", "flat", "copied", "malformed"] | None = Field(description="the guard that decided")
    right: bool | None = Field(description="the checkers' verdict; null without a task, and for older traces")


class CustomRewardOut(Out):
    """What a reward of your own returned."""

    value: float
    weight: float
    parts: dict[str, float] = Field(description="the named values that `value` is the sum of")


class RewardOut(Out):
    """The grade of an answer, and with `trace_id` or `reward` the other components."""

    accuracy: float = Field(ge=0, le=1, description="1 correct, 0 wrong; fractions only with `similarity`")
    check: str = Field(
        description="one of exact, option, number, unit, date, time, ratio, set, formula, text, similarity, none"
    )
    answer: str = Field(description="the answer as compared")
    reference: str = Field(description="the reference as compared")
    details: dict[str, str] = Field(description="intermediate values: the parsed answer and reference")
    format: float | None = Field(None, description="of a trace: 1 for a complete trajectory of its template")
    perception: float | None = Field(None, description="of a trace: R_Pe; null if the energy of an image is unknown")
    drawings: list[DrawingOut] | None = Field(None, description="of a trace, in order")
    drawings_right: int | None = Field(None, description="of a task's trace: drawings that its checkers accept")
    drawings_total: int | None = Field(None, description="of a task's trace: drawings that it needs or has")
    functional: float | None = Field(
        None, description="of a task's trace: the share of right drawings; null if the verdict on each is unknown"
    )
    custom: dict[str, CustomRewardOut] | None = Field(None, description="rewards of your own by label")
    weights: dict[str, float] | None = Field(None, description="of a trace: those of the total")
    total: float | None = Field(None, description="of a trace: the weighted sum; null if a component is unknown")

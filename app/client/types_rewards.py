"""JSON of rewards: the grade of an answer, the components of a trace, and rewards of your own."""

from __future__ import annotations

from typing import NotRequired, TypedDict


class Drawing(TypedDict):
    """The score of a drawing; `right` is the checkers' verdict, None without one."""

    step: int
    energy: float | None
    score: float | None
    check: str | None
    right: bool | None


class CustomReward(TypedDict):
    """What a reward of your own returned; `value` is the sum of its `parts`, if it named some."""

    value: float
    weight: float
    parts: dict[str, float]


class Reward(TypedDict):
    """The grade of an answer, and the components of a trace and of rewards of your own, if asked for."""

    accuracy: float
    check: str
    answer: str
    reference: str
    details: dict[str, str]
    format: NotRequired[float]
    perception: NotRequired[float | None]
    drawings: NotRequired[list[Drawing]]
    drawings_right: NotRequired[int]
    drawings_total: NotRequired[int]
    functional: NotRequired[float | None]
    custom: NotRequired[dict[str, CustomReward]]
    weights: NotRequired[dict[str, float]]
    total: NotRequired[float | None]


class KnownReward(TypedDict):
    """A reward of your own: an entry point, or a function of a file."""

    name: NotRequired[str]
    package: NotRequired[str]
    file: NotRequired[str]
    description: NotRequired[str]


class KnownFamily(TypedDict):
    """A task family of your own."""

    name: str
    package: str


class Extensions(TypedDict):
    """What a job may name besides the built-in rewards and data."""

    rewards: list[KnownReward]
    families: list[KnownFamily]
    files_allowed: bool

"""Builds a family's chain of steps; helpers for wording and levels. Knows no families."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import TypeVar

from PIL import Image

from training.skills import Action, apply
from training.world.task import Box, Level, Step, Target

T = TypeVar("T")
Grades = Mapping[Level, Sequence[T]]  # of each level, the values to draw from

COUNT_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight")
ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")


def grades(normal: Sequence[T], hard: Sequence[T], *graded: Sequence[T]) -> Grades[T]:
    """The values of something at every level: normal, hard, 1, 2, 3 …; equally likely, repeat one to weight it."""
    return {"normal": normal, "hard": hard, **dict(enumerate(graded, 1))}


def one_of(rng: Random, values: Sequence[T]) -> T:
    """Choose one of the values; a single one costs no random number."""
    return values[0] if len(values) == 1 else rng.choice(values)


def say(rng: Random, *phrasings: str) -> str:
    """Choose one of the phrasings."""
    return phrasings[rng.randrange(len(phrasings))]


def ring(box: Box) -> Box:
    """The outer edge of an ink box around `box`, clipped to the image."""
    return max(box[0] - 3, 0), max(box[1] - 3, 0), min(box[2] + 3, 64), min(box[3] + 3, 64)


def plural(shape: str) -> str:
    """The plural, for example "crosses"."""
    return shape + ("es" if shape.endswith("s") else "s")


class Chain:
    """Collects steps; `image` is the newest image, which the next action draws on."""

    def __init__(self, image: Image.Image) -> None:
        self.image = image
        self.steps: list[Step] = []

    def act(self, text: str, action: Action, state: str, target: Target) -> None:
        """Add a step whose image is the action applied to the newest image."""
        self.image = apply(action, self.image)
        self.steps.append(Step(text, action.skill, str(action), self.image, state, target))

    def predict(self, text: str, change: str, image: Image.Image, state: str, target: Target) -> None:
        """Add a step whose image is the next state, drawn completely by the family."""
        action = Action("PRED", (change,))
        self.image = image
        self.steps.append(Step(text, action.skill, str(action), image, state, target))
